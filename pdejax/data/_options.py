"""Options that several sets share: splits, their sizes, the folder of prepared sets."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pdejax._check import integer

SPLITS = ("train", "validation", "test")


def sizes(value: Sequence[Any]) -> tuple[int, int, int]:
    """Numbers of examples of the three splits."""
    if isinstance(value, str | bytes) or not hasattr(value, "__len__") or len(value) != 3:
        raise ValueError(f"load: sizes={value!r} must be three numbers, for {', '.join(SPLITS)}.")
    train, validation, test = (integer("load", f"sizes[{i}]", size, 0) for i, size in enumerate(value))
    return train, validation, test


def data_folder(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    """Where prepared sets are kept: `data_dir`, else `$PDEJAX_DATA`, `$TFDS_DATA_DIR` or `~/tensorflow_datasets`."""
    chosen = data_dir or os.environ.get("PDEJAX_DATA") or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(chosen).expanduser().absolute()


def carve(order: np.ndarray, split: str, validation: int) -> np.ndarray:
    """The places of a training or validation split: the first `validation` of an order are the latter, in rising order."""
    return np.sort(order[:validation] if split == "validation" else order[validation:])
