"""The Barber–Agakov bound with a learned Gaussian."""

import math
from typing import Literal, get_args

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax._check import choice
from pdejax.analysis.information._estimate import (
    AbstractInformation,
    Estimate,
    Kind,
    checked_pairs,
    checked_sizes,
    record,
)
from pdejax.analysis.information.estimators._exact_gaussian import gaussian_entropy
from pdejax.analysis.information.trained._gaussian import ConditionalGaussian

Direction = Literal["x given t", "t given x"]


class BarberAgakov(AbstractInformation):
    r"""$\tilde I = H(X) + E_{p(x,t)}\ln q(x\,|\,t) = I - E_t\,\mathrm{KL}(p(x|t)\,\|\,q(x|t)) \le I$ with a learned Gaussian
    q; with `direction="t given x"` the same with X and T exchanged, $\tilde I = H(T) + E\ln q(t\,|\,x)$.

    The bound needs the differential entropy of the variable q describes, in nats:

    - `entropy` a number: the known H(X). Then, and only then, Ĩ is a lower bound for every q (`kind` `"lower"`).
    - `entropy="gaussian"`: estimated from the batch by
      [`gaussian_entropy`][pdejax.analysis.information.estimators.gaussian_entropy], which is unbiased for a Gaussian variable
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
