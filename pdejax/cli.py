"""The command line: `pdejax verify | convergence | stability | stiff | train | analyze | reproduce | claims | report | …`."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

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
  pdejax info                                        versions, devices, precision, caches

exit status: 0 done, 1 a check failed, 2 bad input, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        print(f"pdejax {options.command}: {str(error).removeprefix(f'{options.command}: ')}", file=sys.stderr)
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
    for name, module, text in _commands():
        command = commands.add_parser(
            name,
            help=text,
            description=module.DESCRIPTION,
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _commands() -> Iterator[tuple[str, ModuleType, str]]:
    """Name, module with `DESCRIPTION`, `EXAMPLES`, `add_arguments` and `run`, and a line of help, of every command."""
    from pdejax.report import _command as report
    from pdejax.studies import (
        _algorithm1_command,
        _analyze_command,
        _convergence_command,
        _info_command,
        _stability_command,
        _stiff_command,
        _verify_command,
    )
    from pdejax.studies.claims import _command as claims
    from pdejax.studies.papers import _command as reproduce
    from pdejax.training import _command as train

    yield "verify", _verify_command, "integrate the closed-form cases and compare"
    yield "convergence", _convergence_command, "measure the continuum limit on real input"
    yield "stability", _stability_command, "largest stable steps and maps of stability"
    yield "stiff", _stiff_command, "cost to accuracy as diffusion makes the field stiff"
    yield "train", train, "train a Transformer or a PDE simulator"
    yield "analyze", _analyze_command, "every analysis on a trained model"
    yield "reproduce", reproduce, "the papers' experiments: theirs, ours, a null model"
    yield "claims", claims, "a verdict on every claim of the papers, recomputed"
    yield "report", report, "one page from the results of reproduce and claims"
    yield "algorithm1", _algorithm1_command, "v1's Algorithm 1 with each of its signs"
    yield "info", _info_command, "versions, devices, precision, caches"
