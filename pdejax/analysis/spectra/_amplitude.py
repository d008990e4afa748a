r"""Amplitude spectra of hidden states along tokens and along features, their likeness, and low-pass filtering (v2 App. A.1).

Tokens of one sequence of n real tokens, $x_0, \dots, x_{n-1}$ in their order and without gaps, have the discrete Fourier
transform $X_k = \sum_j x_j e^{-2\pi ijk/n}$ at the frequencies k/n ≤ ½ cycles per token. Sequences differ in n: each is
transformed at its own length (by Bluestein's chirp, exactly, not padded with zeros, which would smear the mean over
its neighbours), so that padding never enters.
"""

from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._bootstrap import check_bootstrap, compare, compare_all
from pdejax._check import boolean, choice, integer, traced
from pdejax._figure import AbstractRecord, Figure
from pdejax._trajectory import Trajectory
from pdejax.analysis._states import hidden_states, paired_states, shuffle_features, shuffle_tokens
from pdejax.analysis.tokens._clustering import random_directions
from pdejax.terms._base import at_least_float32

Axis = Literal["token", "feature"]
LONGEST = 65_535  # of a masked sequence: squares of its positions must fit 32 bits


class AmplitudeSpectrum(AbstractRecord):
    r"""Spectrum of every layer, at m frequencies.

    - `frequencies (m,)`: cycles per token (or per feature), from 0 to ½.
    - `amplitude (layers, m)`: mean over features (tokens) and sequences of $\sqrt{N P_m/c_m}$, for equal lengths
      $|X_k|/\sqrt N$, in units of u; c = 2 for the lines that stand for k and −k, 1 for k = 0 and k = N/2. White noise of
      standard deviation σ is flat at $\sqrt\pi\,\sigma/2$ ($\sqrt{2/\pi}\,\sigma$ where c = 1).
    - `power (layers, m)`: mean of P, the part of each frequency in the mean square; its sum is the mean over sequences of the
      mean of u², exactly (Parseval). White noise: cσ²/N.
    - `cumulative (layers, m)`: mean over sequences of the share of the energy up to each frequency; 1 at the end, and
      everywhere for a field of zeros.

    Null of `amplitude` and `cumulative`: `"tokens shuffled"` (`"features shuffled"`), the same states in a random order, whose
    spectrum is flat but for the constant line.
    """

    frequencies: Float[Array, "..."]
    amplitude: Figure
    power: Float[Array, "..."]
    cumulative: Figure
    axis: str = eqx.field(static=True)
    window: str | None = eqx.field(static=True)


class SpectralSimilarity(AbstractRecord):
    """Likeness of two systems' amplitude spectra along tokens and along features: figures `(layers,)` by name, `"cosine"`,
    `"correlation"` (mean removed) and `"log_correlation"` (of the logarithms, mean removed).

    Nulls: `"tokens shuffled"`, `"features shuffled"` and, if given, `"untrained"`. `feature` is None where the two systems
    differ in width. `pool`: whether spectra were averaged over channels first.
    """

    token: dict[str, Figure]
    feature: dict[str, Figure] | None
    pool: bool = eqx.field(static=True)


class LowPass(AbstractRecord):
    """How much of a field varies over tokens: `share (layers,)`, the non-constant share of its energy beside that of tokens
    of the same norms in `"random directions"` (about 1 − 1/n), and `ratio (layers,)`, ‖non-constant‖/‖constant‖, inf where the
    mean token is 0 (and 0 for a field of zeros)."""

    share: Figure
    ratio: Float[Array, " layers"]


@checked
def amplitude_spectrum(
    states: Trajectory | ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    axis: Axis = "token",
    mask: ArrayLike | None = None,
    window: Literal["hann"] | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> AmplitudeSpectrum:
    r"""Amplitude spectrum of hidden states `(layers, [b,] n, d)` along tokens or features, per layer:

    $$P_k = \frac{c_k|X_k|^2}{n^2},\qquad \sum_{k=0}^{\lfloor n/2\rfloor}P_k = \frac1n\sum_jx_j^2 .$$

    With a `mask`, each sequence's real tokens are transformed at their own number n_b; the lines k/n_b are then brought to the
    common frequencies m/N, N the longest sequence: line k ≥ 1 is spread evenly over its cell (k ± ½)/n_b, cut at ½, and every
    cell (m ± ½)/N receives what overlaps it. This conserves energy exactly, leaves the constant line alone, and is the
    identity where all lengths are equal; short sequences have nothing below ½/n_b. Under `jit` N is not known beforehand:
    there are n//2 + 1 frequencies m/N, and those above ½ hold nothing.

    - `axis`: `"feature"` transforms every token over its d features instead. Features have no natural order: look at the null.
    - `window="hann"` tapers the deviation from the mean (mean square of the taper 1), which lowers the leakage of
      a trend, since tokens are not periodic; Parseval then holds for the tapered tokens.
    - `key` (default `jax.random.key(0)`): for the null and the bootstrap over sequences (`level`, `resamples`; NaN ends for a
      single sequence).

    Cost O(layers·b·n d log n), one layer at a time, and `resamples` × layers × n/2 numbers for the intervals. In float32
    amplitudes below 1e-7 of the largest are rounding. Raises `ValueError`/`TypeError` for states, masks, axes or windows that
    do not fit. Source: v2 App. A.1, Figure 8, which leaves all of this open; chirp: Bluestein 1970, DOI 10.1109/TAU.1970.1162132.
    """
    key = jax.random.key(0) if key is None else key
    s = hidden_states("amplitude_spectrum", "states", states, mask)
    choice("amplitude_spectrum", "axis", axis, get_args(Axis))
    _check_options("amplitude_spectrum", window, level, resamples, s.u.shape[2], mask)
    shuffle, draw = jax.random.split(key)
    known = _needed(mask, s.mask)
    real = _common_length(s.mask)
    found = _spectrum(s.u, known, axis, window)
    mixed = shuffle_tokens(s.u, s.mask, shuffle) if axis == "token" else shuffle_features(s.u, shuffle)
    null = _spectrum(mixed, known, axis, window)
    beside = {"amplitude": 0, "cumulative": 1}
    compared = _compare_all(
        {name: (found[i], {f"{axis}s shuffled": null[i]}) for name, i in beside.items()},
        key=draw,
        level=level,
        resamples=resamples,
    )
    size = s.u.shape[2 if axis == "token" else 3]
    number = jnp.asarray(size) if axis == "feature" or mask is None else real
    frequencies = jnp.arange(size // 2 + 1).astype(found[2].dtype) / number.astype(found[2].dtype)
    record = AmplitudeSpectrum(
        frequencies, compared["amplitude"], jnp.mean(found[2], axis=0), compared["cumulative"], axis, window
    )
    if traced(number):
        return record
    keep = int(number) // 2 + 1
    return jax.tree.map(lambda x: x[..., :keep], record)


@checked
def spectral_similarity(
    a: Trajectory | ArrayLike,
    b: Trajectory | ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    mask: ArrayLike | None = None,
    untrained: Trajectory | ArrayLike | None = None,
    pool: bool = True,
    window: Literal["hann"] | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> SpectralSimilarity:
    r"""Spectral similarity of two systems' states per layer: the cosine of their amplitude spectra $A_k = |X_k|$,

    $$s = \frac{\sum_kA_kB_k}{\sqrt{\sum_kA_k^2\sum_kB_k^2}},$$

    over the lines k = 0 … ⌊n/2⌋ of each sequence, averaged over sequences; along tokens, and along features. `pool=True`:
    A is the mean of |X_k| over the features (tokens) first, one spectrum per sequence; `False`: a cosine for every feature
    (token), then their mean. v2 names the figure but not its definition; both readings are its.

    **Amplitudes are not negative, so the cosine of any two is large.** Two independent white noises have s = π/4 = 0.785 for
    one channel and $1/(1 + (4/\pi - 1)/d)$ for d pooled ones: 0.967 at d = 8, 0.998 at d = 128. Hence beside it, over the
    lines k ≥ 1: the `correlation` of the two spectra, and that of their logarithms (floored at rounding), both 0 for
    independent noise; and nulls in which `b` has its tokens or features shuffled, or is replaced by `untrained` states.
    Pooling over features makes the likeness along tokens blind to a shuffle of features by construction (and along features
    to one of tokens): that null then equals the value.

    A cosine with a spectrum of zeros, and a correlation with a flat spectrum or fewer than three lines, is 0. `mask`,
    `window`, `key`, errors and cost as for [`amplitude_spectrum`][pdejax.analysis.amplitude_spectrum]; lines are
    those of each sequence's own length, none is moved.
    """
    key = jax.random.key(0) if key is None else key
    owner = "spectral_similarity"
    first, second = paired_states(owner, ("a", "b"), a, b, mask)
    _check_options(owner, window, level, resamples, first.u.shape[2], mask)
    boolean(owner, "pool", pool)
    if not pool and first.u.shape != second.u.shape:
        widths = first.u.shape[3], second.u.shape[3]
        raise ValueError(
            f"{owner}: pool=False compares each channel with its like, but a and b have {widths} features."
        )
    by_token, by_feature, draw = jax.random.split(key, 3)
    nulls = {
        "tokens shuffled": shuffle_tokens(second.u, first.mask, by_token),
        "features shuffled": shuffle_features(second.u, by_feature),
    }
    if untrained is not None:
        nulls["untrained"] = paired_states(owner, ("b", "untrained"), b, untrained, mask)[1].u
        if not pool and nulls["untrained"].shape != first.u.shape:
            raise ValueError(f"{owner}: pool=False needs untrained states of {first.u.shape[3]} features.")
    known = _needed(mask, first.mask)

    def along(axis: Axis) -> dict[str, Figure] | None:
        if axis == "feature" and any(u.shape != first.u.shape for u in (second.u, *nulls.values())):
            return None
        value = _agreement(first.u, second.u, known, axis, window, pool)
        others = {name: _agreement(first.u, u, known, axis, window, pool) for name, u in nulls.items()}
        figures = {
            name: (value[..., i], {null: other[..., i] for null, other in others.items()})
            for i, name in enumerate(("cosine", "correlation", "log_correlation"))
        }
        return _compare_all(figures, key=draw, level=level, resamples=resamples)

    tokens = along("token")
    assert tokens is not None  # only features may differ in number
    return SpectralSimilarity(tokens, along("feature"), pool)


def white_noise_similarity(channels: int) -> float:
    r"""Cosine of the pooled amplitude spectra of two independent Gaussian white noises of `channels` features,
    $1/(1 + (4/\pi - 1)/d)$, many lines: moduli are Rayleigh distributed, $(E|X|)^2/E|X|^2 = \pi/4$. Raises `ValueError`
    for fewer than one."""
    integer("white_noise_similarity", "channels", channels)
    return float(1 / (1 + (4 / np.pi - 1) / channels))


@checked
def low_pass_ratio(
    states: Trajectory | ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    mask: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> LowPass:
    r"""How far each layer is a low-pass filter: with the constant part $\mathbf 1\mu^\top$ of the real tokens,

    $$\mathrm{ratio} = \frac{\|u-\mathbf 1\mu^\top\|_F}{\|\mathbf 1\mu^\top\|_F},\qquad
      \mathrm{share} = \frac{\|u-\mathbf 1\mu^\top\|_F^2}{\|u\|_F^2} = \frac{\mathrm{ratio}^2}{1+\mathrm{ratio}^2}.$$

    A map is low-pass if its iterates let the ratio tend to 0, as every row-stochastic attention matrix with positive entries
    does (Wang et al., arXiv 2203.05962, Definition 1 and Theorem 1). `share` is per sequence, averaged, with its interval;
    `ratio` from the energies of all sequences. A field of zeros has share 0.

    Arguments and errors as for [`amplitude_spectrum`][pdejax.analysis.amplitude_spectrum]; O(layers·b·n d), memory twice the
    trajectory's for the null. Deviations are taken from the mean first, so that float32 sees shares down to 1e-13.
    """
    key = jax.random.key(0) if key is None else key
    s = hidden_states("low_pass_ratio", "states", states, mask)
    check_bootstrap("low_pass_ratio", level, resamples)
    shuffle, draw = jax.random.split(key)
    high, low = _parts(s.u, s.mask)
    null_high, null_low = _parts(random_directions(s.u, s.mask, shuffle), s.mask)
    nulls = {"random directions": _share(null_high, null_low).T}
    share = _compare(_share(high, low).T, nulls, key=draw, level=level, resamples=resamples)
    above, below = jnp.sum(high, axis=1), jnp.sum(low, axis=1)
    ratio = jnp.sqrt(above / jnp.where(below > 0, below, 1))
    return LowPass(share, jnp.where(below > 0, ratio, jnp.where(above > 0, jnp.inf, 0)))


class _Lines(NamedTuple):
    """Power of every line and channel `(lines, channels)`, whether the line exists, its multiplicity, and the length."""

    power: Array
    valid: Array
    weight: Array
    length: Array


_compare, _compare_all = eqx.filter_jit(compare), eqx.filter_jit(compare_all)


@eqx.filter_jit
def _spectrum(u: Array, mask: Array | None, axis: str, window: str | None) -> tuple[Array, Array, Array]:
    """Per sequence: amplitude, cumulative share and power, each (b, layers, m)."""
    length = None if mask is None else _common_length(mask)

    def sequence(x, real):
        power, valid, weight, n = _lines(x, real, axis, window)
        if axis == "token" and length is not None:
            power, valid, weight = _regrid(power, n, length)
            n = length
        scale = jnp.where(valid, n.astype(x.dtype) / weight, 0)
        amplitude = _channel_mean(jnp.sqrt(power * scale[:, None]), real, axis)
        mean = _channel_mean(power, real, axis)
        total = jnp.sum(mean)
        cumulative = jnp.where(total > 0, jnp.cumsum(mean) / jnp.where(total > 0, total, 1), 1)
        return amplitude, jnp.minimum(cumulative, 1), mean

    return _over_sequences(sequence, mask, u)


@eqx.filter_jit
def _agreement(a: Array, b: Array, mask: Array | None, axis: str, window: str | None, pool: bool) -> Array:
    """Per sequence (b, layers, 3): cosine, correlation, correlation of logarithms."""

    def sequence(x, y, real):
        first, second = _lines(x, real, axis, window), _lines(y, real, axis, window)
        here, there = (jnp.sqrt(s.power / s.weight[:, None]) for s in (first, second))
        if pool:
            return _likeness(_channel_mean(here, real, axis), _channel_mean(there, real, axis), first.valid)
        each = jax.vmap(_likeness, in_axes=(1, 1, None), out_axes=1)(here, there, first.valid)
        return _channel_mean(each, real, axis)

    return _over_sequences(sequence, mask, a, b)


def _over_sequences(sequence, mask: Array | None, *us: Array):
    """`sequence(u..., real)` for every layer, one after another, and every sequence; sequences come first in the result.

    Masked sequences go one at a time too: their transform needs several times their memory."""
    us = tuple(u.astype(at_least_float32(u.dtype)) for u in us)

    def layer(fields):
        if mask is None:
            return jax.vmap(lambda *x: sequence(*x, None))(*fields)
        fields = tuple(jnp.where(mask[:, :, None], x, 0) for x in fields)
        return jax.lax.map(lambda x: sequence(*x), (*fields, mask))

    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), jax.lax.map(layer, us))


def _lines(x: Array, real: Array | None, axis: str, window: str | None) -> _Lines:
    """The spectrum of one sequence (n, d) along an axis, at its own length."""
    if axis == "feature":
        x = x.T
    size = x.shape[0]
    n = jnp.asarray(size)
    if axis == "token" and real is not None:
        n = jnp.sum(real)
        x = x[jnp.argsort(jnp.logical_not(real), stable=True)]  # real tokens first, in their order
    j = jnp.arange(size)
    inside = j < n
    k = jnp.arange(size // 2 + 1)
    number = n.astype(x.dtype)
    if window is not None:
        mean = jnp.sum(x, axis=0, keepdims=True) / number
        taper = (2 / 3) ** 0.5 * (1 - jnp.cos(2 * jnp.pi * (j.astype(x.dtype) + 0.5) / number))
        x = jnp.where(inside[:, None], mean + taper[:, None] * (x - mean), 0)
    modulus = jnp.abs(jnp.fft.rfft(x, axis=0) if axis == "feature" or real is None else _chirp(x, n))
    valid = 2 * k <= n
    weight = jnp.where((k == 0) | (2 * k == n), 1, 2).astype(x.dtype)
    power = jnp.where(valid[:, None], weight[:, None] * (modulus / number) ** 2, 0)
    return _Lines(power, valid, weight, n)


def _chirp(x: Array, n: Array) -> Array:
    """Lines 0 … size//2 of the transform of length n ≤ size of x (size, channels), zero from n on; those above n/2 have no
    meaning. jk = (j² + k² − (k − j)²)/2 makes a convolution of it."""
    size = x.shape[0]
    lines = size // 2 + 1
    j = jnp.arange(size).astype(jnp.uint32)
    # The phase π j²/n from the remainder of j² modulo 2n: exact, however long the sequence.
    angle = jnp.pi * ((j * j) % (2 * n.astype(jnp.uint32))).astype(x.dtype) / n.astype(x.dtype)
    chirp = jax.lax.complex(jnp.cos(angle), -jnp.sin(angle))
    length = 1 << (size + lines - 2).bit_length()
    kernel = jnp.zeros(length, chirp.dtype).at[:lines].set(jnp.conj(chirp[:lines]))
    kernel = kernel.at[length - size + 1 :].set(jnp.conj(chirp[1:][::-1]))
    spread = jnp.fft.fft(chirp[:, None] * x.astype(chirp.dtype), length, axis=0)
    return chirp[:lines, None] * jnp.fft.ifft(spread * jnp.fft.fft(kernel)[:, None], axis=0)[:lines]


def _regrid(power: Array, n: Array, length: Array) -> tuple[Array, Array, Array]:
    """Lines of a sequence of n tokens on the frequencies m/length, n ≤ length, the energy kept. A cell of the grid is no wider
    than one of the sequence, so it meets two of them at most."""
    dtype = power.dtype
    m = jnp.arange(power.shape[0])
    own, common = n.astype(dtype), length.astype(dtype)
    last = jnp.maximum(n // 2, 1)

    def right(k):
        return jnp.minimum((k.astype(dtype) + 0.5) / own, 0.5)

    def density(k):
        width = right(k) - (k.astype(dtype) - 0.5) / own
        return power[k] / jnp.where(width > 0, width, 1)[:, None]

    ends = jnp.clip((jnp.arange(power.shape[0] + 1).astype(dtype) - 0.5) / common, jnp.minimum(0.5 / own, 0.5), 0.5)
    low, high = ends[:-1], ends[1:]
    here = jnp.clip(jnp.floor(low * own + 0.5).astype(int), 1, last)
    there = jnp.minimum(here + 1, last)
    # A single token has no lines beyond the constant one, but an index must exist.
    here, there = (jnp.minimum(k, power.shape[0] - 1) for k in (here, there))
    split = jnp.clip(right(here), low, high)
    moved = density(here) * (split - low)[:, None] + density(there) * (high - split)[:, None]
    valid = 2 * m <= length
    moved = jnp.where((valid & (m > 0) & (n > 1))[:, None], moved, 0).at[0].set(power[0])
    return moved, valid, jnp.where((m == 0) | (2 * m == length), 1, 2).astype(dtype)


def _channel_mean(values: Array, real: Array | None, axis: str) -> Array:
    """Mean over channels: all features, or the real tokens."""
    if axis == "token" or real is None:
        return jnp.mean(values, axis=1)
    w = real.astype(values.dtype)
    return jnp.sum(values * w[None], axis=1) / jnp.sum(w)


def _likeness(a: Array, b: Array, valid: Array) -> Array:
    """Cosine over all lines, and over those beyond the constant one correlation of values and of logarithms."""
    beyond = valid & (jnp.arange(a.shape[0]) > 0)
    enough = jnp.sum(beyond) >= 3

    def logarithm(x):
        floor = jnp.finfo(x.dtype).eps * jnp.max(jnp.where(beyond, x, 0))
        return jnp.log(jnp.where(floor > 0, jnp.maximum(x, floor), 1))

    def centred(x):
        mean = jnp.sum(jnp.where(beyond, x, 0)) / jnp.maximum(jnp.sum(beyond), 1).astype(x.dtype)
        return jnp.where(beyond, x - mean, 0)

    def cosine(x, y, floor):
        # A spectrum flat to rounding has no shape to correlate.
        sizes = jnp.sqrt(jnp.sum(x**2)), jnp.sqrt(jnp.sum(y**2))
        known = (sizes[0] > floor[0]) & (sizes[1] > floor[1])
        return jnp.where(known, jnp.sum((x / _safe(sizes[0])) * (y / _safe(sizes[1]))), 0)

    nothing = jnp.zeros((), a.dtype)
    rounding = 8 * jnp.finfo(a.dtype).eps
    flat = [rounding * jnp.sqrt(jnp.sum(jnp.where(valid, x, 0) ** 2)) for x in (a, b)]
    logs = logarithm(a), logarithm(b)
    level = [rounding * (1 + jnp.sqrt(jnp.sum(jnp.where(beyond, x, 0) ** 2))) for x in logs]
    plain = cosine(jnp.where(valid, a, 0), jnp.where(valid, b, 0), (nothing, nothing))
    correlated = cosine(centred(a), centred(b), flat)
    in_logs = cosine(centred(logs[0]), centred(logs[1]), level)
    return jnp.stack([plain, jnp.where(enough, correlated, 0), jnp.where(enough, in_logs, 0)])


def _safe(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)


@jax.jit
def _parts(u: Array, mask: Array) -> tuple[Array, Array]:
    """Energies of the deviation from the mean token and of the mean, (layers, b)."""

    def layer(x):
        x = jnp.where(mask[:, :, None], x.astype(at_least_float32(x.dtype)), 0)
        n = jnp.sum(mask, axis=1).astype(x.dtype)
        mean = jnp.sum(x, axis=1) / n[:, None]
        deviation = jnp.where(mask[:, :, None], x - mean[:, None], 0)
        return jnp.sum(deviation**2, axis=(1, 2)), n * jnp.sum(mean**2, axis=1)

    return jax.lax.map(layer, u)


def _share(high: Array, low: Array) -> Array:
    total = high + low
    return high / _safe(total)


def _needed(given: ArrayLike | None, mask: Array) -> Array | None:
    """The mask, or None if it is known to hide nothing: then the plain transform serves."""
    return None if given is None or (not traced(mask) and bool(np.all(np.asarray(mask)))) else mask


def _common_length(mask: Array) -> Array:
    return jnp.max(jnp.sum(mask, axis=1))


def _check_options(owner: str, window: object, level: float, resamples: int, n: int, mask) -> None:
    choice(owner, "window", window, (None, "hann"))
    check_bootstrap(owner, level, resamples)
    if mask is not None and n > LONGEST:
        raise ValueError(
            f"{owner}: {n} tokens with a mask; at most {LONGEST}. Take sequences of one length, without mask."
        )
