"""The Algorithm 1 study as a command: `pdejax algorithm1`."""

import argparse
import dataclasses
from typing import get_args

from pdejax.runs._console import Console, add_output_arguments
from pdejax.studies.numerics._algorithm1 import algorithm1
from pdejax.studies.numerics._algorithm1_config import PATCHES, Algorithm1Config, Estimator, Start
from pdejax.training._bottleneck import Signs

DESCRIPTION = """Algorithm 1 of v1 on handwritten digits: the coupled multi-layer system by explicit Euler, trained by the
information-bottleneck flow under each of the signs that v1 prints; see pdejax.studies.Algorithm1Config."""
EXAMPLES = """examples:
  pdejax algorithm1 --out out
  pdejax algorithm1 --signs "v1 (14)" --estimator infonce --beta 0.1
  pdejax algorithm1 --layers 4 --dt 0.05 --no-refine --no-bounds

exit status: 0 done, 1 every run diverged, 2 bad input
"""
INTEGERS = {
    "layers": "L",
    "dim": "d",
    "heads": "attention heads",
    "ffn": "hidden width",
    "time_steps": "T",
    "warmup": "steps with λ = β = 0 before the runs",
    "training_steps": "steps of each run",
    "batch": "images per step",
    "x_dim": "numbers an image is projected to for Ĩ",
    "updates": "estimator's updates per step",
    "seed": "seed",
}
REALS = {
    "diffusivity": "D",
    "strength": "α",
    "exchange": "scale of the exchange's initial weights",
    "dt": "Δt",
    "learning_rate": "η",
    "weight_decay": "λ",
    "beta": "β",
    "noise": "σ on the representation",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `Algorithm1Config`."""
    default = Algorithm1Config()
    for kind, names in ((int, INTEGERS), (float, REALS)):
        for name, text in names.items():
            option = f"--{name.replace('_', '-')}"
            parser.add_argument(option, type=kind, default=getattr(default, name), help=f"{text} (default %(default)s)")
    parser.add_argument("--tokens", type=int, choices=tuple(PATCHES), default=default.tokens)
    parser.add_argument("--start", choices=get_args(Start), default=default.start, help="layers that start at u0")
    parser.add_argument("--estimator", choices=get_args(Estimator), default=default.estimator, help="of Ĩ")
    parser.add_argument("--signs", nargs="+", choices=get_args(Signs), default=list(default.signs))
    parser.add_argument("--no-bounds", dest="bounds", action="store_false", help="no InfoNCE and CLUB at the ends")
    parser.add_argument("--no-refine", dest="refine", action="store_false", help="no orders in Δt and Δx")
    parser.add_argument("--out", metavar="DIR", help="folder for algorithm1.json and algorithm1.png")
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the study and print its tables; 0 unless every run diverged."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(Algorithm1Config)}
    values["signs"] = tuple(values["signs"])
    config = Algorithm1Config(**values)
    console = Console(options)
    result = algorithm1(config, report=console.say)
    console.result(
        f"{'signs':<14}{'‖θ‖':>9}{'loss':>9}{'accuracy':>10}{'Ĩ':>9}{'InfoNCE ≤':>11}{'≤ CLUB':>9}   (at the end)"
    )
    runs = result.results["runs"]
    for found in runs:
        console.result(end_row(found))
    console.result(
        f"\n{'signs':<14}{'layer':>6}{'v1 (21) ≤ 1':>13}{'corrected Δt':>14}{'eigenvalues Δt':>16}   (Δt = {config.dt:g})"
    )
    for found in runs:
        for row in (found["end"] or found["start"])["stability"]:
            cells = (
                _cell(row[key], width) for key, width in (("v1_21", 13), ("corrected_dt", 14), ("dt_eigenvalues", 16))
            )
            console.result(f"{found['name']:<14}{row['layer']:>6}{''.join(cells)}")
    console.result("")
    for question, answer in result.verdicts.items():
        console.result(f"{question:<14}{answer}")
    console.saved(result.files)
    console.result(f"{result.results['seconds']:.0f} s")
    console.content(result.as_json())
    return 0 if any(found["diverged"] is None for found in runs) else 1


def end_row(found: dict) -> str:
    """One run's end."""
    end = found["end"]
    if end is None:
        return f"{found['name']:<14}diverged at step {found['diverged']}"
    bounds = end.get("bounds") or {}
    cells = [
        _cell(value, width)
        for value, width in (
            (end["parameter_norm"], 9),
            (end["loss"], 9),
            (end["accuracy"], 10),
            (end["information"], 9),
            (bounds.get("lower"), 11),
            (bounds.get("upper"), 9),
        )
    ]
    return f"{found['name']:<14}{''.join(cells)}"


def _cell(value: float | None, width: int) -> str:
    return f"{'-' if value is None else format(value, '.3g'):>{width}}"
