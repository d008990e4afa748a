"""The report on disk: the HTML page and, beside it, the same numbers as Markdown with relative links."""

import dataclasses
import pathlib
from typing import Any

from pdejax._arguments import checked
from pdejax.runs._files import write_whole
from pdejax.runs._findings import corrected
from pdejax.runs._format import environment, seconds
from pdejax.runs._table import Cell, Column, Table
from pdejax.runs._table import markdown_text as marked
from pdejax.runs.report._html import TITLE, html_page
from pdejax.runs.report._read import Entry, Ledger, ReportError, Results, Study, read_results
from pdejax.runs.report._write import columns_said, link


def markdown_page(results: Results, base: str | pathlib.Path) -> str:
    """Write the Markdown for `results`, to be saved in the folder `base`; numbers link to the JSON file they come from."""
    base = pathlib.Path(base)
    parts = [f"# {TITLE}", "Papers: [arXiv:2408.09523](https://arxiv.org/abs/2408.09523), v1 and v2."]
    problems = results.problems()
    if problems:
        parts.append("**Missing or damaged:**\n\n" + "\n".join(f"- {marked(problem)}" for problem in problems))
    parts.append(marked(results.foreign()))
    if results.studies:
        columns = [Column(head) for head in ("Study", "Source", "Verdict")]
        lines = [(s.title, s.result.source, s.result.verdict or "no result") for s in results.studies]
        parts += ["## Summary", Table(columns, lines).filled().markdown(), "## Studies"]
    for study in results.studies:
        parts += _study(study, base)
    for index, ledger in enumerate(results.ledgers):
        parts += _ledger(ledger, base, f" ({ledger.name})" if index else "")
    return "\n\n".join(part for part in parts if part) + "\n"


def _study(study: Study, base: pathlib.Path) -> list[str]:
    parts, result = [f"### {marked(study.title)}"], study.result
    if study.problems:
        parts.append("\n".join(f"- Incomplete: {marked(problem)}" for problem in study.problems))
    if study.raw is None:
        return parts
    address = link(study.json, base)
    facts = [result.source, result.pairing, result.preset, seconds(result.seconds)]
    parts.append(" · ".join(marked(fact) for fact in facts if fact))
    parts.append(marked(result.question))
    if result.verdict:
        parts.append(f"**Verdict.** {marked(result.verdict)}")
    columns = [Column("Quantity"), *(Column(head, right=True) for head in ("Paper", "Ours", "Null")), Column("Note")]
    lines = []
    for _, row in study.rows:
        cells = Cell(row.paper or None, address), Cell(row.ours, address), Cell(row.null, address, row.null_name or "")
        lines.append((Cell(row.quantity, small=row.unit), *cells, row.note))
    if lines:
        parts += [Table(columns, lines).markdown(), marked(columns_said(study.rows))]
    for table in result.tables:
        if table.rows:
            linked = [
                [_linked(cell, column, address) for cell, column in zip(row, table.columns, strict=True)]
                for row in table.rows
            ]
            parts += [marked(table.caption), Table(table.columns, linked).markdown()]
    parts.append(
        "\n".join(f"- **{marked(question)}**: {marked(answer)}" for question, answer in result.verdicts.items())
    )
    parts.append("\n".join(f"- {marked(note)}" for note in result.notes))
    for image in study.images:
        if image.content is not None:
            caption = marked(image.caption)
            parts.append(f"![{caption}]({link(image.path, base)})\n\n*{caption}*")
    files = [f"[{marked(study.file)}]({address})"]
    if study.data:
        files.append(f"[{marked(study.data.name)}]({link(study.data, base)})")
    shown = ", ".join(map(str, result.seeds)) or "not said"
    device = environment(result.environment) or "not said"
    files += [f"seeds {marked(shown)}", f"configuration {marked(result.config_hash or 'not said')}"]
    return [*parts, " · ".join([*files, f"measured on {marked(device)}"])]


def _linked(cell: Any, column: Column, address: str) -> Any:
    """A number of a table as a link to the file that it comes from."""
    entry = cell if isinstance(cell, Cell) else Cell(cell)
    return dataclasses.replace(entry, link=address) if column.right else entry


def _ledger(ledger: Ledger, base: pathlib.Path, beside: str) -> list[str]:
    address = link(ledger.path, base)
    beside = marked(beside) and f" {marked(beside)}"
    parts = [f"## Claims{beside}"]
    if ledger.problems:
        parts.append("\n".join(f"- Incomplete: {marked(problem)}" for problem in ledger.problems))
    kinds = (("", "claims", ledger.claims), (f"## Equations{beside}", "equations", ledger.equations))
    for heading, kind, entries in kinds:
        if not entries:
            continue
        columns = [Column(head) for head in ("Claim", "Statement", "Source", "Verdict")]
        found = [entry.finding for entry in entries]
        lines = [(f.claim, f.statement, f.source, f.verdict) for f in found]
        parts += [heading, Table(columns, lines).markdown()]
        for entry in entries:
            parts += _claim(entry, ledger.saved(kind, entry).get("seconds"), address, base)
    return parts


def _claim(entry: Entry, took: object, address: str, base: pathlib.Path) -> list[str]:
    finding = entry.finding
    facts = [finding.source, finding.code, seconds(took)]
    parts = [f"### {marked(finding.claim)}: {marked(finding.verdict) or 'no verdict'}"]
    parts += [" · ".join(marked(fact) for fact in facts if fact), marked(finding.statement)]
    if finding.quote:
        parts.append(f"> {marked(finding.quote)}")
    if finding.rule:
        parts.append(f"**Judged.** {marked(finding.rule)}")
    if finding.condition:
        parts.append(f"**What holds.** {marked(corrected(finding))}")
    measured = finding.measured
    lines = [
        (name, label, Cell(value, address))
        for label, figures in (("as stated", measured.figures), ("corrected", measured.corrected))
        for name, value in figures.items()
    ]
    if lines:
        columns = [Column("Evidence"), Column("Statement"), Column("Figure", right=True)]
        parts.append(Table(columns, lines).markdown())
    if finding.counterexample is not None:
        where = f" [Its arrays]({link(entry.file, base)})." if entry.file else ""
        parts.append(f"**Counterexample.** {marked(finding.counterexample.description)}{where}")
    return parts


@dataclasses.dataclass(frozen=True)
class BuiltReport:
    """Where the two pages lie, how many studies and claims they show, what was missing or damaged, and which JSON files were left
    out because they are no results."""

    html: pathlib.Path
    markdown: pathlib.Path
    studies: int
    claims: int
    problems: tuple[str, ...]
    left_out: tuple[str, ...] = ()


@checked
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
    return BuiltReport(page, text, len(results.studies), results.claims, tuple(results.problems()), results.left_out)
