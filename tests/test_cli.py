"""The command line: what it prints, what it returns, and that the thin script is the same command.

The study's own command is tested with the study, `verify` with the verification.
"""

import dataclasses
import json
import pathlib
import runpy
import sys

import jax
import pytest

from pdejax import cli
from pdejax.studies import ConvergenceConfig

ROOT = pathlib.Path(__file__).parent.parent


def stopped(arguments, capsys):
    """Exit status and output of a command that argparse ends."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return stop.value.code, capsys.readouterr()


@pytest.mark.parametrize(
    "command", [[], *([name] for name in ("verify", "convergence", "info", "analyze", "reproduce", "claims", "report"))]
)
def test_help(command, capsys):
    code, printed = stopped([*command, "--help"], capsys)
    assert code == 0 and printed.err == ""
    assert printed.out.startswith(f"usage: {' '.join(['pdejax', *command])}")


def test_help_names_every_option_and_its_default(capsys):
    _, printed = stopped(["convergence", "--help"], capsys)
    text = " ".join(printed.out.split())
    for field in dataclasses.fields(ConvergenceConfig):
        assert f"--{field.name}" in text
        if isinstance(field.default, int | float | str):
            assert f"default {field.default}" in text, field.name
    assert "default euler lietrotter" in text


def test_examples_in_the_help_are_commands(capsys):
    lines = [line.split("  ")[0].split() for line in cli.EXAMPLES.splitlines()[1:] for line in [line.strip()]]
    parser = cli._parser()
    for program, *arguments in lines:
        assert program == "pdejax"
        assert parser.parse_args(arguments).command == arguments[0]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "COMMAND"),
        (["simulate"], "simulate"),
        (["verify", "--fast"], "--fast"),
        (["convergence", "--nothing"], "--nothing"),
        (["convergence", "--norm", "post"], "pre"),
        (["convergence", "--dataset", "mnist"], "listops"),
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
        (["--steps", "0", "8"], "positive integers"),
        (["--steps"], "at least two different step counts"),
        (["--weights", "iid", "--steps", "4", "8"], "multiples of the 6 layers"),
        (["--weights", "checkpoint"], "checkpoint=PATH"),
        (["--weights", "checkpoint", "--checkpoint", "missing.npz"], "missing.npz"),
        (["--solvers", "rk5"], "Did you mean 'rk4'"),
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

    monkeypatch.setattr("pdejax.analysis.solve_reference", never)
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
    assert "compilation_cache" in content


def test_info_for_people(capsys):
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("backend ") and line.endswith(jax.default_backend()) for line in lines)


def test_a_crash_is_not_called_bad_input(monkeypatch):
    """Only errors that say what to do are turned into a line; a defect keeps its traceback."""

    def broken():
        raise AssertionError("a defect")

    monkeypatch.setattr("pdejax.studies.environment", broken)
    with pytest.raises(AssertionError, match="a defect"):
        cli.main(["info"])


def test_the_benchmark_is_the_same_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convergence.py", "--solvers", "eulr"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "benchmarks" / "convergence.py"), run_name="__main__")
    assert stop.value.code == 2
    assert "Did you mean 'euler'" in capsys.readouterr().err


def test_verify_refuses_an_unwritable_file_before_any_work(tmp_path, capsys, monkeypatch):
    def never(**kwargs):
        raise AssertionError("the checks ran although their table cannot be saved")

    monkeypatch.setattr("pdejax.studies.verify", never)
    (tmp_path / "file").write_text("")
    assert cli.main(["verify", "--json", str(tmp_path / "file" / "table.json")]) == 2
    assert "--json" in capsys.readouterr().err
