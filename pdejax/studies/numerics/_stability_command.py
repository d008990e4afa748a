"""The command `stability`: its arguments, and a run with its table."""

import argparse
from typing import Any

from pdejax.runs._console import Console, add_output_arguments
from pdejax.studies.numerics._stability_config import FAMILIES, StabilityConfig

DESCRIPTION = (
    "Largest stable steps predicted and measured, and maps of stability against v1 (21) and the corrected bound."
)
EXAMPLES = """examples:
  pdejax stability --out out                                           data and maps too; goes on after a stop
  pdejax stability --families diffusion "softmax attention" --resolution 60
  pdejax stability --solvers euler rk4 --families                      largest steps only

exit status: 0 done, 1 a verdict is NOT as it should be or a bound is VIOLATED, 2 bad input
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command, one per entry of `StabilityConfig`."""
    default = StabilityConfig()
    parser.add_argument(
        "--solvers", nargs="*", metavar="NAME", default=None, help=f"default {' '.join(default.solvers)}"
    )
    parser.add_argument(
        "--families",
        nargs="*",
        metavar="NAME",
        default=None,
        help=f"maps to make, of: {', '.join(FAMILIES)}; default all",
    )
    for name, text in (
        ("tokens", "tokens of the field whose largest step is measured"),
        ("dim", "its features"),
        ("resolution", "points per axis of a map"),
        ("draws", "further runs of a map with every parameter drawn"),
        ("steps", "Euler steps of a run"),
        ("chunk", "runs in one compiled call"),
        ("seed", "of weights, fields and draws"),
    ):
        parser.add_argument(
            f"--{name}", type=int, metavar="N", default=None, help=f"{text} (default {getattr(default, name)})"
        )
    parser.add_argument(
        "--diffusivity", type=float, metavar="D", default=None, help=f"of that field (default {default.diffusivity:g})"
    )
    parser.add_argument("--out", metavar="DIR", default=None, help="folder for results")
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the study; 0, or 1 if a verdict is NOT as it should be or a bound is VIOLATED."""
    from pdejax.studies.numerics._stability import stability
    from pdejax.studies.numerics._stability_table import HEADER, limit_row, summary

    given: dict[str, Any] = {name: getattr(options, name) for name in StabilityConfig.__dataclass_fields__}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None}
    config = StabilityConfig(**values)
    console = Console(options)
    rows: list[str] = []

    def row(record) -> None:
        for line in (*([] if rows else [HEADER]), limit_row(record)):
            console.row(line)
            rows.append(line)

    result = stability(config, report=console.say, row=row)
    content = result.as_json()
    if options.quiet:
        console.result("\n".join(rows))
    console.result(summary(content))
    console.saved(result.files)
    console.content(content)
    return 1 if any("NOT" in answer or "VIOLATED" in answer for answer in result.verdicts.values()) else 0
