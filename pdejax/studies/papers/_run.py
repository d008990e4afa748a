"""Running studies: seed by seed, resumable, kept by a digest of their settings."""

import dataclasses
import io
import json
import pathlib
import time
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pdejax.runs._parts import ResultError, check_folder, environment, plain, write_json, write_whole
from pdejax.runs._programs import forget_programs, kept_programs
from pdejax.studies.papers._models import Models
from pdejax.studies.papers._registry import STUDIES
from pdejax.studies.papers._study import Conclusion, Measured, Settings, Study, digest

_SECONDS = "seconds of measurement"


@dataclasses.dataclass(frozen=True)
class StudyResult:
    """A study, run: `content` is what its `result.json` holds; `folder` has that file, `data.nc` and the pictures."""

    content: dict[str, Any]
    folder: pathlib.Path
    cached: bool

    @property
    def verdict(self) -> str:
        """The sentence that follows from the numbers."""
        return self.content["verdict"]

    def table(self) -> str:
        """paper | ours | null as text, a line per quantity."""
        from pdejax.studies.papers._table import table

        return table(self.content)


def reproduce(
    studies: Sequence[str] | None = None,
    *,
    preset: str = "quick",
    seeds: int | None = None,
    out: str | pathlib.Path = "out/reproduce",
    report: Callable[[str], None] | None = None,
    done: Callable[[StudyResult], None] | None = None,
) -> list[StudyResult]:
    """Run studies of the papers and keep their results in `out/<study>/`: `result.json`, `data.nc`, pictures.

    - `studies`: names of [`STUDIES`][pdejax.studies.papers.STUDIES]; default all. `preset`: `"quick"` (two cores) or
      `"paper"` (the papers' sizes). `seeds`: how many, default what the study's settings say.
    - `report` takes a line about what is being done; `done` each result.

    What is measured is kept seed by seed, models by their configuration, and compiled programs in `out/programs` (unless JAX
    has a compilation cache already): the same call goes on from there, and studies that train the same model share it.
    Results of other settings, versions or devices are never mixed in.

    Raises `ValueError` for unknown names, a preset that there is not or fewer than one seed; `ResultError` where `out` cannot be
    written.
    """
    names = list(STUDIES) if studies is None else list(studies)
    unknown = [name for name in names if name not in STUDIES]
    if unknown:
        raise ValueError(f"studies {unknown} are unknown; choose of {', '.join(STUDIES)}.")
    if seeds is not None and (isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1):
        raise ValueError(f"seeds={seeds!r} must be an integer of at least 1.")
    settings = {name: STUDIES[name].settings(preset) for name in names}
    folder = pathlib.Path(out)
    check_folder(folder)
    models = Models(folder / "models", report)
    results = []
    with kept_programs(folder / "programs"):
        for name in names:
            result = run_study(STUDIES[name], settings[name], folder, models, preset=preset, seeds=seeds, report=report)
            results.append(result)
            if done is not None:
                done(result)
    return results


def run_study(
    study: Study,
    settings: Settings,
    folder: pathlib.Path,
    models: Models,
    *,
    preset: str,
    seeds: int | None = None,
    report: Callable[[str], None] | None = None,
) -> StudyResult:
    """One study in `folder/<its name>`, read if it is there already."""
    here = folder / study.name
    chosen = list(range(settings.seeds if seeds is None else seeds))
    machine = environment()
    identity = digest([study.identity(settings), chosen, machine])
    kept = _kept(here / "result.json", identity)
    if kept is not None:
        return StudyResult(kept, here, cached=True)
    parts = here / "parts" / digest([study.identity(settings), machine])
    measured, seconds = [], 0.0
    for seed in chosen:
        if report is not None:
            report(f"{study.name}: seed {seed} of {len(chosen)}")
        found, spent = _part(
            parts / f"seed-{seed}.npz", lambda seed=seed: study.measure(settings, seed, models), report
        )
        measured.append(found)
        seconds += spent
    started = time.perf_counter()
    conclusion = study.conclude(settings, measured)
    content = {
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "source": study.source,
        "pairing": study.pairing,
        "preset": preset,
        "config": plain(settings),
        "config_hash": identity,
        "seeds": chosen,
        "environment": machine,
        "table": [
            r._asdict() | {"ours": r.ours._asdict(), "null": r.null and r.null._asdict()} for r in conclusion.rows
        ],
        "verdict": conclusion.verdict,
        "figures": [{"file": p.file, "caption": p.caption} for p in conclusion.pictures],
        "data": "data.nc",
        "seconds": seconds + time.perf_counter() - started,
    }
    _write(here, conclusion, content)
    return StudyResult(plain(content), here, cached=False)


def _write(folder: pathlib.Path, conclusion: Conclusion, content: dict[str, Any]) -> None:
    write_whole(folder / "data.nc", bytes(conclusion.data.to_netcdf(engine="scipy", format="NETCDF3_64BIT")))
    for picture in conclusion.pictures:
        buffer = io.BytesIO()
        picture.figure.savefig(buffer, format="png", dpi=130)
        write_whole(folder / picture.file, buffer.getvalue())
    # Last, because its presence says that the rest is whole.
    write_json(folder / "result.json", content)


def _kept(path: pathlib.Path, identity: str) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(content, dict) and content.get("config_hash") == identity
    files = [content.get("data", "data.nc"), *(f["file"] for f in content.get("figures", ()))] if whole else []
    return content if whole and all((path.parent / file).exists() for file in files) else None


def _part(
    path: pathlib.Path, measure: Callable[[], Measured], report: Callable[[str], None] | None
) -> tuple[Measured, float]:
    """What one seed gave and how many seconds that took: read, or measured and kept. A file that cannot be read is measured
    again."""
    if path.exists():
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as saved:
                found = {name: saved[name] for name in saved.files}
            return found, float(found.pop(_SECONDS))
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            if report is not None:
                report(f"{path} is damaged ({error}) and is measured again")
    started = time.perf_counter()
    found: dict[str, Any] = {name: np.asarray(value) for name, value in measure().items()}
    seconds = time.perf_counter() - started
    forget_programs()
    wrong = [name for name, value in found.items() if value.dtype == object]
    if wrong:
        raise ResultError(f"{path.stem}: {wrong} are not arrays of numbers")
    buffer = io.BytesIO()
    kept: dict[str, Any] = {**found, _SECONDS: np.asarray(seconds)}
    np.savez_compressed(buffer, **kept)
    write_whole(path, buffer.getvalue())
    return found, seconds
