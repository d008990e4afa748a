"""The cost study as a command: `pdejax stiff` and `benchmarks/stiff.py`."""

import argparse
import dataclasses

from pdejax.runs._console import Console, add_output_arguments
from pdejax.studies.numerics._stiff import cheapest, stiff
from pdejax.studies.numerics._stiff_config import SCHEMES, StiffConfig

DESCRIPTION = "Field evaluations, time and memory to a given error; see pdejax.studies.StiffConfig."
EXAMPLES = """examples:
  pdejax stiff --out out                            T = 0.05: minutes on two cores; goes on after a stop
  pdejax stiff --full --out out                     T = 0.25 with every explicit solve run whole: about an hour
  pdejax stiff --diffusivities 0.01 0.1 --solvers tsit5 rkc2 etdrk4
"""
HEADER = f"{'solver':<12}{'D':>8}{'tolerance':>11}{'steps':>9}{'evals':>9}{'error':>10}{'seconds':>10}{'MiB':>8}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `StiffConfig`."""
    default = StiffConfig()
    for name, text in (("tokens", "N"), ("dim", "d"), ("heads", "H"), ("ffn", "hidden width"), ("seed", "seed")):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name), help=f"{text} (default %(default)s)")
    parser.add_argument("--diffusivities", type=float, nargs="+", metavar="D", default=list(default.diffusivities))
    parser.add_argument("--depth", type=float, metavar="T", help="default 0.05, with --full 0.25")
    parser.add_argument("--target", type=float, default=default.target, help="relative error (default %(default)s)")
    parser.add_argument("--solvers", nargs="+", metavar="NAME", default=list(SCHEMES))
    parser.add_argument("--explicit-steps", type=int, default=default.explicit_steps, metavar="K")
    parser.add_argument("--full", action="store_true", help="explicit solves whole, over T = 0.25")
    parser.add_argument("--out", metavar="DIR", help="folder for stiff.json, stiff.nc, stiff.png; resumes from it")
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the study and print its tables; 0 if every solver's cheapest run is known at every D."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(StiffConfig)}
    for name in ("diffusivities", "solvers"):
        values[name] = tuple(values[name])
    config = StiffConfig(**values)
    console = Console(options)
    started: list[bool] = []

    def row(record) -> None:
        if not started:
            console.row(HEADER)
            started.append(True)
        console.row(cost_row(record))

    result = stiff(config, report=console.say, row=row)
    console.result("\ncheapest runs to the target error")
    console.result(HEADER)
    for d in config.diffusivities:
        for record in sorted(cheapest(result.results["cost"], d).values(), key=lambda r: r["evaluations"]):
            console.result(cost_row(record))
    for reference in result.results["references"]:
        console.result(
            f"reference at D = {reference['D']:g}: two exponential methods differ by {reference['error']:.1e}"
        )
    for question, answer in result.verdicts.items():
        console.result(f"{question:<12}{answer}")
    console.saved(result.files)
    console.content(result.as_json())
    return 0


def cost_row(record: dict) -> str:
    tolerance = "-" if record["tolerance"] is None else f"{record['tolerance']:.0e}"
    mark = "~" if record["extrapolated"] else ""
    peak = "-" if record["peak_mb"] is None else f"{record['peak_mb']:.1f}"
    error = "-" if record["error"] is None else f"{record['error']:.1e}"
    return (
        f"{record['solver']:<12}{record['D']:>8g}{tolerance:>11}{mark + format(record['steps'], '.0f'):>9}"
        f"{mark + format(record['evaluations'], '.0f'):>9}{error:>10}{mark + format(record['seconds'], '.3g'):>10}{peak:>8}"
    )
