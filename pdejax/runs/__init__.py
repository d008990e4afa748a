"""Long runs: parts that are kept, results with their tables, what they were measured with, commands, and the report."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach

if TYPE_CHECKING:
    from pdejax.runs import report as report
    from pdejax.runs import sweep as sweep
    from pdejax.runs._files import ResultError as ResultError
    from pdejax.runs._parts import Parts as Parts
    from pdejax.runs._parts import environment as environment
    from pdejax.runs._records import Picture as Picture
    from pdejax.runs._records import Result as Result
    from pdejax.runs._records import Row as Row
    from pdejax.runs._table import Column as Column
    from pdejax.runs._table import Table as Table
else:
    __getattr__, __dir__ = attach(__name__)
