"""Sweeps that outgrow one machine: a grid of runs in chunks, each a region of a zarr store, on any number of machines."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach

if TYPE_CHECKING:
    from pdejax.runs.sweep._run import Progress as Progress
    from pdejax.runs.sweep._run import collect_sweep as collect_sweep
    from pdejax.runs.sweep._run import run_sweep as run_sweep
    from pdejax.runs.sweep._shard import find_shard as find_shard
    from pdejax.runs.sweep._store import open_sweep as open_sweep
    from pdejax.runs.sweep._submit import submit_sweep as submit_sweep
    from pdejax.runs.sweep._sweep import Chunk as Chunk
    from pdejax.runs.sweep._sweep import Sweep as Sweep
else:
    __getattr__, __dir__ = attach(__name__)
