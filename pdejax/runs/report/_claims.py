"""A ledger of claims on the page."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from pdejax.runs._findings import corrected
from pdejax.runs._format import seconds
from pdejax.runs._table import Cell, Column, Table
from pdejax.runs.report._read import Entry, Ledger
from pdejax.runs.report._write import (
    FOLD,
    anchor,
    anchored,
    badge,
    badge_cell,
    escape,
    file_link,
    folded,
    link,
    problems_note,
    slug,
)

# Claims with the anchors of their articles.
Named = Sequence[tuple[str, Entry]]


@dataclasses.dataclass(frozen=True)
class LedgerPlaces:
    """A ledger on the page: the anchors of its two lists and of every entry, and what tells it from another (`beside`)."""

    ledger: Ledger
    claims_at: str
    equations_at: str
    beside: str
    claims: Named
    equations: Named


def ledger_section(places: LedgerPlaces, base: pathlib.Path) -> str:
    """Write claims and equations, each as a table and then one by one."""
    ledger, claims, equations, beside = places.ledger, places.claims, places.equations, escape(places.beside)
    parts = [f'<h2 id="{places.claims_at}">Claims{beside}</h2>']
    if ledger.problems:
        parts.append(problems_note(ledger.problems, "Incomplete:"))
    config = ledger.raw.get("config") if ledger.raw else None
    if isinstance(config, dict):
        shown = ", ".join(f"{key} {value}" for key, value in config.items())
        parts.append(f'<p class="soft small">Configuration: {escape(shown)}.</p>')
    if claims:
        parts.append(_verdicts("Claims and verdicts", claims))
        each = [_claim(entry, name, ledger.saved("claims", entry), base) for name, entry in claims]
        parts.append(folded(f"The {len(each)} claims one by one, with their evidence", "\n".join(each)))
    if equations:
        parts.append(f'<h2 id="{places.equations_at}">Equations{beside}</h2>')
        table = _verdicts("Equations and verdicts", equations)
        parts.append(folded(f"All {len(equations)} equations and verdicts", table) if len(equations) > FOLD else table)
        each = [_claim(entry, name, ledger.saved("equations", entry), base) for name, entry in equations]
        parts.append(folded(f"The {len(each)} equations one by one, with their evidence", "\n".join(each)))
    return "\n".join([*parts, f'<ul class="files small">{file_link(ledger.path.name, ledger.path, base)}</ul>'])


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
        where = f' <a href="{escape(link(entry.file, base))}">Its arrays</a>.' if entry.file else ""
        example = f"<p><strong>Counterexample.</strong> {escape(finding.counterexample.description)}{where}</p>"
    code = f"<code>{escape(finding.code)}</code>" if finding.code else ""
    facts = [escape(finding.source), code, seconds(raw.get("seconds"))]
    return "\n".join(
        [
            f'<article id="{name}"><h3>{escape(entry.name)} {badge(finding.verdict)}</h3>',
            f'<p class="soft small">{" · ".join(fact for fact in facts if fact)}</p>',
            f"<p>{escape(finding.statement)}</p>" if finding.statement else "",
            f"<blockquote>{escape(finding.quote)}</blockquote>" if finding.quote else "",
            f"<p><strong>Judged.</strong> {escape(finding.rule)}</p>" if finding.rule else "",
            f"<p><strong>What holds.</strong> {escape(corrected(finding))}</p>" if finding.condition else "",
            Table(columns, lines, f"Evidence for {entry.name}").html() if lines else "",
            example,
            f"<details><summary>JSON of {escape(entry.name)}</summary>{anchored(document, raw, anchors)}</details>",
            "</article>",
        ]
    )


def placed(ledger: Ledger, index: int, taken: set[str]) -> LedgerPlaces:
    """The anchors of a ledger; the first has those that a page of one has always had."""
    claims, equations = (
        [(slug(f"claim-{entry.name}", taken), entry) for entry in entries]
        for entries in (ledger.claims, ledger.equations)
    )
    beside = f" ({ledger.name})" if index else ""
    heads = [kind if not index else slug(f"{kind}-{ledger.name}", taken) for kind in ("claims", "equations")]
    return LedgerPlaces(ledger, heads[0], heads[1], beside, claims, equations)
