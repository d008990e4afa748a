"""What `pdejax sweep` does: this process's share, and the pictures once all shares are there."""

import functools
import importlib.util
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from pdejax.runs._command import Console
from pdejax.runs._files import digest
from pdejax.runs.sweep import Progress, Sweep, find_shard, run_sweep, submit_sweep
from pdejax.studies._command import run_study
from pdejax.studies.phases._config import PhasesConfig, SweepOptions
from pdejax.studies.phases._phases import PHASES, phase_sweep


def run_phases(options: SweepOptions, config: PhasesConfig, console: Console) -> int:
    """Run this process's share of the phase diagram; where that completes it, judge it and draw."""
    if config.out is None and (options.jobs or options.shard):
        raise ValueError("sweep: shards are put together in a folder; give --out DIR.")
    if config.out is not None:
        progress = _share(options, phase_sweep(config), config.out, console)
        if progress is None or not progress.complete:
            return 0
    return run_study(PHASES, config, console)


def run_own(options: SweepOptions, out: str | None, console: Console) -> int:
    """Run a sweep that a file of the user's makes."""
    if out is None:
        raise ValueError("sweep: give --out DIR, the folder for the data.")
    sweep = load_sweep(options.what)
    file, _, name = options.what.rpartition(":")
    # Jobs read the file again: to them its module has no name to import it by.
    make = functools.partial(load_sweep, f"{pathlib.Path(file).resolve()}:{name}")
    progress = _share(options, sweep, out, console, make)
    if progress is not None and progress.complete:
        console.result(f"\nevery run is there: xarray.open_zarr({str(pathlib.Path(out) / 'sweep.zarr')!r})")
    return 0


def load_sweep(address: str) -> Sweep:
    """Return the `Sweep` called NAME in a file, by `FILE.py:NAME`. Raises `ValueError` where there is none."""
    file, _, name = address.rpartition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        raise ValueError(f"{path} is no file; give FILE.py:NAME.")
    # A name of its own: the file may be called as a module that others import.
    own = f"pdejax_sweep_{path.stem}_{digest(str(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(own, path.resolve())
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file; give FILE.py:NAME.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[own] = module  # found by its functions' digest
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[own]
        raise
    found = getattr(module, name, None)
    if not isinstance(found, Sweep):
        raise ValueError(f"{path} has no Sweep called {name!r}; write {name} = pdejax.runs.sweep.Sweep(…) there.")
    return found


def _share(
    options: SweepOptions, sweep: Sweep, out: str, console: Console, make: Callable[[], Sweep] | None = None
) -> Progress | None:
    """Measure a share, or submit all; None where they were submitted."""
    if options.jobs is not None:
        jobs = submit_sweep(sweep, out, jobs=options.jobs, cluster=options.cluster, make=make)
        console.result(
            f"submitted {len(jobs)} jobs: {', '.join(str(job.job_id) for job in jobs)}; the same command without"
        )
        console.result("--jobs draws the pictures when they are done")
        return None
    index, count, said_by = find_shard(options.shard)
    console.say(f"shard {index} of {count}{f', by {said_by}' if said_by else ''}: {sweep.runs} runs in all")
    progress = run_sweep(sweep, out, shard=f"{index}/{count}", report=console.say)
    _tell(progress, console)
    return progress


def _tell(progress: Progress, console: Console) -> None:
    rate = f", {progress.rate:.0f} runs/s" if progress.rate else ""
    left = "" if progress.complete else "; the rest is another shard's, or the same command's"
    console.result(
        f"{progress.runs} runs in {progress.seconds:.0f} s{rate}; {progress.done} of {progress.chunks} chunks are there{left}"
    )
    if not progress.complete:
        found: dict[str, Any] = {"chunks": progress.chunks, "done": progress.done, "runs": progress.runs}
        console.content({**found, "seconds": progress.seconds, "shard": progress.shard})
