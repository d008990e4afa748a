"""Nothing is concluded from what is no number."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pdejax.studies.study import Evidence, Judgement


def judged(
    judge: Callable[[Any, Sequence[Evidence]], Judgement],
    settings: Any,
    evidence: Sequence[Evidence],
    *,
    lacking: Sequence[str] = (),
    failed: str | None = None,
) -> Judgement:
    """Judge finite evidence. Where some is not, or a figure of the table is not, say so in place of a conclusion: no comparison
    with NaN holds, so that each would be decided by the way it is written. `lacking`, `failed`: as in `experiment`."""
    left_out = [name for found in evidence for name in _holes(found, None)]
    holes = sorted({name for found in evidence for name in _holes(found, failed) if name not in lacking})
    try:
        with warnings.catch_warnings():
            if left_out:
                warnings.simplefilter("ignore", RuntimeWarning)
            found = judge(settings, evidence)
    except ValueError:
        if not holes:
            raise
        found = Judgement()
    excused = failed is not None and any(np.any(np.asarray(one[failed])) for one in evidence)
    bad = [r.quantity for r in found.rows if r.ours is not None and not np.isfinite(float(r.ours))]
    bad = [] if excused and not holes and len(bad) < len(found.rows) else bad
    if not holes and not bad:
        return found
    parts = [f"{len(bad)} of {len(found.rows)} figures are no numbers ({_few(bad)})"] if bad else []
    parts += [f"evidence is not finite ({_few(holes)})"] if holes else []
    sentence = f"Not measured: {'; '.join(parts)}."
    return Judgement(sentence=sentence, passed=False, rows=found.rows, dataset=found.dataset)


def _holes(found: Evidence, failed: str | None) -> list[str]:
    """The names of arrays with values that are not finite, but for models whose training failed."""
    numbers = {name: np.asarray(value) for name, value in found.items()}
    left: Any = slice(None) if failed is None else ~numbers[failed].astype(bool)
    return [
        name
        for name, x in numbers.items()
        if x.dtype.kind in "fc" and not np.all(np.isfinite(x[left] if failed is not None and x.ndim else x))
    ]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
