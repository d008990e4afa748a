"""Files written whole or not at all, and values as JSON has them."""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import jax
import numpy as np


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` when all is written and on the disk, and only then.

    A reader sees the old file or the new one, never half of it. Raises `OSError`, and leaves nothing behind.
    """
    # Not by tempfile, whose files only their owner may read.
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Replace a file by this content, as `whole_file` does."""
    with whole_file(path) as file:
        file.write(content)


def plain(value: Any) -> Any:
    """Dataclasses, arrays and tuples as JSON types; NaN and infinities as None, which JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, pathlib.PurePath):
        return str(value)
    return value
