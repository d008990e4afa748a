"""What the sections of an audit's judgement hand over."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from pdejax._bootstrap import bootstrap
from pdejax._figure import Figure
from pdejax.runs._records import Row
from pdejax.runs._table import Table

SIGNIFICANT = 0.05


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


def ratio(a: np.ndarray, b: np.ndarray, key: Any) -> Figure:
    """Ratio of means over sequences, resampled in pairs."""
    x, y = jnp.asarray(a), jnp.asarray(b)
    return bootstrap(lambda w: (w @ x) / (w @ y), len(a), key=key, dtype=x.dtype)


def numbers(figure: Figure) -> dict[str, Any]:
    nulls = {name: float(null.value) for name, null in figure.nulls.items()}
    return {"value": float(figure.value), "low": float(figure.low), "high": float(figure.high)} | (
        {"nulls": nulls} if nulls else {}
    )
