"""One table, as text for a terminal, as Markdown and as HTML."""

import dataclasses
import html
import re
from collections.abc import Sequence
from typing import Any

from pdejax.runs import _format

# The formats that a column may have: of whole numbers, or of any number; a result that is read again takes no others.
SPEC = re.compile(r"\+?,?d|\+?,?(\.\d{1,2})?[efg%]")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: its `head`, the format `spec` of its numbers (None: see `_format.shown`), and its least `width` as text.

    Columns of numbers (`right`) are set to the right. Widths matter where lines are printed before the table is whole.
    Raises `ValueError` for another `spec` than of `SPEC`: it would be lost where the table is read from its JSON.
    """

    head: str
    spec: str | None = None
    width: int = 0
    right: bool = False

    def __post_init__(self):
        if self.spec is not None and not SPEC.fullmatch(self.spec):
            raise ValueError(f"Column: spec={self.spec!r} must be a format such as 'd', '.3f', '+.1%' or '.2e'.")


@dataclasses.dataclass(frozen=True)
class Cell:
    """An entry that says more than its `value`: where it leads (`link`), what stands below it (`small`), how it is sorted."""

    value: Any
    link: str = ""
    small: str = ""
    code: str = ""  # HTML that takes the place of the value on a page


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: `columns`, `rows` of entries, a `caption`.

    An entry is text, a number, a figure with `value`, `low` and `high`, None (shown as a dash), or a `Cell`.
    `print(table)` gives text; notebooks show HTML.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]] = ()
    caption: str = ""

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"Table of {len(self.rows)} rows: {', '.join(column.head for column in self.columns)}"

    def text(self) -> str:
        """Write the table for a terminal: head, rule, lines; every column as wide as its widest entry."""
        cells = [[_shown(cell, column) for cell, column in zip(row, self.columns, strict=True)] for row in self.rows]
        heads = [column.head for column in self.columns]
        widths = [max(column.width, *(len(row[i]) for row in (heads, *cells))) for i, column in enumerate(self.columns)]
        lines = [self._set(row, widths) for row in (heads, ["-" * width for width in widths], *cells)]
        return "\n".join(([self.caption] if self.caption else []) + lines)

    def head(self) -> str:
        """Write the head alone, for a table that is printed line by line: columns are as wide as they say."""
        return self._set([column.head for column in self.columns], [column.width for column in self.columns])

    def line(self, row: Sequence[Any]) -> str:
        """Write one line of a table that is printed line by line."""
        cells = [_shown(cell, column) for cell, column in zip(row, self.columns, strict=True)]
        return self._set(cells, [column.width for column in self.columns])

    def markdown(self) -> str:
        """Write the table as Markdown; entries with a `link` lead there."""
        heads = [markdown_text(column.head) for column in self.columns]
        rules = ["---:" if column.right else "---" for column in self.columns]
        rows = [[_marked(cell, column) for cell, column in zip(row, self.columns, strict=True)] for row in self.rows]
        return "\n".join("| " + " | ".join(row) + " |" for row in (heads, rules, *rows))

    def html(self) -> str:
        """Write the table as HTML, whose columns `table.js` of the report sorts; texts are escaped."""
        heads = "".join(f'<th scope="col">{html.escape(column.head)}</th>' for column in self.columns)
        lines = []
        for row in self.rows:
            cells = (_tag(i, cell, column) for i, (cell, column) in enumerate(zip(row, self.columns, strict=True)))
            lines.append(f"<tr>{''.join(cells)}</tr>")
        return (
            f'<div class="table" role="region" aria-label="{html.escape(self.caption)}" tabindex="0">'
            f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        )

    def filled(self) -> "Table":
        """Return the table without columns that have no entry at all."""
        kept = [i for i in range(len(self.columns)) if any(not _empty(row[i]) for row in self.rows)]
        return Table([self.columns[i] for i in kept], [[row[i] for i in kept] for row in self.rows], self.caption)

    def _repr_html_(self) -> str:
        return self.html()

    def _set(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        pairs = zip(cells, widths, self.columns, strict=True)
        return "  ".join(c.rjust(width) if column.right else c.ljust(width) for c, width, column in pairs).rstrip()


def sort_key(value: object) -> str:
    """Return the attribute by which a cell is sorted; a paper's figures are text, which may be a number."""
    value = getattr(value, "value", value)
    if isinstance(value, str):
        try:
            value = float(value.replace("−", "-").replace(",", ""))
        except ValueError:
            return ""
    elif hasattr(value, "item"):
        value = value.item()  # pyright: ignore[reportAttributeAccessIssue]
    known = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return f' data-sort="{value!r}"' if known else ""


def markdown_text(value: str) -> str:
    """Write text as text: Markdown's signs and those of HTML lose their meaning, and a line stays a line."""
    plain = " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", plain)
    return re.sub(r"^([-+]|\d+\.)(?=\s|$)", lambda found: found[0][:-1] + "\\" + found[0][-1], plain)


def _empty(cell: Any) -> bool:
    entry = _entry(cell)
    return (
        not entry.code
        and not entry.small
        and (entry.value is None or (isinstance(entry.value, str) and not entry.value))
    )


def _entry(cell: Any) -> Cell:
    return cell if isinstance(cell, Cell) else Cell(cell)


def _value(cell: Any, column: Column) -> str:
    value = _entry(cell).value
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if column.spec is not None and plain and value == value:
        whole = column.spec.endswith("d")
        if not whole:
            return format(value, column.spec)
        # JSON keeps no types: a whole number may come back as 3.0, and a mean stands where a count is usual.
        if float(value).is_integer():
            return format(int(value), column.spec)
    return _format.shown(value)


def _shown(cell: Any, column: Column) -> str:
    small = _entry(cell).small
    return _value(cell, column) + (f" ({small})" if small else "")


def _marked(cell: Any, column: Column) -> str:
    entry, text = _entry(cell), _value(cell, column)
    shown = markdown_text(text)
    if entry.link and text not in ("", "–"):
        shown = f"[{shown}]({entry.link})"
    return shown + (f" ({markdown_text(entry.small)})" if entry.small else "")


def _tag(place: int, cell: Any, column: Column) -> str:
    entry = _entry(cell)
    kind = "number" if column.right else "text"
    key = sort_key(entry.value) if column.right else ""
    if entry.code:
        shown = entry.code
    else:
        value, interval = _value(cell, column), ""
        if column.spec is None:
            value, interval = _format.parts(entry.value)
        between = f'<span class="interval"> {html.escape(interval)}</span>' if interval else ""
        shown = html.escape(value) + between
        if entry.link and value not in ("", "–"):
            shown = f'<a href="{html.escape(entry.link)}">{shown}</a>'
    small = f'<br><span class="soft small">{html.escape(entry.small)}</span>' if entry.small else ""
    if place == 0:
        return f'<th scope="row" class="{kind}"{key}>{shown}{small}</th>'
    return f'<td class="{kind}"{key}>{shown}{small}</td>'
