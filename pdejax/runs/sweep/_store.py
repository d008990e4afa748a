"""Where a sweep lies: a zarr store whose chunks are those of the sweep, and beside it which of them are whole."""

import contextlib
import hashlib
import importlib
import json
import os
import pathlib
import shutil
import socket
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pdejax._arguments import checked
from pdejax.runs._files import ResultError, check_folder, write_json
from pdejax.runs.sweep._sweep import Chunk, Sweep

if TYPE_CHECKING:
    import xarray as xr

STORE, MANIFEST, DONE, LOCKS = "sweep.zarr", "manifest.json", "done", "locks"
_CREATION = 2**40  # the byte of the file of locks that stands for the store itself


class Store:
    """The folder of a sweep: `sweep.zarr`, `manifest.json`, and `done/N.json` for each chunk that is whole.

    A chunk is written once, as one file of zarr per thing measured, each put in its place whole; then its mark, with the digest
    of the values. A chunk without a mark, or whose values are not those of the digest, is measured again. Folders of the same
    sweep from several machines may be copied over one another: they have no file in common that differs.

    Raises `ResultError` for a folder that cannot be written, or that holds another sweep, and `ImportError` without zarr.
    """

    def __init__(self, folder: pathlib.Path, sweep: Sweep, types: Mapping[str, np.dtype]):
        self.zarr = _zarr()
        self.folder, self.sweep, self.types = folder, sweep, types
        check_folder(folder)
        (folder / DONE).mkdir(exist_ok=True)
        with self.lock(_CREATION, wait=True):
            if not (folder / MANIFEST).exists():
                self._create()
        _compare(json.loads((folder / MANIFEST).read_text()), sweep.identity(), folder)
        with _quietly():
            self.group = self.zarr.open_group(str(folder / STORE), mode="r+")

    def write(self, chunk: Chunk, values: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
        """Write a chunk, then its mark."""
        with _quietly():
            for name, array in values.items():
                self.group[name][self._region(chunk, name)] = array
        write_json(self._mark(chunk), {"digest": digest_of(values), "start": chunk.start, "stop": chunk.stop, **about})

    def is_whole(self, chunk: Chunk, verify: bool = True) -> bool:
        """Whether the chunk has its mark and, where that is verified, the values that the mark was made for."""
        try:
            mark = json.loads(self._mark(chunk).read_text())
            return not verify or mark["digest"] == digest_of(self.read(chunk))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            return False  # no mark, or a file that cannot be read

    def seconds(self, chunk: Chunk) -> float:
        """How long a chunk that is whole took."""
        return float(json.loads(self._mark(chunk).read_text()).get("seconds", 0.0))

    def read(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """The values of a chunk."""
        with _quietly():
            return {name: np.asarray(self.group[name][self._region(chunk, name)]) for name in self.types}

    @contextlib.contextmanager
    def lock(self, place: int, wait: bool = False) -> Iterator[bool]:
        """Hold a chunk, by its number, for this process alone; gives False where another one holds it.

        A byte of one file per chunk: the system lets go of it when the process ends, however that happens.
        """
        try:
            import fcntl
        except ImportError:  # not on Windows: there shards alone keep processes apart
            yield True
            return
        with open(self.folder / LOCKS, "a+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
            except OSError as error:
                # A file system without locks is no reason to stop: shards have no chunk in common.
                yield not isinstance(error, BlockingIOError | PermissionError)
                return
            yield True

    def _create(self) -> None:
        """Make the store aside, then put it in its place: without locks another process may do so at the same time, and may have
        measured since."""
        store = self.folder / STORE
        if not store.exists():
            aside = self.folder / f"{STORE}.partial-{socket.gethostname()}-{os.getpid()}"
            self._make(aside)
            try:
                os.rename(aside, store)
            except OSError:
                if not store.exists():
                    raise
                shutil.rmtree(aside, ignore_errors=True)
        sweep = self.sweep
        try:
            with _quietly():
                key = self.zarr.open_group(str(store), mode="r").attrs.get("key")
        except (OSError, ValueError, KeyError):
            key = None
        if key != sweep.identity()["key"]:
            raise ResultError(f"{store} is of another sweep, or half of one. Give another folder, or remove it.")
        write_json(self.folder / MANIFEST, {**sweep.identity(), "chunks": len(sweep.chunks()), "runs": sweep.runs})

    def _make(self, folder: pathlib.Path) -> None:
        sweep, path = self.sweep, str(folder)
        with _quietly():
            group = self.zarr.open_group(path, mode="w", zarr_format=3, attributes=_attributes(sweep))
            for name, kind in self.types.items():
                own = tuple(sweep.dims[name])
                fill = np.nan if kind.kind == "f" else kind.type(0)
                group.create_array(
                    name,
                    shape=(*sweep.shape, *sweep.sizes(name)),
                    chunks=(*sweep.chunk_shape, *sweep.sizes(name)),
                    dtype=kind,
                    fill_value=fill,
                    dimension_names=(*sweep.grid, *own),
                    # Of floats alone is NaN no value: a chunk of zeros is a file as well.
                    config={"write_empty_chunks": True},
                )
            for name in (*sweep.grid, *sweep.coords):
                values = sweep.values(name)
                values = values.astype(object) if values.dtype.kind == "U" else values
                kind = str if values.dtype.kind == "O" else values.dtype
                made = group.create_array(name, shape=values.shape, dtype=kind, dimension_names=(name,))
                made[:] = values
            self.zarr.consolidate_metadata(path)

    def _region(self, chunk: Chunk, name: str) -> tuple[slice, ...]:
        return (*chunk.region, *(slice(None) for _ in self.sweep.dims[name]))

    def _mark(self, chunk: Chunk) -> pathlib.Path:
        return self.folder / DONE / f"{chunk.number}.json"


@checked
def open_sweep(folder: str | pathlib.Path) -> "xr.Dataset":
    """Open the data of a sweep's folder; what is not measured yet is NaN, or 0 where no float is measured.

    The same as `xarray.open_zarr(folder / "sweep.zarr")`. Raises `ResultError` where there is no sweep and `ImportError` without
    zarr.
    """
    path = pathlib.Path(folder) / STORE
    if not path.is_dir():
        raise ResultError(f"open_sweep: {path} is not there; run a sweep with out={str(folder)!r}.")
    _zarr()
    import xarray as xr

    with _quietly():
        return xr.open_zarr(path, chunks=None)


def digest_of(values: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of arrays: names, shapes, types and bytes."""
    whole = hashlib.sha256()
    for name in sorted(values):
        array = np.ascontiguousarray(values[name])
        whole.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        whole.update(array.tobytes())
    return whole.hexdigest()


def _attributes(sweep: Sweep) -> dict[str, Any]:
    return {"sweep": sweep.name, "key": sweep.identity()["key"], **sweep.attrs}


def _compare(kept: dict[str, Any], wanted: dict[str, Any], folder: pathlib.Path) -> None:
    if kept.get("key") == wanted["key"]:
        return
    wanted = json.loads(json.dumps(wanted))
    other = sorted(name for name, value in wanted.items() if name != "key" and kept.get(name) != value)
    raise ResultError(
        f"{folder} holds another sweep: {', '.join(other)} differ{'s' * (len(other) == 1)}. Give another folder, or remove it."
    )


def _zarr() -> Any:
    try:
        with _quietly():
            zarr = importlib.import_module("zarr")
    except ImportError as error:
        raise ImportError("a sweep that is kept needs zarr: pip install 'pdejax[sweep]'.") from error
    if int(zarr.__version__.split(".")[0]) < 3:
        raise ImportError(f"a sweep needs zarr 3, not {zarr.__version__}: pip install 'pdejax[sweep]'.")
    return zarr


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    # zarr warns of what version 3 of its format has not settled: words as values, metadata in one place.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
