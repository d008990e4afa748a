"""The command line: `pdejax verify | convergence | stability | stiff | train | analyze | reproduce | claims | report | …`."""

import argparse
import dataclasses
import inspect
import json
import os
import pathlib
import sys
import typing
from collections.abc import Sequence

EXAMPLES = """examples:
  pdejax verify                                      check this machine's numbers against closed forms
  pdejax convergence --out out                       measure the continuum limit, save data and plots
  pdejax convergence --steps 4 8 16 --solvers euler rk4
  pdejax stability --out out                         largest stable steps, predicted and measured, and maps
  pdejax stiff --out out                             what each solver costs on a stiff field
  pdejax train digits --out out/digits               train a Transformer; the same command goes on after a stop
  pdejax analyze out/digits --out out/analysis       every analysis of it, beside null models
  pdejax reproduce --out out/reproduce               the papers' experiments: theirs, ours, a null model
  pdejax claims --out out/reproduce                  a verdict on every claim, with its evidence
  pdejax report out/reproduce                        one page of all that
  pdejax algorithm1 --out out                        v1's Algorithm 1 with each of the signs it prints
  pdejax info                                        versions, devices, precision
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        print(f"pdejax {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = getattr(options, "out", None)
        hint = (
            f" Finished parts are in {kept}; the same command goes on from them."
            if kept
            else " Use --out DIR to keep parts."
        )
        print(f"\npdejax {options.command}: interrupted.{hint}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pdejax",
        description="A Transformer as a PDE in depth.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    verify = commands.add_parser("verify", help="integrate the closed-form cases and compare")
    verify.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also save the table as JSON")
    verify.set_defaults(run=_verify)
    info = commands.add_parser("info", help="versions, devices and precision")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)
    _add_convergence(commands)
    _add_studies(commands)
    _add_training(commands)
    _add_papers(commands)
    return parser


def _add_papers(commands) -> None:
    from pdejax.report import _command as report
    from pdejax.studies import _analyze_command as analyze
    from pdejax.studies.claims import _command as claims
    from pdejax.studies.reproduce import _command as reproduce

    for name, module, text in (
        ("analyze", analyze, "every analysis on a trained model"),
        ("reproduce", reproduce, "the papers' experiments: theirs, ours, a null model"),
        ("claims", claims, "a verdict on every claim of the papers, recomputed"),
        ("report", report, "one page from the results of reproduce and claims"),
    ):
        command = commands.add_parser(
            name,
            help=text,
            description=module.DESCRIPTION,
            epilog=getattr(module, "EXAMPLES", None),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)


def _add_training(commands) -> None:
    from pdejax.training import _command

    command = commands.add_parser(
        "train",
        help="train a Transformer or a PDE simulator",
        description=_command.DESCRIPTION,
        epilog=_command.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _command.add_arguments(command)
    command.set_defaults(run=_command.run)
    from pdejax.studies import _algorithm1_command

    command = commands.add_parser(
        "algorithm1", help="v1's Algorithm 1 with each of its signs", description=_algorithm1_command.DESCRIPTION
    )
    _algorithm1_command.add_arguments(command)
    command.set_defaults(run=_algorithm1_command.run)


def _add_studies(commands) -> None:
    from pdejax.studies import _stability_command, _stiff_command

    command = commands.add_parser(
        "stability", help="largest stable steps and maps of stability", description=_stability_command.DESCRIPTION
    )
    _stability_command.add_arguments(command)
    command.set_defaults(run=_stability_command.run)
    command = commands.add_parser(
        "stiff",
        help="cost to accuracy as diffusion makes the field stiff",
        description="Field evaluations, time and memory to a given error; see pdejax.studies.StiffConfig.",
    )
    _stiff_command.add_arguments(command)
    command.set_defaults(run=_stiff_command.run)


def _add_convergence(commands) -> None:
    from pdejax.studies import ConvergenceConfig

    command = commands.add_parser(
        "convergence",
        help="measure the continuum limit on real input",
        description="Errors, orders and bounds of each scheme as the step is refined; see pdejax.studies.ConvergenceConfig.",
    )
    hints = inspect.get_annotations(ConvergenceConfig)
    numbers = {"length": "N", "dim": "D", "layers": "L", "heads": "H", "ffn": "F", "seed": "S", "draws": "K"}
    for field in dataclasses.fields(ConvergenceConfig):
        name, hint = f"--{field.name}", hints[field.name]
        default = "" if field.default is None else f" (default {_shown(field.default)})"
        if typing.get_origin(hint) is typing.Literal:
            command.add_argument(
                name, choices=typing.get_args(hint), default=field.default, help=f"default {field.default}"
            )
        elif field.name in ("steps", "spatial", "regimes"):
            command.add_argument(
                name, type=int, nargs="*", metavar="N", default=None, help=f"positive integers{default}"
            )
        elif field.name == "dt":
            command.add_argument(
                name, type=float, nargs="+", metavar="H", default=None, help="step sizes, instead of --steps"
            )
        elif field.name == "solvers":
            command.add_argument(name, nargs="+", metavar="NAME", default=None, help=f"schemes{default}")
        elif field.name in numbers:
            command.add_argument(
                name, type=int, metavar=numbers[field.name], default=field.default, help=f"integer{default}"
            )
        elif field.name in ("checkpoint", "out"):
            metavar, text = (
                ("FILE", "saved Transformer") if field.name == "checkpoint" else ("DIR", "folder for results")
            )
            command.add_argument(name, metavar=metavar, default=None, help=text)
        else:
            command.add_argument(name, type=float, metavar="X", default=field.default, help=f"number{default}")
    command.add_argument("--quiet", action="store_true", help="print the final table only")
    command.set_defaults(run=_convergence)


def _shown(default) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _convergence(options: argparse.Namespace) -> int:
    from pdejax.studies import ConvergenceConfig, convergence
    from pdejax.studies._convergence_table import HEADER, scheme_row, summary

    values = {}
    for field in dataclasses.fields(ConvergenceConfig):
        value = getattr(options, field.name)
        if value is None:
            continue
        values[field.name] = tuple(value) if isinstance(value, list) else value
    config = ConvergenceConfig(**values)
    shown = {"header": False}

    def say(text: str) -> None:
        if options.quiet:
            return
        if sys.stderr.isatty():
            print(f"\r\x1b[2K… {text}", end="", file=sys.stderr, flush=True)
        else:
            print(f"… {text}", file=sys.stderr, flush=True)

    def row(record) -> None:
        if sys.stderr.isatty() and not options.quiet:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
        if not shown["header"]:
            print(HEADER)
            shown["header"] = True
        print(scheme_row(record), flush=True)

    result = convergence(config, report=say, row=row)
    if sys.stderr.isatty() and not options.quiet:
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
    content = result.as_json()
    print(f"\ninput       {content['results']['input']}", end="")
    print(summary(content))
    for path in result.files:
        print(f"saved {path}")
    failed = [question for question, answer in result.verdicts.items() if "NOT" in answer or "VIOLATED" in answer]
    return 1 if failed else 0


def _verify(options: argparse.Namespace) -> int:
    from pdejax.studies import verify
    from pdejax.studies._records import check_folder, write_json

    if options.json is not None:
        check_folder(options.json.absolute().parent, "--json: the folder")  # before minutes of work, not after
    table = verify(report=lambda line: print(line, flush=True))
    if options.json is not None:
        write_json(options.json, table)
        print(f"saved {options.json}")
    return 0 if table["passed"] == table["cases"] else 1


def _info(options: argparse.Namespace) -> int:
    from pdejax.studies import environment

    found = environment()
    found["compilation_cache"] = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for key, value in found.items():
        print(f"{key:<18}{value}")
    return 0
