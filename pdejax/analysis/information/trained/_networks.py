"""The networks inside learned estimates: critics and conditional Gaussians."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax.analysis.information._samples import checked_sizes
from pdejax.solvers._written import one_line
from pdejax.terms._base import gaussian


class Network(eqx.Module):
    r"""$W x + b + V_2\,\sigma(V_1\sigma(V_0x + a_0) + a_1)$ on rows `x (b, in) -> (b, out)`, σ = GELU.

    The affine part makes linear relations exact; `hidden` = 0 leaves it alone. With `quiet` V₂ = 0 at the start.
    """

    w: Float[Array, "out inputs"]
    b: Float[Array, " out"]
    v0: Float[Array, "hidden inputs"] | None
    a0: Float[Array, " hidden"] | None
    v1: Float[Array, "hidden hidden"] | None
    a1: Float[Array, " hidden"] | None
    v2: Float[Array, "out hidden"] | None

    __repr__ = one_line

    def __init__(self, inputs: int, outputs: int, hidden: int, *, key: PRNGKeyArray, quiet: bool = False):
        scales = [max(n, 1) ** -0.5 for n in (inputs, inputs, hidden, hidden)]
        shapes = [(outputs, inputs), (hidden, inputs), (hidden, hidden), (outputs, hidden)]
        w, v0, v1, v2 = (s * a for s, a in zip(scales, gaussian(key, *shapes), strict=True))
        self.w, self.b = jnp.zeros_like(w) if quiet else w, jnp.zeros(outputs)
        self.v0 = self.a0 = self.v1 = self.a1 = self.v2 = None
        if hidden:
            self.v0, self.a0, self.v1, self.a1 = v0, jnp.zeros(hidden), v1, jnp.zeros(hidden)
            self.v2 = jnp.zeros_like(v2) if quiet else v2

    def __call__(self, x: Float[Array, "b inputs"]) -> Float[Array, "b out"]:
        out = _affine(x, self.w, self.b)
        if self.v0 is None:
            return out
        h = jax.nn.gelu(_affine(x, self.v0, self.a0), approximate=True)
        h = jax.nn.gelu(_affine(h, self.v1, self.a1), approximate=True)
        return out + _affine(h, self.v2, None)


def _affine(x: Array, w: Array | None, b: Array | None) -> Array:
    assert w is not None
    y = x @ w.T.astype(x.dtype)
    return y if b is None else y + b.astype(x.dtype)[None]


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

    __repr__ = one_line

    @checked
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
