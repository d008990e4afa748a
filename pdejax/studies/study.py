"""What a study is, and how every study is run: measured part by part, judged from its numbers, kept."""

import contextlib
import dataclasses
import fnmatch
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import xarray as xr

from pdejax import _check as check
from pdejax._arguments import checked
from pdejax._figure import Figure
from pdejax.runs._code import code_digest as code_digest
from pdejax.runs._code import provenance
from pdejax.runs._files import plain
from pdejax.runs._findings import Finding
from pdejax.runs._parts import Parts, environment, kept_programs
from pdejax.runs._records import Picture, Result, Row
from pdejax.runs._table import Column, Table

# What one seed gives, by name: JSON values or arrays of numbers.
Evidence = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """What follows from a study's numbers.

    - `sentence`: the answer, made from the numbers; `verdicts`: answers by question; `passed`: whether all is as it should be.
    - `rows`: lines of the table paper | ours | null; `tables`, `notes`: what is printed besides.
    - `results`: what is saved as JSON; `dataset`: all data; `pictures`; `findings` about claims, by id.
    """

    sentence: str = ""
    verdicts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    passed: bool = True
    rows: Sequence[Row] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dataset: xr.Dataset | None = None
    pictures: Sequence[Picture] = ()
    findings: Mapping[str, Finding] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        answers = "; ".join(f"{question}: {answer}" for question, answer in self.verdicts.items())
        return f"Judgement({', '.join(text for text in (self.sentence, answers) if text)})"


def settings(config: Any, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return a study's configuration as it is saved: all but `out`, for where results lie is no part of what was measured, and
    but what it is `without`, as parts are that do not depend on what is asked for."""
    return {key: value for key, value in plain(config).items() if key not in ("out", *without)}


def failed(verdicts: Mapping[str, str]) -> list[str]:
    """Return the questions whose answer is that something is NOT as it should be, or VIOLATED."""
    return [question for question, answer in verdicts.items() if "NOT" in answer or "VIOLATED" in answer]


def low(figure: Any) -> float:
    """Return the lower end of a figure: the number itself where there is no interval."""
    return float(figure.low) if isinstance(figure, Figure) and not math.isnan(figure.low) else float(figure)


def high(figure: Any) -> float:
    """Return the upper end of a figure: the number itself where there is no interval."""
    return float(figure.high) if isinstance(figure, Figure) and not math.isnan(figure.high) else float(figure)


def own_seed(config: Any) -> tuple[int, ...]:
    """Return the one seed that a configuration names."""
    return (config.seed,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """One question: how it is measured, and what follows from the numbers.

    - `name`, `title`, `question`, `source` (paper, section); `pairing`: which models stand beside which, in words.
    - `measure(config, seed, parts) -> Evidence` for one seed. It goes through `parts.get(name, measure)` or
      `parts.arrays(name, measure)` piece by piece, so that an interrupted study goes on; `parts.say(text)` tells what is being
      done, `parts.row(record)` hands over a line of the table that grows meanwhile, `parts.shared` is the folder for what
      studies share.
    - `judge(config, evidence) -> Judgement` from the evidence of all seeds: a pure function of numbers, so that other numbers
      give another verdict.
    - `seeds(config)`: which seeds are measured. `saved(config)`: the configuration as the result has it; `identity(config)`:
      what parts depend on, by default the same.
    - `stem`: the name of the result's files, that of the study by default. `command`: what `pdejax` runs it by, its name by
      default.
    - `headline`: which row a summary of many results shows, the last whose quantity matches this pattern (`*` any text).
    - `presets`: configurations by name. `resolve(config)`: what becomes of a configuration on this machine, such as without a
      data set.
    - `columns` and `cells(record)`: the table that grows, whose records `measure` gives to `parts.row`.
    - `double`: whether it runs in float64, without touching the caller's precision setting.
    """

    name: str
    title: str
    question: str
    source: str
    measure: Callable[[Any, int, Parts], Evidence]
    judge: Callable[[Any, Sequence[Evidence]], Judgement]
    seeds: Callable[[Any], Sequence[int]] = own_seed
    saved: Callable[[Any], Mapping[str, Any]] = settings
    identity: Callable[[Any], Any] | None = None
    stem: str | None = None
    command: str | None = None
    columns: Sequence[Column] = ()
    cells: Callable[[Any], Sequence[Any]] | None = None
    presets: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    resolve: Callable[[Any], Any] | None = None
    pairing: str | None = None
    headline: str = ""
    double: bool = True

    def __repr__(self) -> str:
        return f"Study({self.name!r}: {self.title})"

    def preset(self, name: str) -> Any:
        """Return the configuration of this name; `ValueError` for one that there is not."""
        return self.presets[check.choice(f"Study.preset of {self.name}", "name", name, self.presets)]

    @property
    def table(self) -> Table:
        """The table that grows while the study is measured, without lines."""
        return Table(self.columns)

    def line(self, record: Any) -> str:
        """A record as a line of that table."""
        assert self.cells is not None
        return self.table.line(self.cells(record))


def headline(study: Study, rows: Sequence[Row]) -> str:
    """Return the quantity of the row that a summary shows; nothing where no row matches."""
    found = [row.quantity for row in rows if study.headline and fnmatch.fnmatchcase(row.quantity, study.headline)]
    return found[-1] if found else ""


@checked
def run(
    study: Study,
    config: Any,
    *,
    out: str | pathlib.Path | None = None,
    seeds: Sequence[int] | None = None,
    preset: str | None = None,
    shared: pathlib.Path | None = None,
    report: Callable[[str], None] | None = None,
    row: Callable[[Any], None] | None = None,
) -> Result:
    """Run a study: measure every seed, or read what is kept, judge, and write the files.

    - `out`: folder for results, finished parts, from which an interrupted study goes on, and compiled programs (unless JAX has a
      compilation cache already); None keeps nothing. Parts that other settings, versions or other code of the study measured
      are not taken.
    - `seeds`: default those of the study; `preset`: the name of the settings; `shared`: see `Parts`.
    - `report(text)` is told what is being done; `row(record)` gets each line of the growing table.

    Raises `ResultError`, before any work, for a folder that cannot be written.
    """
    config = config if study.resolve is None else study.resolve(config)
    say: Callable[[str], None] = report if report is not None else lambda text: None
    started = time.perf_counter()
    folder = None if out is None else pathlib.Path(out)
    identity = [study.name, (study.identity or study.saved)(config), code_digest(study.measure)]
    parts = Parts(folder, identity, say, row, shared, study.command or study.name)
    chosen = tuple(study.seeds(config) if seeds is None else seeds)
    kept = contextlib.nullcontext() if folder is None else kept_programs(folder / "programs")
    with kept, jax.enable_x64(True) if study.double else contextlib.nullcontext():
        evidence = [study.measure(config, seed, parts) for seed in chosen]
        where = environment()
    found = study.judge(config, evidence)
    result = Result(
        study=study.name,
        title=study.title,
        question=study.question,
        source=study.source,
        pairing=study.pairing,
        preset=preset,
        config=study.saved(config),
        config_hash=parts.key,
        seeds=chosen,
        environment=where,
        code=provenance(study.measure, parts.libraries),
        results=plain(found.results),
        rows=tuple(found.rows),
        headline=headline(study, found.rows),
        verdict=found.sentence,
        verdicts=dict(found.verdicts),
        passed=found.passed,
        tables=tuple(found.tables),
        notes=tuple(found.notes),
        dataset=found.dataset,
        pictures=tuple(found.pictures),
        findings=dict(found.findings),
        seconds=time.perf_counter() - started + parts.kept_seconds,
    )
    if folder is None:
        return result
    say("plots and files")
    return result.save(folder, study.stem)
