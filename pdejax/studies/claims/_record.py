"""What a claim is, what was measured about it, and what follows."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy.stats import t as student

Verdict = Literal["holds", "holds under an added condition", "fails"]
HOLDS, CONDITIONAL, FAILS = "holds", "holds under an added condition", "fails"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure measured over seeds: `value` their mean, [`low`, `high`] its 95 % interval by Student's t; NaN for one seed.
    `range_over` gives the extremes instead, where the claim is about all cases."""

    value: float
    low: float
    high: float


Figure = int | float | Estimate
Evidence = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Counterexample:
    """Arrays, as few and small as we could make them, that contradict the claim; `description` says how to see it."""

    description: str
    arrays: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Evidence about a claim: `figures` about the statement as printed, `corrected` about the corrected one, and the smallest
    `counterexample`, None if none was found."""

    figures: dict[str, Any]
    corrected: dict[str, Any]
    counterexample: Counterexample | None = None


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the papers, how it is measured and how it is judged.

    - `id`, `statement`, `source`: what is claimed and where; `condition`: the corrected statement.
    - `measure(seed, seeds)` gives the evidence; `judge(evidence)`, a pure function of figures and corrected figures together,
      gives the verdict, so that other figures give another.
    - `headline`: the figures that a one-line summary shows.
    """

    id: str
    statement: str
    source: str
    condition: str
    headline: tuple[str, ...]
    measure: Callable[[int, int], Measured]
    judge: Callable[[Evidence], Verdict]

    @property
    def code(self) -> str:
        """Where it is measured, `module.function`."""
        return f"{self.measure.__module__}.{self.measure.__name__}"


@dataclasses.dataclass(frozen=True)
class Finding:
    """A claim with its evidence and its verdict; `as_json` is the record that is saved."""

    claim: str
    statement: str
    source: str
    verdict: Verdict
    condition: str
    figures: dict[str, Any]
    corrected_figures: dict[str, Any]
    counterexample: Counterexample | None
    code: str
    headline: tuple[str, ...]
    seconds: float

    @property
    def evidence(self) -> dict[str, Any]:
        """All figures, as `Claim.judge` takes them."""
        return self.figures | self.corrected_figures

    def as_json(self) -> dict[str, Any]:
        found = {key: getattr(self, key) for key in ("claim", "statement", "source", "verdict", "condition")}
        found["figures"], found["corrected_figures"] = _plain(self.figures), _plain(self.corrected_figures)
        found["counterexample"] = None
        if self.counterexample is not None:
            arrays = {
                name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in self.counterexample.arrays.items()
            }
            found["counterexample"] = {
                "description": self.counterexample.description,
                "file": counterexample_file(self.claim),
                "arrays": arrays,
            }
        return found | {"code": self.code, "seconds": self.seconds}


def counterexample_file(claim: str) -> str:
    """Where the arrays lie within the folder that a ledger is saved to."""
    kept = "".join(c if c.isalnum() else "_" for c in claim).strip("_")
    return f"counterexamples/{kept}.npz"


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of one value per seed with its 95 % interval, $\\bar x \\pm t_{0.975,k-1}\\,s/\\sqrt k$; NaN ends for one seed."""
    x = np.asarray(values, float)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"over_seeds: values has shape {x.shape}; it must hold one number per seed, at least one.")
    mean = float(np.mean(x))
    if x.size == 1:
        return Estimate(mean, math.nan, math.nan)
    half = float(student.ppf(0.975, x.size - 1) * np.std(x, ddof=1) / math.sqrt(x.size))
    return Estimate(mean, mean - half, mean + half)


def ratio_over_seeds(values: Sequence[float]) -> Estimate:
    """Geometric mean of one positive ratio per seed with the interval of `over_seeds` for its logarithm."""
    found = over_seeds(np.log(np.asarray(values, float)))
    return Estimate(math.exp(found.value), math.exp(found.low), math.exp(found.high))


def range_over(values: Sequence[float]) -> Estimate:
    """Median, least and greatest of the values: for statements about every case, where a mean would hide the worst."""
    x = np.asarray(values, float)
    return Estimate(float(np.median(x)), float(np.min(x)), float(np.max(x)))


def value(figure: Any) -> float:
    """The figure as one number."""
    return float(figure.value if isinstance(figure, Estimate) else figure)


def low(figure: Any) -> float:
    """The lower end of a figure: the number itself where there is no interval."""
    return float(figure.low) if isinstance(figure, Estimate) and math.isfinite(figure.low) else value(figure)


def high(figure: Any) -> float:
    """The upper end of a figure: the number itself where there is no interval."""
    return float(figure.high) if isinstance(figure, Estimate) and math.isfinite(figure.high) else value(figure)


def shown(figure: Any) -> str:
    """A figure in a few characters, with its interval if it has one."""
    if isinstance(figure, Estimate):
        ends = f" [{_short(figure.low)}, {_short(figure.high)}]" if math.isfinite(figure.low) else ""
        return _short(figure.value) + ends
    return _short(figure)


def _short(x: Any) -> str:
    return f"{x + 0.0:.3g}" if isinstance(x, float | np.floating) else str(x)


def _plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {k: dataclasses.asdict(v) if isinstance(v, Estimate) else v for k, v in figures.items()}


def to_part(measured: Measured, seconds: float) -> dict[str, Any]:
    """The evidence as JSON values, from which `from_part` makes it again."""
    example = measured.counterexample
    return {
        "figures": _plain(measured.figures),
        "corrected": _plain(measured.corrected),
        "counterexample": None
        if example is None
        else {
            "description": example.description,
            "arrays": {name: [str(a.dtype), list(a.shape), a.ravel()] for name, a in example.arrays.items()},
        },
        "seconds": seconds,
    }


def from_part(part: Mapping[str, Any]) -> tuple[Measured, float]:
    """The evidence and its seconds from a saved part."""
    example = part["counterexample"]
    if example is not None:
        arrays = {}
        for name, (dtype, shape, values) in example["arrays"].items():
            flat = [math.nan if v is None else v for v in values]
            arrays[name] = np.asarray(flat, dtype).reshape(shape)
        example = Counterexample(example["description"], arrays)
    return Measured(_figures(part["figures"]), _figures(part["corrected"]), example), float(part["seconds"])


def _figures(saved: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in saved.items():
        if isinstance(item, Mapping):
            ends = [math.nan if item[key] is None else float(item[key]) for key in ("value", "low", "high")]
            found[name] = Estimate(*ends)
        else:
            found[name] = math.nan if item is None else item
    return found
