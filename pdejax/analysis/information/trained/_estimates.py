"""Trainable estimates: bounds from below and above, and v1 (16) as written."""

import math
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._check import choice
from pdejax.analysis.information._counting import gaussian_entropy
from pdejax.analysis.information._samples import (
    AbstractInformation,
    Estimate,
    Kind,
    checked_pairs,
    checked_sizes,
    record,
)
from pdejax.analysis.information.trained._networks import ConditionalGaussian, Network

Direction = Literal["x given t", "t given x"]


class BarberAgakov(AbstractInformation):
    r"""$\tilde I = H(X) + E_{p(x,t)}\ln q(x\,|\,t) = I - E_t\,\mathrm{KL}(p(x|t)\,\|\,q(x|t)) \le I$ with a learned Gaussian
    q; with `direction="t given x"` the same with X and T exchanged, $\tilde I = H(T) + E\ln q(t\,|\,x)$.

    The bound needs the differential entropy of the variable q describes, in nats:

    - `entropy` a number: the known H(X). Then, and only then, Ĩ is a lower bound for every q (`kind` `"lower"`).
    - `entropy="gaussian"`: estimated from the batch by
      [`gaussian_entropy`][pdejax.analysis.information._counting.gaussian_entropy], which is unbiased for a Gaussian variable
      and too large for any other: Ĩ may then lie above I, so `kind` is `"neither"`.

    The gradient with respect to t needs no H(X); with `"t given x"` it needs that of H(T). For a mixture T = f(X) + noise,
    H(T) is not Gaussian in general. log q is at most `highest` for the `floor` of q's standard deviation, so
    `limit` = H + highest, and `saturated` says that the floor sets the value.

    `hidden`, `full`, `floor`: as in [`ConditionalGaussian`][pdejax.analysis.information.trained.ConditionalGaussian]; the floor
    is in the unit of the variable q describes. Raises `ValueError` for sizes below 1, an unknown direction or entropy.
    Source: Barber and Agakov 2003, The IM algorithm (NIPS 16); Poole et al., arXiv 1905.06922, (2).
    """

    q: ConditionalGaussian
    x_dim: int = eqx.field(static=True)
    t_dim: int = eqx.field(static=True)
    direction: Direction = eqx.field(static=True)
    entropy: float | str = eqx.field(static=True)

    @checked
    def __init__(
        self,
        x_dim: int,
        t_dim: int,
        hidden: int = 64,
        *,
        key: PRNGKeyArray,
        direction: Direction = "x given t",
        entropy: float | str = "gaussian",
        floor: float = 1e-3,
        full: bool = False,
    ):
        checked_sizes("BarberAgakov", {"hidden": 0}, x_dim=x_dim, t_dim=t_dim, hidden=hidden)
        choice("BarberAgakov", "direction", direction, get_args(Direction))
        known = isinstance(entropy, (int, float)) and not isinstance(entropy, bool) and math.isfinite(entropy)
        if not known and entropy != "gaussian":
            raise ValueError(
                f"BarberAgakov: entropy={entropy!r} must be a number of nats, the differential entropy of what q describes, or "
                '"gaussian" to estimate it from each batch.'
            )
        given, described = (t_dim, x_dim) if direction == "x given t" else (x_dim, t_dim)
        self.q = ConditionalGaussian(given, described, hidden, key=key, floor=floor, full=full)
        self.x_dim, self.t_dim, self.direction = int(x_dim), int(t_dim), direction  # pyright: ignore[reportAttributeAccessIssue]
        self.entropy = float(entropy) if known else entropy

    @property
    def kind(self) -> Kind:
        """`"lower"` with a known entropy, else `"neither"`."""
        return "neither" if self.entropy == "gaussian" else "lower"

    def estimate(self, x, t, key: PRNGKeyArray | None = None, *, noise=None) -> Estimate:
        """The value for this batch. `key` is not used. See `AbstractInformation`.

        With `entropy="gaussian"` the batch must hold more pairs than features."""
        del key
        x, t = checked_pairs(self, x, t)
        given, described = (t, x) if self.direction == "x given t" else (x, t)
        known = isinstance(self.entropy, float)
        entropy = jnp.asarray(self.entropy, t.dtype) if known else gaussian_entropy(described)
        value = entropy + jnp.mean(self.q.log_prob(described, given))
        return record(value, entropy + self.q.highest, self.q.at_floor(given), self.kind, x.shape[0], noise)

    def fit_loss(self, x, t, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        """Negative log-likelihood of q: the negative bound but for the entropy."""
        del key
        x, t = checked_pairs(self, x, t)
        given, described = (t, x) if self.direction == "x given t" else (x, t)
        return -jnp.mean(self.q.log_prob(described, given))


class CLUB(AbstractInformation):
    r"""Contrastive log-ratio upper bound of I(X; T) with a learned Gaussian $q(t\,|\,x)$,

    $$\tilde I = E_{p(x,t)}\ln q(t|x) - E_{p(x)p(t)}\ln q(t|x)
      \approx \frac1b\sum_i\Big[\ln q(t_i|x_i) - \frac1{b-1}\sum_{j\ne i}\ln q(t_j|x_i)\Big].$$

    With the true channel q = p it is at least I: the gap is the mean over x of KL(p(t) ‖ p(t|x)). With another q it is an
    upper bound as long as KL(p(x,t) ‖ q(t|x)p(x)) ≤ KL(p(x)p(t) ‖ q(t|x)p(x)), which training ensures: q is fitted by
    maximum likelihood (`fit_loss`), not by the bound. The gap is large for sharp channels: I = −½ln(1−ρ²) gives
    ρ²/(1−ρ²). There is no upper `limit`; `saturated` says that the `floor` of q's standard deviation sets the value.

    We leave j = i out, so that the mean over batches is exact; the source keeps it, which scales the value by 1 − 1/b.
    `sampled` is vCLUB-S: one random j ≠ i for each i, an estimate of the same mean with more variance; it needs a `key`.
    `hidden`, `full`, `floor`: as in [`ConditionalGaussian`][pdejax.analysis.information.trained.ConditionalGaussian].

    Raises `ValueError` for sizes below 1, a floor that is not positive, or a missing key.
    Source: Cheng et al., arXiv 2006.12013, (6), (14), Thm 3.2.
    """

    q: ConditionalGaussian
    x_dim: int = eqx.field(static=True)
    t_dim: int = eqx.field(static=True)
    sampled: bool = eqx.field(static=True)

    @checked
    def __init__(
        self,
        x_dim: int,
        t_dim: int,
        hidden: int = 64,
        *,
        key: PRNGKeyArray,
        sampled: bool = False,
        floor: float = 1e-3,
        full: bool = False,
    ):
        checked_sizes("CLUB", {"hidden": 0}, x_dim=x_dim, t_dim=t_dim, hidden=hidden)
        self.q = ConditionalGaussian(x_dim, t_dim, hidden, key=key, floor=floor, full=full)
        self.x_dim, self.t_dim, self.sampled = int(x_dim), int(t_dim), bool(sampled)

    def estimate(self, x, t, key: PRNGKeyArray | None = None, *, noise=None) -> Estimate:
        """The bound for this batch. `key` is needed if `sampled`. See `AbstractInformation`."""
        x, t = checked_pairs(self, x, t)
        b = x.shape[0]
        own = self.q.log_prob(t, x)
        if self.sampled:
            if key is None:
                raise ValueError("CLUB: sampled=True draws negatives; give estimate(x, t, key).")
            # A turn of a random order: every j ≠ i is equally likely, and none is used twice.
            order = jax.random.permutation(key, b)
            partner = jnp.zeros(b, order.dtype).at[order].set(jnp.roll(order, 1))
            other = self.q.log_prob(t[partner], x)
        else:
            other = (b * self.q.mean_log_prob(t, x) - own) / (b - 1)
        return record(jnp.mean(own - other), jnp.inf, self.q.at_floor(x), "upper", b, noise)

    def fit_loss(self, x, t, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        """Negative log-likelihood of q(t|x)."""
        del key
        x, t = checked_pairs(self, x, t)
        return -jnp.mean(self.q.log_prob(t, x))


Critic = Literal["separable", "joint"]


class InfoNCE(AbstractInformation):
    r"""Lower bound of I(X; T) from a learned critic f,

    $$\tilde I = \frac1b\sum_i\ln\frac{e^{f(x_i,t_i)}}{\frac1b\sum_j e^{f(x_i,t_j)}} = \ln b + \frac1b\sum_i\ln p_{ii}
      \;\le\; \ln b, \qquad p_{ij} = \frac{e^{f(x_i, t_j)}}{\sum_m e^{f(x_i, t_m)}} .$$

    Its mean over batches of b independent pairs is at most I for every f. It never exceeds `limit` = ln b: with the best
    critic $p_{ii}\approx(1 + b\,e^{-i})^{-1}$, i the information density with mean I, so one half is reached at i = ln b.
    `saturated` says that the median of $p_{ii}$ passes one half: the information is above ln b, or the critic has learned
    the batch by heart. Take a larger batch. (In float32 scores |f| beyond 1e9 are rounded by more than exp can hold: NaN.)

    - `critic`: `"separable"`, $f = g(x)\cdot h(t)/\sqrt{e}$ with e features, b evaluations; or `"joint"`, one network on
      (x, t), b² evaluations, which needs fewer parameters for sharp dependence.
    - `hidden`: width of its two hidden layers, `features` e (default: `hidden`).

    Raises `ValueError` for sizes below 1 or an unknown critic.
    Source: van den Oord et al., arXiv 1807.03748; as a bound: Poole et al., arXiv 1905.06922, (10).
    """

    g: Network
    h: Network | None
    x_dim: int = eqx.field(static=True)
    t_dim: int = eqx.field(static=True)

    @checked
    def __init__(
        self,
        x_dim: int,
        t_dim: int,
        hidden: int = 64,
        *,
        key: PRNGKeyArray,
        critic: str = "separable",
        features: int | None = None,
    ):
        features = hidden if features is None else features
        checked_sizes("InfoNCE", x_dim=x_dim, t_dim=t_dim, hidden=hidden, features=features)
        choice("InfoNCE", "critic", critic, get_args(Critic))
        k1, k2 = jax.random.split(key)
        self.x_dim, self.t_dim = int(x_dim), int(t_dim)
        if critic == "separable":
            self.g = Network(x_dim, features, hidden, key=k1)
            self.h = Network(t_dim, features, hidden, key=k2)
        else:
            self.g, self.h = Network(x_dim + t_dim, 1, hidden, key=k1), None

    def scores(self, x: Float[Array, "b dx"], t: Float[Array, "b dt"]) -> Float[Array, "b b"]:
        """f(x_i, t_j) for all i, j."""
        if self.h is not None:
            left, right = self.g(x), self.h(t)
            return left @ right.T / left.shape[-1] ** 0.5
        b = x.shape[0]
        pairs = jnp.concatenate([jnp.repeat(x, b, axis=0), jnp.tile(t, (b, 1))], axis=-1)
        return self.g(pairs).reshape(b, b)

    def estimate(self, x, t, key: PRNGKeyArray | None = None, *, noise=None) -> Estimate:
        """The bound for this batch; its limit is ln b. `key` is not used. See `AbstractInformation`."""
        del key
        x, t = checked_pairs(self, x, t)
        limit = math.log(x.shape[0])
        own = self._log_shares(x, t)
        # Rounding must not lift the value over its limit.
        value = limit + jnp.minimum(jnp.mean(own), 0.0)
        return record(value, limit, jnp.median(own) > -math.log(2.0), "lower", x.shape[0], noise)

    def fit_loss(self, x, t, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        """The negative bound."""
        return -self.estimate(x, t, key).value

    def _log_shares(self, x: Array, t: Array) -> Float[Array, " b"]:
        """ln p_ii."""
        return jnp.diagonal(jax.nn.log_softmax(self.scores(x, t), axis=-1))


class PaperEstimate(AbstractInformation):
    r"""v1 (16), which v1 calls a variational lower bound, with learned Gaussians q(t|x) and q(t):

    $$\tilde I = E_{p(x,t)}\ln q(t|x) - E_{p(x)p(t)}\ln q(t)
      = I - E_x\,\mathrm{KL}\big(p(t|x)\,\|\,q(t|x)\big) + \mathrm{KL}\big(p(t)\,\|\,q(t)\big).$$

    It is neither bound (claim C8): a poor q(t|x) pushes it down, a poor q(t) up, without limit. v1 does not say how its φ is
    found; we fit both densities by maximum likelihood. With the best Gaussians the first divergence is 0 where the channel
    is Gaussian, and the second is the distance of T from a Gaussian: then Ĩ lies *above* I unless T is Gaussian.

    `limit` is inf; `saturated` says that the `floor` of a standard deviation of q(t|x) sets the value. `hidden`, `full`,
    `floor`: as in [`ConditionalGaussian`][pdejax.analysis.information.trained.ConditionalGaussian].
    Raises `ValueError` for sizes below 1 or a floor that is not positive.
    """

    conditional: ConditionalGaussian
    marginal: ConditionalGaussian
    x_dim: int = eqx.field(static=True)
    t_dim: int = eqx.field(static=True)

    @checked
    def __init__(
        self, x_dim: int, t_dim: int, hidden: int = 64, *, key: PRNGKeyArray, floor: float = 1e-3, full: bool = False
    ):
        checked_sizes("PaperEstimate", {"hidden": 0}, x_dim=x_dim, t_dim=t_dim, hidden=hidden)
        k1, k2 = jax.random.split(key)
        self.conditional = ConditionalGaussian(x_dim, t_dim, hidden, key=k1, floor=floor, full=full)
        self.marginal = ConditionalGaussian(0, t_dim, 0, key=k2, floor=floor, full=full)
        self.x_dim, self.t_dim = int(x_dim), int(t_dim)

    def estimate(self, x, t, key: PRNGKeyArray | None = None, *, noise=None) -> Estimate:
        """The value for this batch. `key` is not used. See `AbstractInformation`."""
        del key
        x, t = checked_pairs(self, x, t)
        value = jnp.mean(self.conditional.log_prob(t, x)) - jnp.mean(self.marginal.log_prob(t, x[:, :0]))
        return record(value, jnp.inf, self.conditional.at_floor(x), "neither", x.shape[0], noise)

    def fit_loss(self, x, t, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        """Negative log-likelihoods of q(t|x) and q(t), added."""
        del key
        x, t = checked_pairs(self, x, t)
        return -jnp.mean(self.conditional.log_prob(t, x)) - jnp.mean(self.marginal.log_prob(t, x[:, :0]))
