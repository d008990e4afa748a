"""Pieces of the HTML page: tables, cells whose numbers lead to their JSON, notes, and links to files."""

import html
import pathlib
import re
from collections.abc import Sequence

from pdejax.runs.report import _format
from pdejax.runs.report._read import Cell

escape = html.escape


def problems_note(problems: Sequence[str], heading: str) -> str:
    shown = (re.sub("`([^`]+)`", r"<code>\1</code>", escape(problem)) for problem in problems)
    items = "".join(f"<li>{problem}</li>" for problem in shown)
    return f'<div class="problems" role="note"><strong>{heading}</strong><ul>{items}</ul></div>'


def table(label: str, heads: Sequence[str], lines: Sequence[str]) -> str:
    columns = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return (
        f'<div class="table" role="region" aria-label="{escape(label)}" tabindex="0"><table class="sortable">'
        f"<thead><tr>{columns}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def sort_key(value: object) -> str:
    """The attribute by which a cell is sorted; paper figures are text, which may be a number."""
    if isinstance(value, str):
        try:
            value = float(value.replace("−", "-").replace(",", ""))
        except ValueError:
            return ""
    return f' data-sort="{value!r}"' if isinstance(value, int | float) and not isinstance(value, bool) else ""


def number_cell(figure: Cell | None, target: str, below: str = "") -> str:
    """A cell whose number leads to the JSON it came from."""
    mean, interval = _format.interval(figure) if figure else ("–", "")
    between = f'<span class="interval"> {escape(interval)}</span>' if interval else ""
    shown = f'<a href="#{escape(target)}">{escape(mean)}{between}</a>' if mean != "–" else mean
    small = f'<br><span class="soft small">{escape(below)}</span>' if below else ""
    return f'<td class="number"{sort_key(figure.mean if figure else None)}>{shown}{small}</td>'


def paper_cell(text: str | None, target: str) -> str:
    """The paper's figure, as the paper prints it."""
    shown = f'<a href="#{escape(target)}">{escape(text)}</a>' if text else "–"
    return f'<td class="number"{sort_key(text)}>{shown}</td>'


def badge(verdict: str) -> str:
    signs = {"holds": "✓ ", "condition": "◐ ", "fails": "✗ ", "open": ""}
    kind = _format.standing(verdict)
    return f'<span class="badge {kind}">{signs[kind]}{escape(verdict or "no verdict")}</span>'


def file_link(name: str, path: pathlib.Path, base: pathlib.Path) -> str:
    return f'<li><a href="{escape(_format.link(path, base))}">{escape(name)}</a></li>'
