"""Channels whose mutual information is known, to calibrate estimators on."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PRNGKeyArray
from scipy.special import xlogy

from pdejax._check import choice
from pdejax.exact import diffusion_channel_information, heat_eigenvalues, mode_sum
from pdejax.exact._arguments import Boundary, count, depth, positive

Transform = Literal["half-cube", "asinh", "spiral", "cube"]


class Pairs(eqx.Module):
    """N independent pairs: `x`, `y` (floats `(N, d)` or labels `(N,)`); `signal (N, dy)`, what y is without its noise,
    where the channel adds Gaussian noise of standard deviation `noise`, else None."""

    x: Array
    y: Array
    signal: Array | None = None
    noise: float | None = eqx.field(static=True, default=None)


@dataclasses.dataclass(frozen=True)
class Channel:
    """`draw(key, N)` gives [`Pairs`][pdejax.analysis.information.channels.Pairs] with exactly `information` nats; `name` for
    tables."""

    name: str
    draw: Callable[[PRNGKeyArray, int], Pairs]
    information: float


def gaussian_channel(correlations: float | Sequence[float], dims: int | None = None, *, mixed: bool = False) -> Channel:
    r"""$y_k = \rho_kx_k + \sqrt{1-\rho_k^2}\,\xi_k$: $I = -\tfrac12\sum_k\ln(1-\rho_k^2)$. One ρ serves `dims` features.

    `mixed` turns x and y each by a fixed random rotation, which keeps I and spreads it over all pairs of features;
    then, or with different ρ, no `signal` is given. Raises `ValueError` for |ρ| ≥ 1 (infinite), none, or dims that do
    not match.
    """
    rho = np.atleast_1d(np.asarray(correlations, float))
    if dims is not None:
        count("dims", dims)
        if rho.size not in (1, dims):
            raise ValueError(
                f"gaussian_channel: {rho.size} correlations for dims={dims}; give one, or one per dimension."
            )
        rho = np.broadcast_to(rho, (dims,))
    if rho.ndim != 1 or rho.size == 0 or not np.all(np.abs(rho) < 1):
        raise ValueError(f"gaussian_channel: correlations={correlations} must lie strictly between −1 and 1.")
    d, equal = rho.size, bool(np.all(rho == rho[0]))
    rng = np.random.default_rng(d)
    turns = [np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(2)] if mixed else [np.eye(d)] * 2

    def draw(key, n):
        a, b = (jax.random.normal(k, (n, d)) for k in jax.random.split(key))
        r = jnp.asarray(rho, a.dtype)[None]
        left, right = (jnp.asarray(turn, a.dtype) for turn in turns)
        signal = r * a
        y = signal + jnp.sqrt(1 - r**2) * b
        if mixed:
            a, y, signal = a @ left, y @ right, signal @ right
        # Noise of one size in all directions stays so when turned.
        noise = math.sqrt(1 - rho[0] ** 2) if equal else None
        return Pairs(a, y, signal if equal else None, noise)

    shown = f"{rho[0]:g}" if equal else f"{rho.min():g} to {rho.max():g}"
    name = f"Gaussian d={d} ρ={shown}{' mixed' if mixed else ''}"
    return Channel(name, draw, abs(0.5 * float(np.sum(np.log1p(-(rho**2))))))


def diffusion_channel(
    tokens: int = 4,
    t: float = 0.5,
    noise: float = 0.5,
    *,
    prior_variances: ArrayLike | Sequence[float] | None = None,
    boundary: Boundary = "neumann",
    diffusivity: float = 1.0,
) -> Channel:
    r"""A Gaussian field of one feature on a line of `tokens`, x = u₀, seen after diffusion over depth `t` in noise, y =
    u(t) + σξ: $I = \tfrac12\sum_k\ln(1 + s_ke^{2\lambda_kt}/\sigma^2)$, THEORY §5.11,
    [`diffusion_channel_information`][pdejax.exact.diffusion_channel_information]. `prior_variances` s_k > 0 of the
    orthonormal modes, default 2^{−k}. Raises `ValueError` for a size below 1, t < 0, σ ≤ 0 or variances that do not
    fit."""
    count("tokens", tokens)
    depth(t)
    positive("noise", noise)
    s = 0.5 ** np.arange(tokens) if prior_variances is None else np.asarray(prior_variances, float)
    rates = np.asarray(heat_eigenvalues(tokens, boundary, diffusivity))
    if s.shape != (tokens,) or not np.all(s > 0):
        raise ValueError(f"diffusion_channel: prior_variances has shape {s.shape}; give {tokens} positive numbers.")
    exact = float(diffusion_channel_information(s, rates, t, noise))

    def draw(key, n):
        first, second = jax.random.split(key)
        a = jax.random.normal(first, (tokens, n))
        a = a * jnp.sqrt(jnp.asarray(s, a.dtype))[:, None]
        signal = mode_sum(a * jnp.exp(jnp.asarray(rates * t, a.dtype))[:, None], boundary).T
        x = mode_sum(a, boundary).T
        return Pairs(x, signal + noise * jax.random.normal(second, signal.shape, signal.dtype), signal, float(noise))

    return Channel(f"diffusion n={tokens} t={t:g} σ={noise:g}", draw, exact)


def discrete_channel(joint: ArrayLike | Sequence[Sequence[float]], name: str | None = None) -> Channel:
    r"""Labels with joint probabilities `joint (a, b)`: $I = \sum_{ij}p_{ij}\ln\frac{p_{ij}}{p_i\,p_j}$. Raises
    `ValueError` unless they are not negative and sum to 1."""
    p = np.asarray(joint, float)
    if p.ndim != 2 or not np.all(p >= 0) or abs(p.sum() - 1) > 1e-9:
        raise ValueError(f"discrete_channel: joint of shape {p.shape} must hold probabilities (a, b) that sum to 1.")
    information = float(np.sum(xlogy(p, p)) - np.sum(xlogy(p.sum(1), p.sum(1))) - np.sum(xlogy(p.sum(0), p.sum(0))))

    def draw(key, n):
        cells = jax.random.categorical(key, jnp.log(jnp.asarray(p.ravel())), shape=(n,))
        return Pairs(cells // p.shape[1], cells % p.shape[1])

    return Channel(name or f"discrete {p.shape[0]}×{p.shape[1]}", draw, information)


def binary_symmetric_channel(flip: float) -> Channel:
    r"""Even bits, flipped with probability p: $I = \ln2 + p\ln p + (1-p)\ln(1-p)$ (Cover and Thomas §7.1.4). Raises
    `ValueError` for p outside [0, 1]."""
    if not 0 <= flip <= 1:
        raise ValueError(f"binary_symmetric_channel: flip={flip} must be a probability.")
    return discrete_channel(0.5 * np.array([[1 - flip, flip], [flip, 1 - flip]]), f"binary symmetric p={flip:g}")


def class_channel(classes: int = 5) -> Channel:
    r"""m even classes c, one feature x uniform on [c, c + 2], y = c: $I = \ln m - \frac{(m-1)\ln2}m$, for estimators
    that take labels (Gao et al., arXiv 1709.06212, experiment II). Raises `TypeError`/`ValueError` for fewer than 2
    classes."""
    count("classes", classes, 2)

    def draw(key, n):
        first, second = jax.random.split(key)
        y = jax.random.randint(first, (n,), 0, classes)
        x = jax.random.uniform(second, (n, 1))
        return Pairs(y[:, None].astype(x.dtype) + 2 * x, y)

    return Channel(f"classes m={classes}", draw, math.log(classes) - (classes - 1) / classes * math.log(2))


def transformed(channel: Channel, by: str, *, both: bool = True) -> Channel:
    r"""The channel with y (and x, if `both`) sent through a smooth bijection, which keeps I: Czyż et al., arXiv
    2306.11078, §4.

    - `"half-cube"`: $x\sqrt{|x|}$ per feature, heavy tails; `"cube"`: x³, heavier; `"asinh"`: light tails.
    - `"spiral"`: $x \mapsto e^{A\|x\|^2}x$, A turning the first and second feature (needs two).

    Raises `ValueError` for another name; drawing raises it for labels or too few features.
    """
    choice("transformed", "by", by, get_args(Transform))

    def draw(key, n):
        pairs = channel.draw(key, n)
        return Pairs(_bent(pairs.x, by) if both else pairs.x, _bent(pairs.y, by))

    return Channel(f"{channel.name}, {by}", draw, channel.information)


def _bent(x: Array, by: str) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"transformed: labels cannot go through {by!r}; take a channel of floats.")
    if by == "half-cube":
        return x * jnp.sqrt(jnp.abs(x))
    if by == "cube":
        return x**3
    if by == "asinh":
        return jnp.arcsinh(x)
    if x.shape[1] < 2:
        raise ValueError('transformed: "spiral" turns two features; the channel has one.')
    angle = jnp.sum(x**2, axis=1)
    c, s = jnp.cos(angle), jnp.sin(angle)
    first, second = c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]
    return x.at[:, 0].set(first).at[:, 1].set(second)


def standard_channels() -> list[Channel]:
    """The channels of the calibration table: dependence from none to strong, one to ten dimensions, heavy tails,
    diffusion, labels."""
    wide = gaussian_channel(0.8, 2)
    return [
        gaussian_channel(0.0, 1),
        gaussian_channel(0.6, 1),
        gaussian_channel(0.9, 1),
        gaussian_channel(0.999, 1),
        gaussian_channel(0.6, 5),
        gaussian_channel(0.9, 5),
        gaussian_channel(0.6, 10, mixed=True),
        transformed(gaussian_channel(0.9, 1), "half-cube"),
        transformed(gaussian_channel(0.9, 1), "asinh"),
        transformed(wide, "half-cube"),
        transformed(wide, "spiral"),
        diffusion_channel(4, 0.1),
        diffusion_channel(4, 1.0),
        binary_symmetric_channel(0.1),
        class_channel(5),
    ]
