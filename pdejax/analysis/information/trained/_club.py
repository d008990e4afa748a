"""CLUB: an upper bound from a learned channel q(t|x)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax.analysis.information._estimate import (
    AbstractInformation,
    Estimate,
    checked_pairs,
    checked_sizes,
    record,
)
from pdejax.analysis.information.trained._gaussian import ConditionalGaussian


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
