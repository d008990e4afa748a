"""A study on the HTML page."""

import base64
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

from pdejax.runs._format import seconds
from pdejax.runs._table import Cell, Column, Table
from pdejax.runs.report import _format
from pdejax.runs.report._html_parts import escape, file_link, problems_note
from pdejax.runs.report._json import anchor, anchored
from pdejax.runs.report._read import IMAGES, Image, Study


def study_article(study: Study, name: str, base: pathlib.Path) -> str:
    """Write the study as an article with the anchor `name`, its links to files relative to `base`."""
    title, result = escape(study.title), study.result
    problems = problems_note(study.problems, "Incomplete:") if study.problems else ""
    if study.raw is None:
        return f'<article id="{name}"><h3>{title}</h3>{problems}</article>'
    document = f"{name}.json"
    paths: list[tuple[str | int, ...]] = [("verdict",), ("seeds",), ("config",), ("config_hash",)]
    paths += [("table", index, key) for index, _ in study.rows for key in ("paper", "ours", "null")]
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
        f'<figcaption>{caption} <a href="{escape(_format.link(image.path, base))}">The image file</a>.</figcaption></figure>'
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
    files = [("result.json", study.path / "result.json")]
    if study.data:
        files.append((study.data.name, study.data))
    return f'<ul class="files small">{"".join(file_link(name, path, base) for name, path in files)}</ul>'
