"""A GGUF file as a `Checkpoint`: metadata and tensors mapped into memory, quantized ones as float32.

The format is a magic word, a version, two counts, the metadata (keys with typed values), a table of tensors (name, shape, type,
offset) and the numbers, aligned. See https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The package `gguf` says how many
bytes a block of a quantized type takes and turns blocks into numbers; the header is read here, because a vocabulary of 50 000
words takes that package seconds, and because a damaged file has to be refused in words.
"""

import functools
import math
import mmap
import pathlib
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from pdejax.networks.families._checkpoint import (
    OWNER,
    Checkpoint,
    Stored,
    check_spans,
    fault,
    file_size,
    numpy_type,
    size_of,
)
from pdejax.networks.families._gguf_names import ARCHITECTURES
from pdejax.networks.families._gguf_tokenizer import tokenizer_of

# Types of metadata by number: a code of `struct`, or a string or an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Types of tensors that hold numbers as they are.
_PLAIN = {0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16"}
_MOST_AXES = 4
# No metadata has arrays of arrays of arrays.
_DEEPEST = 2


def read_gguf_file(path: pathlib.Path) -> Checkpoint:
    """Return what a GGUF file holds, its configuration and names in the words of Hugging Face; no number is read.

    Raises `CheckpointError` for a damaged file, an architecture or an option that is not known.
    """
    metadata, tensors = read_gguf(path)
    kind = metadata.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise fault(
            path.name, f"general.architecture={kind!r}; GGUF files are read of {', '.join(sorted(ARCHITECTURES))}."
        )
    names = ARCHITECTURES[kind]
    config = names.config(path.name, metadata, {name: tensor.shape for name, tensor in tensors.items()})
    renamed = {}
    for name, tensor in tensors.items():
        plain = names.name(name)
        if plain in renamed:
            raise fault(path.name, f"two tensors stand for {plain!r}; the file is damaged.")
        arrange = names.arrange(name, config)
        renamed[plain] = tensor if arrange is None else _arranged(tensor, arrange)
    return Checkpoint(path.name, config, renamed, tokenizer_of(path.name, metadata))


def read_gguf(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Return the metadata and the tensors of a file by name; of the tensors only the table is read.

    Raises `CheckpointError` for a file that is no GGUF file, ends too early, or whose header is wrong.
    """
    if file_size(path) < 24:
        raise fault(
            path.name, f"it has {file_size(path)} bytes, less than the header of a GGUF file; download it again."
        )
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(path.name, data)
        if data[:4] != b"GGUF":
            raise fault(path.name, "it does not begin with GGUF: it is no GGUF file, or is damaged.")
        reader.place = 4
        version = reader.number("I")
        if version not in (2, 3):
            raise fault(
                path.name, f"it is of version {version} of GGUF (or of the other byte order); 2 and 3 are read."
            )
        count, keys = reader.number("Q"), reader.number("Q")
        metadata = {}
        for _ in range(reader.few(keys, "keys")):
            key = reader.text()
            if key in metadata:
                raise fault(path.name, f"its metadata has {key!r} twice; the file is damaged.")
            metadata[key] = reader.value(reader.number("I"))
        table = [reader.tensor() for _ in range(reader.few(count, "tensors"))]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 2**20:
            raise fault(path.name, f"general.alignment={alignment!r} is no number of bytes; it is damaged.")
        start = -(-reader.place // alignment) * alignment
    return metadata, _tensors(path, table, start, alignment)


def _tensors(
    path: pathlib.Path, table: list[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int
) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    spans = []
    for name, shape, kind, offset in table:
        needed, read, in_memory, words = _storage(path, name, shape, kind)
        if name in found:
            raise fault(path.name, f"tensor {name!r} is there twice; the file is damaged.")
        spans.append((offset, offset + needed, name))
        found[name] = Stored(shape, words, in_memory, functools.partial(read, start + offset))
    check_spans(path.name, spans, start, file_size(path), alignment)
    return found


def _storage(
    path: pathlib.Path, name: str, shape: tuple[int, ...], kind: int
) -> tuple[int, Callable[..., np.ndarray], int, str]:
    """Bytes in the file, a function that reads from an offset, bytes in memory and type in words."""
    if kind in _PLAIN:
        dtype = numpy_type(_PLAIN[kind])
        needed = size_of(path.name, name, shape, dtype.itemsize)
        return needed, functools.partial(_plain, path, dtype, shape), needed, _PLAIN[kind]
    quants = _package(path)
    try:
        quantization = quants.GGMLQuantizationType(kind)
        block, width = quants.GGML_QUANT_SIZES[quantization]
    except (ValueError, KeyError):
        raise fault(path.name, f"tensor {name!r} is of type {kind}, which the package gguf does not know.") from None
    if not shape or shape[-1] % block:
        raise fault(
            path.name, f"tensor {name!r} of type {quantization.name} has shape {shape}, which is no number of blocks."
        )
    rows = (*shape[:-1], shape[-1] // block * width)
    in_memory = size_of(path.name, name, shape, 4)
    return math.prod(rows), functools.partial(_quantized, path, quantization, rows, shape), in_memory, "float32"


def _plain(path: pathlib.Path, dtype: np.dtype, shape: tuple[int, ...], begin: int) -> np.ndarray:
    return np.memmap(path, dtype, "r", begin, shape) if math.prod(shape) else np.zeros(shape, dtype)


def _quantized(path: pathlib.Path, kind: Any, rows: tuple[int, ...], shape: tuple[int, ...], begin: int) -> np.ndarray:
    from gguf.quants import dequantize

    try:
        return dequantize(np.asarray(np.memmap(path, np.uint8, "r", begin, rows)), kind).reshape(shape)
    except NotImplementedError:
        raise fault(
            path.name,
            f"tensors of type {kind.name} cannot be turned into numbers by the package gguf; take another one.",
        ) from None


def _arranged(tensor: Stored, arrange: Callable[[np.ndarray], np.ndarray]) -> Stored:
    return Stored(tensor.shape, tensor.kind, tensor.size, lambda: arrange(tensor.read()))


def _package(path: pathlib.Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise ImportError(
            f"{OWNER}: {path.name}: quantized tensors need the package gguf: pip install 'pdejax[pretrained]'."
        ) from None
    return gguf


class _Reader:
    """Values one after the other; whatever would lie past the end of the file is refused."""

    def __init__(self, where: str, data: Any):
        self.where, self.data, self.place = where, data, 0

    def number(self, code: str) -> Any:
        """One number. A float32 is the shortest decimal that stands for it, as it was written."""
        size = struct.calcsize(f"<{code}")
        self.need(size)
        [value] = struct.unpack_from(f"<{code}", self.data, self.place)
        self.place += size
        return float(str(np.float32(value))) if code == "f" else value

    def text(self) -> str:
        """A string: its length, then its bytes."""
        size = self.number("Q")
        self.need(size)
        self.place += size
        try:
            return self.data[self.place - size : self.place].decode("utf-8")
        except UnicodeDecodeError:
            raise fault(self.where, f"a string near byte {self.place} is no text; the file is damaged.") from None

    def value(self, kind: int, depth: int = 0) -> Any:
        """A value of metadata."""
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY or depth > _DEEPEST:
            raise fault(
                self.where, f"a value near byte {self.place} has type {kind}, which GGUF has not there; it is damaged."
            )
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            code = f"<{self.few(count, 'numbers')}{_SCALARS[inner]}"
            self.need(struct.calcsize(code))
            values = struct.unpack_from(code, self.data, self.place)
            self.place += struct.calcsize(code)
            return list(values)
        if inner == _STRING:
            return self.texts(count)
        return [self.value(inner, depth + 1) for _ in range(self.few(count, "values"))]

    def texts(self, count: int) -> list[str]:
        """Strings one after the other, such as a vocabulary: one loop, because there are often 100 000."""
        data, place, size, found = self.data, self.place, len(self.data), []
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(self.few(count, "strings")):
            if place + 8 > size:
                break
            [length] = length_at(data, place)
            if length > size - place - 8:
                break
            found.append(data[place + 8 : place + 8 + length])
            place += 8 + length
        self.place = place
        if len(found) < count:
            self.need(size)
        try:
            return [text.decode("utf-8") for text in found]
        except UnicodeDecodeError:
            raise fault(self.where, f"a string before byte {place} is no text; the file is damaged.") from None

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """A line of the table: name, shape (rows first), type, offset."""
        name, axes = self.text(), self.number("I")
        if axes > _MOST_AXES:
            raise fault(self.where, f"tensor {name!r} has {axes} axes, and GGUF allows {_MOST_AXES}; it is damaged.")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]
        return name, shape, self.number("I"), self.number("Q")

    def few(self, count: int, what: str) -> int:
        """A count, which cannot be larger than the bytes that are left."""
        if count > len(self.data) - self.place:
            raise fault(
                self.where, f"the header speaks of {count} {what} in a file of {len(self.data)} bytes; it is damaged."
            )
        return count

    def need(self, size: int) -> None:
        """Raise unless so many bytes are left."""
        if size > len(self.data) - self.place:
            raise fault(
                self.where, f"the header ends past the end of the file, of {len(self.data)} bytes; download it again."
            )
