"""Which part of a sweep is this process's: as it is told, or as the launcher's variables say. Imports no JAX."""

import os
import re
import sys
from collections.abc import Mapping

from pdejax._arguments import checked

# Rank and number of processes, as launchers export them.
_PAIRS = (
    ("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"),
    ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
)


@checked
def find_shard(text: str | None = None, environment: Mapping[str, str] | None = None) -> tuple[int, int, str]:
    """Return which shard of how many this process measures, counted from 0, and what says so.

    - `text`: `"i/n"` with 0 ≤ i < n, which has precedence.
    - `environment`: variables, by default the process's: SLURM's job array and the tasks of its step, which multiply; SkyPilot's
      node rank; JAX's process variables, or its processes where `jax.distributed` runs. Else the whole, `(0, 1, "")`.

    Raises `ValueError` for a text that is no shard and for variables that contradict one another.
    """
    if text is not None:
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if not found or not int(found[1]) < int(found[2]):
            raise ValueError(
                f"find_shard: shard={text!r} must be 'i/n' with 0 ≤ i < n, such as '0/4': shards count from 0."
            )
        return int(found[1]), int(found[2]), "--shard"
    given = os.environ if environment is None else environment
    array, task = _array(given), _step(given)
    if array or task:
        (i, n), (j, m) = array or (0, 1), task or (0, 1)
        names = [name for name, one in (("SLURM_ARRAY_TASK_ID", array), ("SLURM_PROCID", task)) if one]
        return i * m + j, n * m, " and ".join(names)
    for rank, size in _PAIRS:
        if rank in given and size in given:
            return (*_checked(rank, given[rank], size, given[size]), rank)
    jax = sys.modules.get("jax")
    if environment is None and jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1:
        return jax.process_index(), jax.process_count(), "jax.distributed"
    return 0, 1, ""


def _array(given: Mapping[str, str]) -> tuple[int, int] | None:
    """The place in a job array, whose ids need start neither at 0 nor follow one another by 1."""
    if "SLURM_ARRAY_TASK_ID" not in given or "SLURM_ARRAY_TASK_COUNT" not in given:
        return None
    first, step = (_whole(given, f"SLURM_ARRAY_TASK_{name}", least) for name, least in (("MIN", 0), ("STEP", 1)))
    place = (_whole(given, "SLURM_ARRAY_TASK_ID", 0) - first) // step
    count = _whole(given, "SLURM_ARRAY_TASK_COUNT", 1)
    if not 0 <= place < count:
        # Of a list such as --array=3,7 the place of an id is not known.
        raise ValueError(
            f"find_shard: SLURM_ARRAY_TASK_ID={given['SLURM_ARRAY_TASK_ID']} is none of {count} ids in a row from {first}; give "
            "--shard i/n."
        )
    return place, count


def _step(given: Mapping[str, str]) -> tuple[int, int] | None:
    # Only srun says how many tasks its step has. A batch script has SLURM_PROCID=0 and SLURM_NTASKS of the whole job, but is one
    # process.
    size = "SLURM_STEP_NUM_TASKS"
    if "SLURM_PROCID" not in given or size not in given or given[size] == "1":
        return None
    return _checked("SLURM_PROCID", given["SLURM_PROCID"], size, given[size])


def _checked(rank: str, place: str, size: str, count: str) -> tuple[int, int]:
    if not (place.isdecimal() and count.isdecimal() and int(place) < int(count)):
        raise ValueError(
            f"find_shard: {rank}={place} and {size}={count} are no shard: 0 ≤ {rank} < {size}; give --shard i/n."
        )
    return int(place), int(count)


def _whole(given: Mapping[str, str], name: str, default: int) -> int:
    value = given.get(name, str(default))
    if not value.isdecimal():
        raise ValueError(f"find_shard: {name}={value} must be an integer of at least 0; give --shard i/n.")
    return int(value)
