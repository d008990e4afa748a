"""Learned Gaussian densities q(t|x) and q(t)."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax.analysis.information._estimate import checked_sizes
from pdejax.analysis.information.trained._network import Network


class ConditionalGaussian(eqx.Module):
    r"""A Gaussian density $q(t\,|\,x) = N(t;\ \mu(x),\ S(x)\,(U^TU)^{-1}S(x))$ with $S = \mathrm{diag}\,s(x)$.

    μ and ln s come from a [`Network`]; $s_k^2 = \sigma_0^2 + e^{2r_k(x)}$, so the standard deviations never fall below
    `floor` σ₀ > 0, which bounds log q. `full` adds the unit lower triangular U, the same for all x, which reaches every
    covariance; else U = I. `hidden` = 0: μ affine and s constant, which is exact for linear-Gaussian channels. `x_dim` = 0
    makes it a plain Gaussian q(t). Starts at N(0, 1 + σ₀²) for every x.

    Raises `ValueError` for sizes below 1 (`x_dim`, `hidden`: 0) or a floor that is not positive.
    """

    mean: Network
    log_std: Float[Array, " dt"]
    spread: Network | None
    coupling: Float[Array, "dt dt"] | None
    floor: float = eqx.field(static=True)

    def __init__(
        self, x_dim: int, t_dim: int, hidden: int = 64, *, key: PRNGKeyArray, floor: float = 1e-3, full: bool = False
    ):
        least = {"x_dim": 0, "hidden": 0}
        checked_sizes("ConditionalGaussian", least, x_dim=x_dim, t_dim=t_dim, hidden=hidden)
        if not (isinstance(floor, (int, float)) and math.isfinite(floor) and floor > 0):
            raise ValueError(f"floor={floor!r} must be a positive standard deviation, in the unit of what q describes.")
        k1, k2 = jax.random.split(key)
        self.mean = Network(x_dim, t_dim, hidden, key=k1, quiet=True)
        self.spread = Network(x_dim, t_dim, hidden, key=k2, quiet=True) if hidden else None
        self.log_std = jnp.zeros(t_dim)
        self.coupling = jnp.zeros((t_dim, t_dim)) if full else None
        self.floor = float(floor)

    def moments(self, x: Float[Array, "b dx"]) -> tuple[Float[Array, "b dt"], Float[Array, "b dt"]]:
        """μ(x) and ln s(x), each `(b, dt)`."""
        mean = self.mean(x)
        raw = jnp.broadcast_to(self.log_std.astype(x.dtype)[None], mean.shape)
        if self.spread is not None:
            raw = raw + self.spread(x)
        return mean, 0.5 * jnp.logaddexp(jnp.asarray(2 * math.log(self.floor), x.dtype), 2 * raw)

    def log_prob(self, t: Float[Array, "b dt"], x: Float[Array, "b dx"]) -> Float[Array, " b"]:
        """ln q(t_i | x_i), nats, `(b,)`."""
        mean, log_std = self.moments(x)
        z = (t - mean) * jnp.exp(-log_std)
        z = z if self.coupling is None else z @ self._factor(x.dtype).T
        return -0.5 * jnp.sum(z**2, axis=-1) - jnp.sum(log_std, axis=-1) - self._constant

    def mean_log_prob(self, t: Float[Array, "c dt"], x: Float[Array, "b dx"]) -> Float[Array, " b"]:
        r"""$\frac1c\sum_j \ln q(t_j\,|\,x_i)$, nats, `(b,)`, from the mean and covariance of t: no `(b, c)` table."""
        mean, log_std = self.moments(x)
        centre = jnp.mean(t, axis=0, keepdims=True)
        offset, scale = centre - mean, jnp.exp(-log_std)
        off = t - centre
        if self.coupling is None:
            square = jnp.sum((jnp.mean(off**2, axis=0, keepdims=True) + offset**2) * scale**2, axis=-1)
        else:
            factor = self._factor(x.dtype)
            weight = (factor.T @ factor) * (off.T @ off / off.shape[0])
            square = jnp.sum((scale @ weight) * scale, axis=-1) + jnp.sum(((offset * scale) @ factor.T) ** 2, axis=-1)
        return -0.5 * square - jnp.sum(log_std, axis=-1) - self._constant

    def at_floor(self, x: Float[Array, "b dx"]) -> Array:
        """Whether the floor makes up 98 % or more of the median variance."""
        _, log_std = self.moments(x)
        return jnp.median(log_std) < math.log(self.floor) + 0.01

    @property
    def highest(self) -> float:
        """The largest value of ln q, nats."""
        return -self._constant - self.log_std.shape[-1] * math.log(self.floor)

    @property
    def _constant(self) -> float:
        return 0.5 * self.log_std.shape[-1] * math.log(2 * math.pi)

    def _factor(self, dtype) -> Array:
        assert self.coupling is not None
        return jnp.tril(self.coupling.astype(dtype), -1) + jnp.eye(self.coupling.shape[-1], dtype=dtype)
