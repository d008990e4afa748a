"""The report on disk."""

import dataclasses
import pathlib

from pdejax.runs._files import write_whole
from pdejax.runs.report._html import html_page
from pdejax.runs.report._markdown import markdown_page
from pdejax.runs.report._read import ReportError, read_results


@dataclasses.dataclass(frozen=True)
class BuiltReport:
    """Where the two pages lie, how many studies and claims they show, and what was missing or damaged."""

    html: pathlib.Path
    markdown: pathlib.Path
    studies: int
    claims: int
    problems: tuple[str, ...]


def build_report(folder: str | pathlib.Path, out: str | pathlib.Path | None = None) -> BuiltReport:
    """Read the results in `folder` and write the HTML page `out` (default `folder/report.html`) and, beside it, the Markdown.

    The HTML page is whole in itself: figures, tables, JSON and script are in it, and it opens offline from anywhere; its
    links to data files, and the images of the Markdown, are relative and want the folder. Both are written whole or not
    at all. Raises `ReportError` for a folder without results or an `out` that does not end in `.html`, and `OSError`
    where nothing can be written.
    """
    results = read_results(folder)
    page = pathlib.Path(folder) / "report.html" if out is None else pathlib.Path(out)
    if page.suffix != ".html":
        raise ReportError(f"--out {page} must end in .html; the Markdown is written beside it, ending in .md.")
    if page.is_dir():
        raise ReportError(f"--out {page} is a folder; give a file that ends in .html.")
    page.parent.mkdir(parents=True, exist_ok=True)
    text = page.with_suffix(".md")
    for path, content in ((page, html_page(results, page.parent)), (text, markdown_page(results, page.parent))):
        write_whole(path, content.encode("utf-8", "replace"))
    claims = len(results.ledger.claims) if results.ledger else 0
    return BuiltReport(page, text, len(results.studies), claims, tuple(results.problems()))
