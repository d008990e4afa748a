"""Read a folder of results. Whatever is damaged or absent is said in `problems`; nothing of it stops the report."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

IMAGES = {
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}
# Folders beside the studies which are none.
_OTHERS = {"claims", "counterexamples", "models", "parts", "programs"}
_RUN = "pdejax reproduce --out"


class ReportError(ValueError):
    """No report can be built; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A figure as saved: its mean over seeds, the ends of its interval (None where there is none) and its values by seed.

    `text` is what was saved where that is no number.
    """

    mean: float | None
    low: float | None = None
    high: float | None = None
    values: tuple[float | None, ...] = ()
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a study's table, paper beside ours beside the null; `index` is its place in the JSON."""

    index: int
    quantity: str
    unit: str
    paper: str | None
    ours: Cell | None
    null: Cell | None
    null_name: str
    note: str


@dataclasses.dataclass(frozen=True)
class Figure:
    """An image: where it lies, its caption, and its bytes, or None if they cannot be shown."""

    path: pathlib.Path
    caption: str
    content: bytes | None


@dataclasses.dataclass(frozen=True)
class Study:
    """What one folder holds; `raw` is its result.json, None if there is none that can be read."""

    name: str
    path: pathlib.Path
    raw: Mapping[str, Any] | None = None
    title: str = ""
    question: str = ""
    source: str = ""
    verdict: str = ""
    rows: tuple[Row, ...] = ()
    figures: tuple[Figure, ...] = ()
    data: pathlib.Path | None = None
    problems: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Claim:
    """A line of the ledger: figures by name, those of the corrected statement, and where the counterexample lies."""

    index: int
    name: str
    statement: str
    source: str
    verdict: str
    condition: str
    figures: tuple[tuple[str, Cell], ...]
    corrected: tuple[tuple[str, Cell], ...]
    counterexample: str
    counterexample_file: pathlib.Path | None
    code: str


@dataclasses.dataclass(frozen=True)
class Ledger:
    """claims.json: the claims C1 … and the claims of single equations."""

    path: pathlib.Path
    raw: Mapping[str, Any] | None = None
    claims: tuple[Claim, ...] = ()
    equations: tuple[Claim, ...] = ()
    problems: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Results:
    """All that a folder holds: studies in the order of their sources, and the ledger if there is one."""

    folder: pathlib.Path
    studies: tuple[Study, ...]
    ledger: Ledger | None

    def problems(self) -> list[str]:
        """Everything that is missing or damaged, a sentence each."""
        found = [f"{study.name}: {problem}" for study in self.studies for problem in study.problems]
        return found + [f"claims: {problem}" for problem in (self.ledger.problems if self.ledger else ())]


def read_results(folder: str | pathlib.Path) -> Results:
    """Read `folder/<study>/result.json` for every study and `folder/claims.json` (or `folder/claims/claims.json`).

    Raises `ReportError` if `folder` is no folder or holds no result at all. Damaged files, missing figures and studies
    that were interrupted are said in `Results.problems()`. Cost: every file is read once, figures included.
    """
    if not isinstance(folder, str | pathlib.Path):
        raise TypeError(f"folder is {folder!r}; give the path of a folder of results, as text or pathlib.Path.")
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ReportError(f"{folder} {what}; give the folder that `{_RUN} DIR` wrote to.")
    places = [place for place in sorted(folder.iterdir()) if place.is_dir() and place.name not in _OTHERS]
    places = [place for place in places if not place.name.startswith((".", "_"))]
    ledgers = [path for path in (folder / "claims.json", folder / "claims" / "claims.json") if os.path.exists(path)]
    if not ledgers and not any(os.path.exists(place / "result.json") for place in places):
        raise ReportError(f"{folder} holds no results. Run `{_RUN} {folder}` and `pdejax claims --out {folder}` first.")
    studies = sorted((_study(place, folder) for place in places), key=_order)
    return Results(folder, tuple(studies), _ledger(ledgers[0], folder) if ledgers else None)


def _order(study: Study) -> tuple[bool, list[tuple[bool, int, str]], str]:
    """v1 before v2, section 9 before section 10, and studies without a source last."""
    parts = [part for part in re.split(r"(\d+)", study.source) if part]
    return not parts, [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts], study.name


def _load(path: pathlib.Path) -> tuple[dict[str, Any] | None, str]:
    """The object a JSON file holds, or None and what is wrong."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, "missing"
    except (OSError, ValueError, RecursionError) as error:
        return None, f"damaged ({type(error).__name__})"
    return (raw, "") if isinstance(raw, dict) else (None, "damaged (no JSON object)")


def _study(place: pathlib.Path, folder: pathlib.Path) -> Study:
    raw, wrong = _load(place / "result.json")
    if raw is None:
        state = "not finished" if wrong == "missing" else f"result.json is {wrong}"
        return Study(place.name, place, problems=(f"{state}; run `pdejax reproduce {place.name} --out {folder}`.",))
    problems: list[str] = []
    for name in ("title", "verdict", "config", "seeds", "environment", "table"):
        if not raw.get(name):
            problems.append(f"result.json says nothing of `{name}`.")
    rows = tuple(_rows(raw.get("table"), problems))
    figures = tuple(_figures(raw.get("figures"), place, problems))
    data = None
    if raw.get("data"):
        data = _inside(place, raw["data"])
        if data is None or not data.is_file():
            problems.append(f"the data file {_text(raw['data'])!r} is missing.")
            data = None
    return Study(
        name=place.name,
        path=place,
        raw=raw,
        title=_text(raw.get("title")) or place.name,
        question=_text(raw.get("question")),
        source=_text(raw.get("source")),
        verdict=_text(raw.get("verdict")),
        rows=rows,
        figures=figures,
        data=data,
        problems=tuple(problems),
    )


def _rows(table: Any, problems: list[str]) -> Iterator[Row]:
    for index, row in enumerate(table if isinstance(table, list) else []):
        if not isinstance(row, dict):
            problems.append(f"line {index + 1} of the table is no object.")
            continue
        ours, null = _cell(row.get("ours")), _cell(row.get("null"))
        quantity = _text(row.get("quantity")) or f"line {index + 1}"
        if ours is None or ours.mean is None:
            problems.append(f"no figure for {quantity!r}.")
        paper = row.get("paper")
        yield Row(
            index,
            quantity,
            _text(row.get("unit")),
            None if paper is None else _text(paper),
            ours,
            null,
            _text(row.get("null_name")),
            _text(row.get("note")),
        )


def _figures(figures: Any, place: pathlib.Path, problems: list[str]) -> Iterator[Figure]:
    for entry in figures if isinstance(figures, list) else []:
        entry = entry if isinstance(entry, dict) else {"file": entry}
        name, caption = _text(entry.get("file")), _text(entry.get("caption"))
        path = _inside(place, name)
        content = None
        if path is None or path.suffix.lower() not in IMAGES:
            problems.append(f"{name!r} is no image in the study's folder.")
        else:
            with contextlib.suppress(OSError):
                content = path.read_bytes() or None
            if content is None:
                problems.append(f"the figure {name!r} is missing or empty.")
        if not caption:
            problems.append(f"the figure {name!r} has no caption.")
        yield Figure(path or place / "figure", caption or pathlib.PurePath(name).stem.replace("_", " "), content)


def _inside(place: pathlib.Path, name: Any) -> pathlib.Path | None:
    """The path of a file in this folder; None for a name that leads out of it."""
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    path = place / name
    try:
        return path if path.resolve().is_relative_to(place.resolve()) else None
    except (OSError, RuntimeError):
        return None


def _ledger(path: pathlib.Path, folder: pathlib.Path) -> Ledger:
    raw, wrong = _load(path)
    if raw is None:
        return Ledger(path, problems=(f"{path.name} is {wrong}; run `pdejax claims --out {folder}`.",))
    problems: list[str] = []
    results = raw.get("results")
    results = results if isinstance(results, dict) else {}
    claims = tuple(_claims(results.get("claims"), path, problems))
    equations = tuple(_claims(results.get("equations"), path, problems))
    if not claims:
        problems.append(f"{path.name} holds no claims; run `pdejax claims --out {folder}`.")
    return Ledger(path, raw, claims, equations, tuple(problems))


def _claims(entries: Any, path: pathlib.Path, problems: list[str]) -> Iterator[Claim]:
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        if not isinstance(entry, dict):
            problems.append(f"entry {index + 1} is no object.")
            continue
        name = next((_text(entry[key]) for key in ("claim", "equation", "id", "name") if entry.get(key)), "")
        name = name or f"entry {index + 1}"
        if not _text(entry.get("verdict")):
            problems.append(f"{name} has no verdict.")
        example = entry.get("counterexample")
        example = example if isinstance(example, dict) else {"description": example}
        file = _inside(path.parent, example.get("file")) if example.get("file") else None
        if example.get("file") and (file is None or not file.is_file()):
            problems.append(f"the counterexample {_text(example['file'])!r} of {name} is missing.")
            file = None
        yield Claim(
            index,
            name,
            _text(entry.get("statement")),
            _text(entry.get("source")),
            _text(entry.get("verdict")),
            _text(entry.get("condition")),
            _named(entry.get("figures")),
            _named(entry.get("corrected_figures")),
            _text(example.get("description")),
            file,
            _text(entry.get("code")),
        )


def _named(figures: Any) -> tuple[tuple[str, Cell], ...]:
    if not isinstance(figures, dict):
        return ()
    return tuple((_text(name), _cell(value) or Cell(None, text=_text(value))) for name, value in figures.items())


def _cell(value: Any) -> Cell | None:
    """A figure from a number or from an object with a mean (or value), an interval and values by seed."""
    if isinstance(value, dict):
        values = value.get("values")
        return Cell(
            _number(value.get("mean", value.get("value"))),
            _number(value.get("low")),
            _number(value.get("high")),
            tuple(_number(item) for item in values) if isinstance(values, list) else (),
        )
    number = _number(value)
    return None if number is None else Cell(number)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond floating point
        return None


def _text(value: Any) -> str:
    """Text as it is, numbers and lists as JSON; nothing for None. Control characters would spoil a page."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text).strip()
