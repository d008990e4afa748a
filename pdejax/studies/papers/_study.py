"""What a reproduced study is: settings, what is measured per seed, and what follows from all seeds."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import stats

from pdejax.runs._parts import plain

if TYPE_CHECKING:
    from pdejax.studies.papers._models import Models

LEVEL = 0.95
PRESETS = ("quick", "paper")

# What one seed gives, by name: arrays of numbers.
Measured = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a study; with the study's name and the seeds they fix its result on one machine.

    - `train`: fields of [`TrainConfig`][pdejax.training.TrainConfig] for the Transformer; the simulators take theirs from it.
    - `student_steps`: training steps of a distilled simulator; `student`: its other fields of `TrainConfig`.
    - `examples`: held-out sequences that are analysed.
    - `options`: what only this study has. `seeds`: how many, if the caller does not say.
    """

    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    student_steps: int = 0
    student: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    examples: int = 64
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: int = 2

    def __post_init__(self):
        for name in ("train", "student", "options"):
            object.__setattr__(self, name, dict(getattr(self, name)))


class Values(NamedTuple):
    """A figure over seeds: `mean`, its 95 % interval `low`, `high` (Student's t; None for one seed) and the values."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]


class Row(NamedTuple):
    """One line of a study's table: paper | ours | null.

    - `quantity`, `unit`; `paper`: their figure as printed, None where they give none.
    - `ours`, `null`: `Values`; `null_name` says which null model. `note`: what a reader must know beside it.
    """

    quantity: str
    unit: str
    paper: str | None
    ours: Values
    null: Values | None
    null_name: str | None
    note: str


class Picture(NamedTuple):
    """A figure of a study (Matplotlib's, under its `file` name), and what it shows."""

    file: str
    caption: str
    figure: Any


class Conclusion(NamedTuple):
    """What follows from all seeds: the table, a sentence made from its numbers, all data, and the pictures."""

    rows: Sequence[Row]
    verdict: str
    data: xr.Dataset
    pictures: Sequence[Picture]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """One question of the papers.

    - `name`, `title`, `question`, `source` (paper, section, table).
    - `presets`: its `Settings` as `"quick"` (two cores, minutes) and `"paper"` (their sizes).
    - `measure(settings, seed, models) -> Measured` for one seed; `conclude(settings, measured) -> Conclusion` for all of them.
    - `pairing`: which simulators stand beside the Transformer, in words.
    - `resolve(settings) -> settings`: what becomes of a preset on this machine, such as without the text.
    """

    name: str
    title: str
    question: str
    source: str
    presets: Mapping[str, Settings]
    measure: "Callable[[Settings, int, Models], Measured]"
    conclude: Callable[[Settings, Sequence[Measured]], Conclusion]
    pairing: str | None = None
    resolve: Callable[[Settings], Settings] | None = None

    def settings(self, preset: str) -> Settings:
        """Those of a preset; `ValueError` for a name that there is not."""
        if preset not in self.presets:
            raise ValueError(f"preset={preset!r} is unknown; choose one of {tuple(self.presets)}.")
        found = self.presets[preset]
        return found if self.resolve is None else self.resolve(found)

    def identity(self, settings: Settings) -> str:
        """A digest of the study and its settings: results of one are never taken for those of another."""
        return digest([self.name, plain(settings)])


def over_seeds(values: Sequence[float]) -> Values:
    """Mean and 95 % interval of a figure over seeds, which are taken for independent draws of a normal variable."""
    x = np.asarray([float(v) for v in values])
    mean = float(np.mean(x))
    if len(x) < 2:
        return Values(mean, None, None, tuple(x.tolist()))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(x) - 1) * np.std(x, ddof=1) / math.sqrt(len(x)))
    return Values(mean, mean - half, mean + half, tuple(x.tolist()))


def row(
    quantity: str,
    ours: Sequence[float],
    *,
    paper: str | None = None,
    null: Sequence[float] | None = None,
    null_name: str | None = None,
    unit: str = "",
    note: str = "",
) -> Row:
    """A line of the table from the values of each seed."""
    beside = None if null is None else over_seeds(null)
    return Row(quantity, unit, paper, over_seeds(ours), beside, null_name if null is not None else None, note)


def stacked(measured: Sequence[Measured], name: str) -> np.ndarray:
    """The array `name` of all seeds, seeds in front."""
    return np.stack([np.asarray(found[name]) for found in measured])


def digest(value: Any) -> str:
    """The first 16 digits of the SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()[:16]
