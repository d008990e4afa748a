"""What a claim is: how it is measured, and how it is judged from the evidence."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import ArrayLike

from pdejax._bootstrap import over_seeds
from pdejax._figure import Figure
from pdejax.runs._findings import Evidence, Finding, Measured, Verdict


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim or a numbered equation of the papers, how it is measured and how it is judged.

    - `id`, `statement`, `source`: what is claimed and where; `condition`: the corrected statement.
    - `measure(seed, seeds)` gives the evidence. An equation without has the evidence of the claim that it `rests_on`.
    - `judge(evidence)`, a pure function of figures and corrected figures together, gives the verdict, so that other figures
      give another. `headline`: the figures that a one-line summary shows.
    """

    id: str
    statement: str
    headline: tuple[str, ...]
    judge: Callable[[Evidence], Verdict]
    condition: str = ""
    source: str = "own check"
    measure: Callable[[int, int], Measured] | None = None
    rests_on: str | None = None

    @property
    def code(self) -> str:
        """Where it is measured, `module.function`."""
        return "" if self.measure is None else f"{self.measure.__module__}.{self.measure.__name__}"

    def finding(self, measured: Measured, seconds: float) -> Finding:
        """The verdict from its own evidence."""
        verdict = self.judge(measured.evidence)
        return Finding(
            self.id,
            self.statement,
            self.source,
            verdict,
            self.condition,
            measured,
            self.code,
            self.headline,
            seconds,
        )

    def finding_from(self, other: Finding) -> Finding:
        """The verdict from the evidence of the claim that this equation rests on, of which it shows its headline."""
        verdict = self.judge(other.evidence)
        shown = Measured({name: other.evidence[name] for name in self.headline})
        return Finding(self.id, self.statement, other.claim, verdict, self.condition, shown, other.code, self.headline)


def ratio_over_seeds(values: ArrayLike | Sequence[float]) -> Figure:
    """Geometric mean of one positive ratio per seed with the interval of `over_seeds` for its logarithm."""
    found = over_seeds(np.log(np.asarray(values, float)))
    return Figure(np.exp(found.value), np.exp(found.low), np.exp(found.high))


def range_over(values: ArrayLike | Sequence[float]) -> Figure:
    """Median, least and greatest of the values: for statements about every case, where a mean would hide the worst."""
    x = np.asarray(values, float)
    return Figure(np.median(x), np.min(x), np.max(x), level=1.0)


def low(figure: Any) -> float:
    """The lower end of a figure: the number itself where there is no interval."""
    return float(figure.low) if isinstance(figure, Figure) and math.isfinite(figure.low) else float(figure)


def high(figure: Any) -> float:
    """The upper end of a figure: the number itself where there is no interval."""
    return float(figure.high) if isinstance(figure, Figure) and math.isfinite(figure.high) else float(figure)
