"""The command line: what it prints, what it returns, and that the thin script is the same command.

The study's own command is tested with the study, `verify` with the verification.
"""

import argparse
import dataclasses
import importlib
import io
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import pdejax
from pdejax import cli
from pdejax.runs._command import Console
from pdejax.studies import ConvergenceConfig

ROOT = pathlib.Path(__file__).parent.parent


def stopped(arguments, capsys):
    """Exit status and output of a command that argparse ends."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return stop.value.code, capsys.readouterr()


@pytest.mark.parametrize("command", [[], *([name] for name, *_ in cli.COMMANDS)])
def test_help(command, capsys):
    code, printed = stopped([*command, "--help"], capsys)
    assert code == 0 and printed.err == ""
    assert printed.out.startswith(f"usage: {' '.join(['pdejax', *command])}")


def without_jax(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, in which JAX cannot be imported."""
    code = "import sys; sys.modules['jax'] = None; from pdejax.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["nothing"], *([name, "--help"] for name, *_ in cli.COMMANDS)],
    ids=" ".join,
)
def test_help_comes_without_jax(arguments):
    found = without_jax(*arguments)
    assert found.returncode == (2 if arguments == ["nothing"] else 0), found.stderr
    assert "pdejax" in found.stdout + found.stderr


def test_it_is_a_module_to_run():
    found = subprocess.run(
        [sys.executable, "-m", "pdejax", "--version"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.stdout == f"pdejax {pdejax.__version__}\n" and found.returncode == 0


def in_a_process(*arguments: str, module: str = "pdejax", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        timeout=60,
    )


def test_the_file_of_the_commands_runs_too():
    found = in_a_process("--version", module="pdejax.cli")
    assert found.stdout.decode() == f"pdejax {pdejax.__version__}\n" and found.returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("command", ["train", "analyze", "algorithm1", "convergence"])
def test_help_on_a_terminal_without_greek(command, encoding):
    found = in_a_process(command, "--help", PYTHONIOENCODING=encoding, LANG="C")
    assert found.returncode == 0 and found.stderr == b"" and found.stdout.startswith(b"usage: pdejax")


def test_narrow_terminals_and_no_colour():
    found = in_a_process("train", "--help", COLUMNS="40", NO_COLOR="1")
    assert found.returncode == 0 and b"\x1b" not in found.stdout
    narrow, wide = (in_a_process("train", "--help", COLUMNS=n).stdout.count(b"\n") for n in ("40", "120"))
    assert narrow > wide


@pytest.mark.parametrize("name", [name for name, *_ in cli.COMMANDS])
def test_help_of_every_command_in_any_width(name, monkeypatch, capsys):
    shown = set()
    for columns in ("1", "20", "80", "400"):
        monkeypatch.setenv("COLUMNS", columns)
        code, printed = stopped([name, "--help"], capsys)
        assert code == 0 and "\x1b" not in printed.out
        shown.add(len(printed.out.splitlines()))
    assert len(shown) > 1


def test_results_on_a_terminal_without_greek():
    """Not help alone: what a command prints at the end."""
    found = in_a_process("info", PYTHONIOENCODING="ascii", LANG="C", LC_ALL="C", COLUMNS="10", NO_COLOR="1")
    assert found.returncode == 0 and b"backend" in found.stdout and b"\x1b" not in found.stdout + found.stderr


def test_a_reader_that_closes_the_output():
    """As `pdejax … | head -1` does: no traceback, and no line about a pipe."""
    code = "import sys; from pdejax import cli; from types import SimpleNamespace as N\n"
    code += "cli.parser = lambda name: N(parse_args=lambda given: N(command='x', run=lambda o: print('a' * 100_000) or 0))\n"
    code += "sys.exit(cli.main(['x']))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.close()
        assert run.wait(60) == 141 and run.stderr.read() == b""


def test_an_interrupt_while_importing(monkeypatch, capsys):
    def stop(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", stop)
    assert cli.main(["verify"]) == 130
    assert capsys.readouterr().err == "\npdejax: interrupted.\n"


@pytest.mark.parametrize("arguments", [["convergence", "--out", ""], ["report", ""], ["analyze", ""]], ids=" ".join)
def test_an_empty_path_is_refused(arguments, capsys):
    """It is what an unset variable of the shell becomes; the folder in use was never meant."""
    code, printed = stopped(arguments, capsys)
    assert code == 2 and "the path is empty" in printed.err


def test_a_missing_file_is_named_with_what_is_wrong(capsys):
    code = cli.main(["convergence", "--weights", "checkpoint", "--checkpoint", "missing.npz", "--quiet"])
    assert code == 2
    assert "checkpoint='missing.npz' does not exist; give a folder that" in capsys.readouterr().err


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion_knows_commands_options_and_choices(shell, capsys):
    assert cli.main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    for name, *_ in cli.COMMANDS:
        assert name in script
    for word in ("--weights", "checkpoint", "--steps-per-layer", "--print-completion"):
        assert word in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(capsys, tmp_path):
    cli.main(["--print-completion", "bash"])
    (tmp_path / "completion").write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        code = (
            'source completion; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
            "$(complete -p pdejax | sed 's/.*-F \\([^ ]*\\).*/\\1/'); echo \"${COMPREPLY[@]}\""
        )
        found = subprocess.run(["bash", "-c", code, "bash", *words], cwd=tmp_path, capture_output=True, text=True)
        return found.stdout.split()

    assert completed("pdejax", "tr") == ["train"]
    assert completed("pdejax", "train", "--mod") == ["--model"]


def test_completion_of_no_shell(capsys):
    code, printed = stopped(["--print-completion"], capsys)
    assert code == 2 and "shell" in printed.err


def test_help_names_every_option_and_its_default(capsys):
    _, printed = stopped(["convergence", "--help"], capsys)
    text = " ".join(printed.out.split())
    for field in dataclasses.fields(ConvergenceConfig):
        assert f"--{field.name.replace('_', '-')}" in text
        if isinstance(field.default, int | float | str):
            assert f"default {field.default}" in text, field.name
    assert "default euler lietrotter" in text


EXAMPLES = {
    "pdejax": cli.EXAMPLES,
    **{name: importlib.import_module(module).COMMAND.examples for name, module, _ in cli.COMMANDS},
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_the_help_are_commands(name):
    lines = [line.strip() for line in EXAMPLES[name].splitlines()]
    examples = [shlex.split(re.split(r"\s{2,}| > ", line)[0]) for line in lines if line.startswith("pdejax")]
    assert any(arguments[1] == name for arguments in examples) or name == "pdejax"
    for program, *arguments in examples:
        assert program == "pdejax"
        assert cli.parser().parse_args(arguments).command == arguments[0]


@pytest.mark.parametrize("name", [name for name, *_ in cli.COMMANDS])
def test_every_command_can_be_quiet_and_most_print_json(name):
    given = ["out"] if name in ("analyze", "audit", "loops", "parity", "report") else []
    assert cli.parser().parse_args([name, *given, "--quiet"]).quiet is True
    assert cli.parser().parse_args([name, *given, "--json"]).json is True


class Terminal(io.StringIO):
    def isatty(self):
        return True


def printed(monkeypatch, live=False, **options):
    """Standard output and error of one of everything."""
    out, err = io.StringIO(), Terminal() if live else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    console = Console(argparse.Namespace(**({"quiet": False, "json": False} | options)))
    console.say("measuring")
    console.row("a row")
    console.result("the result")
    console.saved(["a file"])
    console.content({"value": float("nan"), "at": np.float32(0.5)})
    return out.getvalue(), err.getvalue()


def test_what_a_command_prints(monkeypatch):
    assert printed(monkeypatch) == ("a row\nthe result\nsaved a file\n", "… measuring\n")
    assert printed(monkeypatch, quiet=True) == ("the result\nsaved a file\n", "")
    out, err = printed(monkeypatch, json=True)
    assert json.loads(out) == {"value": None, "at": 0.5} and err == "… measuring\na row\n"
    out, err = printed(monkeypatch, json=True, quiet=True)
    assert json.loads(out) == {"value": None, "at": 0.5} and err == ""


def test_progress_on_a_terminal_is_taken_off_again(monkeypatch):
    out, err = printed(monkeypatch, live=True)
    assert out == "a row\nthe result\nsaved a file\n"
    assert err.startswith("\r\x1b[2K… measuring\r\x1b[2K") and "\n" not in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "COMMAND"),
        (["simulate"], "simulate"),
        (["verify", "--fast"], "--fast"),
        (["convergence", "--nothing"], "--nothing"),
        (["convergence", "--norm", "batch"], "pre"),
        (["convergence", "--dataset", "cifar"], "listops"),
        (["convergence", "--length", "twelve"], "twelve"),
        (["convergence", "--steps", "4.5"], "4.5"),
        (["convergence", "--dt", "small"], "small"),
    ],
)
def test_options_that_cannot_be_read(arguments, words, capsys):
    code, printed = stopped(arguments, capsys)
    assert code == 2
    assert words in printed.err and printed.out == ""


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--dt", "0.3", "0.15"], "dt=0.3 does not divide the depth T=2.0; try dt="),
        (["--dt", "0.5"], "at least two different step counts"),
        (["--steps", "4", "8", "--dt", "0.5", "0.25"], "not both"),
        (["--steps", "0", "8"], "an integer of at least 1"),
        (["--steps"], "at least two different step counts"),
        (["--weights", "iid", "--steps", "4", "8"], "multiples of the 6 layers"),
        (["--weights", "checkpoint"], "checkpoint=PATH"),
        (["--weights", "checkpoint", "--checkpoint", "missing.npz"], "missing.npz"),
        (["--solvers", "rk5"], "did you mean 'rk4'"),
        (["--heads", "3"], "heads=3 must divide dim=8"),
        (["--spatial", "16", "32", "48"], "double"),
        (["--regimes", "8"], "at least two"),
        (["--length", "3"], "length"),
        (["--seed", "-1"], "seed=-1"),
    ],
)
def test_studies_that_cannot_be_run(arguments, words, capsys, monkeypatch):
    """Said in one line, before anything is measured."""

    def never(*args, **kwargs):
        raise AssertionError("measured first")

    monkeypatch.setattr("pdejax.analysis.numerics.solve_reference", never)
    code = cli.main(["convergence", "--quiet", "--dim", "8", "--heads", "2", "--length", "12", *arguments])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("pdejax convergence: ") and words in printed.err


def test_info_as_json(capsys):
    assert cli.main(["info", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["versions"]["jax"] == jax.__version__
    assert content["python"] == ".".join(map(str, sys.version_info[:3]))
    assert content["x64"] is True and content["devices"] == jax.device_count()
    assert set(content["caches"]) == {"compiled programs", "data sets"}


def test_info_for_people(capsys):
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("backend ") and line.endswith(jax.default_backend()) for line in lines)


def test_a_crash_is_not_called_bad_input(monkeypatch):
    """Only errors that say what to do are turned into a line; a defect keeps its traceback."""

    def broken():
        raise AssertionError("a defect")

    monkeypatch.setattr("pdejax.runs._parts.environment", broken)
    with pytest.raises(AssertionError, match="a defect"):
        cli.main(["info"])


def test_the_benchmark_is_the_same_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convergence.py", "--solvers", "eulr"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "benchmarks" / "convergence.py"), run_name="__main__")
    assert stop.value.code == 2
    assert "did you mean 'euler'" in capsys.readouterr().err


def test_verify_refuses_an_unwritable_folder_before_any_work(tmp_path, capsys, monkeypatch):
    def never(*args):
        raise AssertionError("the checks ran although their table cannot be saved")

    monkeypatch.setattr("pdejax.studies.numerics._verify._checks", never)
    (tmp_path / "file").write_text("")
    assert cli.main(["verify", "--out", str(tmp_path / "file" / "below")]) == 2
    assert "--out" in capsys.readouterr().err
