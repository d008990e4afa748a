"""The command line of training, its options and what it says."""

import argparse
import dataclasses
from types import SimpleNamespace

import pytest

from pdejax.training import PRESETS, TrainConfig
from pdejax.training import _command as command


def parse(*arguments):
    parser = argparse.ArgumentParser()
    command.COMMAND.add_arguments(parser)
    return parser.parse_args(arguments)


def configs(monkeypatch, *arguments):
    """The configurations the command would train, caught before any data is loaded."""
    caught = []

    class Caught(Exception):
        pass

    def train(config, **_):
        caught.append(config)
        raise Caught

    from pdejax.training import _run

    monkeypatch.setattr(_run, "train", train)
    with pytest.raises(Caught):
        command.COMMAND(parse(*arguments))
    return caught[0]


def test_every_field_is_an_option():
    parser = argparse.ArgumentParser()
    command.COMMAND.add_arguments(parser)
    text = parser.format_help()
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in text
    assert vars(parse("--steps", "3")).keys() - vars(parse()).keys() == {"steps"}  # what is not named is not there


def test_the_command_line_overrides_the_preset(monkeypatch):
    found = configs(monkeypatch, "listops", "--steps", "300", "--data", "max_length=30", "--norm", "post", "--quiet")
    preset = TrainConfig(**PRESETS["listops"])
    # A shorter run keeps the preset's share of warm-up steps: 200 of 2,500.
    expected = dataclasses.replace(
        preset, steps=300, warmup=24, norm="post", data=dict(preset.data) | {"max_length": 30}
    )
    assert found == expected


def test_values_are_read_as_python(monkeypatch):
    found = configs(
        monkeypatch, "--data", "sizes=(10, 2, 2)", "manual_dir=some/where", "--options", "bias=True", "--clip", "0.5"
    )
    assert found.data == {"sizes": (10, 2, 2), "manual_dir": "some/where"}
    assert found.options == {"bias": True} and found.clip == 0.5


def test_seeds_get_folders_of_their_own(monkeypatch):
    found = configs(monkeypatch, "digits", "--seeds", "2", "--seed", "5", "--out", "out")
    assert found.seed == 5 and found.out.endswith("seed-5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--data", "length"), "NAME=VALUE"), (("--seeds", "0"), "--seeds 0"), (("--steps", "0"), "steps=0")],
)
def test_bad_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        command.COMMAND(parse(*arguments))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_does_not_block_a_short_run(name, monkeypatch):
    assert configs(monkeypatch, name, "--steps", "10").warmup < 10
    assert configs(monkeypatch, name, "--steps", "1").warmup == 0
    longer = configs(monkeypatch, name, "--steps", "1000000")
    assert longer.warmup == PRESETS[name].get("warmup", 0)
    assert configs(monkeypatch, name, "--steps", "10", "--warmup", "7").warmup == 7


@pytest.mark.parametrize(
    ("out", "words"), [("out/run", "goes on from step 7, which is kept in out/run"), (None, "--out DIR")]
)
def test_an_interrupted_run_says_how_to_go_on(out, words, monkeypatch, capsys):
    """Even with --quiet, for whoever interrupts wants to know."""
    from pdejax.training import _run

    def train(config, **_):
        fit = SimpleNamespace(stopped="interrupted", step=7)
        return SimpleNamespace(config=config, fit=fit, files=(), line=lambda: "a line")

    monkeypatch.setattr(_run, "train", train)
    assert command.COMMAND(parse("digits", "--quiet", *(("--out", out) if out else ()))) == 130
    assert words in capsys.readouterr().err
