"""The trainings that several studies share, in the papers' sizes and in sizes for two cores."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pdejax.data import load
from pdejax.training import PRESETS


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


_ADAMW = {"optimizer": "adamw", "weight_decay": 0.01, "schedule": "cosine"}

# Six layers as in v2; the rest is smaller.
LISTOPS: Mapping[str, Any] = {
    **_ADAMW,
    "dataset": "listops",
    "data": {"min_length": 5, "max_length": 24, "sizes": (20_000, 1_000, 1_000)},
    "dim": 64,
    "ffn": 256,
    "layers": 6,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "warmup": 50,
    "clip": 1.0,
    "steps": 450,
    "eval_every": 225,
    "save_every": 225,
}
LISTOPS_PAPER: Mapping[str, Any] = dict(PRESETS["listops-paper"])

# v1's ten layers and 64 features, on the images that come with scikit-learn.
IMAGES: Mapping[str, Any] = {
    **_ADAMW,
    "dataset": "digits",
    "data": {"form": "patches", "patch": 2},
    "dim": 64,
    "ffn": 128,
    "layers": 10,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "warmup": 30,
    "steps": 300,
    "eval_every": 100,
    "save_every": 100,
}
IMAGES_PAPER: Mapping[str, Any] = dict(PRESETS["mnist-paper"])

# v1's four layers; batch 32 and Adam are theirs.
TEXT: Mapping[str, Any] = {
    "dataset": "newsgroups",
    "data": {"length": 48, "vocabulary_size": 5_000},
    "layers": 4,
    "dim": 64,
    "ffn": 128,
    "batch_size": 32,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "steps": 360,
    "eval_every": 45,
    "eval_examples": 256,
    "save_every": 45,
    "keep": 8,
}
TEXT_PAPER: Mapping[str, Any] = {**PRESETS["newsgroups-paper"], "keep": 10, "eval_every": 159, "save_every": 159}

# What a student on two cores takes: small batches suffice, for its targets have no noise.
STUDENT: Mapping[str, Any] = {"batch_size": 16, "learning_rate": 1e-2}

# Where the text is not there: short ListOps, so that the whole set still runs. The result's settings say which it was.
NO_TEXT: Mapping[str, Any] = {**TEXT, "dataset": "listops", "data": dict(LISTOPS["data"])}


def text_or(train: Mapping[str, Any], fallback: Mapping[str, Any]) -> Mapping[str, Any]:
    """`train`, if its text can be had without a download that takes minutes, else `fallback`."""
    try:
        load(train["dataset"], "test", limit=1, download=False, **train["data"])
    except FileNotFoundError:
        return fallback
    return train


def with_text(settings: Settings) -> Settings:
    """These settings, on short ListOps where the text is not there."""
    return dataclasses.replace(settings, train=text_or(settings.train, {**settings.train, **NO_TEXT}))
