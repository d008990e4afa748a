"""A study on the HTML page."""

import base64
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

from pdejax.runs.report import _format
from pdejax.runs.report._html_parts import escape, file_link, number_cell, paper_cell, problems_note, table
from pdejax.runs.report._json import anchor, anchored
from pdejax.runs.report._read import IMAGES, Figure, Study


def study_article(study: Study, name: str, base: pathlib.Path) -> str:
    """The study as an article with the anchor `name`, its links to files relative to `base`."""
    title = escape(study.title or study.name)
    problems = problems_note(study.problems, "Incomplete:") if study.problems else ""
    if study.raw is None:
        return f'<article id="{name}"><h3>{title}</h3>{problems}</article>'
    document = f"{name}.json"
    paths: list[tuple[str | int, ...]] = [("verdict",), ("seeds",), ("config",), ("config_hash",)]
    paths += [("table", row.index, key) for row in study.rows for key in ("paper", "ours", "null")]
    anchors = {path: anchor(document, *path) for path in paths}
    facts = [study.source, f"pairing: {study.raw['pairing']}" if study.raw.get("pairing") else ""]
    facts += [f"preset {study.raw['preset']}" if study.raw.get("preset") else ""]
    facts += [_format.seconds(study.raw.get("seconds"))]
    verdict = f'<p class="verdict"><strong>Verdict.</strong> {escape(study.verdict)}</p>' if study.verdict else ""
    return "\n".join(
        [
            f'<article id="{name}">',
            f"<h3>{title}</h3>",
            f'<p class="soft small">{escape(" · ".join(fact for fact in facts if fact))}</p>',
            f"<p>{escape(study.question)}</p>" if study.question else "",
            problems,
            verdict,
            _rows(study, anchors),
            "".join(_figure(figure, base) for figure in study.figures),
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
    notes = any(row.note for row in study.rows)
    lines = []
    for row in study.rows:
        unit = f'<br><span class="soft small">{escape(row.unit)}</span>' if row.unit else ""
        cells = [
            paper_cell(row.paper, anchors["table", row.index, "paper"]),
            number_cell(row.ours, anchors["table", row.index, "ours"]),
            number_cell(row.null, anchors["table", row.index, "null"], row.null_name),
        ]
        note = f'<td class="text">{escape(row.note)}</td>' if notes else ""
        lines.append(f'<tr><th scope="row" class="text">{escape(row.quantity)}{unit}</th>{"".join(cells)}{note}</tr>')
    counts = sorted({len(row.ours.values) for row in study.rows if row.ours and row.ours.values})
    seeds = f"Ours is the mean [95 % interval] over {' or '.join(map(str, counts))} seeds. " if counts else ""
    if counts == [1]:
        seeds = "Ours is one seed. "
    heads = ("Quantity", "Paper", "Ours", "Null", *(["Note"] if notes else []))
    null = "Null is the same figure where there is nothing to find." if any(row.null for row in study.rows) else ""
    said = f'<p class="soft small">{seeds}{null}</p>' if seeds or null else ""
    return table(f"{study.title}: paper, ours, null", heads, lines) + said


def _figure(figure: Figure, base: pathlib.Path) -> str:
    if figure.content is None:
        return ""
    kind = IMAGES[figure.path.suffix.lower()]
    data = base64.b64encode(figure.content).decode()
    size = _png_size(figure.content)
    shape = f' width="{size[0]}" height="{size[1]}"' if size else ""
    # On a phone a large figure scrolls, so that its axes can be read; one of several panels is wider still.
    large = ""
    if size and size[0] > 480:
        large = ' class="wide"' if size[0] > 1.6 * size[1] else ' class="large"'
    caption = escape(figure.caption)
    return (
        f'<figure{large}><div class="image" tabindex="0" role="region" aria-label="Figure">'
        f'<img src="data:{kind};base64,{data}" alt="{caption}"{shape}></div>'
        f'<figcaption>{caption} <a href="{escape(_format.link(figure.path, base))}">The image file</a>.</figcaption></figure>'
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
