"""The command `convergence`: its arguments, one per field of `ConvergenceConfig`, and a run with its table."""

import argparse
import dataclasses
import inspect
import typing

from pdejax.runs._console import Console, add_output_arguments
from pdejax.studies.numerics._convergence_config import ConvergenceConfig

DESCRIPTION = """Errors, orders and bounds of each scheme as the step is refined, on real input; see
pdejax.studies.ConvergenceConfig."""
EXAMPLES = """examples:
  pdejax convergence --out out                              data and plots too; goes on after a stop
  pdejax convergence --steps 4 8 16 --solvers euler rk4
  pdejax convergence --dataset digits --dt 0.5 0.25 0.125
  pdejax convergence --weights checkpoint --checkpoint net.npz

exit status: 0 done, 1 a verdict is NOT as it should be or a bound is VIOLATED, 2 bad input
"""
_NUMBERS = {"length": "N", "dim": "D", "layers": "L", "heads": "H", "ffn": "F", "seed": "S", "draws": "K"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    hints = inspect.get_annotations(ConvergenceConfig)
    for field in dataclasses.fields(ConvergenceConfig):
        name, hint = f"--{field.name}", hints[field.name]
        default = "" if field.default is None else f" (default {_shown(field.default)})"
        if typing.get_origin(hint) is typing.Literal:
            parser.add_argument(
                name, choices=typing.get_args(hint), default=field.default, help=f"default {field.default}"
            )
        elif field.name in ("steps", "spatial", "regimes"):
            parser.add_argument(
                name, type=int, nargs="*", metavar="N", default=None, help=f"positive integers{default}"
            )
        elif field.name == "dt":
            parser.add_argument(
                name, type=float, nargs="+", metavar="H", default=None, help="step sizes, instead of --steps"
            )
        elif field.name == "solvers":
            parser.add_argument(name, nargs="+", metavar="NAME", default=None, help=f"schemes{default}")
        elif field.name in _NUMBERS:
            parser.add_argument(
                name, type=int, metavar=_NUMBERS[field.name], default=field.default, help=f"integer{default}"
            )
        elif field.name in ("checkpoint", "out"):
            metavar, text = (
                ("FILE", "saved Transformer") if field.name == "checkpoint" else ("DIR", "folder for results")
            )
            parser.add_argument(name, metavar=metavar, default=None, help=text)
        else:
            parser.add_argument(name, type=float, metavar="X", default=field.default, help=f"number{default}")
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the study; 0, or 1 if a verdict is NOT as it should be or a bound is VIOLATED."""
    from pdejax.studies import convergence
    from pdejax.studies.numerics._convergence_table import HEADER, scheme_row, summary

    values = {}
    for field in dataclasses.fields(ConvergenceConfig):
        value = getattr(options, field.name)
        if value is not None:
            values[field.name] = tuple(value) if isinstance(value, list) else value
    config = ConvergenceConfig(**values)
    console = Console(options)
    rows: list[str] = []

    def row(record) -> None:
        for line in (*([] if rows else [HEADER]), scheme_row(record)):
            console.row(line)
            rows.append(line)

    result = convergence(config, report=console.say, row=row)
    content = result.as_json()
    if options.quiet:
        console.result("\n".join(rows))
    console.result(f"\ninput       {content['results']['input']}{summary(content)}")
    console.saved(result.files)
    console.content(content)
    failed = [question for question, answer in result.verdicts.items() if "NOT" in answer or "VIOLATED" in answer]
    return 1 if failed else 0


def _shown(default) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
