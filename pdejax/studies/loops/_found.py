"""What the parts of the judgement of a loop hand over."""

from collections.abc import Mapping, Sequence
from typing import Any

from pdejax._figure import Figure
from pdejax.runs._records import Row
from pdejax.runs._table import Table

Inputs = Sequence[Mapping[str, Any]]


class Found:
    """Rows, tables, answers by question, numbers and notes, as they come."""

    def __init__(self):
        self.rows: list[Row] = []
        self.tables: list[Table] = []
        self.verdicts: dict[str, str] = {}
        self.results: dict[str, Any] = {}
        self.notes: list[str] = []

    def row(self, quantity: str, ours: Figure, **beside: Any) -> None:
        self.rows.append(Row(quantity, ours, **beside))
