"""Read a folder of results. Whatever is damaged or absent is said in `problems`; nothing of it stops the report."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pdejax.runs._findings import Finding, text
from pdejax.runs._records import Picture, Result, Row

IMAGES = {
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}
# Folders beside the studies which are none.
_OTHERS = {"claims", "counterexamples", "models", "parts", "programs", "checkpoints", "damaged", "tensorboard"}
# What shows that a folder without a result was to have one.
_TRACES = ("parts", "run.json", "result.nc")
_LEDGERS = ("claims.json", "claims/claims.json")
_EMPTY = Result(study="")


class ReportError(ValueError):
    """Tell that no report can be built; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Image:
    """An image as it lies on the disk: where, its caption, and its bytes, or None if they cannot be shown."""

    path: pathlib.Path
    caption: str
    content: bytes | None


@dataclasses.dataclass(frozen=True)
class Study:
    """One result: the `result`, as its writer left it, with what of it cannot be read in `problems`.

    `file` is the JSON file in the folder `path`, `raw` its content, None if it cannot be read. `rows` are those of the
    result with their places in the JSON; `images` its pictures; `data` its data file, None if it is not there.
    """

    name: str
    path: pathlib.Path
    file: str = "result.json"
    raw: Mapping[str, Any] | None = None
    result: Result = _EMPTY
    rows: tuple[tuple[int, Row], ...] = ()
    images: tuple[Image, ...] = ()
    data: pathlib.Path | None = None
    problems: tuple[str, ...] = ()

    @property
    def json(self) -> pathlib.Path:
        """Where the result lies."""
        return self.path / self.file

    @property
    def title(self) -> str:
        """The result's title, or the folder's name."""
        return self.result.title or self.name


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the ledger: the `finding`, its `index` in the JSON, and where its counterexample lies, if it does."""

    index: int
    finding: Finding
    file: pathlib.Path | None

    @property
    def name(self) -> str:
        """The claim's."""
        return self.finding.claim


@dataclasses.dataclass(frozen=True)
class Ledger:
    """claims.json: the claims C1 … and the claims of single equations."""

    path: pathlib.Path
    raw: Mapping[str, Any] | None = None
    claims: tuple[Entry, ...] = ()
    equations: tuple[Entry, ...] = ()
    problems: tuple[str, ...] = ()

    def saved(self, kind: str, entry: Entry) -> Any:
        """Return the JSON of a claim (`kind` `"claims"`) or of an equation (`"equations"`)."""
        return self.raw["results"][kind][entry.index] if self.raw else {}


@dataclasses.dataclass(frozen=True)
class Results:
    """All that a folder holds: studies in the order of their sources, and the ledger if there is one."""

    folder: pathlib.Path
    studies: tuple[Study, ...]
    ledger: Ledger | None

    def problems(self) -> list[str]:
        """Return everything that is missing or damaged, a sentence each."""
        found = [f"{study.name}: {problem}" for study in self.studies for problem in study.problems]
        return found + [f"claims: {problem}" for problem in (self.ledger.problems if self.ledger else ())]


def read_results(folder: str | pathlib.Path) -> Results:
    """Read every result in `folder` and in the folders in it, whatever study or training left it, and the ledger of claims
    (`claims.json` or `claims/claims.json`).

    Raises `ReportError` if `folder` is no folder or holds no result at all. Damaged files, missing figures and studies
    that were interrupted are said in `Results.problems()`. Cost: every file is read once, figures included.
    """
    if not isinstance(folder, str | pathlib.Path):
        raise TypeError(f"folder is {folder!r}; give the path of a folder of results, as text or pathlib.Path.")
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ReportError(f"{folder} {what}; give the folder that a command's --out named.")
    ledgers = [folder / name for name in _LEDGERS if os.path.exists(folder / name)]
    found = [_study(folder, file, folder) for file in _results_in(folder)]
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in _OTHERS):
        if not place.name.startswith((".", "_")):
            files = _results_in(place)
            if not files and any(os.path.exists(place / name) for name in _TRACES):
                files = ["result.json"]
            found += [_study(place, file, folder) for file in files]
    if not ledgers and all(study.raw is None for study in found):
        raise ReportError(
            f"{folder} holds no results. Run `pdejax reproduce --out {folder}`, or any other study or training with this --out, "
            "first."
        )
    return Results(folder, tuple(sorted(found, key=_order)), _ledger(ledgers[0], folder) if ledgers else None)


def _results_in(place: pathlib.Path) -> list[str]:
    """The result files of a folder: those that say of which study they are, and those that should and cannot be read."""
    found = []
    for path in sorted(path for path in place.glob("*.json") if not path.is_dir()):
        raw, wrong = _load(path)
        known = "study" in raw if raw is not None else wrong != "missing"
        if (known or path.name == "result.json") and path.name not in _LEDGERS:
            found.append(path.name)
    return found


def _order(study: Study) -> tuple[bool, list[tuple[bool, int, str]], str]:
    """v1 before v2, section 9 before section 10, and studies without a source last."""
    parts = [part for part in re.split(r"(\d+)", study.result.source) if part]
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


def _study(place: pathlib.Path, file: str, folder: pathlib.Path) -> Study:
    raw, wrong = _load(place / file)
    inside = [] if place == folder else [place.name]
    if file != "result.json" or not inside:
        inside.append(pathlib.PurePath(file).stem)
    name = "/".join(inside)
    if raw is None:
        state = "not finished" if wrong == "missing" else f"{file} is {wrong}"
        again = (
            "the command that it was left by" if file != "result.json" else f"`pdejax reproduce {name} --out {folder}`"
        )
        return Study(name, place, file, problems=(f"{state}; run {again}.",))
    problems: list[str] = []
    for key in ("title", "verdict", "config", "environment"):
        if not raw.get(key):
            problems.append(f"{file} says nothing of `{key}`.")
    if not any(raw.get(key) for key in ("table", "tables", "verdicts", "results")):
        problems.append(f"{file} holds no figures.")
    result = Result.from_json(raw)
    rows = tuple(_rows(raw.get("table"), problems))
    images = tuple(_image(picture, place, problems) for picture in result.pictures)
    data = None
    if result.data:
        data = _inside(place, raw["data"])
        if data is None or not data.is_file():
            problems.append(f"the data file {result.data!r} is missing.")
            data = None
    return Study(name, place, file, raw, result, rows, images, data, tuple(problems))


def _rows(table: Any, problems: list[str]) -> Iterator[tuple[int, Row]]:
    for index, saved in enumerate(table if isinstance(table, list) else []):
        if not isinstance(saved, dict):
            problems.append(f"line {index + 1} of the table is no object.")
            continue
        row = Row.from_json(saved, index)
        if row.ours is None:
            problems.append(f"no figure for {row.quantity!r}.")
        yield index, row


def _image(picture: Picture, place: pathlib.Path, problems: list[str]) -> Image:
    path = _inside(place, picture.file)
    content = None
    if path is None or path.suffix.lower() not in IMAGES:
        problems.append(f"{picture.file!r} is no image in the study's folder.")
    else:
        with contextlib.suppress(OSError):
            content = path.read_bytes() or None
        if content is None:
            problems.append(f"the figure {picture.file!r} is missing or empty.")
    if not picture.caption:
        problems.append(f"the figure {picture.file!r} has no caption.")
    caption = picture.caption or pathlib.PurePath(picture.file).stem.replace("_", " ")
    return Image(path or place / "figure", caption, content)


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
    claims = tuple(_entries(results.get("claims"), path, problems))
    equations = tuple(_entries(results.get("equations"), path, problems))
    if not claims:
        problems.append(f"{path.name} holds no claims; run `pdejax claims --out {folder}`.")
    return Ledger(path, raw, claims, equations, tuple(problems))


def _entries(saved: Any, path: pathlib.Path, problems: list[str]) -> Iterator[Entry]:
    for index, entry in enumerate(saved if isinstance(saved, list) else []):
        if not isinstance(entry, dict):
            problems.append(f"entry {index + 1} is no object.")
            continue
        finding = Finding.from_json(entry, index)
        if not finding.verdict:
            problems.append(f"{finding.claim} has no verdict.")
        example = entry.get("counterexample")
        name = example.get("file") if isinstance(example, dict) else None
        file = _inside(path.parent, name) if name else None
        if name and (file is None or not file.is_file()):
            problems.append(f"the counterexample {text(name)!r} of {finding.claim} is missing.")
            file = None
        yield Entry(index, finding, file)
