"""A checkpoint as it is stored: configuration, named tensors that are read one by one, tokenizer."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

OWNER = "load_pretrained"
# What the system and the control group of this process say about memory.
_MEMORY, _LIMIT = pathlib.Path("/proc/meminfo"), pathlib.Path("/sys/fs/cgroup/memory.max")
_MOST_BYTES = 2**62
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
    """Bytes that this process may still take, by the system and by its control group; None where neither says. Of files kept in
    memory, those not used lately are given up when they are needed."""
    found = []
    try:
        for line in _MEMORY.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        if _LIMIT.exists() and (text := _LIMIT.read_text().strip()).isdigit():
            kept = dict(line.split() for line in (_LIMIT.parent / "memory.stat").read_text().splitlines())
            used = int((_LIMIT.parent / "memory.current").read_text()) - int(kept.get("inactive_file", 0))
            found.append(max(int(text) - used, 0))
    except (OSError, ValueError, IndexError):
        pass
    return min(found) if found else None


def json_table(where: str, text: bytes, kind: str) -> dict[str, Any]:
    """Return the table that a JSON text holds; `CheckpointError` for another text, and for a key that is there twice."""

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = {key for key in found if keys.count(key) > 1} if len(keys) < 1000 else {"of many"}
            raise fault(where, f"{kind} has a key twice: {listed(twice)}; it is damaged, or was changed by hand.")
        return found

    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=table)
    except CheckpointError:
        raise
    except RecursionError:
        raise fault(where, f"{kind} is nested too deeply: it is damaged; download it again.") from None
    except ValueError as error:
        raise fault(where, f"{kind} is no JSON ({error}); download it again.") from None
    if not isinstance(found, dict):
        raise fault(where, f"{kind} holds a {type(found).__name__}, not a table; download it again.")
    return found


def size_of(where: str, name: str, shape: Sequence[int], width: int) -> int:
    """Return the bytes of a tensor of numbers `width` bytes wide; `CheckpointError` for a shape that no array can have."""
    if math.prod(max(n, 1) for n in shape) * width > _MOST_BYTES:
        raise fault(
            where, f"tensor {name!r} has shape {tuple(shape)}, more than any memory holds: the header is damaged."
        )
    return math.prod(shape) * width


def check_spans(where: str, spans: Sequence[tuple[int, int, str]], start: int, size: int, alignment: int = 1) -> None:
    """Raise unless tensors lie one after the other and fill the file, as both formats say.

    - `spans`: first byte, byte after the last, and name, counted from `start`; every tensor begins at the first multiple of
      `alignment` after the one before it. `size`: of the file, which ends with the last tensor or fills up to a multiple.
    """
    for _, end, name in spans:
        if start + end > size:
            raise fault(
                where,
                f"tensor {name!r} should end at byte {start + end}, and the file has {size}: it is cut off or damaged; "
                "download it again.",
            )
    place = 0
    for begin, end, name in sorted(spans):
        wanted = _aligned(place, alignment)
        if begin != wanted:
            what = "overlaps the one before it" if begin < place else "leaves a gap before it"
            what = "is not aligned" if begin % alignment else what
            raise fault(where, f"tensor {name!r} {what}: the header is damaged; download the file again.")
        place = end
    if size > start + _aligned(place, alignment):
        raise fault(
            where,
            f"the tensors end {size - start - place} bytes before the file does: it is damaged; download it again.",
        )


def _aligned(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment


def file_size(path: pathlib.Path) -> int:
    """Bytes of a file."""
    return os.stat(path).st_size
