"""Training as a command: `pdejax train`."""

import argparse
import ast
import dataclasses
import inspect
import pathlib
import statistics
import typing
from typing import Any

from pdejax.runs._console import Console, add_output_arguments
from pdejax.training._config import TrainConfig
from pdejax.training._presets import PRESETS, preset

DESCRIPTION = """Train a Transformer or a PDE simulator on ListOps, MNIST, 20 Newsgroups or digits.

A preset gives the options; those named on the command line override it. With --out the run is kept, and the same command
goes on from where it was interrupted."""
EXAMPLES = """examples:
  pdejax train digits --out out/digits
  pdejax train listops --model simulator --steps-per-layer 4 --solver rk4 --out out/field
  pdejax train mnist --data manual_dir=mnist --out out/mnist
  pdejax train listops-paper --seeds 5 --out out/paper         the papers' sizes: for a GPU
  pdejax train digits --bottleneck club --beta 1e-2
  pdejax train digits --model simulator --teacher out/digits   fit the field to a trained Transformer
"""


HELP = {
    "data": "further options of the data set, see pdejax.data.load",
    "task": "lm: next-token prediction",
    "model": "bare, full: see pdejax.SimulatorConfig; multilayer: v1 (4)",
    "solver": "of a simulator, default one step per layer is a Transformer's block",
    "options": "further options of the model's config",
    "teacher": "folder of a trained Transformer to fit a simulator to",
    "clip": "gradient norm, off by default",
    "bottleneck": "estimate of I(X; T) for the flow v1 (14)",
    "beta": "of the bottleneck",
    "decay": "λ of the bottleneck",
    "signs": "v1 (3) and algorithm 1 contradict v1 (14)",
    "bottleneck_layer": "0 the embedding, -1 the last",
    "noise": "standard deviation of the noise on T",
    "seed": "of weights and order",
    "data_seed": "of the order alone",
    "save_every": "steps between checkpoints",
    "keep": "best checkpoints kept, besides the latest",
    "eval_every": "steps between evaluations on the validation split",
    "out": "folder to keep the run in, and to go on from",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A preset and the fields of `TrainConfig`."""
    parser.add_argument("preset", nargs="?", choices=list(PRESETS), metavar="PRESET", help=", ".join(PRESETS))
    hints = inspect.get_annotations(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        flag, hint = "--" + field.name.replace("_", "-"), hints[field.name]
        options = _alternatives(hint)
        default = "" if field.default in (None, dataclasses.MISSING) else f"(default {field.default})"
        common: dict[str, Any] = {"default": None, "help": f"{HELP.get(field.name, '')} {default}", "dest": field.name}
        if field.name in ("data", "options"):
            parser.add_argument(flag, nargs="+", metavar="NAME=VALUE", **common)
        elif options:
            parser.add_argument(flag, choices=options, **common)
        else:
            kind = next((t for t in (int, float, str) if hint is t or t in typing.get_args(hint)), str)
            parser.add_argument(flag, type=kind, metavar=kind.__name__.upper(), **common)
    parser.add_argument("--seeds", type=int, default=1, metavar="K", help="train K times, seeds --seed and following")
    add_output_arguments(parser)
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, to train on several machines")
    parser.add_argument("--processes", type=int, default=1, metavar="P", help="how many processes there are")
    parser.add_argument("--process", type=int, default=0, metavar="I", help="which of them this is, from 0")


def run(options: argparse.Namespace) -> int:
    """Train and print the results; 0 done, 1 if a loss became NaN, 130 if interrupted."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(TrainConfig):
        value = getattr(options, field.name)
        if value is not None:
            pairs = field.name in ("data", "options")
            values[field.name] = dict(_pair(field.name, text) for text in value) if pairs else value
    if options.seeds < 1:
        raise ValueError(f"--seeds {options.seeds} must be at least 1.")
    config = preset(options.preset, **values) if options.preset else TrainConfig(**values)
    configs = [_seeded(config, i, options.seeds) for i in range(options.seeds)]
    if options.coordinator is not None:
        from pdejax.training._distributed import initialize_distributed

        initialize_distributed(options.coordinator, options.processes, options.process)
    from pdejax.training._run import outcome, train

    console = Console(options)
    results = []
    for config in configs:
        result = train(config, report=console.say, progress=not options.quiet)
        console.result(result.line())
        console.saved(() if options.quiet else result.files)
        if result.fit.stopped == "interrupted":
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


def _seeded(config: TrainConfig, index: int, seeds: int) -> TrainConfig:
    if seeds == 1:
        return config
    seed = config.seed + index
    out = None if config.out is None else str(pathlib.Path(config.out) / f"seed-{seed}")
    return dataclasses.replace(config, seed=seed, out=out)


def _pair(field: str, text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--{field} {text!r} must be NAME=VALUE.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _alternatives(hint: Any) -> tuple[str, ...]:
    """The strings a `Literal` allows, also one that may be None."""
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is typing.Literal:
            return typing.get_args(part)
    return ()
