"""Channels whose information is known, and the errors of estimators on them."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray
from scipy.special import xlogy

from pdejax._arguments import checked
from pdejax._check import choice
from pdejax.analysis.information._measures import mutual_information
from pdejax.analysis.information._samples import Estimate, checked_sizes
from pdejax.exact import diffusion_channel_information, heat_eigenvalues, mode_sum
from pdejax.exact._arguments import Boundary, count, depth, positive
from pdejax.solvers._written import one_line

if TYPE_CHECKING:
    import xarray


Transform = Literal["half-cube", "asinh", "spiral", "cube"]


class Pairs(eqx.Module):
    """N independent pairs: `x`, `y` (floats `(N, d)` or labels `(N,)`); `signal (N, dy)`, what y is without its noise,
    where the channel adds Gaussian noise of standard deviation `noise`, else None."""

    x: Array
    y: Array
    signal: Array | None = None
    noise: float | None = eqx.field(static=True, default=None)

    __repr__ = one_line


@dataclasses.dataclass(frozen=True)
class Channel:
    """`draw(key, N)` gives [`Pairs`][pdejax.analysis.information.channels.Pairs] with exactly `information` nats; `name` for
    tables."""

    name: str
    draw: Callable[[PRNGKeyArray, int], Pairs]
    information: float

    def __repr__(self) -> str:
        return f"Channel({self.name!r}, {self.information:.4g} nats)"


@checked
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


@checked
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


@checked
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


@checked
def binary_symmetric_channel(flip: float) -> Channel:
    r"""Even bits, flipped with probability p: $I = \ln2 + p\ln p + (1-p)\ln(1-p)$ (Cover and Thomas §7.1.4). Raises
    `ValueError` for p outside [0, 1]."""
    if not 0 <= flip <= 1:
        raise ValueError(f"binary_symmetric_channel: flip={flip} must be a probability.")
    return discrete_channel(0.5 * np.array([[1 - flip, flip], [flip, 1 - flip]]), f"binary symmetric p={flip:g}")


@checked
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


@checked
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


@checked
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


Estimator = Callable[[Pairs, PRNGKeyArray], Estimate | None]


class Calibration(eqx.Module):
    """Estimates (nats) of every estimator on every channel from every seed; NaN where an estimator does not take the
    data.

    - `estimate (E, C, S)`, `saturated (E, C, S)`; `exact (C,)`. `samples`: pairs in each.
    - `error (E, C, S)` = estimate − exact; `median (E, C)` of it; `spread (E, C)`: half the range of the middle half of
      them, the quartile deviation (0.67 standard deviations of a normal law).
    """

    estimate: Float[np.ndarray, "E C S"]
    saturated: Bool[np.ndarray, "E C S"]
    exact: Float[np.ndarray, " C"]
    estimators: tuple[str, ...] = eqx.field(static=True)
    channels: tuple[str, ...] = eqx.field(static=True)
    samples: int = eqx.field(static=True)

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return self.to_xarray()._repr_html_()

    @property
    def error(self) -> np.ndarray:
        return self.estimate - self.exact[None, :, None]

    @property
    def median(self) -> np.ndarray:
        return np.median(self.error, axis=2)

    @property
    def spread(self) -> np.ndarray:
        low, high = np.quantile(self.error, [0.25, 0.75], axis=2)
        return (high - low) / 2

    @property
    def mostly_saturated(self) -> np.ndarray:
        """Whether more than half of the estimates say so, `(E, C)`."""
        return self.saturated.mean(axis=2) > 0.5

    def table(self) -> str:
        """Markdown: median error ± spread in nats; `*` saturated, `–` does not take the data."""
        heads = ["channel", "exact", *self.estimators]
        lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        middle, spread, marks = self.median, self.spread, self.mostly_saturated
        for c, channel in enumerate(self.channels):
            cells = [channel, f"{self.exact[c]:.3f}"]
            for e in range(len(self.estimators)):
                missing = math.isnan(middle[e, c])
                cells.append(
                    "–" if missing else f"{middle[e, c]:+.3f} ± {spread[e, c]:.3f}{'*' if marks[e, c] else ''}"
                )
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def to_xarray(self) -> "xarray.Dataset":
        """Estimates, errors and saturation over `estimator`, `channel`, `seed`."""
        import xarray

        dims = ("estimator", "channel", "seed")
        found = xarray.Dataset(
            {
                "estimate": (dims, self.estimate, {"units": "nats"}),
                "error": (dims, self.error, {"units": "nats"}),
                "saturated": (dims, self.saturated),
                "exact": (("channel",), self.exact, {"units": "nats"}),
            },
            coords={"estimator": list(self.estimators), "channel": list(self.channels)},
        )
        return found.assign_attrs(samples=self.samples)

    def save(self, path: str | pathlib.Path) -> None:
        """Write exact values, median errors, spreads and saturation as JSON."""
        cells = {
            name: {
                channel: None
                if math.isnan(self.median[e, c])
                else {
                    "median_error": round(float(self.median[e, c]), 5),
                    "spread": round(float(self.spread[e, c]), 5),
                    "saturated": bool(self.mostly_saturated[e, c]),
                }
                for c, channel in enumerate(self.channels)
            }
            for e, name in enumerate(self.estimators)
        }
        exact = {channel: round(float(value), 6) for channel, value in zip(self.channels, self.exact, strict=True)}
        found = {
            "unit": "nats",
            "samples": self.samples,
            "seeds": self.estimate.shape[2],
            "exact": exact,
            "errors": cells,
        }
        pathlib.Path(path).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


@checked
def calibration(
    estimators: Mapping[str, Estimator] | Sequence[str] | None = None,
    channels: Sequence[Channel] | None = None,
    *,
    samples: int = 1000,
    seeds: int = 5,
    key: PRNGKeyArray | None = None,
) -> Calibration:
    """Run every estimator on `samples` pairs of every channel, `seeds` times with fresh pairs (the same for all
    estimators).

    `estimators`: names for [`mutual_information`][pdejax.analysis.information.mutual_information], or a mapping of
    names to functions of [`Pairs`][pdejax.analysis.information.channels.Pairs] and a key; default
    [`standard_estimators`][pdejax.analysis.information.channels._channels.standard_estimators]. `channels`: default
    [`standard_channels`][pdejax.analysis.information.channels.standard_channels]. `key`: default 0.

    An estimator that raises `TypeError` for a channel's kind of data, or returns None, has NaN there. Raises
    `ValueError` for nothing to run, two channels of one name, or sizes below 1. The default takes minutes at 1000
    samples, most of it training.
    """
    checked_sizes("calibration", {"samples": 10}, samples=samples, seeds=seeds)
    known = standard_estimators()
    if estimators is None:
        estimators = known
    elif not isinstance(estimators, Mapping):
        wrong = [name for name in estimators if name not in known]
        if wrong:
            raise ValueError(
                f"calibration: no estimator is called {', '.join(map(repr, wrong))}; choose from {list(known)}."
            )
        estimators = {name: known[name] for name in estimators}
    channels = standard_channels() if channels is None else list(channels)
    names = [channel.name for channel in channels]
    if not estimators or not channels or len(set(names)) < len(names):
        raise ValueError(
            f"calibration: needs an estimator and channels of different names; got {list(estimators)}, {names}."
        )
    key = jax.random.key(0) if key is None else key
    shape = (len(estimators), len(channels), seeds)
    values, saturated = np.full(shape, np.nan), np.zeros(shape, bool)
    for c, channel in enumerate(channels):
        for s in range(seeds):
            drawn, own = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, c), s))
            pairs = channel.draw(drawn, samples)
            for e, estimate in enumerate(estimators.values()):
                try:
                    found = estimate(pairs, own)
                except TypeError:
                    continue
                if found is not None:
                    values[e, c, s], saturated[e, c, s] = float(found.value), bool(found.saturated)
    exact = np.asarray([channel.information for channel in channels])
    return Calibration(values, saturated, exact, tuple(estimators), tuple(names), samples)


def standard_estimators() -> dict[str, Estimator]:
    """KSG, binned, Gaussian, InfoNCE and CLUB with their defaults, and both KDE bounds where a channel tells its
    noise."""

    def named(name: str) -> Estimator:
        return lambda pairs, key: mutual_information(pairs.x, pairs.y, name, **_keyed(name, key))

    def bounded(bound: str) -> Estimator:
        def estimate(pairs, key):
            del key
            if pairs.signal is None:
                return None
            return mutual_information(pairs.x, pairs.signal, "kde", noise=pairs.noise, bound=bound)

        return estimate

    return {
        "ksg": named("ksg"),
        "binned": named("binned"),
        "gaussian": named("gaussian"),
        "kde upper": bounded("upper"),
        "kde lower": bounded("lower"),
        "infonce": named("infonce"),
        "club": named("club"),
    }


def _keyed(name: str, key: PRNGKeyArray) -> dict:
    return {"key": key} if name in ("infonce", "club") else {}
