"""The report as one HTML page that loads nothing: style, script, figures and JSON are all in it."""

import base64
import dataclasses
import hashlib
import importlib.resources
import pathlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pdejax.runs._findings import count_verdicts
from pdejax.runs._format import code, environment, seconds
from pdejax.runs._records import Result, Row
from pdejax.runs._table import Cell, Column, Table
from pdejax.runs.report._claims import LedgerPlaces, Named, ledger_section, placed
from pdejax.runs.report._curves import drawn, panels
from pdejax.runs.report._read import IMAGES, Image, Results, Study
from pdejax.runs.report._write import (
    FOLD,
    anchor,
    anchored,
    columns_said,
    escape,
    file_link,
    folded,
    link,
    problems_note,
    slug,
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
    question = f"<strong>{escape(result.question)}</strong>" if result.question else ""
    verdict = f'<p class="verdict"><strong>Verdict.</strong> {escape(result.verdict)}</p>' if result.verdict else ""
    return "\n".join(
        [
            f'<article id="{name}">',
            f"<h3>{title}</h3>",
            f'<p class="soft small">{" · ".join(fact for fact in [question, *map(escape, facts)] if fact)}</p>',
            problems,
            # A box to tick needs no script: until then verdicts and captions are cut, and a phone shows no pictures.
            f'<input type="checkbox" class="more" id="{name}.more"><label class="more" for="{name}.more">Show all of it</label>',
            verdict,
            _answers(result),
            _pictures(study, base),
            *_numbers(study, anchors, document, base),
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
    words = columns_said(study.rows)
    said = f'<p class="soft small">{escape(words)}</p>' if words else ""
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


def _numbers(
    study: Study, anchors: Mapping[tuple[str | int, ...], str], document: str, base: pathlib.Path
) -> Iterator[str]:
    """Write the tables, those of many lines folded with the settings, the JSON and the files."""
    tables = [(len(study.rows), _rows(study, anchors)), *_tables(study, anchors)]
    yield from (shown for count, shown in tables if count <= FOLD)
    long = [(count, shown) for count, shown in tables if count > FOLD]
    lines = f"All {' + '.join(str(count) for count, _ in long)} lines of the tables; c" if long else "C"
    json = folded("JSON of this study, which every number of it comes from", anchored(document, study.raw, anchors))
    inside = [*(shown for _, shown in long), _settings(study.raw or {}, document), json, _files(study, base)]
    yield folded(f"{lines}onfiguration, seeds, JSON and files", "".join(inside))


def _tables(study: Study, anchors: Mapping[tuple[str | int, ...], str]) -> list[tuple[int, str]]:
    """What a study's command prints as tables, each number a link to its place in the JSON: how many lines, and the table."""
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
            parts.append((len(lines), shown + Table(table.columns, lines, caption).html()))
    return parts


def _answers(result: Result) -> str:
    """Answers by question, and notes."""
    answers = "".join(f"<li><strong>{escape(q)}</strong>: {escape(a)}</li>" for q, a in result.verdicts.items())
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
    return (f"<ul>{answers}</ul>" if answers else "") + (f'<ul class="soft small">{notes}</ul>' if notes else "")


OPEN = 2  # pictures of a study that stand open


def _pictures(study: Study, base: pathlib.Path) -> str:
    """The study's pictures, and curves of what its rows give layer by layer; those beyond the first few folded."""
    made = [_figure(image, base) for image in study.images]
    made += [drawn(panel) for panel in panels([row for _, row in study.rows])]
    made = [f for f in made if f]
    first, rest = (
        f'<div class="pictures">{"".join(part)}</div>' if part else "" for part in (made[:OPEN], made[OPEN:])
    )
    return first + (folded(f"{len(made) - OPEN} more pictures", rest) if rest else "")


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
    ledgers = [placed(ledger, i, taken) for i, ledger in enumerate(results.ledgers)]
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
    shown = Table(columns, lines, "Studies and verdicts").filled().html() if lines else ""
    if len(lines) > FOLD:
        shown = folded(f"All {len(lines)} studies and verdicts", shown)
    return '<h2 id="summary">Summary</h2>' + said + _findings(results, names) + _counts(results) + shown


MOST = 10  # findings on the first screen


def findings(results: Results) -> list[tuple[Study, int, Row]]:
    """What the first screen shows: of each study the row that it names its headline, with its place; of others, while there are
    fewer than ten, the first that stands beside a null."""
    named, others = [], []
    for study in results.studies:
        rows = [(study, i, row) for i, row in study.rows if row.ours is not None]
        if study.result.headline:
            named += [one for one in rows if one[2].quantity == study.result.headline][:1]
        else:
            others += [one for one in rows if one[2].null is not None][:1]
    return (named + others)[:MOST]


def setting_of(result: Result) -> str:
    """In which setting a result was measured: data, preset, seeds."""
    train = result.config.get("train")
    dataset = result.config.get("dataset") or (train.get("dataset") if isinstance(train, Mapping) else None)
    count = len(result.seeds)
    seeds = f"{count} seed{'s' if count > 1 else ''}" if count else ""
    return ", ".join(str(part) for part in (dataset, result.preset, seeds) if part)


def finding_table(
    found: Sequence[tuple[Study, int, Row]],
    study_link: Callable[[Study], str],
    row_link: Callable[[Study, int, str], str],
) -> Table:
    """Return a table of findings, each with its setting, the paper's figure and a null; links by study, and by row and key."""
    columns = [Column("Study"), Column("Finding, and its setting")]
    columns += [Column(head, right=True) for head in ("Paper", "Ours", "Null")]
    lines = []
    for study, index, row in found:
        paper, ours, null = (row_link(study, index, key) for key in ("paper", "ours", "null"))
        quantity = row.quantity + (f" ({row.unit})" if row.unit else "")
        cells = Cell(row.paper or None, paper), Cell(row.ours, ours), Cell(row.null, null, row.null_name or "")
        finding = Cell(quantity, small=setting_of(study.result))
        lines.append((Cell(study.title, study_link(study)), finding, *cells))
    return Table(columns, lines, "Findings")


def _findings(results: Results, names: Mapping[pathlib.Path, str]) -> str:
    table = finding_table(
        findings(results),
        lambda study: f"#{names[study.json]}",
        lambda study, index, key: f"#{anchor(f'{names[study.json]}.json', 'table', index, key)}",
    )
    return table.filled().html() if table.rows else ""


def _counts(results: Results) -> str:
    """How many claims and equations have each verdict."""
    found = [
        count_verdicts([entry.finding for entry in (*ledger.claims, *ledger.equations)]) for ledger in results.ledgers
    ]
    return "".join(f"<p>{escape(counted)}.</p>" for counted in found if counted)


def _environments(results: Results, names: Mapping[pathlib.Path, str], ledgers: Sequence[LedgerPlaces]) -> str:
    found: dict[str, list[str]] = {}
    for study in results.studies:
        if study.raw is not None:
            line = _where(study.raw)
            found.setdefault(line, []).append(f'<a href="#{names[study.json]}">{escape(study.title)}</a>')
    for one in ledgers:
        if one.ledger.raw:
            line = _where(one.ledger.raw)
            found.setdefault(line, []).append(f'<a href="#{one.claims_at}">claims{escape(one.beside)}</a>')
    items = "".join(f"<li>{escape(line)}: {', '.join(links)}</li>" for line, links in found.items())
    return f'<h2 id="environment">Where it was measured</h2><ul>{items}</ul>'


def _where(raw: Mapping[str, Any]) -> str:
    """Device, versions and code that a result was measured with."""
    return f"{environment(raw.get('environment')) or 'not said'}; {code(raw.get('code'))}"
