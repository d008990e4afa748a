"""The report as one HTML page that loads nothing: style, script, figures and JSON are all in it."""

import base64
import hashlib
import importlib.resources
import pathlib
from collections.abc import Iterable, Mapping

from pdejax.runs._format import environment, seconds
from pdejax.runs._table import Cell, Column, Table
from pdejax.runs.report import _format
from pdejax.runs.report._html_claims import Named, ledger_section
from pdejax.runs.report._html_parts import escape, problems_note
from pdejax.runs.report._html_study import study_article
from pdejax.runs.report._read import Entry, Results

TITLE = "Two papers on Transformers as PDEs: ours beside theirs"


def html_page(results: Results, base: str | pathlib.Path) -> str:
    """The page for `results`, to be saved in the folder `base`, to which its links to files are relative.

    The same results give the same bytes. Text from the results is escaped, and a content policy keeps the page from
    running or loading anything but its own style, script and images. Memory: the figures' bytes, four thirds over.
    """
    base = pathlib.Path(base)
    style, script = (
        importlib.resources.files("pdejax.runs.report").joinpath(name).read_text(encoding="utf-8")
        for name in ("style.css", "table.js")
    )
    taken = {"main", "summary", "studies", "claims", "equations", "environment"}
    names = {study.name: _format.slug(f"study-{study.name}", taken) for study in results.studies}
    ledger = results.ledger
    claims = _named(ledger.claims if ledger else (), taken)
    equations = _named(ledger.equations if ledger else (), taken)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    main = [_summary(results, names)]
    if results.studies:
        main.append('<h2 id="studies">Studies</h2>')
        main += [study_article(study, names[study.name], base) for study in results.studies]
    if ledger:
        main.append(ledger_section(ledger, claims, equations, base))
    main.append(_environments(results, names))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{TITLE}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<div class="layout">
<header>
<h1>{TITLE}</h1>
<p class="soft">{_lede(results)} Papers: <a href="https://arxiv.org/abs/2408.09523">arXiv:2408.09523</a>, v1 and v2.
Click a column's head to sort; click a number to see it in its JSON.</p>
</header>
{_contents(results, names, claims, equations)}
<main id="main">
{chr(10).join(main)}
</main>
<footer>Built by <code>pdejax report</code> from the files beside it. Nothing on this page is loaded from elsewhere.</footer>
</div>
<script>{script}</script>
</body>
</html>
"""


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _named(claims: Iterable[Entry], taken: set[str]) -> list[tuple[str, Entry]]:
    return [(_format.slug(f"claim-{claim.name}", taken), claim) for claim in claims]


def _lede(results: Results) -> str:
    done = sum(study.raw is not None for study in results.studies)
    parts = [f"{done} {'study' if done == 1 else 'studies'}"]
    if results.ledger:
        parts.append(f"{len(results.ledger.claims)} claims, each with a verdict from its evidence")
    return " and ".join(parts) + "."


def _contents(results: Results, names: Mapping[str, str], claims: Named, equations: Named) -> str:
    def chips(heading: str, target: str, entries: Named) -> str:
        links = "".join(f'<li><a href="#{name}">{escape(claim.name)}</a></li>' for name, claim in entries)
        return f'<li><a href="#{target}">{heading}</a><ul class="chips">{links}</ul></li>' if entries else ""

    studies = "".join(f'<li><a href="#{names[study.name]}">{escape(study.title)}</a></li>' for study in results.studies)
    nested = f'<li><a href="#studies">Studies</a><ul>{studies}</ul></li>' if studies else ""
    return (
        '<nav aria-label="Contents"><details open><summary>Contents</summary><ul>'
        f'<li><a href="#summary">Summary</a></li>{nested}{chips("Claims", "claims", claims)}'
        f'{chips("Equations", "equations", equations)}<li><a href="#environment">Where it was measured</a></li>'
        "</ul></details></nav>"
    )


def _summary(results: Results, names: Mapping[str, str]) -> str:
    columns = [Column("Study"), Column("Source"), Column("Verdict"), Column("Time", right=True)]
    lines = []
    for study in results.studies:
        none = '<span class="badge fails">no result</span>'
        verdict = Cell(study.result.verdict, code="" if study.result.verdict else none)
        took = Cell(study.result.seconds, code=seconds(study.result.seconds) or "–")
        lines.append((Cell(study.title, f"#{names[study.name]}"), study.result.source, verdict, took))
    problems = results.problems()
    said = problems_note(problems, "Missing or damaged:") if problems else ""
    shown = Table(columns, lines, "Studies and verdicts").html() if lines else ""
    return '<h2 id="summary">Summary</h2>' + said + shown


def _environments(results: Results, names: Mapping[str, str]) -> str:
    found: dict[str, list[str]] = {}
    for study in results.studies:
        if study.raw is not None:
            line = environment(study.raw.get("environment")) or "not said"
            found.setdefault(line, []).append(f'<a href="#{names[study.name]}">{escape(study.title)}</a>')
    if results.ledger and results.ledger.raw:
        line = environment(results.ledger.raw.get("environment")) or "not said"
        found.setdefault(line, []).append('<a href="#claims">claims</a>')
    items = "".join(f"<li>{escape(line)}: {', '.join(links)}</li>" for line, links in found.items())
    return f'<h2 id="environment">Where it was measured</h2><ul>{items}</ul>'
