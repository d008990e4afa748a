"""Shards of a sweep handed to a cluster by submitit, which is optional: any launcher that sets its variables will do."""

import importlib
import pathlib
from collections.abc import Callable
from typing import Any

from pdejax import _check as check
from pdejax._arguments import checked
from pdejax.runs._files import check_folder
from pdejax.runs.sweep._run import Progress, run_sweep
from pdejax.runs.sweep._sweep import Sweep


@checked
def submit_sweep(
    sweep: Sweep,
    out: str | pathlib.Path,
    *,
    jobs: int,
    cluster: str | None = None,
    make: Callable[[], Sweep] | None = None,
    **parameters: Any,
) -> list[Any]:
    """Submit a sweep as `jobs` jobs, each with its shard, and return submitit's jobs; `job.result()` is its `Progress`.

    - `out`: the folder, on a file system that all jobs see. `cluster`: `"slurm"`, `"local"` (processes on this machine), or None
      for what submitit finds. `make()`: makes the sweep anew in each job, where one cannot import the module of its measuring
      function. `parameters`: those of submitit's executor, such as `timeout_min=60`, `slurm_partition="gpu"`.

    The same command again goes on with what is missing. Raises `ImportError` without submitit.
    """
    check.integer("submit_sweep", "jobs", jobs)
    try:
        submitit = importlib.import_module("submitit")
    except ImportError as error:
        raise ImportError("submit_sweep needs submitit: pip install 'pdejax[sweep]'.") from error
    folder = pathlib.Path(out)
    check_folder(folder)
    executor = submitit.AutoExecutor(folder=str(folder / "jobs"), cluster=cluster)
    executor.update_parameters(name=sweep.name, **parameters)
    with executor.batch():
        return [executor.submit(run_shard, make or sweep, str(folder), f"{index}/{jobs}") for index in range(jobs)]


def run_shard(sweep: Sweep | Callable[[], Sweep], out: str, shard: str) -> Progress:
    """Run one shard, as a job does."""
    return run_sweep(sweep if isinstance(sweep, Sweep) else sweep(), out, shard=shard)
