"""Tensors of a safetensors file, mapped into memory and read one by one.

The format is a number of 8 bytes, a header in JSON of that length, and the numbers; the header says of every tensor its type, its
shape and from where to where its bytes lie. Everything is checked before a number is read: a file that was cut off, or changed
by hand, is refused. See the description of the format, https://huggingface.co/docs/safetensors.
"""

import functools
import pathlib
from typing import Any

import numpy as np

from pdejax.networks.families._checkpoint import Stored, check_spans, fault, file_size, json_table, numpy_type, size_of

# The format's own limit.
_LONGEST_HEADER = 100_000_000
_KINDS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors(path: pathlib.Path) -> dict[str, Stored]:
    """Return the tensors of a file by name; only its header is read.

    Raises `CheckpointError` for a file that is no safetensors file, ends too early, or whose header is wrong.
    """
    header, start = _header(path)
    tensors = {}
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        kind, shape, begin, end = _entry(path, name, entry)
        spans.append((begin, end, name))
        dtype = numpy_type(kind)
        read = functools.partial(_read, path, start + begin, dtype, shape)
        tensors[name] = Stored(shape, kind, end - begin, read)
    check_spans(path.name, spans, start, file_size(path))
    return tensors


def _header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
    """The header and where the numbers begin."""
    size = file_size(path)
    with open(path, "rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise fault(
                path.name,
                f"the header should have {length} bytes in a file of {size} (at most {_LONGEST_HEADER}): it is no safetensors "
                "file, or was cut off; download it again.",
            )
        text = file.read(length)
    return json_table(path.name, text, "the header"), 8 + length


def _entry(path: pathlib.Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape and place of one tensor, checked against one another."""

    def wrong(text: str) -> Exception:
        return fault(path.name, f"tensor {name!r} {text}: the header is damaged; download the file again.")

    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise wrong("has no dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _KINDS:
        raise fault(
            path.name,
            f"tensor {name!r} has type {code}, which is not read; there are {', '.join(_KINDS)}. Convert it to one of them.",
        )
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise wrong(f"has {what} {numbers!r}")
    if len(offsets) != 2:
        raise wrong(f"has data_offsets {offsets!r}")
    needed = size_of(path.name, name, shape, numpy_type(_KINDS[code]).itemsize)
    if offsets[1] - offsets[0] != needed:
        raise wrong(f"of type {code} and shape {shape} has {offsets[1] - offsets[0]} bytes instead of {needed}")
    return _KINDS[code], tuple(shape), offsets[0], offsets[1]


def _read(path: pathlib.Path, begin: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", begin, shape)
