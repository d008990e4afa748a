"""Every example of every help makes its configuration; those of some commands are run whole, in order and in one folder, and exit
with 0. Sizes are small, all else is as printed."""

import argparse
import importlib
import os
import pathlib
import shlex

import pytest

from pdejax import cli
from pdejax.runs._command import given_fields

ROOT = pathlib.Path(__file__).parent.parent
MNIST = ROOT.parent / "shared" / "data" / "mnist"
EXAMPLES = {
    "pdejax": cli.EXAMPLES,
    **{name: importlib.import_module(module).COMMAND.examples for name, module, _ in cli.COMMANDS},
}

# What makes the examples of a command small. Options that an example names itself are its own.
SIZES = {
    "stability": "--tokens 8 --resolution 4 --draws 8 --steps 40 --chunk 64 --solvers euler --families diffusion",
    "stiff": "--tokens 32 --dim 4 --ffn 8 --depth 0.01 --target 1e-3 --solvers tsit5 etdrk4 --diffusivities 0.01",
    "train": "--steps 4 --dim 8 --heads 2 --layers 2 --ffn 16 --batch-size 16 --eval-every 4 --eval-examples 32 --warmup 0",
    "claims": "--seeds 2",
    "reproduce": "--seeds 2",
}
# Read, and its configuration made, but not run: what would take minutes however small it is asked for.
CONFIGURED = {
    "pdejax train listops-paper --seeds 5 --out out/paper": "generates 100,000 long expressions, five times",
    "pdejax stiff --full --out out": "runs every explicit solve whole",
    "pdejax reproduce": "trains for all studies",
    "pdejax reproduce --out out/reproduce": "trains for all studies",
    "pdejax reproduce --preset quick --out out/papers": "trains for all studies",
    "pdejax reproduce --preset standard": "five seeds of all studies",
    "pdejax reproduce --preset paper --out out/paper": "the papers' sizes",
    "pdejax reproduce alignment attention --seeds 5": "trains ten models",
    "pdejax claims": "17 claims and 43 equations",
    "pdejax claims --out out": "17 claims and 43 equations",
    "pdejax claims --out out/papers": "17 claims and 43 equations",
    "pdejax claims --out out/reproduce": "17 claims and 43 equations",
    "pdejax claims --json > claims.json": "17 claims and 43 equations",
}
# Makes in seconds what an example before would have made in minutes.
INSTEAD = {
    "pdejax reproduce --preset quick --out out/papers": 'pdejax claims "v2 (15)" --out out/papers --seeds 2',
}
WEIGHTS = (
    "path/to/",
    ".gguf",
    "CHECKPOINT",
)  # of somebody's own; their commands are run on small checkpoints in tests/networks
RUN_AT_ONCE = ("info", "reproduce")  # a second each
RUN = (*RUN_AT_ONCE, "stability", "stiff", "train")  # the other commands are run small by tests of their own


def examples(name: str) -> list[str]:
    lines = [line.strip() for line in EXAMPLES[name].splitlines()]
    return [line.split("   ")[0].split("  ")[0].strip() for line in lines if line.startswith("pdejax")]


def test_the_tables_are_of_examples_that_there_are():
    known = {line for name in EXAMPLES for line in examples(name)}
    assert set(CONFIGURED) | set(INSTEAD) <= known


def arguments(line: str) -> list[str]:
    """An example's arguments with those that make it small."""
    program, command, *given = shlex.split(line.split(" > ")[0])
    assert program == "pdejax"
    named = {word for word in given if word.startswith("--")}
    small: list[str] = []
    taken = False
    for word in shlex.split(SIZES.get(command, "")):
        if word.startswith("--"):
            # A sweep is given by steps or by step sizes.
            taken = word in named or (word == "--steps" and "--dt" in named)
        small += [] if taken else [word]
    return [command, *given, *small]


def configured(line: str) -> None:
    """Parse an example and make its configuration, which is all that can be wrong with it before the work."""
    options: argparse.Namespace = cli.parser().parse_args(shlex.split(line.split(" > ")[0])[1:])
    for config in options.run.configs:
        config(**given_fields(options, config))


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in RUN])
def test_examples_of_the_help_are_configurations(name):
    for line in examples(name):
        configured(line)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in RUN_AT_ONCE else (pytest.mark.slow,)) for name in RUN]
)
def test_examples_of_the_help_exit_with_0(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PDEJAX_DATA", str(tmp_path / "data"))
    (tmp_path / "text.txt").write_text("a text of one's own, and a few words more of it.")
    for line in examples(name):
        if " mnist " in line:
            if not MNIST.exists():
                continue
            os.symlink(MNIST, tmp_path / "mnist")
        if line in CONFIGURED or any(word in line for word in WEIGHTS):
            configured(line)
            line = INSTEAD.get(line, "")
        if line:
            status = cli.main(arguments(line))
            printed = capsys.readouterr()
            assert status == 0, f"{line}: {printed.err or printed.out}"
