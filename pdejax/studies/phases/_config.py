"""The command `sweep`, its options, and the settings of the phase diagram. Imports no JAX, so that help comes at once."""

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any, Literal

from pdejax import _check as check
from pdejax._arguments import names_checked
from pdejax.runs._command import Command, Console, setting

NORMALIZATIONS = ("sphere", "pre-norm", "none")
_OWNER = "PhasesConfig"


@names_checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class PhasesConfig:
    """Configure the phase diagram of tokens under attention.

    - `betas`: inverse temperatures, so many from `beta_low` to `beta_high` in equal ratios; `tokens`: numbers n of tokens;
      `normalization`: `"sphere"`, `"pre-norm"`, `"none"`, see `measure_run`; `dim`: features d of a token.
    - `depths`: depths at which every run is read, so many from t1/64 to `t1` in equal ratios; `step`: the largest RK4 step.
    - `seeds`: runs per point of the diagram, from independent directions. `close`: cosine above which tokens are one cluster.
    - `chunk`: runs that are measured and kept at once; `lanes`: how many go side by side on a device.
    - `seed`: of all starts; `out`: folder for results, or None.

    Raises `ValueError`/`TypeError` naming the argument.
    """

    betas: int = setting(24, "inverse temperatures of the diagram", metavar="N")
    beta_low: float | int = setting(0.5, "the lowest of them", metavar="B")
    beta_high: float | int = setting(16.0, "the highest of them", metavar="B")
    tokens: Sequence[int] = setting((8, 16, 32), "numbers of tokens", metavar="N")
    normalization: Sequence[str] = setting(NORMALIZATIONS, "sphere, pre-norm, none", metavar="NAME")
    dim: int = setting(8, "features of a token", metavar="D")
    t1: float | int = setting(32.0, "depth of every run", metavar="T")
    depths: int = setting(22, "depths at which it is read", metavar="N")
    step: float | int = setting(0.1, "largest RK4 step", metavar="H")
    close: float = setting(0.99, "cosine of tokens of one cluster", metavar="C")
    seeds: int = setting(32, "runs per point of the diagram", metavar="S")
    chunk: int = setting(512, "runs that are measured and kept at once", metavar="N")
    lanes: int = setting(32, "runs side by side on a device; more on an accelerator", metavar="N")
    seed: int = setting(0, "of all starts", metavar="S")
    out: str | None = setting(None, "folder for the data, which it goes on with", metavar="DIR")

    def __post_init__(self):
        least = {"betas": 2, "dim": 2, "depths": 2, "seeds": 2, "chunk": 1, "lanes": 1, "seed": 0}
        for name, smallest in least.items():
            check.integer(_OWNER, name, getattr(self, name), smallest)
        for name in ("beta_low", "t1", "step"):
            check.number(_OWNER, name, getattr(self, name), above=0)
        check.number(_OWNER, "beta_high", self.beta_high, above=self.beta_low, advice="it is above beta_low")
        check.number(_OWNER, "close", self.close, above=0, below=1, advice="it is a cosine")
        if self.step > self.t1 / 64:
            raise ValueError(
                f"{_OWNER}: step={self.step} must be at most t1/64 = {self.t1 / 64:g}, the first depth read."
            )
        for name in ("tokens", "normalization"):
            values = getattr(self, name)
            if not isinstance(values, tuple | list) or not values or len(set(values)) < len(values):
                raise ValueError(f"{_OWNER}: {name}={values!r} must be a tuple of at least one value, each once.")
        for value in self.tokens:
            check.integer(_OWNER, "tokens", value, 2)
        for value in self.normalization:
            check.choice(_OWNER, "normalization", value, NORMALIZATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Say what is swept, and which share of it.

    - `what`: `"phases"`, or `FILE.py:NAME`, a `pdejax.runs.sweep.Sweep` of your own.
    - `shard`: `"i/n"`, by default as the launcher says; `jobs`: submit so many shards by submitit instead, to `cluster`.
    """

    what: str = setting("phases", "phases, or FILE.py:NAME, a Sweep of your own", metavar="WHAT", positional=True)
    shard: str | None = setting(
        None, "this process's share, i of n from 0; else by the launcher's variables", metavar="I/N"
    )
    jobs: int | None = setting(None, "submit as so many jobs by submitit", metavar="N")
    cluster: Literal["slurm", "local", "debug"] | None = setting(None, "where to; by default what submitit finds")

    def __post_init__(self):
        if self.what != "phases" and not all(self.what.rpartition(":")[::2]):
            raise ValueError(f"sweep: {self.what!r} must be 'phases' or FILE.py:NAME, such as my_sweep.py:sweep.")
        if self.jobs is not None:
            check.integer("sweep", "jobs", self.jobs)
            if self.shard is not None:
                raise ValueError("sweep: jobs submits all shards; leave --shard out.")


def _run(given: dict[str, Any], console: Console) -> int:
    """Run it; the exit status."""
    names = [field.name for field in dataclasses.fields(SweepOptions)]
    options = SweepOptions(**{name: given.pop(name) for name in names if name in given})
    # By its address: it imports this file.
    command = importlib.import_module("pdejax.studies.phases._command")
    if options.what == "phases":
        return command.run_phases(options, PhasesConfig(**given), console)
    other = sorted(set(given) - {"out"})
    if other:
        raise ValueError(
            f"{options.what} says itself what is swept; leave out {', '.join('--' + name for name in other)}."
        )
    return command.run_own(options, given.get("out"), console)


COMMAND = Command(
    configs=(SweepOptions, PhasesConfig),
    description="Sweep a grid of runs on any number of machines: a phase diagram of tokens, or a sweep of your own.",
    examples="""examples:
  pdejax sweep --out out/phases                       the phase diagram: minutes on two cores; goes on after a stop
  pdejax sweep --seeds 348 --betas 32 --out out/large   100,224 runs
  pdejax sweep --shard 0/4 --out out/phases           one of four machines; SLURM, SkyPilot and JAX say it by themselves
  pdejax sweep --jobs 4 --cluster slurm --out out/phases
  pdejax sweep my_sweep.py:sweep --out out/mine       a Sweep of your own

The data: xarray.open_zarr("out/phases/sweep.zarr"). Folders of several machines may be
copied over one another.
exit status: 0 done, 1 a run was not finite, 2 bad input
""",
    run=_run,
)
