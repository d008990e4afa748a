"""The ledger of claims on the HTML page."""

import pathlib
from collections.abc import Sequence
from typing import Any

from pdejax.runs.report import _format
from pdejax.runs.report._html_parts import badge, escape, file_link, number_cell, problems_note, table
from pdejax.runs.report._json import anchor, anchored
from pdejax.runs.report._read import Claim, Ledger

# Claims with the anchors of their articles.
Named = Sequence[tuple[str, Claim]]


def ledger_section(ledger: Ledger, claims: Named, equations: Named, base: pathlib.Path) -> str:
    """Claims and equations, each as a table and then one by one."""
    parts = ['<h2 id="claims">Claims</h2>']
    if ledger.problems:
        parts.append(problems_note(ledger.problems, "Incomplete:"))
    config = ledger.raw.get("config") if ledger.raw else None
    if isinstance(config, dict):
        shown = ", ".join(f"{key} {value}" for key, value in config.items())
        parts.append(f'<p class="soft small">Configuration: {escape(shown)}.</p>')
    if claims:
        parts.append(_claims_table("Claims and verdicts", claims))
        parts += [_claim(claim, name, _raw(ledger, "claims", claim), base) for name, claim in claims]
    if equations:
        parts.append('<h2 id="equations">Equations</h2>')
        parts.append(_claims_table("Equations and verdicts", equations))
        parts += [_claim(claim, name, _raw(ledger, "equations", claim), base) for name, claim in equations]
    return "\n".join([*parts, f'<ul class="files small">{file_link("claims.json", ledger.path, base)}</ul>'])


def _raw(ledger: Ledger, key: str, claim: Claim) -> Any:
    return ledger.raw["results"][key][claim.index] if ledger.raw else {}


def _claims_table(label: str, claims: Named) -> str:
    lines = [
        f'<tr><th scope="row"><a href="#{name}">{escape(claim.name)}</a></th><td>{badge(claim.verdict)}</td>'
        f'<td class="text">{escape(claim.statement)}</td><td>{escape(claim.source)}</td></tr>'
        for name, claim in claims
    ]
    return table(label, ("Claim", "Verdict", "Statement", "Source"), lines)


def _claim(claim: Claim, name: str, raw: Any, base: pathlib.Path) -> str:
    document = f"{name}.json"
    anchors: dict[tuple[str | int, ...], str] = {}
    lines = []
    for key, label, figures in (
        ("figures", "as stated", claim.figures),
        ("corrected_figures", "corrected", claim.corrected),
    ):
        for place, (figure, value) in enumerate(figures):
            anchors[key, figure] = anchor(document, key, place)
            kind = f"<td>{label}</td>" if claim.corrected else ""
            lines.append(
                f'<tr><th scope="row" class="text">{escape(figure)}</th>{kind}{number_cell(value, anchors[key, figure])}</tr>'
            )
    heads = ("Evidence", *(["Statement"] if claim.corrected else []), "Figure")
    example = ""
    if claim.counterexample or claim.counterexample_file:
        file = claim.counterexample_file
        where = f' <a href="{escape(_format.link(file, base))}">Its arrays</a>.' if file else ""
        example = f"<p><strong>Counterexample.</strong> {escape(claim.counterexample)}{where}</p>"
    seconds = _format.seconds(raw.get("seconds"))
    facts = [escape(claim.source), f"<code>{escape(claim.code)}</code>" if claim.code else "", seconds]
    return "\n".join(
        [
            f'<article id="{name}"><h3>{escape(claim.name)} {badge(claim.verdict)}</h3>',
            f'<p class="soft small">{" · ".join(fact for fact in facts if fact)}</p>',
            f"<p>{escape(claim.statement)}</p>" if claim.statement else "",
            f"<p><strong>What holds.</strong> {escape(claim.condition)}</p>" if claim.condition else "",
            table(f"Evidence for {claim.name}", heads, lines) if lines else "",
            example,
            f"<details><summary>JSON of {escape(claim.name)}</summary>{anchored(document, raw, anchors)}</details>",
            "</article>",
        ]
    )
