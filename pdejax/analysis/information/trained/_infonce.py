"""InfoNCE: a lower bound by telling true pairs from shuffled ones."""

import math
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax._check import choice
from pdejax.analysis.information._estimate import (
    AbstractInformation,
    Estimate,
    checked_pairs,
    checked_sizes,
    record,
)
from pdejax.analysis.information.trained._network import Network

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
