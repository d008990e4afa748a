"""Pieces of the HTML page: notes, badges, and links to files."""

import html
import pathlib
import re
from collections.abc import Sequence

from pdejax.runs._table import Cell
from pdejax.runs.report import _format

escape = html.escape


def problems_note(problems: Sequence[str], heading: str) -> str:
    """Write what is missing or damaged as a note."""
    shown = (re.sub("`([^`]+)`", r"<code>\1</code>", escape(problem)) for problem in problems)
    items = "".join(f"<li>{problem}</li>" for problem in shown)
    return f'<div class="problems" role="note"><strong>{heading}</strong><ul>{items}</ul></div>'


def badge(verdict: str) -> str:
    """Write a verdict with its sign, in its colour."""
    signs = {"holds": "✓ ", "condition": "◐ ", "fails": "✗ ", "open": ""}
    kind = _format.standing(verdict)
    return f'<span class="badge {kind}">{signs[kind]}{escape(verdict or "no verdict")}</span>'


def badge_cell(verdict: str) -> Cell:
    """Return a verdict as an entry of a table."""
    return Cell(verdict, code=badge(verdict))


def file_link(name: str, path: pathlib.Path, base: pathlib.Path) -> str:
    """Write a link to a file for a page in the folder `base`."""
    return f'<li><a href="{escape(_format.link(path, base))}">{escape(name)}</a></li>'
