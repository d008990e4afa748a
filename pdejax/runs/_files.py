"""Files written whole or not at all, and values as JSON has them."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Any

ABOUT = "about.json"  # beside the finished parts of a run: which command goes on with it


class ResultError(OSError):
    """Tell of a result file that cannot be read or written; the message says what to do."""


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` when all is written and on the disk, and only then.

    A reader sees the old file or the new one, never half of it. Raises `OSError`, and leaves nothing behind.
    """
    # Not by tempfile, whose files only their owner may read.
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(part, "w+b") as file:  # to be read back, where a digest of it is part of it
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _sync_folder(folder: pathlib.Path) -> None:
    # Makes the rename itself durable; folders cannot be opened for this on Windows.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Replace a file by this content, as `whole_file` does; its folder is made. Raises `ResultError`, which says what to do."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise ResultError(
            f"cannot write {path}: {error.strerror}. Choose another --out folder or free the disk."
        ) from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write `value` as JSON (see `plain`), as `write_whole` does."""
    write_whole(path, (json.dumps(plain(value), indent=1, allow_nan=False) + "\n").encode())


def check_folder(folder: pathlib.Path, option: str = "--out") -> None:
    """Fail before any work if results could not be written to `folder`."""
    if folder.exists() and not folder.is_dir():
        raise ResultError(f"{option} {folder} is a file; give a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ResultError(f"{option} {folder} is not writable ({error.strerror}); choose another folder.") from error


def plain(value: Any) -> Any:
    """Write dataclasses, arrays and tuples as JSON types; NaN and infinities as None, which JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if hasattr(value, "__array__") and not isinstance(value, type):  # of NumPy or JAX, a scalar or an array
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, pathlib.PurePath):
        return str(value)
    return value


def digest(value: Any) -> str:
    """Return the first 16 digits of the SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()[:16]
