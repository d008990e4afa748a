"""A study's table as text: paper | ours | null."""

from collections.abc import Mapping
from typing import Any


def table(content: Mapping[str, Any]) -> str:
    """The table of a result, a line per quantity, then the verdict."""
    rows = [("quantity", "paper", "ours", "null")]
    for line in content["table"]:
        unit = f" [{line['unit']}]" if line["unit"] else ""
        null = "" if line["null"] is None else f"{shown(line['null'])} ({line['null_name']})"
        rows.append((line["quantity"] + unit, line["paper"] or "—", shown(line["ours"]), null))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    count = len(content["seeds"])
    heading = f"{content['title']} ({content['source']}; {content['preset']}, {count} seed{'s' if count > 1 else ''})"
    return "\n".join([heading, *lines, content["verdict"]])


def shown(values: Mapping[str, Any]) -> str:
    """A mean with half its interval, in as many digits as the interval leaves."""
    if values["mean"] is None:
        return "not finite"
    if values["low"] is None:
        return f"{values['mean']:.4g}"
    return f"{values['mean']:.4g} ± {(values['high'] - values['low']) / 2:.2g}"
