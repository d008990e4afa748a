"""What every part of the page is made of: addresses, anchors, verdicts, and JSON as it lies in its file."""

import html
import json
import os
import pathlib
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from pdejax.runs._records import FEW_SEEDS, Row
from pdejax.runs._table import Cell


def link(path: pathlib.Path, base: pathlib.Path) -> str:
    """The address of `path` for a page that lies in the folder `base`."""
    relative = pathlib.PurePath(os.path.relpath(path, base)).as_posix()
    # A leading name with a colon would read as a scheme.
    return urllib.parse.quote(os.fsencode(relative if relative.startswith(".") else f"./{relative}"), safe="/.")


def slug(text: str, taken: set[str]) -> str:
    """A name for an anchor: letters, digits and hyphens, and none of `taken`, which gains it."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
    found, count = plain, 1
    while found in taken:
        count += 1
        found = f"{plain}-{count}"
    taken.add(found)
    return found


def standing(verdict: str) -> str:
    """`holds`, `condition` or `fails` from the first words of a verdict, `open` for any other."""
    words = re.sub(r"[^a-z ]", " ", verdict.lower()).split()
    if words[:1] == ["holds"]:
        return "condition" if len(words) > 1 else "holds"
    return "fails" if words[:1] in (["fails"], ["fail"]) else "open"


escape = html.escape


def columns_said(rows: Sequence[tuple[int, Row]]) -> str:
    """Say what stands in the columns Ours and Null: over how many seeds, what is in brackets, and what a null is."""
    counts = sorted({len(row.seeds) for _, row in rows if row.seeds})
    kinds = {"range" if count < FEW_SEEDS else "95 % interval": None for count in counts if count > 1}
    ends = " or ".join(kinds)
    said = []
    if counts == [1]:
        said.append("Ours is one seed.")
    elif counts:
        said.append(f"Ours is the mean [{ends}] over {' or '.join(map(str, counts))} seeds.")
    if any(row.null is not None for _, row in rows):
        said.append("Null is the same figure where there is nothing to find.")
    return " ".join(said)


def problems_note(problems: Sequence[str], heading: str) -> str:
    """Write what is missing or damaged as a note."""
    shown = (re.sub("`([^`]+)`", r"<code>\1</code>", escape(problem)) for problem in problems)
    items = "".join(f"<li>{problem}</li>" for problem in shown)
    return f'<div class="problems" role="note"><strong>{heading}</strong><ul>{items}</ul></div>'


def badge(verdict: str) -> str:
    """Write a verdict with its sign, in its colour."""
    signs = {"holds": "✓ ", "condition": "◐ ", "fails": "✗ ", "open": ""}
    kind = standing(verdict)
    return f'<span class="badge {kind}">{signs[kind]}{escape(verdict or "no verdict")}</span>'


def badge_cell(verdict: str) -> Cell:
    """Return a verdict as an entry of a table."""
    return Cell(verdict, code=badge(verdict))


FOLD = 6  # lines of a table that stand open; a longer one is folded


def folded(summary: str, content: str) -> str:
    """Write a block that is closed until it is asked for; links into it open it."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def file_link(name: str, path: pathlib.Path, base: pathlib.Path) -> str:
    """Write a link to a file for a page in the folder `base`."""
    return f'<li><a href="{escape(link(path, base))}">{escape(name)}</a></li>'


_LINE, _DEEP, _LONG = 100, 24, 400


def anchor(prefix: str, *path: str | int) -> str:
    """The anchor of the value at `path` (keys of objects, places in lists) of the document `prefix`."""
    return ".".join([prefix, *map(str, path)])


def anchored(prefix: str, value: Any, anchors: Mapping[tuple[str | int, ...], str]) -> str:
    """`value` as indented JSON in HTML, `<span id>` around the values at the paths of `anchors`.

    Lists of more than 400 numbers keep the first and say how many follow: the file beside the page has them all.
    """
    return f'<pre tabindex="0" id="{html.escape(prefix)}">{_value(value, (), anchors, "")}</pre>'


def _value(value: Any, path: tuple[str | int, ...], anchors: Mapping[tuple[str | int, ...], str], indent: str) -> str:
    text = _text(value, path, anchors, indent)
    name = anchors.get(path)
    return text if name is None else f'<span id="{html.escape(name)}">{text}</span>'


def _text(value: Any, path: tuple[str | int, ...], anchors: Mapping[tuple[str | int, ...], str], indent: str) -> str:
    if not isinstance(value, dict | list) or not value:
        return html.escape(json.dumps(value, ensure_ascii=False), quote=False)
    if len(path) >= _DEEP:
        return "…"
    inner = indent + "  "
    if isinstance(value, list):
        limit = None if any(isinstance(item, dict | list) for item in value) else _LONG
        shown = value[:limit]
        more = [f"… {len(value) - len(shown)} more"] if len(shown) < len(value) else []
        parts = [_value(item, (*path, place), anchors, inner) for place, item in enumerate(shown)] + more
        ends, flat = "[]", not any(isinstance(item, dict | list) for item in shown)
    else:
        parts = [
            f"{html.escape(json.dumps(str(key), ensure_ascii=False), quote=False)}: "
            + _value(item, (*path, str(key)), anchors, inner)
            for key, item in value.items()
        ]
        ends, flat = "{}", not any(isinstance(item, dict) for item in value.values())
    if flat:
        line = ends[0] + ", ".join(parts) + ends[1]
        if len(line) <= _LINE and "\n" not in line:
            return line
        if isinstance(value, list):  # numbers run on: one to a line would be long
            return ends[0] + ", ".join(parts) + ends[1]
    return ends[0] + "\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}" + ends[1]
