"""Figures as JSON and back."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pdejax._figure import Figure
from pdejax.runs._files import plain


def figure_to_json(figure: Figure | None, seeds: Sequence[float] = ()) -> dict[str, Any] | None:
    """Return a figure as JSON values: `mean`, `low`, `high` (None where there is no interval), and `values` by seed."""
    if figure is None:
        return None
    found: dict[str, Any] = {"mean": float(figure), "low": float(figure.low), "high": float(figure.high)}
    return plain(found | ({"values": list(seeds)} if seeds else {}))


def figure_from_json(saved: Any) -> Figure | None:
    """Make a figure from a number or from an object with a mean (or value) and an interval; None for anything else."""
    if isinstance(saved, Mapping):
        value = as_number(saved.get("mean", saved.get("value")))
        return None if value is None else Figure(value, as_number(saved.get("low")), as_number(saved.get("high")))
    value = as_number(saved)
    return None if value is None else Figure(value)


def as_number(value: Any) -> float | None:
    """Return a finite number as a float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond floating point
        return None


def text(value: Any) -> str:
    """Write what was saved as text; nothing for None. Control characters would spoil a page."""
    if value is None:
        return ""
    found = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else " " for c in found).strip()
