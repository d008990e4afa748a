"""What the sections of an audit's judgement hand over."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import stdtrit

from pdejax._bootstrap import interval, over_seeds, permutation_test
from pdejax._figure import Figure
from pdejax.runs._records import Row
from pdejax.runs._table import Table

SIGNIFICANT = 0.05
DRAWS = 20  # untrained networks, where they are affordable: the least p there can be is 1/21
# A null of which there is one draw: beside it nothing is said to differ.
ONE = "one untrained network"


@dataclasses.dataclass
class Found:
    """What the sections hand over."""

    rows: list[Row] = dataclasses.field(default_factory=list)
    tables: list[Table] = dataclasses.field(default_factory=list)
    verdicts: dict[str, str] = dataclasses.field(default_factory=dict)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)

    def row(self, quantity: str, ours: Figure, null: str | None = None, unit: str = "", note: str = "") -> None:
        """A line of the table, beside one of the figure's nulls."""
        beside = None if null is None or null not in ours.nulls else ours.nulls[null]
        self.rows.append(
            Row(quantity, ours, unit=unit, null=beside, null_name=None if beside is None else null, note=note)
        )


@dataclasses.dataclass(frozen=True)
class Among:
    """A positive figure of the network among those of `count` untrained networks of its branch sizes, all on the same sequences.

    - `ratio`: to the geometric mean of theirs. Its interval is Student's for the ratio to one more of them, so that it holds
      their spread, and that over sequences.
    - `p`: share of the networks, this one counted, that are as far from the middle of all of them, in logarithms: if it is as
      they are, p <= α has a probability of at most α. `smaller`: how many of theirs are smaller.
    - `null`: their mean, from the least to the largest.
    """

    ratio: Figure
    p: float
    smaller: int
    count: int
    null: Figure

    @property
    def name(self) -> str:
        """What they are called."""
        return ONE if self.count == 1 else f"{self.count} untrained networks"

    @property
    def decides(self) -> bool:
        """Whether there are enough of them for a p-value of 0.05."""
        return 1 / (self.count + 1) <= SIGNIFICANT

    @property
    def measured(self) -> bool:
        """Whether p is a number and, where it decides, the ratio and both its ends are. One network leaves no interval."""
        return known(self.p) and (not self.decides or known(self.ratio))


def farther(values: np.ndarray) -> float:
    """Share of values that are as far from the mean of all as the first: (1 + #{others})/(1 + number of others)."""
    far = np.abs(values - values.mean())
    return float(np.mean(far >= far[0] * (1 - 1e-12)))


# Compiled once per shape: a loop over a closure would compile anew at every call.
@jax.jit
def _ratio(x: jax.Array, y: jax.Array, key: jax.Array) -> Figure:
    """Logarithm of the mean of x (b,) over the geometric mean of those of y (count, b), with its interval over sequences."""

    def middle(w: jax.Array) -> jax.Array:
        w = w.astype(x.dtype)
        return jnp.log(w @ x) - jnp.mean(jnp.log(y @ w))

    return interval(middle, len(x), key=key, dtype=x.dtype)


def among(ours: np.ndarray, theirs: np.ndarray, key: Any) -> Among:
    """The figure's mean over sequences, `ours (b,)`, among those of untrained networks, `theirs (count, b)`."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    count, means = len(theirs), theirs.mean(axis=1)
    null = Figure(means.mean(), means.min(), means.max())
    every = np.concatenate([[ours.mean()], means])
    if not np.all(np.isfinite(every)) or not np.all(every > 0):
        nothing = Figure(np.nan, np.nan, np.nan)
        return Among(nothing, math.nan, int(np.sum(means < ours.mean())), count, null)
    logs = np.log(every)
    over = _ratio(jnp.asarray(ours), jnp.asarray(theirs), key)
    value = float(over)
    low = high = math.nan
    if count > 1:
        # Student's reach of a further draw, and of the sequences, which are independent of it.
        draws = float(stdtrit(count - 1, 0.975)) * float(np.std(logs[1:], ddof=1)) * math.sqrt(1 + 1 / count)
        low, high = (
            value + side * math.hypot(draws, abs(float(end) - value)) for side, end in ((-1, over.low), (1, over.high))
        )
    figure = Figure(np.exp(value), np.exp(low), np.exp(high))
    return Among(figure, farther(logs), int(np.sum(logs[1:] < logs[0])), count, null)


def geometric(values: np.ndarray) -> Figure:
    """Geometric mean of sizes over sequences, with the interval of their logarithms."""
    logs = over_seeds(np.log(values))
    return Figure(np.exp(logs.value), np.exp(logs.low), np.exp(logs.high))


def tested(change: np.ndarray) -> float:
    """The paired permutation test's p; NaN where a number is not finite, which is no evidence of anything."""
    return float(permutation_test(change)) if np.all(np.isfinite(change)) else math.nan


def known(*figures: Any) -> bool:
    """Whether every value of figures, and every end that they have, is finite: NaN is no evidence."""
    parts = [x for f in figures for x in ((f.value, f.low, f.high) if isinstance(f, Figure) else (f,))]
    return all(bool(np.all(np.isfinite(np.asarray(x, float)))) for x in parts)


def numbers(figure: Figure) -> dict[str, Any]:
    nulls = {name: float(null.value) for name, null in figure.nulls.items()}
    return {"value": float(figure.value), "low": float(figure.low), "high": float(figure.high)} | (
        {"nulls": nulls} if nulls else {}
    )
