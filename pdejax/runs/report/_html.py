"""The report as one HTML page that loads nothing: style, script, figures and JSON are all in it."""

import base64
import dataclasses
import hashlib
import html
import importlib.resources
import json
import os
import pathlib
import re
import struct
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from pdejax.runs._findings import corrected
from pdejax.runs._format import environment, seconds
from pdejax.runs._records import Result
from pdejax.runs._table import Cell, Column, Table
from pdejax.runs.report._read import IMAGES, Entry, Image, Ledger, Results, Study


def link(path: pathlib.Path, base: pathlib.Path) -> str:
    """The address of `path` for a page that lies in the folder `base`."""
    relative = pathlib.PurePath(os.path.relpath(path, base)).as_posix()
    # A leading name with a colon would read as a scheme.
    return urllib.parse.quote(os.fsencode(relative if relative.startswith(".") else f"./{relative}"), safe="/.")


def slug(text: str, taken: set[str]) -> str:
    """A name for an anchor: letters, digits and hyphens, and none of `taken`, which gains it."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
    found, count = plain, 1
    while found in taken:
        count += 1
        found = f"{plain}-{count}"
    taken.add(found)
    return found


def standing(verdict: str) -> str:
    """`holds`, `condition` or `fails` from the first words of a verdict, `open` for any other."""
    words = re.sub(r"[^a-z ]", " ", verdict.lower()).split()
    if words[:1] == ["holds"]:
        return "condition" if len(words) > 1 else "holds"
    return "fails" if words[:1] in (["fails"], ["fail"]) else "open"


escape = html.escape


def problems_note(problems: Sequence[str], heading: str) -> str:
    """Write what is missing or damaged as a note."""
    shown = (re.sub("`([^`]+)`", r"<code>\1</code>", escape(problem)) for problem in problems)
    items = "".join(f"<li>{problem}</li>" for problem in shown)
    return f'<div class="problems" role="note"><strong>{heading}</strong><ul>{items}</ul></div>'


def badge(verdict: str) -> str:
    """Write a verdict with its sign, in its colour."""
    signs = {"holds": "✓ ", "condition": "◐ ", "fails": "✗ ", "open": ""}
    kind = standing(verdict)
    return f'<span class="badge {kind}">{signs[kind]}{escape(verdict or "no verdict")}</span>'


def badge_cell(verdict: str) -> Cell:
    """Return a verdict as an entry of a table."""
    return Cell(verdict, code=badge(verdict))


def file_link(name: str, path: pathlib.Path, base: pathlib.Path) -> str:
    """Write a link to a file for a page in the folder `base`."""
    return f'<li><a href="{escape(link(path, base))}">{escape(name)}</a></li>'


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
        parts += [_claim(entry, name, ledger.saved("claims", entry), base) for name, entry in claims]
    if equations:
        parts.append(f'<h2 id="{places.equations_at}">Equations{beside}</h2>')
        parts.append(_verdicts("Equations and verdicts", equations))
        parts += [_claim(entry, name, ledger.saved("equations", entry), base) for name, entry in equations]
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


def study_article(study: Study, name: str, base: pathlib.Path) -> str:
    """Write the study as an article with the anchor `name`, its links to files relative to `base`."""
    title, result = escape(study.title), study.result
    problems = problems_note(study.problems, "Incomplete:") if study.problems else ""
    if study.raw is None:
        return f'<article id="{name}"><h3>{title}</h3>{problems}</article>'
    document = f"{name}.json"
    paths: list[tuple[str | int, ...]] = [("verdict",), ("seeds",), ("config",), ("config_hash",)]
    paths += [("table", index, key) for index, _ in study.rows for key in ("paper", "ours", "null")]
    paths += [place for place, _ in _cells(study)]
    anchors = {path: anchor(document, *path) for path in paths}
    facts = [result.source, f"pairing: {result.pairing}" if result.pairing else ""]
    facts += [f"preset {result.preset}" if result.preset else "", seconds(result.seconds)]
    verdict = f'<p class="verdict"><strong>Verdict.</strong> {escape(result.verdict)}</p>' if result.verdict else ""
    return "\n".join(
        [
            f'<article id="{name}">',
            f"<h3>{title}</h3>",
            f'<p class="soft small">{escape(" · ".join(fact for fact in facts if fact))}</p>',
            f"<p>{escape(result.question)}</p>" if result.question else "",
            problems,
            verdict,
            _rows(study, anchors),
            _tables(study, anchors),
            _answers(result),
            "".join(_figure(image, base) for image in study.images),
            _settings(study.raw, document),
            "<details><summary>JSON of this study, which every number above comes from</summary>"
            f"{anchored(document, study.raw, anchors)}</details>",
            _files(study, base),
            "</article>",
        ]
    )


def _rows(study: Study, anchors: Mapping[tuple[str | int, ...], str]) -> str:
    if not study.rows:
        return ""
    notes = any(row.note for _, row in study.rows)
    columns = [Column("Quantity"), *(Column(head, right=True) for head in ("Paper", "Ours", "Null"))]
    lines = []
    for index, row in study.rows:
        paper, ours, null = (f"#{anchors['table', index, key]}" for key in ("paper", "ours", "null"))
        cells = Cell(row.paper or None, paper), Cell(row.ours, ours), Cell(row.null, null, row.null_name or "")
        lines.append((Cell(row.quantity, small=row.unit), *cells, *([row.note] if notes else [])))
    counts = sorted({len(row.seeds) for _, row in study.rows if row.seeds})
    seeds = f"Ours is the mean [95 % interval] over {' or '.join(map(str, counts))} seeds. " if counts else ""
    if counts == [1]:
        seeds = "Ours is one seed. "
    null = (
        "Null is the same figure where there is nothing to find."
        if any(row.null is not None for _, row in study.rows)
        else ""
    )
    said = f'<p class="soft small">{seeds}{null}</p>' if seeds or null else ""
    columns += [Column("Note")] if notes else []
    return Table(columns, lines, f"{study.title}: paper, ours, null").html() + said


def _cells(study: Study) -> list[tuple[tuple[str | int, ...], Any]]:
    """The numbers of a result's tables, with their places in its JSON; none of tables that are not whole."""
    saved, found = study.raw.get("tables") if study.raw else None, []
    tables = study.result.tables
    if not isinstance(saved, list) or [len(t.rows) for t in tables] != [len(_get(one, "rows")) for one in saved]:
        return []
    for t, table in enumerate(tables):
        for r, row in enumerate(table.rows):
            found += [(("tables", t, "rows", r, c), x) for c, x in enumerate(row) if table.columns[c].right]
    return found


def _get(saved: Any, key: str) -> list[Any]:
    value = saved.get(key) if isinstance(saved, Mapping) else None
    return value if isinstance(value, list) else []


def _tables(study: Study, anchors: Mapping[tuple[str | int, ...], str]) -> str:
    """What a study's command prints as tables, each number a link to its place in the JSON."""
    parts = []
    for t, table in enumerate(study.result.tables):
        lines = []
        for r, row in enumerate(table.rows):
            entries = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
            places = [anchors.get(("tables", t, "rows", r, c)) for c in range(len(row))]
            lines.append(
                [
                    dataclasses.replace(e, link=f"#{place}" if place else "")
                    for e, place in zip(entries, places, strict=True)
                ]
            )
        if lines:
            caption = table.caption or study.title
            shown = f'<p class="soft small">{escape(table.caption)}</p>' if table.caption else ""
            parts.append(shown + Table(table.columns, lines, caption).html())
    return "".join(parts)


def _answers(result: Result) -> str:
    """Answers by question, and notes."""
    answers = "".join(f"<li><strong>{escape(q)}</strong>: {escape(a)}</li>" for q, a in result.verdicts.items())
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
    return (f"<ul>{answers}</ul>" if answers else "") + (f'<ul class="soft small">{notes}</ul>' if notes else "")


def _figure(image: Image, base: pathlib.Path) -> str:
    if image.content is None:
        return ""
    kind = IMAGES[image.path.suffix.lower()]
    data = base64.b64encode(image.content).decode()
    size = _png_size(image.content)
    shape = f' width="{size[0]}" height="{size[1]}"' if size else ""
    # On a phone a large figure scrolls, so that its axes can be read; one of several panels is wider still.
    large = ""
    if size and size[0] > 480:
        large = ' class="wide"' if size[0] > 1.6 * size[1] else ' class="large"'
    caption = escape(image.caption)
    return (
        f'<figure{large}><div class="image" tabindex="0" role="region" aria-label="Figure">'
        f'<img src="data:{kind};base64,{data}" alt="{caption}"{shape}></div>'
        f'<figcaption>{caption} <a href="{escape(link(image.path, base))}">The image file</a>.</figcaption></figure>'
    )


def _png_size(content: bytes) -> tuple[int, int] | None:
    """Width and height, so that the page does not jump when its figures are drawn."""
    if len(content) < 24 or not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    width, height = struct.unpack(">II", content[16:24])
    return (width, height) if width and height else None


def _settings(raw: Mapping[str, Any], document: str) -> str:
    seeds = raw.get("seeds")
    shown = ", ".join(map(str, seeds)) if isinstance(seeds, list) else str(seeds or "not said")
    config = anchored(f"{document}.settings", raw.get("config"), {})
    return (
        f"<details><summary>Configuration and seeds</summary><p>Seeds {escape(shown)}; configuration hash "
        f"<code>{escape(str(raw.get('config_hash') or 'not said'))}</code>.</p>{config}</details>"
    )


def _files(study: Study, base: pathlib.Path) -> str:
    files = [(study.file, study.json)]
    if study.data:
        files.append((study.data.name, study.data))
    return f'<ul class="files small">{"".join(file_link(name, path, base) for name, path in files)}</ul>'


TITLE = "Transformers as PDEs: what was measured"


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
    names = {study.json: slug(f"study-{study.name}", taken) for study in results.studies}
    ledgers = [_places(ledger, i, taken) for i, ledger in enumerate(results.ledgers)]
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    main = [_summary(results, names)]
    if results.studies:
        main.append('<h2 id="studies">Studies</h2>')
        main += [study_article(study, names[study.json], base) for study in results.studies]
    main += [ledger_section(ledger, base) for ledger in ledgers]
    main.append(_environments(results, names, ledgers))
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
{_contents(results, names, ledgers)}
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


def _places(ledger: Ledger, index: int, taken: set[str]) -> LedgerPlaces:
    """The anchors of a ledger; the first has those that a page of one has always had."""
    claims, equations = (
        [(slug(f"claim-{entry.name}", taken), entry) for entry in entries]
        for entries in (ledger.claims, ledger.equations)
    )
    beside = f" ({ledger.name})" if index else ""
    heads = [kind if not index else slug(f"{kind}-{ledger.name}", taken) for kind in ("claims", "equations")]
    return LedgerPlaces(ledger, heads[0], heads[1], beside, claims, equations)


def _lede(results: Results) -> str:
    done = sum(study.raw is not None for study in results.studies)
    parts = [f"{done} {'study' if done == 1 else 'studies'}"]
    if results.ledgers:
        parts.append(f"{results.claims} claims, each with a verdict from its evidence")
    return " and ".join(parts) + "."


def _contents(results: Results, names: Mapping[pathlib.Path, str], ledgers: Sequence[LedgerPlaces]) -> str:
    def chips(heading: str, target: str, entries: Named) -> str:
        links = "".join(f'<li><a href="#{name}">{escape(claim.name)}</a></li>' for name, claim in entries)
        return f'<li><a href="#{target}">{heading}</a><ul class="chips">{links}</ul></li>' if entries else ""

    studies = "".join(f'<li><a href="#{names[study.json]}">{escape(study.title)}</a></li>' for study in results.studies)
    nested = f'<li><a href="#studies">Studies</a><ul>{studies}</ul></li>' if studies else ""
    listed = "".join(
        chips(f"Claims{escape(one.beside)}", one.claims_at, one.claims)
        + chips(f"Equations{escape(one.beside)}", one.equations_at, one.equations)
        for one in ledgers
    )
    return (
        '<nav aria-label="Contents"><details open><summary>Contents</summary><ul>'
        f'<li><a href="#summary">Summary</a></li>{nested}{listed}<li><a href="#environment">Where it was measured</a></li>'
        "</ul></details></nav>"
    )


def _summary(results: Results, names: Mapping[pathlib.Path, str]) -> str:
    columns = [Column("Study"), Column("Source"), Column("Verdict"), Column("Time", right=True)]
    lines = []
    for study in results.studies:
        none = '<span class="badge fails">no result</span>'
        verdict = Cell(study.result.verdict, code="" if study.result.verdict else none)
        took = Cell(study.result.seconds, code=seconds(study.result.seconds) or "–")
        lines.append((Cell(study.title, f"#{names[study.json]}"), study.result.source, verdict, took))
    problems = results.problems()
    said = problems_note(problems, "Missing or damaged:") if problems else ""
    foreign = results.foreign()
    said += f'<p class="soft small">{escape(foreign)}</p>' if foreign else ""
    shown = Table(columns, lines, "Studies and verdicts").html() if lines else ""
    return '<h2 id="summary">Summary</h2>' + said + shown


def _environments(results: Results, names: Mapping[pathlib.Path, str], ledgers: Sequence[LedgerPlaces]) -> str:
    found: dict[str, list[str]] = {}
    for study in results.studies:
        if study.raw is not None:
            line = environment(study.raw.get("environment")) or "not said"
            found.setdefault(line, []).append(f'<a href="#{names[study.json]}">{escape(study.title)}</a>')
    for one in ledgers:
        if one.ledger.raw:
            line = environment(one.ledger.raw.get("environment")) or "not said"
            found.setdefault(line, []).append(f'<a href="#{one.claims_at}">claims{escape(one.beside)}</a>')
    items = "".join(f"<li>{escape(line)}: {', '.join(links)}</li>" for line, links in found.items())
    return f'<h2 id="environment">Where it was measured</h2><ul>{items}</ul>'
