"""A checkpoint as it is stored: configuration, named tensors that are read one by one, tokenizer."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

OWNER = "load_pretrained"
FLOATS = ("float16", "bfloat16", "float32", "float64")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that is not what it says."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of a file: its shape, its type in words, the bytes it takes in memory, and a function that reads it."""

    shape: tuple[int, ...]
    kind: str
    size: int
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a folder or a file holds.

    - `where`: its name, for messages. `config`: the configuration, in the words of Hugging Face's `config.json`.
    - `tensors`: by name. `tokenizer`: a function that makes a `tokenizers.Tokenizer`, or None where there is no file of it.
    """

    where: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    tokenizer: Callable[[], Any] | None = None


def fault(where: str, text: str) -> CheckpointError:
    """An error of a checkpoint, in the words of the function that the user called."""
    return CheckpointError(f"{OWNER}: {where}: {text}")


def listed(names: Any, most: int = 6) -> str:
    """Names in words, the first few of them."""
    names = sorted(names)
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def is_float(kind: str) -> bool:
    """Whether a type holds real numbers as they are, not quantized ones."""
    return kind in FLOATS


def numpy_type(kind: str) -> np.dtype:
    """The NumPy type of a name; `bfloat16` is that of ml_dtypes."""
    return np.dtype(ml_dtypes.bfloat16) if kind == "bfloat16" else np.dtype(kind)


def check_memory(where: str, needed: int) -> None:
    """Raise `MemoryError` where the weights would not fit in what this process may still take."""
    free = free_memory()
    if free is not None and needed > free:
        raise MemoryError(
            f"{OWNER}: {where}: the weights take {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free; close "
            "other programs, or take a smaller checkpoint or one in a narrower type."
        )


def free_memory() -> int | None:
    """Bytes that this process may still take, by the system and by its control group; None where neither says."""
    found = []
    try:
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        group = pathlib.Path("/sys/fs/cgroup")
        limit, used = (group / name for name in ("memory.max", "memory.current"))
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            found.append(max(int(text) - int(used.read_text()), 0))
    except (OSError, ValueError, IndexError):
        pass
    return min(found) if found else None


def file_size(path: pathlib.Path) -> int:
    """Bytes of a file."""
    return os.stat(path).st_size
