"""Read a folder of results. Whatever is damaged or absent is said in `problems`; nothing of it stops the report."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pdejax.runs._files import ABOUT
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
_OTHERS = {"counterexamples", "models", "parts", "programs", "checkpoints", "damaged", "tensorboard"}
# What shows that a folder without a result was to have one, of a study.
_TRACES = ("parts", "result.nc")
# Files of a training beside its result, by a key that they have; they say nothing that the result does not.
_BESIDE = {"run.json": "config", "config.json": "train", "summary.json": "stopped"}
_LEDGER = "claims"
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
    """claims.json: the claims C1 … and the claims of single equations; `name`, where it lies in the folder."""

    path: pathlib.Path
    name: str = _LEDGER
    raw: Mapping[str, Any] | None = None
    claims: tuple[Entry, ...] = ()
    equations: tuple[Entry, ...] = ()
    problems: tuple[str, ...] = ()

    def saved(self, kind: str, entry: Entry) -> Any:
        """Return the JSON of a claim (`kind` `"claims"`) or of an equation (`"equations"`)."""
        return self.raw["results"][kind][entry.index] if self.raw else {}


@dataclasses.dataclass(frozen=True)
class Results:
    """All that a folder holds: studies in the order of their sources, ledgers, and the JSON files that are neither, by where they
    lie in the folder (`left_out`)."""

    folder: pathlib.Path
    studies: tuple[Study, ...]
    ledgers: tuple[Ledger, ...]
    left_out: tuple[str, ...] = ()

    @property
    def claims(self) -> int:
        """How many claims the ledgers have."""
        return sum(len(ledger.claims) for ledger in self.ledgers)

    def problems(self) -> list[str]:
        """Return everything that is missing or damaged, a sentence each."""
        return [f"{part.name}: {problem}" for part in (*self.studies, *self.ledgers) for problem in part.problems]

    def foreign(self) -> str:
        """Say which JSON files are left out; nothing where none is."""
        if not self.left_out:
            return ""
        return f"Left out, for they say of no study that they are its result: {', '.join(self.left_out)}."


def read_results(folder: str | pathlib.Path) -> Results:
    """Read every result in `folder` and in the folders below it, whatever study or training left it, and every ledger of claims.

    Raises `ReportError` if `folder` is no folder or holds no result at all. Damaged files, missing figures, and studies and
    trainings that were interrupted are said in `Results.problems()`; JSON files that are no results in `Results.foreign()`.
    Cost: every file is read once, figures included.
    """
    if not isinstance(folder, str | pathlib.Path):
        raise TypeError(f"folder is {folder!r}; give the path of a folder of results, as text or pathlib.Path.")
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ReportError(f"{folder} {what}; give the folder that a command's --out named.")
    studies: list[Study] = []
    ledgers: list[Ledger] = []
    left_out: list[str] = []
    for place in _folders(folder):
        here = 0
        for path in sorted(path for path in place.glob("*.json") if not path.is_dir()):
            raw, wrong = _load(path)
            name = path.relative_to(folder).with_suffix("").as_posix()
            if path.stem == _LEDGER or (raw or {}).get("study") == _LEDGER:
                ledgers.append(_ledger(path, name, raw, wrong))
            elif path.name == "result.json" or "study" in (raw or {}) or wrong.startswith("damaged"):
                here += 1
                studies.append(_study(path, folder, raw, wrong))
            elif _BESIDE.get(path.name) not in (raw or {}):
                left_out.append(path.relative_to(folder).as_posix())
        stopped = "" if here else _stopped(place)
        studies += [_missing(place / "result.json", folder, stopped)] if stopped else []
    found = Results(folder, tuple(sorted(studies, key=_order)), tuple(ledgers), tuple(left_out))
    if not ledgers and all(study.raw is None for study in studies):
        advice = f"Run `pdejax reproduce --out {folder}`, or any other study or training with this --out, first."
        raise ReportError(f"{folder} holds no results. {' '.join(found.problems()) or advice}")
    return found


def _folders(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder and those below it that may hold results, each before those in it; links are not followed."""
    for place, inside, _ in os.walk(folder):
        inside[:] = sorted(name for name in inside if name not in _OTHERS and not name.startswith((".", "_")))
        yield pathlib.Path(place)


def _stopped(place: pathlib.Path) -> str:
    """What to do for a folder without a result that was to have one; nothing for any other folder."""
    if any(key in (_load(place / name)[0] or {}) for name, key in _BESIDE.items()):
        done = _load(place / "summary.json")[0] or {}
        how = f" ({text(done['stopped'])} at step {text(done.get('step'))})" if done.get("stopped") else ""
        return f"a training without a result{how}; the command that began it, `pdejax train … --out {place}`, goes on."
    if any((place / name).exists() for name in _TRACES):
        return f"not finished; {_again(place)}."
    return ""


def _again(place: pathlib.Path) -> str:
    """What makes a study's result again: its command, if the folder says which."""
    for about in sorted(place.glob(f"parts/*/{ABOUT}")):
        command = text((_load(about)[0] or {}).get("command"))
        if command:
            out = place.parent if command.startswith("reproduce ") else place
            return f"`pdejax {command} … --out {out}` goes on from its finished parts"
    return f"the command that was given --out {place} makes it again"


def _missing(path: pathlib.Path, folder: pathlib.Path, problem: str) -> Study:
    return Study(_name(path, folder), path.parent, path.name, problems=(problem,))


def _name(path: pathlib.Path, folder: pathlib.Path) -> str:
    """Where a result lies in the folder: its own folder, or its file where that is not called `result.json`."""
    inside = path.relative_to(folder)
    whole = inside.parent if path.name == "result.json" and path.parent != folder else inside.with_suffix("")
    return whole.as_posix()


def _order(study: Study) -> tuple[bool, list[tuple[bool, int, str]], str]:
    """v1 before v2, section 9 before section 10, and studies without a source last."""
    parts = [part for part in re.split(r"(\d+)", study.result.source) if part]
    # Numbers by their length, then by their digits: a source may have more of them than `int` reads.
    keys = [(part.isdecimal(), len(part) if part.isdecimal() else 0, part) for part in (p.lstrip("0") for p in parts)]
    return not parts, keys, study.name


def _load(path: pathlib.Path) -> tuple[dict[str, Any] | None, str]:
    """The object a JSON file holds, or None and what is wrong."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, "missing"
    except (OSError, ValueError, RecursionError) as error:
        return None, f"damaged ({type(error).__name__})"
    return (raw, "") if isinstance(raw, dict) else (None, "no JSON object")


def _study(path: pathlib.Path, folder: pathlib.Path, raw: dict[str, Any] | None, wrong: str) -> Study:
    place, file = path.parent, path.name
    if raw is None:
        return _missing(path, folder, f"{file} is {wrong}; {_stopped(place) or _again(place) + '.'}")
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
    if raw.get("data") is not None and not isinstance(raw["data"], str):
        problems.append(f"{file}: `data` is no name of a file.")
    if result.data:
        data = _inside(place, raw["data"])
        if data is None or not data.is_file():
            problems.append(f"the data file {result.data!r} is missing.")
            data = None
    return Study(_name(path, folder), place, file, raw, result, rows, images, data, tuple(problems))


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


def _ledger(path: pathlib.Path, name: str, raw: dict[str, Any] | None, wrong: str) -> Ledger:
    again = f"run `pdejax claims --out {path.parent}`"
    if raw is None:
        return Ledger(path, name, problems=(f"{path.name} is {wrong}; {again}.",))
    problems: list[str] = []
    results = raw.get("results")
    results = results if isinstance(results, dict) else {}
    claims = tuple(_entries(results.get("claims"), path, problems))
    equations = tuple(_entries(results.get("equations"), path, problems))
    if not claims:
        problems.append(f"{path.name} holds no claims; {again}.")
    return Ledger(path, name, raw, claims, equations, tuple(problems))


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
