"""The report as Markdown: the same numbers, with relative links to images and JSON."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

from pdejax.runs.report import _format
from pdejax.runs.report._html import TITLE
from pdejax.runs.report._read import Claim, Ledger, Results, Study


def markdown_page(results: Results, base: str | pathlib.Path) -> str:
    """The Markdown for `results`, to be saved in the folder `base`; numbers link to the JSON file they come from."""
    base = pathlib.Path(base)
    parts = [f"# {TITLE}", "Papers: [arXiv:2408.09523](https://arxiv.org/abs/2408.09523), v1 and v2."]
    problems = results.problems()
    if problems:
        parts.append("**Missing or damaged:**\n\n" + "\n".join(f"- {_text(problem)}" for problem in problems))
    if results.studies:
        lines = [
            [_text(study.title or study.name), _text(study.source), _text(study.verdict) or "no result"]
            for study in results.studies
        ]
        parts += ["## Summary", _table(["Study", "Source", "Verdict"], lines), "## Studies"]
    for study in results.studies:
        parts += _study(study, base)
    if results.ledger:
        parts += _ledger(results.ledger, base)
    return "\n\n".join(part for part in parts if part) + "\n"


def _text(value: str) -> str:
    """Text as text: Markdown's signs and those of HTML lose their meaning, and a line stays a line."""
    plain = " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", plain)
    return re.sub(r"^([-+]|\d+\.)(?=\s|$)", lambda found: found[0][:-1] + "\\" + found[0][-1], plain)


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _number(text: str, address: str) -> str:
    return text if text in ("", "–") else f"[{_text(text)}]({address})"


def _study(study: Study, base: pathlib.Path) -> list[str]:
    parts = [f"### {_text(study.title or study.name)}"]
    if study.problems:
        parts.append("\n".join(f"- Incomplete: {_text(problem)}" for problem in study.problems))
    if study.raw is None:
        return parts
    address = _format.link(study.path / "result.json", base)
    facts = [study.source, str(study.raw.get("pairing") or ""), str(study.raw.get("preset") or "")]
    facts.append(_format.seconds(study.raw.get("seconds")))
    parts.append(" · ".join(_text(fact) for fact in facts if fact))
    parts.append(_text(study.question))
    if study.verdict:
        parts.append(f"**Verdict.** {_text(study.verdict)}")
    lines = []
    for row in study.rows:
        null = _number(_format.cell(row.null), address) + (f" ({_text(row.null_name)})" if row.null_name else "")
        unit = f" ({_text(row.unit)})" if row.unit else ""
        ours = _number(_format.cell(row.ours), address)
        lines.append([f"{_text(row.quantity)}{unit}", _number(row.paper or "–", address), ours, null, _text(row.note)])
    if lines:
        parts.append(_table(["Quantity", "Paper", "Ours", "Null", "Note"], lines))
    for figure in study.figures:
        if figure.content is not None:
            parts.append(f"![{_text(figure.caption)}]({_format.link(figure.path, base)})\n\n*{_text(figure.caption)}*")
    files = [f"[result.json]({address})"]
    if study.data:
        files.append(f"[{_text(study.data.name)}]({_format.link(study.data, base)})")
    seeds = study.raw.get("seeds")
    shown = ", ".join(map(str, seeds)) if isinstance(seeds, list) else "not said"
    device = _format.environment(study.raw.get("environment")) or "not said"
    files += [f"seeds {_text(shown)}", f"configuration {_text(str(study.raw.get('config_hash') or 'not said'))}"]
    return [*parts, " · ".join([*files, f"measured on {_text(device)}"])]


def _ledger(ledger: Ledger, base: pathlib.Path) -> list[str]:
    address = _format.link(ledger.path, base)
    parts = ["## Claims"]
    if ledger.problems:
        parts.append("\n".join(f"- Incomplete: {_text(problem)}" for problem in ledger.problems))
    for heading, key, claims in (("", "claims", ledger.claims), ("## Equations", "equations", ledger.equations)):
        if not claims:
            continue
        rows = [[_text(c.name), _text(c.statement), _text(c.source), _text(c.verdict)] for c in claims]
        parts += [heading, _table(["Claim", "Statement", "Source", "Verdict"], rows)]
        for claim in claims:
            parts += _claim(claim, ledger.raw["results"][key][claim.index] if ledger.raw else {}, address, base)
    return parts


def _claim(claim: Claim, raw: dict[str, Any], address: str, base: pathlib.Path) -> list[str]:
    facts = [claim.source, claim.code, _format.seconds(raw.get("seconds"))]
    parts = [f"### {_text(claim.name)}: {_text(claim.verdict) or 'no verdict'}"]
    parts += [" · ".join(_text(fact) for fact in facts if fact), _text(claim.statement)]
    if claim.condition:
        parts.append(f"**What holds.** {_text(claim.condition)}")
    lines = [
        [_text(name), label, _number(_format.cell(value), address)]
        for label, figures in (("as stated", claim.figures), ("corrected", claim.corrected))
        for name, value in figures
    ]
    if lines:
        parts.append(_table(["Evidence", "Statement", "Figure"], lines))
    if claim.counterexample or claim.counterexample_file:
        file = claim.counterexample_file
        where = f" [Its arrays]({_format.link(file, base)})." if file else ""
        parts.append(f"**Counterexample.** {_text(claim.counterexample)}{where}")
    return parts
