"""The command line: `pdejax verify | convergence | stability | stiff | train | analyze | audit | loops | sweep | …`."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

EXAMPLES = """examples:
  pdejax verify                                      check this machine's numbers against closed forms
  pdejax convergence --out out                       measure the continuum limit, save data and plots
  pdejax convergence --steps 4 8 16 --solvers euler rk4
  pdejax stability --out out                         largest stable steps, predicted and measured, and maps
  pdejax stiff --out out                             what each solver costs on a stiff field
  pdejax train digits --out out/digits               train a Transformer; the same command goes on after a stop
  pdejax analyze out/digits --out out/analysis       every analysis of it, beside null models
  pdejax audit out/digits --out out/audit/digits     what the depth of that network is, beside nulls
  pdejax loops out/looped --out out/loops/looped     what the loop of that network does, and its safe range
  pdejax reproduce --out out/reproduce               the papers' experiments: theirs, ours, a null model
  pdejax claims --out out/reproduce                  a verdict on every claim, with its evidence
  pdejax sweep --out out/phases                      phase diagram of tokens; any number of machines
  pdejax report out/reproduce                        one page of all that
  pdejax limits --out out                            which limit depth has, closures, slow clustering, noise
  pdejax algorithm1 --out out                        v1's Algorithm 1 with each of the signs it prints
  pdejax parity path/to/checkpoint                   a pretrained network beside transformers, layer by layer
  pdejax info                                        versions, devices, precision, caches

exit status: 0 done, 1 a check failed, 2 bad input, 130 interrupted, 141 the output was closed
"""


# Name, module and a line of help of every command. The module has its `COMMAND`, a `Command` of `pdejax.runs`. It is imported
# only for a command that is named, and imports JAX only when that runs, so that help comes at once.
COMMANDS = (
    ("verify", "pdejax.studies.numerics._verify_config", "integrate the closed-form cases and compare"),
    ("convergence", "pdejax.studies.numerics._convergence_config", "measure the continuum limit on real input"),
    ("stability", "pdejax.studies.numerics._stability_config", "largest stable steps and maps of stability"),
    ("stiff", "pdejax.studies.numerics._stiff_config", "cost to accuracy as diffusion makes the field stiff"),
    ("train", "pdejax.training._command", "train a Transformer or a PDE simulator"),
    ("analyze", "pdejax.studies.numerics._analyze_config", "every analysis on a trained model"),
    ("audit", "pdejax.studies.audit._config", "what the depth of a network is, beside null models"),
    ("loops", "pdejax.studies.loops._config", "what a network does if its layers are repeated"),
    ("reproduce", "pdejax.studies.papers._command", "the papers' experiments: theirs, ours, a null model"),
    ("claims", "pdejax.studies.claims._config", "a verdict on every claim of the papers, recomputed"),
    ("sweep", "pdejax.studies.phases._config", "a phase diagram, or a sweep of your own, on any number of machines"),
    ("report", "pdejax.runs.report._command", "one page of all results in a folder"),
    ("parity", "pdejax.networks._parity_command", "a checkpoint beside transformers, layer by layer"),
    ("limits", "pdejax.studies.limits._config", "which limit deep networks have; closures, slow clustering, noise"),
    ("algorithm1", "pdejax.studies.numerics._algorithm1_config", "v1's Algorithm 1 with each of its signs"),
    ("info", "pdejax.studies._command", "versions, devices, precision, caches"),
)
SHELLS = ("bash", "zsh")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0 done, 1 a check failed, 2 bad input, 130 interrupted, 141 the reader of the output closed it.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a sign that the terminal has not is no reason to stop
    options = None
    try:
        if given[:1] == ["--print-completion"]:
            return _print_completion(given[1:])
        named = next((word for word in given if not word.startswith("-")), "")
        options = parser(named).parse_args(given)
        status = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # What is left in the buffer goes nowhere, or Python would complain of it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        command = getattr(options, "command", "")
        print(f"pdejax {command}: {_in_words(error).removeprefix(f'{command}: ')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{_interrupted(options)}", file=sys.stderr)
        return 130


def _in_words(error: Exception) -> str:
    """An error's message; where the system alone speaks, the file and what is wrong with it."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fspath(error.filename)!s}: {error.strerror}."
    return str(error)


def _interrupted(options: argparse.Namespace | None) -> str:
    if options is None:
        return "pdejax: interrupted."
    kept = options.run.folder(options)
    hint = (
        f"Finished parts are in {kept}; the same command goes on from them." if kept else "Use --out DIR to keep parts."
    )
    return f"pdejax {options.command}: interrupted. {hint}"


def parser(named: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands; with one `named`, only that one has its arguments, and no other is imported."""
    made = argparse.ArgumentParser(
        prog="pdejax",
        description="A Transformer as a PDE in depth.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action=_Version, nargs=0, help="print the version")
    made.add_argument(
        "--print-completion", choices=SHELLS, help="print a script that completes commands, options and paths"
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, address, text in COMMANDS:
        if named not in (None, name):
            commands.add_parser(name, help=text)
            continue
        command = importlib.import_module(address).COMMAND
        below = commands.add_parser(
            name,
            help=text,
            description=command.description,
            epilog=command.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(below)
        below.set_defaults(run=command)
    return made


def _print_completion(arguments: Sequence[str]) -> int:
    """Print the script for a shell that completes all commands, their options, choices and paths."""
    import shtab

    chosen = argparse.ArgumentParser(prog="pdejax --print-completion")
    chosen.add_argument("shell", choices=SHELLS)
    shell = chosen.parse_args(arguments).shell
    made = parser()
    [below] = [action.choices for action in made._actions if isinstance(action, argparse._SubParsersAction)]
    for command in below.values():
        for action in command._actions:
            kind = {"DIR": shtab.DIRECTORY, "FILE": shtab.FILE, "PATH": shtab.FILE}.get(str(action.metavar))
            if kind is not None:
                action.complete = kind  # type: ignore[attr-defined]
    print(shtab.complete(made, shell))
    return 0


class _Version(argparse.Action):
    """Print the version, which is looked up only then."""

    def __call__(self, parser, namespace, values, option_string=None):
        import pdejax

        print(f"pdejax {pdejax.__version__}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
