"""Intervals: by the bootstrap over samples, by Student's t over few of them and over seeds; the permutation test."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray
from scipy.special import ndtr, stdtrit

from pdejax._arguments import checked
from pdejax._check import integer, known, probability
from pdejax._figure import Figure


@checked
def bootstrap(
    statistic: Callable[[Float[Array, " b"]], Any],
    samples: int,
    *,
    key: PRNGKeyArray,
    level: float = 0.95,
    resamples: int = 500,
    dtype=None,
    median: bool = False,
) -> Any:
    r"""Bootstrap the interval of `statistic(weights)`, an array or a pytree of arrays, each of which becomes a
    [`Figure`][pdejax.Figure], all from the same draws.

    - `statistic`: a function of how often each of the `samples` counts. Weights sum to `samples`, all 1 for the data
      themselves, so that the mean of x is `lambda w: jnp.sum(w * x) / len(x)`.
    - Ends are percentiles of `resamples` evaluations, one after another, at the shares $\Phi(\mp t\sqrt{n/(n-2)})$ of n samples,
      t Student's of n − 1 degrees: plain ones (Efron 1979, DOI 10.1214/aos/1176344552) are too narrow (Hesterberg 2015, DOI
      10.1080/00031305.2015.1089789, who has n − 1 in the root). Tested: from 6 samples on they hold the mean of a symmetric law
      92 times of 100 or more, that of a skewed one less often (a lognormal of 6: 83). They stay in the range of the statistic.
      `median=True` moves both so that the median of the resamples is the value, for figures that repeated samples bias.
    - Of 2 to 5 samples the ends are the least and the largest of the resamples and of the statistic of each sample alone, and
      `level` is that of a range of n values, 1 − 2^{1−n} for their median, whatever was asked for.

    Ends are NaN for one sample. Raises `ValueError` for a level outside (0, 1), no sample, or fewer than 20 resamples.
    """
    check_bootstrap("bootstrap", level, resamples)
    samples = integer("bootstrap", "samples", samples)
    dtype = dtype or jnp.result_type(float)
    value = statistic(jnp.ones(samples, dtype))
    if samples == 1:
        return jax.tree.map(lambda x: Figure(x, level=level), value)
    found = _resampled(statistic, samples, key, resamples, dtype)
    if samples <= RANGE:
        alone = jax.lax.map(statistic, samples * jnp.eye(samples, dtype=dtype))
        return jax.tree.map(lambda x, y, z: _range(samples, x, y, z), value, found, alone)
    share = float(ndtr(-stdtrit(samples - 1, (1 + level) / 2) * math.sqrt(samples / (samples - 2))))
    ends = jnp.asarray([share, 0.5, 1 - share])

    def figure(value, found):
        low, middle, high = jnp.quantile(found, ends.astype(found.dtype), axis=0)
        moved = value - middle if median else jnp.zeros_like(value)
        return Figure(value, low + moved, high + moved, level=level)

    return jax.tree.map(figure, value, found)


def _range(samples: int, value: Array, found: Array, alone: Array) -> Figure:
    """The range of resamples and of each sample alone; what is not defined of one sample is left out."""
    whole = jnp.concatenate([found, jnp.where(jnp.isnan(alone), value, alone)])
    return Figure(value, jnp.min(whole, axis=0), jnp.max(whole, axis=0), level=1 - 2.0 ** (1 - samples))


def _resampled(statistic: Callable[[Array], Any], samples: int, key: Array, resamples: int, dtype: Any) -> Any:
    """The statistic of `resamples` draws with replacement, in front of every array."""

    def once(key):
        drawn = jax.random.randint(key, (samples,), 0, samples)
        return statistic(jnp.zeros(samples, dtype).at[drawn].add(1))

    return jax.lax.map(once, jax.random.split(key, resamples))


# Samples up to which an interval by resampling is no more than a range.
RANGE = 5
# Samples below which a mean's interval is Student's, which needs no resamples and is an interval from 2 samples on.
FEW = 20


def interval(
    statistic: Callable[[Float[Array, " b"]], Any],
    samples: int,
    *,
    key: PRNGKeyArray,
    level: float = 0.95,
    resamples: int = 500,
    dtype=None,
    ranks: bool = False,
) -> Any:
    r"""Give a statistic its interval as `bootstrap` does, but by Student's t below `FEW` samples.

    There it is $\hat\theta \pm t_{(1+level)/2,\,n-1}\,s$ with the jackknife's $s^2 = \frac{n-1}n\sum_i(\theta_{(i)} -
    \bar\theta_{(\cdot)})^2$ (Tukey 1958; Efron 1982, DOI 10.1137/1.9781611970319), for a mean Student's interval itself. A
    statistic of `ranks` is a step function, which leaving one out may not move: its ends are the least and the largest of the
    resamples.
    """
    if not 1 < samples < FEW:
        return bootstrap(statistic, samples, key=key, level=level, resamples=resamples, dtype=dtype)
    check_bootstrap("interval", level, resamples)
    dtype = dtype or jnp.result_type(float)
    value = statistic(jnp.ones(samples, dtype))
    if ranks:
        found = _resampled(statistic, samples, key, resamples, dtype)
        level = level if samples > RANGE else 1 - 2.0 ** (1 - samples)
        return jax.tree.map(lambda x, y: Figure(x, jnp.min(y, axis=0), jnp.max(y, axis=0), level=level), value, found)
    without = (1 - jnp.eye(samples, dtype=dtype)) * (samples / (samples - 1))
    t = float(stdtrit(samples - 1, (1 + level) / 2))

    def figure(value, found):
        half = t * math.sqrt(samples - 1) * jnp.std(found, axis=0)
        return Figure(value, value - half, value + half, level=level)

    return jax.tree.map(figure, value, jax.lax.map(statistic, without))


def compare(
    value: Float[Array, "b *shape"],
    nulls: Mapping[str, Float[Array, "b *shape"]],
    *,
    key: PRNGKeyArray,
    level: float = 0.95,
    resamples: int = 500,
) -> Figure:
    """Average a figure over sequences beside its nulls, with intervals from the same draws, those of differences too: of the
    bootstrap, Student's below `FEW` sequences, which may leave the range of a bounded figure."""
    return compare_all({"": (value, nulls)}, key=key, level=level, resamples=resamples)[""]


def compare_all(
    figures: Mapping[str, tuple[Array, Mapping[str, Array]]],
    *,
    key: PRNGKeyArray,
    level: float = 0.95,
    resamples: int = 500,
) -> dict[str, Figure]:
    """`compare` for several figures at once, `{name: (value, nulls)}`, arrays with sequences in front: one loop is compiled."""
    parts = [(value, *nulls.values()) for value, nulls in figures.values()]
    found = _compared(parts, key, level, resamples)
    return {
        name: beside(own[0], dict(zip(nulls, own[1::2], strict=True)), dict(zip(nulls, own[2::2], strict=True)))
        for (name, (_, nulls)), own in zip(figures.items(), found, strict=True)
    }


# Compiled here, once per shape: lax.map of a closure outside jit would compile anew at every call.
@partial(jax.jit, static_argnames=("level", "resamples"))
def _compared(
    figures: Sequence[tuple[Array, ...]], key: PRNGKeyArray, level: float, resamples: int
) -> list[list[Figure]]:
    """Of every figure its mean over sequences and, for each null, the null's and the difference's, all from the same draws."""
    parts = [[value, *(x for null in nulls for x in (null, value - null))] for value, *nulls in figures]
    every = [x for own in parts for x in own]
    flat = jnp.concatenate([x.reshape(x.shape[0], -1) for x in every], axis=1)

    def means(weights):
        return weights @ flat / flat.shape[0]

    found = interval(means, flat.shape[0], key=key, level=level, resamples=resamples, dtype=flat.dtype)
    ends = np.cumsum([0, *(x[0].size for x in every)])
    pieces = iter(
        jax.tree.map(lambda x, a=a, e=e, part=part: x[a:e].reshape(part.shape[1:]), found)
        for a, e, part in zip(ends[:-1], ends[1:], every, strict=True)
    )
    return [[next(pieces) for _ in own] for own in parts]


def beside(figure: Figure, nulls: Mapping[str, Figure], differences: Mapping[str, Figure]) -> Figure:
    """The figure with its nulls and the differences from them, all resampled together."""
    return figure.beside(nulls, differences)


@checked
def over_seeds(
    values: ArrayLike | Sequence[Any], *, level: float = 0.95, within: tuple[float | int, float | int] | None = None
) -> Figure:
    r"""Average values of independent seeds, `(seeds,)` or `(seeds, …)`: their mean with Student's interval
    $\bar x \pm t_{(1+level)/2,\,k-1}\,s/\sqrt k$, exact if seeds draw from a normal law; NaN ends for one seed.

    - `within` (a, b): the range of a bounded figure, (−1, 1) of a correlation or (0, 1) of a share. The interval is that of
      $z = \tfrac12\ln\frac{x-a}{b-x}$, mapped back, so that it stays inside, and widened to hold the mean of x: Fisher's z of a
      correlation, half the logit of a share. A value at an end of the range has no z: then the interval is Student's own, cut
      to the range.

    Values of NumPy or Python are averaged in double precision by NumPy. Raises `ValueError` for no seed, a level outside
    (0, 1), or values known to lie outside `within`.
    """
    owner = "over_seeds"
    xp = jnp if isinstance(values, jax.Array) else np
    x = values if isinstance(values, jax.Array) else np.asarray(values, float)
    if x.ndim < 1 or x.shape[0] < 1:
        raise ValueError(
            f"{owner}: values has shape {x.shape}; it must hold one value per seed, at least one, in front."
        )
    probability(owner, "level", level)
    if within is not None:
        _check_within(owner, x, within)
        x = xp.clip(x, *within)
    seeds = x.shape[0]
    mean = xp.mean(x, axis=0)
    if seeds == 1:
        return Figure(mean, level=level)
    t = float(stdtrit(seeds - 1, (1 + level) / 2)) / math.sqrt(seeds)
    half = xp.std(x, axis=0, ddof=1) * t
    low, high = mean - half, mean + half
    if within is not None:
        a, b = within
        inside = xp.all((x > a) & (x < b), axis=0)
        # Not by arctanh, whose argument rounds to 1 one step before the end.
        z = (xp.log(xp.where(inside, x - a, 1.0)) - xp.log(xp.where(inside, b - x, 1.0))) / 2
        middle, half = xp.mean(z, axis=0), xp.std(z, axis=0, ddof=1) * t
        ends = (a + (b - a) * (1 + xp.tanh(middle + sign * half)) / 2 for sign in (-1, 1))
        # The mean of x is not that of z mapped back: it is inside, too.
        low, high = (
            xp.where(inside, pick(end, mean), xp.clip(plain, a, b))
            for end, plain, pick in zip(ends, (low, high), (xp.minimum, xp.maximum), strict=True)
        )
    return Figure(mean, low, high, level=level)


def _check_within(owner: str, x: Any, within: tuple[float | int, float | int]) -> None:
    a, b = within
    if not a < b:
        raise ValueError(f"{owner}: within={within} must be the ends of a range, the lower first.")
    slack = 1e-5 * (b - a)  # of rounding
    if known(x) and bool(np.any((np.asarray(x) < a - slack) | (np.asarray(x) > b + slack))):
        raise ValueError(
            f"{owner}: values has entries outside within={within}; leave `within` out, or mend the figure."
        )


EXACT = 13  # differences up to which every sign is tried: 8,192 of them


@checked
def permutation_test(
    differences: ArrayLike, *, key: PRNGKeyArray | None = None, draws: int = 9999
) -> Float[np.ndarray, "..."]:
    r"""Test whether paired differences `(b,)` or `(b, …)` are centred on 0: the p-value `(…)` of their mean, two-sided, under
    signs that are exchanged at random (Fisher 1935, The Design of Experiments, § 21).

    $$p = \frac{1 + \#\{s : |\sum_i s_i d_i| \ge |\sum_i d_i|\}}{1 + \text{draws}}$$

    over random signs $s \in \{\pm1\}^b$; over all of them, the identity among them, for b ≤ 13. Where differences are symmetric
    about 0 a level α is kept exactly; no law is assumed. The smallest p there can be is 2^{1−b}, or 1/(1 + draws) beyond 13:
    below b = 6 no result is significant at 5 %. All entries share their signs.

    Raises `ValueError` for no difference, values that are not finite, or fewer than 99 draws.
    """
    owner = "permutation_test"
    integer(owner, "draws", draws, 99, advice="9999 is usual")
    x = np.asarray(differences, float)
    if x.ndim < 1 or not x.size:
        raise ValueError(
            f"{owner}: differences has shape {x.shape}; it must hold one number per pair, at least one, in front."
        )
    if not np.all(np.isfinite(x)):
        raise ValueError(
            f"{owner}: differences has {np.sum(~np.isfinite(x))} of {x.size} numbers that are not finite; what was not measured "
            "is no evidence: leave such pairs out, and say how many they are."
        )
    flat = x.reshape(x.shape[0], -1)
    exact = x.shape[0] <= EXACT
    if exact:
        signs = 1.0 - 2.0 * ((np.arange(2 ** x.shape[0])[:, None] >> np.arange(x.shape[0])) & 1)
    else:
        key = jax.random.key(0) if key is None else key
        signs = np.asarray(jax.random.rademacher(key, (draws, x.shape[0])).astype(float))
    seen, found = np.abs(np.sum(flat, axis=0)), np.abs(signs @ flat)
    # A sum that differs by rounding alone is as extreme.
    count = np.sum(found >= seen * (1 - 1e-12), axis=0)
    p = count / len(signs) if exact else (1 + count) / (1 + draws)
    return p.reshape(x.shape[1:])


def smallest_p(pairs: int, draws: int = 9999) -> float:
    """The smallest p-value that `permutation_test` can give of so many pairs: above 0.05 nothing can be found."""
    return 2.0 ** (1 - pairs) if pairs <= EXACT else 1 / (1 + draws)


def check_bootstrap(owner: str, level: float, resamples: int) -> None:
    """Raise unless the level is inside (0, 1) and there are at least 20 resamples."""
    probability(owner, "level", level, "0.95 is usual")
    integer(owner, "resamples", resamples, 20, advice="500 is usual")
