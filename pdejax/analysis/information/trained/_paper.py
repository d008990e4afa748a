"""v1 (16) as written."""

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
