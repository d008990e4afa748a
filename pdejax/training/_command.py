"""Training as a command: `pdejax train`."""

import dataclasses
import pathlib
import statistics
import sys
from typing import Any

from pdejax.runs._command import Command, Console, setting
from pdejax.training._config import PRESETS, TrainConfig, preset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runs:
    """What is trained how often and where, beside a `TrainConfig`."""

    preset: str | None = setting(None, ", ".join(PRESETS), metavar="PRESET", positional=True)
    seeds: int = setting(1, "train K times, seeds --seed and following", metavar="K")
    coordinator: str | None = setting(None, "of process 0, to train on several machines", metavar="HOST:PORT")
    processes: int = setting(1, "how many processes there are", metavar="P")
    process: int = setting(0, "which of them this is, from 0", metavar="I")


def run(given: dict[str, Any], console: Console) -> int:
    """Train and print the results; 0 done, 1 if a loss became NaN, 130 if interrupted."""
    own = [field.name for field in dataclasses.fields(Runs)]
    runs = Runs(**{name: value for name, value in given.items() if name in own})
    values = {name: value for name, value in given.items() if name not in own}
    if runs.seeds < 1:
        raise ValueError(f"--seeds {runs.seeds} must be at least 1.")
    config = preset(runs.preset, **values) if runs.preset else TrainConfig(**values)
    configs = [_seeded(config, i, runs.seeds) for i in range(runs.seeds)]
    if runs.coordinator is not None:
        from pdejax.training._distributed import initialize_distributed

        initialize_distributed(runs.coordinator, runs.processes, runs.process)
    from pdejax.training._run import outcome, train

    results = []
    for config in configs:
        result = train(config, report=console.say, progress=not console.quiet)
        console.result(result.line())
        console.saved(() if console.quiet else result.files)
        if result.fit.stopped == "interrupted":
            print(f"pdejax train: interrupted. {_how_to_go_on(result)}", file=sys.stderr)
            return 130
        results.append(result)
    if len(results) > 1:
        for name in results[0].test:
            found = [result.test[name] for result in results]
            console.result(
                f"{name} over {len(found)} seeds: {statistics.mean(found):.4f} ± {statistics.stdev(found):.4f} (sd)"
            )
    console.content([outcome(result) for result in results])
    return 1 if any(result.fit.stopped == "nan" for result in results) else 0


def _how_to_go_on(result: Any) -> str:
    out = result.config.out
    if out is None:
        return "Nothing is kept: use --out DIR to go on after a stop."
    return f"The same command goes on from step {result.fit.step}, which is kept in {out}."


def _seeded(config: TrainConfig, index: int, seeds: int) -> TrainConfig:
    if seeds == 1:
        return config
    seed = config.seed + index
    out = None if config.out is None else str(pathlib.Path(config.out) / f"seed-{seed}")
    return dataclasses.replace(config, seed=seed, out=out)


COMMAND = Command(
    configs=(Runs, TrainConfig),
    description="""Train a Transformer or a PDE simulator on ListOps, MNIST, 20 Newsgroups or digits.

A preset gives the options; those named on the command line override it. With --out the run is kept, and the same command
goes on from where it was interrupted.""",
    examples="""examples:
  pdejax train digits --out out/digits
  pdejax train listops --model simulator --steps-per-layer 4 --solver rk4 --out out/field
  pdejax train mnist --data manual_dir=mnist --out out/mnist
  pdejax train listops-paper --seeds 5 --out out/paper         the papers' sizes: for a GPU
  pdejax train digits --bottleneck club --beta 1e-2
  pdejax train digits --model simulator --teacher out/digits   fit the field to a trained Transformer
""",
    run=run,
)
