"""Training runs by name, for the command line: what the README's results were made with, and the papers' sizes."""

from collections.abc import Mapping
from typing import Any

from pdejax.training._config import TrainConfig

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "listops": {
        "dataset": "listops",
        "data": {"min_length": 5, "max_length": 30},
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup": 200,
        "clip": 1.0,
        "steps": 2500,
        "eval_every": 250,
        "save_every": 250,
    },
    "digits": {
        "dataset": "digits",
        "data": {"form": "patches", "patch": 2},
        "dim": 64,
        "layers": 4,
        "ffn": 256,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup": 50,
        "steps": 800,
        "eval_every": 100,
        "save_every": 100,
    },
    "mnist": {
        "dataset": "mnist",
        "data": {"form": "patches", "patch": 7},
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "learning_rate": 5e-4,
        "schedule": "cosine",
        "warmup": 100,
        "steps": 1700,
        "eval_every": 200,
        "save_every": 200,
    },
    "newsgroups": {
        "dataset": "newsgroups",
        "data": {"length": 128},
        "layers": 4,
        "batch_size": 32,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "learning_rate": 3e-4,
        "schedule": "cosine",
        "warmup": 100,
        "steps": 1600,
        "eval_every": 160,
        "save_every": 160,
    },
    "listops-paper": {
        "dataset": "listops",
        "data": {"lengths": "l1000"},
        "batch_size": 32,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "learning_rate": 3e-4,
        "schedule": "cosine",
        "warmup": 500,
        "steps": 15000,
        "eval_every": 1000,
        "save_every": 1000,
    },
    "mnist-paper": {
        "dataset": "mnist",
        "data": {"form": "pixels"},
        "dim": 64,
        "ffn": 256,
        "layers": 10,
        "batch_size": 32,
        "learning_rate": 3e-4,
        "warmup": 500,
        "steps": 8600,
        "eval_every": 860,
        "save_every": 860,
    },
    "newsgroups-paper": {
        "dataset": "newsgroups",
        "data": {"length": 256},
        "layers": 4,
        "norm": "post",
        "batch_size": 32,
        "optimizer": "adam",
        "learning_rate": 3e-4,
        "steps": 1590,
        "eval_every": 318,
        "save_every": 318,
    },
}


def preset(name: str, **changes: Any) -> TrainConfig:
    """Return the configuration of a preset, with changes: `preset("digits", dim=32, out="out/digits")`.

    `data` and `options` are added to the preset's, other fields replace them. Raises `ValueError` for an unknown name, and as
    `TrainConfig`.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; choose one of {tuple(PRESETS)}.")
    values = dict(PRESETS[name])
    for field in ("data", "options"):
        if field in changes and isinstance(changes[field], Mapping):
            changes[field] = {**values.get(field, {}), **changes[field]}
    return TrainConfig(**values | changes)
