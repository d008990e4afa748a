"""Bootstrap intervals over sequences, and figures that stand beside a null model's."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Interval(eqx.Module):
    """A figure with its bootstrap interval: `value`, `low`, `high`, arrays of one shape; `level` of confidence, two-sided.

    `low` and `high` are NaN where there was nothing to resample (one sequence).
    """

    value: Float[Array, "..."]
    low: Float[Array, "..."]
    high: Float[Array, "..."]
    level: float = eqx.field(static=True, default=0.95)


class Compared(eqx.Module):
    """A figure beside a null model's: `value`, `null`, and `difference` value − null, each with a bootstrap interval.

    The difference is resampled as pairs (the same sequences in both), so that its interval is narrower than the two others'
    suggest. A difference whose interval holds 0 is no evidence.
    """

    value: Interval
    null: Interval
    difference: Interval


def bootstrap(
    statistic: Callable[[Float[Array, " b"]], Array],
    samples: int,
    *,
    key: PRNGKeyArray,
    level: float = 0.95,
    resamples: int = 500,
    dtype=None,
) -> Interval:
    """Percentile bootstrap (Efron 1979, DOI 10.1214/aos/1176344552) of `statistic(weights)`, a function of how often each of
    the `samples` counts; weights sum to `samples`, all 1 for the data themselves. `resamples` evaluations, one after another.

    Raises `ValueError` for a level outside (0, 1), no sample, or fewer than 20 resamples.
    """
    check_bootstrap("bootstrap", level, resamples)
    if samples < 1:
        raise ValueError(f"bootstrap: samples={samples} must be at least 1.")
    value = statistic(jnp.ones(samples, dtype or jnp.result_type(float)))
    if samples == 1:
        missing = jnp.full_like(value, jnp.nan)
        return Interval(value, missing, missing, level)

    def once(key):
        drawn = jax.random.randint(key, (samples,), 0, samples)
        return statistic(jnp.zeros(samples, dtype or jnp.result_type(float)).at[drawn].add(1))

    found = jax.lax.map(once, jax.random.split(key, resamples))
    ends = jnp.asarray([(1 - level) / 2, (1 + level) / 2], found.dtype)
    low, high = jnp.quantile(found, ends, axis=0)
    return Interval(value, low, high, level)


def compare(
    value: Float[Array, "b *shape"],
    null: Float[Array, "b *shape"],
    *,
    key: PRNGKeyArray,
    level: float = 0.95,
    resamples: int = 500,
) -> Compared:
    """Means over sequences of a figure and of its null, and of their difference, each with its interval from the same draws."""

    def means(weights):
        def mean(x):
            return jnp.tensordot(weights, x, axes=1) / x.shape[0]

        here, there = mean(value), mean(null)
        return jnp.stack([here, there, here - there])

    found = bootstrap(means, value.shape[0], key=key, level=level, resamples=resamples, dtype=value.dtype)
    return Compared(*(Interval(found.value[i], found.low[i], found.high[i], level) for i in range(3)))


def check_bootstrap(owner: str, level: float, resamples: int) -> None:
    """Raise `ValueError` unless the level is inside (0, 1) and there are at least 20 resamples."""
    if not 0 < level < 1:
        raise ValueError(f"{owner}: level={level} must lie strictly between 0 and 1, such as 0.95.")
    if not isinstance(resamples, int) or resamples < 20:
        raise ValueError(f"{owner}: resamples={resamples!r} must be an integer of at least 20; 500 is usual.")
