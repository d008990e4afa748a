"""Sweeps run: chunk by chunk, what is missing, this process's share of it."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from pdejax._arguments import checked
from pdejax._check import spoken_by
from pdejax.runs._parts import Parts, forget_programs
from pdejax.runs.sweep._measure import Measurer
from pdejax.runs.sweep._shard import find_shard
from pdejax.runs.sweep._store import Store, open_sweep
from pdejax.runs.sweep._sweep import Chunk, Sweep

if TYPE_CHECKING:
    import xarray as xr


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Tell how far a sweep is.

    - `chunks` and `done`: all chunks of the sweep, and how many of them are whole, whoever measured them. `complete`: all are.
    - `measured` and `runs`: chunks and runs that this call measured, in `seconds`; `compiling`: seconds of them that the first
      chunks of their programs took. `kept_seconds`: what the chunks of the share that were there had taken.
    - `shard`: which share it was, `(i, n)`.
    - `folder`: where the data lie.
    """

    chunks: int
    done: int
    measured: int
    runs: int
    seconds: float
    compiling: float
    kept_seconds: float
    shard: tuple[int, int]
    folder: str

    @property
    def complete(self) -> bool:
        """Whether every chunk of the sweep is whole."""
        return self.done == self.chunks

    @property
    def rate(self) -> float | None:
        """Runs per second of this call, compilation included; None where it measured none."""
        return self.runs / self.seconds if self.runs else None

    def dataset(self) -> "xr.Dataset":
        """Open the data."""
        return open_sweep(self.folder)


@checked
def run_sweep(
    sweep: Sweep,
    out: str | pathlib.Path,
    *,
    shard: str | None = None,
    verify: bool = True,
    devices: Sequence[Any] | None = None,
    report: Callable[[str], None] | None = None,
) -> Progress:
    """Measure what is missing of a sweep, and keep it in the zarr store `out/sweep.zarr`.

    Any number of processes on any number of machines may run the same sweep: in one shared folder, or each in its own, which are
    copied over one another afterwards. Each measures its share, and no two ever write one chunk. A process that is killed
    loses the chunk it was at; the same call goes on, and ends with the same bits on machines of one kind, else to rounding.

    - `out`: a folder. `shard`: `"i/n"`, by default as the launcher's variables say (see `find_shard`).
    - `verify`: read the chunks that are there and compare them with their digests, so that damaged ones are measured again, and
      a sweep is called complete only where all hold.
    - `devices`: those to share a chunk, by default all of this process. `report(text)` is told how far it is.

    Raises `ResultError` for a folder that cannot be written or holds another sweep, `ImportError` without zarr, `ValueError` for
    a shard or a measuring function that does not fit.
    """
    with spoken_by("run_sweep"):
        index, count, _ = find_shard(shard)
    say: Callable[[str], None] = report if report is not None else lambda text: None
    measurer = Measurer(sweep, devices)
    store = Store(pathlib.Path(out), sweep, measurer.types)
    chunks, mine = sweep.chunks(), sweep.share(index, count)
    missing = [chunk for chunk in mine if not store.is_whole(chunk, verify)]
    absent = {chunk.number for chunk in missing}
    kept = math.fsum(store.seconds(chunk) for chunk in mine if chunk.number not in absent)
    whole = f"shard {index}/{count}, " if count > 1 else ""
    say(f"{whole}{len(mine) - len(missing)} of {len(mine)} chunks are there")
    began, runs, measured, compiling, seen = time.perf_counter(), 0, 0, 0.0, set()
    for chunk in missing:
        with store.lock(chunk.number) as held:
            # Meanwhile another process may have measured it, or be at it.
            if not held or store.is_whole(chunk, verify):
                continue
            started = time.perf_counter()
            values = measurer(chunk)
            took = time.perf_counter() - started
            store.write(chunk, values, {"runs": chunk.runs, "seconds": took, **_where(measurer)})
        forget_programs()
        program = tuple(chunk.start[sweep.grid.index(name)] for name in sweep.constants)
        compiling += took if program not in seen else 0.0
        seen.add(program)
        runs, measured = runs + chunk.runs, measured + 1
        passed = time.perf_counter() - began
        left = passed / measured * (len(missing) - measured)
        say(f"{whole}{measured} of {len(missing)} chunks, {runs / passed:.0f} runs/s, {_duration(left)} left")
    seconds = time.perf_counter() - began
    done = sum(store.is_whole(chunk, verify=False) for chunk in chunks)
    if verify and done == len(chunks) and (missing or count > 1):
        # Marks of other processes too, before it is called complete.
        done = sum(store.is_whole(chunk) for chunk in chunks)
    return Progress(
        chunks=len(chunks),
        done=done,
        measured=measured,
        runs=runs,
        seconds=seconds,
        compiling=compiling,
        kept_seconds=kept,
        shard=(index, count),
        folder=str(out),
    )


@checked
def collect_sweep(
    sweep: Sweep,
    *,
    parts: Parts | None = None,
    devices: Sequence[Any] | None = None,
    report: Callable[[str], None] | None = None,
) -> "xr.Dataset":
    """Measure a whole sweep in memory and return its data: for small ones, without zarr.

    - `parts`: where finished chunks are kept meanwhile, such as those of a study, by the sweep's name. `devices` and `report` as
      for `run_sweep`.
    """
    say: Callable[[str], None] = report if report is not None else lambda text: None
    measurer, chunks = Measurer(sweep, devices), sweep.chunks()
    whole: dict[str, np.ndarray] = {}
    # With what the sweep depends on: the owner of the parts may know less.
    part = "" if parts is None else f"{sweep.name.replace(' ', '_')}-{sweep.identity()['key']}"
    for chunk in chunks:

        def measure(chunk: Chunk = chunk):
            say(f"{sweep.name}: chunk {chunk.number + 1} of {len(chunks)}")
            return measurer(chunk)

        found = measure() if parts is None else parts.arrays(f"{part}-{chunk.number}", measure)
        for name, values in found.items():
            shape = (*sweep.shape, *sweep.sizes(name))
            whole.setdefault(name, np.empty(shape, values.dtype))[chunk.region] = values
    return as_dataset(sweep, whole)


def as_dataset(sweep: Sweep, values: dict[str, np.ndarray]) -> "xr.Dataset":
    """Arrays of the whole grid with the names of their axes, as a zarr store has them."""
    import xarray as xr

    return xr.Dataset(
        {name: ((*sweep.grid, *sweep.dims[name]), array) for name, array in values.items()},
        coords={name: sweep.values(name) for name in (*sweep.grid, *sweep.coords)},
        attrs={"sweep": sweep.name, **sweep.attrs},
    )


def _where(measurer: Measurer) -> dict[str, Any]:
    device = measurer.mesh.devices.flat[0]
    return {"devices": int(measurer.mesh.size), "device": str(device.device_kind), "process": int(jax.process_index())}


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
