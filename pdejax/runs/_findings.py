"""What was found about a claim of the papers: evidence, counterexample and verdict, as JSON and back."""

import dataclasses
import io
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from pdejax._figure import Figure
from pdejax.runs._files import plain

Verdict = Literal["holds", "holds under an added condition", "fails"]
VERDICTS: tuple[Verdict, ...] = ("holds", "holds under an added condition", "fails")
HOLDS, CONDITIONAL, FAILS = VERDICTS

# Figures by name: numbers, or `Figure`s over seeds.
Evidence = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Counterexample:
    """Arrays, as few and small as we could make them, that contradict a claim; `description` says how to see it."""

    description: str
    arrays: dict[str, np.ndarray]

    def npz(self) -> bytes:
        """Return the arrays as the content of an `.npz` file."""
        content = io.BytesIO()
        np.savez(content, **self.arrays)  # pyright: ignore[reportArgumentType]
        return content.getvalue()


@dataclasses.dataclass(frozen=True)
class Measured:
    """Evidence about a claim: `figures` about the statement as printed, `corrected` about the corrected one, and the smallest
    `counterexample`, None if none was found."""

    figures: Evidence
    corrected: Evidence = dataclasses.field(default_factory=dict)
    counterexample: Counterexample | None = None

    @property
    def evidence(self) -> dict[str, Any]:
        """All figures, as a claim's `judge` takes them."""
        return {**self.figures, **self.corrected}

    def to_json(self) -> dict[str, Any]:
        """Return the evidence as JSON values, arrays included, from which `from_json` makes it again."""
        example = self.counterexample
        arrays = (
            {} if example is None else {k: [str(a.dtype), list(a.shape), a.ravel()] for k, a in example.arrays.items()}
        )
        found = None if example is None else {"description": example.description, "arrays": arrays}
        return plain(
            {"figures": _to_json(self.figures), "corrected": _to_json(self.corrected), "counterexample": found}
        )

    @staticmethod
    def from_json(saved: Mapping[str, Any]) -> "Measured":
        """Make the evidence again from what `to_json` gave."""
        example = saved["counterexample"]
        if example is not None:
            arrays = {}
            for name, (dtype, shape, values) in example["arrays"].items():
                flat = [math.nan if v is None else v for v in values]
                arrays[name] = np.asarray(flat, dtype).reshape(shape)
            example = Counterexample(example["description"], arrays)
        return Measured(figures_from_json(saved["figures"]), figures_from_json(saved["corrected"]), example)


@dataclasses.dataclass(frozen=True)
class Finding:
    """A claim with its evidence and its verdict.

    - `claim`, `statement`, `source`: which one, what is claimed and where; `condition`: the corrected statement.
    - `measured`: the evidence; `verdict` from it; `headline`: the figures that a summary shows.
    - `code`: where it is measured, `module.function`, and how many `seconds` that took.
    """

    claim: str
    statement: str
    source: str
    verdict: Verdict
    condition: str
    measured: Measured
    code: str = ""
    headline: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def evidence(self) -> dict[str, Any]:
        """All figures by name."""
        return self.measured.evidence

    @property
    def counterexample(self) -> Counterexample | None:
        """The smallest one, None if none was found."""
        return self.measured.counterexample

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON values; the arrays of its counterexample by shape and file alone."""
        found = {key: getattr(self, key) for key in ("claim", "statement", "source", "verdict", "condition")}
        found["figures"], found["corrected_figures"] = (
            _to_json(self.measured.figures),
            _to_json(self.measured.corrected),
        )
        found["counterexample"] = None
        example = self.counterexample
        if example is not None:
            arrays = {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in example.arrays.items()}
            file = counterexample_file(self.claim)
            found["counterexample"] = {"description": example.description, "file": file, "arrays": arrays}
        return plain(found | {"code": self.code, "seconds": self.seconds})


def counterexample_file(claim: str) -> str:
    """Return where the arrays lie within the folder that a ledger is saved to."""
    return f"counterexamples/{file_name(claim)}.npz"


def file_name(claim: str) -> str:
    """Return a claim's name as the name of a file."""
    return "".join(c if c.isalnum() else "_" for c in claim).strip("_")


def figures_from_json(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Make figures by name from what a ledger saved: an object with `value`, `low`, `high`, or a number."""
    found: dict[str, Any] = {}
    for name, item in saved.items():
        if isinstance(item, Mapping):
            value, low, high = (math.nan if item[key] is None else item[key] for key in ("value", "low", "high"))
            found[name] = Figure(value, low, high)
        else:
            found[name] = math.nan if item is None else item
    return found


def _to_json(figures: Evidence) -> dict[str, Any]:
    return {name: _figure(figure) if isinstance(figure, Figure) else figure for name, figure in figures.items()}


def _figure(figure: Figure) -> dict[str, float]:
    return {"value": float(figure), "low": float(figure.low), "high": float(figure.high)}
