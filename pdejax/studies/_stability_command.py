"""The command `stability`: its arguments, and a run with its table."""

import argparse
import sys
from typing import Any

from pdejax.studies._stability_config import FAMILIES, StabilityConfig

DESCRIPTION = (
    "Largest stable steps predicted and measured, and maps of stability against v1 (21) and the corrected bound."
)


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
    parser.add_argument("--quiet", action="store_true", help="print the final tables only")


def run(options: argparse.Namespace) -> int:
    """Run the study; 0, or 1 if a verdict is NOT as it should be or a bound is VIOLATED."""
    from pdejax.studies._stability import stability
    from pdejax.studies._stability_table import HEADER, limit_row, summary

    given: dict[str, Any] = {name: getattr(options, name) for name in StabilityConfig.__dataclass_fields__}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None}
    config = StabilityConfig(**values)
    live = sys.stderr.isatty()

    def say(text: str) -> None:
        if not options.quiet:
            print(f"\r\x1b[2K… {text}" if live else f"… {text}", end="" if live else "\n", file=sys.stderr, flush=True)

    def clear() -> None:
        if live and not options.quiet:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)

    shown = []

    def row(record) -> None:
        clear()
        if not shown:
            print(HEADER)
        shown.append(record)
        print(limit_row(record), flush=True)

    result = stability(config, report=say, row=row)
    clear()
    print(summary(result.as_json()))
    for path in result.files:
        print(f"saved {path}")
    return 1 if any("NOT" in answer or "VIOLATED" in answer for answer in result.verdicts.values()) else 0
