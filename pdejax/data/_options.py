"""Checks of what users ask for, with messages that say what there is."""

import difflib
import operator
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

SPLITS = ("train", "validation", "test")


def choice(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """`value`, which must be one of `allowed`. Raises `ValueError` with the nearest of them."""
    names = list(allowed)
    if any(value is a or (value == a and type(value) is type(a)) for a in names):
        return value
    near = difflib.get_close_matches(str(value), [str(a) for a in names], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{name} is {value!r}; {hint}it must be one of {', '.join(map(repr, names))}")


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value` as an integer. Raises `TypeError` for other types, `ValueError` out of range."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most}, got {number}")
    return number


def sizes(value: Sequence[Any]) -> tuple[int, int, int]:
    """Numbers of examples of the three splits."""
    if isinstance(value, str | bytes) or not hasattr(value, "__len__") or len(value) != 3:
        raise ValueError(f"sizes must be three numbers, for {', '.join(SPLITS)}; got {value!r}")
    train, validation, test = (integer(f"sizes[{i}]", size, 0) for i, size in enumerate(value))
    return train, validation, test


def data_folder(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    """Where prepared sets are kept: `data_dir`, else `$PDEJAX_DATA`, `$TFDS_DATA_DIR` or `~/tensorflow_datasets`."""
    chosen = data_dir or os.environ.get("PDEJAX_DATA") or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(chosen).expanduser().absolute()


def carve(order: np.ndarray, split: str, validation: int) -> np.ndarray:
    """The places of a training or validation split: the first `validation` of an order are the latter, in rising order."""
    return np.sort(order[:validation] if split == "validation" else order[validation:])
