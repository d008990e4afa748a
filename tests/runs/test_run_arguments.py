"""Commands from dataclasses: types, choices, switches, pairs, places, and what was named."""

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from pdejax.runs._command import Command, add_arguments, given_fields, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A configuration with a field of every kind."""

    names: tuple[str, ...] = setting((), "which", metavar="NAME", positional=True)
    kind: Literal["a", "b"] = setting("a", "of two")
    size: Literal[4, 16] = setting(16, "of two numbers")
    count: int = setting(3, "how many", metavar="K")
    share: float | int | None = setting(None, "of 100 %")
    steps: Sequence[int] | None = setting(None, "step counts", metavar="N")
    full: bool = setting(False, "whole")
    bounds: bool = setting(True, "no bounds")
    time_steps: int = setting(2, "T")
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def given(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Config)
    return given_fields(parser.parse_args(words), Config)


def test_what_is_not_named_is_left_to_the_configuration():
    assert given() == {}
    assert Config(**given()) == Config()


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["x", "y"], {"names": ("x", "y")}),
        (["--kind", "b"], {"kind": "b"}),
        (["--size", "4"], {"size": 4}),
        (["--count", "5"], {"count": 5}),
        (["--share", "0.5"], {"share": 0.5}),
        (["--steps", "4", "8"], {"steps": (4, 8)}),
        (["--steps"], {"steps": ()}),
        (["--full"], {"full": True}),
        (["--no-bounds"], {"bounds": False}),
        (["--time-steps", "7"], {"time_steps": 7}),
        (["--data", "length=12", "form=patches"], {"data": {"length": 12, "form": "patches"}}),
    ],
)
def test_words_become_values(words, value):
    assert given(*words) == value


@pytest.mark.parametrize(
    "words", [["--kind", "c"], ["--count", "1.5"], ["--share", "half"], ["--size", "5"], ["--none"]]
)
def test_words_that_are_no_value_are_refused(words):
    with pytest.raises(SystemExit) as stop:
        given(*words)
    assert stop.value.code == 2


def test_a_pair_without_a_value_is_refused():
    with pytest.raises(ValueError, match="--data 'length' must be NAME=VALUE"):
        given("--data", "length")


def test_help_says_what_a_field_is_and_its_default():
    parser = argparse.ArgumentParser()
    add_arguments(parser, Config)
    text = " ".join(parser.format_help().split())
    for words in (
        "of two (default a)",
        "how many (default 3)",
        "of 100 %",
        "T (default 2)",
        "[--steps [N ...]]",
        "--no-bounds no bounds",
    ):
        assert words in text, words


def test_a_command_hands_over_what_was_named():
    seen = {}

    def run(values, console):
        seen.update(values)
        return 1 if console.quiet else 0

    command = Command(configs=(Config,), description="", examples="", run=run)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command(parser.parse_args(["--count", "9", "--quiet"])) == 1
    assert seen == {"count": 9}


def test_help_needs_no_jax():
    code = "import sys, pdejax.runs._command, pdejax.studies._command; print('jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
