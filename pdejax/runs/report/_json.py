"""JSON as HTML whose parts can be linked to."""

import html
import json
from collections.abc import Mapping
from typing import Any

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
