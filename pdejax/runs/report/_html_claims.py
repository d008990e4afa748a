"""The ledger of claims on the HTML page."""

import pathlib
from collections.abc import Sequence
from typing import Any

from pdejax.runs._format import seconds
from pdejax.runs._table import Cell, Column, Table
from pdejax.runs.report import _format
from pdejax.runs.report._html_parts import badge, badge_cell, escape, file_link, problems_note
from pdejax.runs.report._json import anchor, anchored
from pdejax.runs.report._read import Entry, Ledger

# Claims with the anchors of their articles.
Named = Sequence[tuple[str, Entry]]


def ledger_section(ledger: Ledger, claims: Named, equations: Named, base: pathlib.Path) -> str:
    """Write claims and equations, each as a table and then one by one."""
    parts = ['<h2 id="claims">Claims</h2>']
    if ledger.problems:
        parts.append(problems_note(ledger.problems, "Incomplete:"))
    config = ledger.raw.get("config") if ledger.raw else None
    if isinstance(config, dict):
        shown = ", ".join(f"{key} {value}" for key, value in config.items())
        parts.append(f'<p class="soft small">Configuration: {escape(shown)}.</p>')
    if claims:
        parts.append(_verdicts("Claims and verdicts", claims))
        parts += [_claim(entry, name, ledger.saved("claims", entry), base) for name, entry in claims]
    if equations:
        parts.append('<h2 id="equations">Equations</h2>')
        parts.append(_verdicts("Equations and verdicts", equations))
        parts += [_claim(entry, name, ledger.saved("equations", entry), base) for name, entry in equations]
    return "\n".join([*parts, f'<ul class="files small">{file_link("claims.json", ledger.path, base)}</ul>'])


def _verdicts(caption: str, entries: Named) -> str:
    columns = [Column(head) for head in ("Claim", "Verdict", "Statement", "Source")]
    lines = [
        (Cell(entry.name, f"#{name}"), badge_cell(entry.finding.verdict), entry.finding.statement, entry.finding.source)
        for name, entry in entries
    ]
    return Table(columns, lines, caption).html()


def _claim(entry: Entry, name: str, raw: Any, base: pathlib.Path) -> str:
    finding, document = entry.finding, f"{name}.json"
    anchors: dict[tuple[str | int, ...], str] = {}
    measured, lines = finding.measured, []
    for key, label, figures in (
        ("figures", "as stated", measured.figures),
        ("corrected_figures", "corrected", measured.corrected),
    ):
        for place, (figure, value) in enumerate(figures.items()):
            anchors[key, figure] = anchor(document, key, place)
            kind = [label] if measured.corrected else []
            lines.append((figure, *kind, Cell(value, f"#{anchors[key, figure]}")))
    columns = [Column("Evidence"), *([Column("Statement")] if measured.corrected else []), Column("Figure", right=True)]
    example = ""
    if finding.counterexample is not None:
        where = f' <a href="{escape(_format.link(entry.file, base))}">Its arrays</a>.' if entry.file else ""
        example = f"<p><strong>Counterexample.</strong> {escape(finding.counterexample.description)}{where}</p>"
    code = f"<code>{escape(finding.code)}</code>" if finding.code else ""
    facts = [escape(finding.source), code, seconds(raw.get("seconds"))]
    return "\n".join(
        [
            f'<article id="{name}"><h3>{escape(entry.name)} {badge(finding.verdict)}</h3>',
            f'<p class="soft small">{" · ".join(fact for fact in facts if fact)}</p>',
            f"<p>{escape(finding.statement)}</p>" if finding.statement else "",
            f"<p><strong>What holds.</strong> {escape(finding.condition)}</p>" if finding.condition else "",
            Table(columns, lines, f"Evidence for {entry.name}").html() if lines else "",
            example,
            f"<details><summary>JSON of {escape(entry.name)}</summary>{anchored(document, raw, anchors)}</details>",
            "</article>",
        ]
    )
