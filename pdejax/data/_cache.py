"""Arrays kept in files, so that a set is read from its records once."""

import pathlib
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from pdejax.runs._files import whole_file


def cached(path: pathlib.Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in the `.npz` file, or those that `make` gives, which are then kept there.

    A damaged file, which its checksums show, is made anew. Warns if the file cannot be written.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        arrays = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        warnings.warn(f"could not keep the arrays in {path}: {error}", stacklevel=2)
    return arrays


def join(rows: Sequence[bytes]) -> tuple[UInt8[np.ndarray, " total"], Int64[np.ndarray, " count_plus_1"]]:
    """Byte strings as one array, and where each ends, from 0 on."""
    ends = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=ends[1:])
    return np.frombuffer(b"".join(rows), dtype=np.uint8), ends


def pad(flat: np.ndarray, ends: Int64[np.ndarray, " count_plus_1"], length: int) -> np.ndarray:
    """The rows of a joined array, their first `length` entries each, padded with 0."""
    rows = np.zeros((len(ends) - 1, length), dtype=flat.dtype)
    sizes = np.minimum(np.diff(ends), length)
    places = np.arange(length)[None, :] < sizes[:, None]
    rows[places] = flat[(ends[:-1, None] + np.arange(length)[None, :])[places]]
    return rows
