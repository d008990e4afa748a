"""What a training run may not be, and what its presets are."""

import collections
import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from pdejax.training import PRESETS, TrainConfig, preset


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_configurations(name):
    config = TrainConfig(**PRESETS[name])
    assert dataclasses.replace(config, seed=3).seed == 3
    schedule = config.make_schedule()
    assert 0 < float(schedule(0)) <= config.learning_rate * (1 + 1e-6)
    assert max(float(schedule(s)) for s in range(0, config.steps, 50)) == pytest.approx(config.learning_rate, rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "imagenet"}, r"dataset='imagenet'.*listops"),
        ({"model": "cnn"}, r"model='cnn'.*simulator"),
        ({"task": "regression"}, "task='regression'"),
        ({"precision": "float16"}, r"precision='float16'.*bfloat16"),
        ({"optimizer": "lion"}, "optimizer='lion'"),
        ({"schedule": "step"}, "schedule='step'"),
        ({"bottleneck": "mine"}, r"bottleneck='mine'.*infonce"),
        ({"signs": "plus"}, "signs='plus'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"steps": 10, "warmup": 10}, "warmup=10 must be less"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"weight_decay": 0.1}, "use 'adamw'"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"noise": 0.0}, "bijection"),
        ({"bottleneck_layer": 7}, "bottleneck_layer=7"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": True}, "seed=True"),
        ({"eval_examples": 0}, "eval_examples=0"),
        ({"solver": "rk4"}, "model='simulator'"),
        ({"steps_per_layer": 2}, "model='simulator'"),
        ({"teacher": "folder"}, "fits a simulator"),
        ({"model": "simulator", "teacher": "folder", "bottleneck": "club"}, "cannot be combined"),
        ({"model": "full", "task": "lm"}, "leak the future"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        TrainConfig(**options)


@pytest.mark.parametrize("name", ["data", "options"])
def test_options_are_mappings(name):
    with pytest.raises(TypeError, match=f"{name} is a list"):
        TrainConfig(**{name: ["length", 3]})


def test_the_bare_simulator_has_no_norm():
    assert TrainConfig(model="bare").norm == "none"


def test_presets_take_changes():
    found = preset("listops", data={"max_length": 20}, steps=300)
    assert found.data == {"min_length": 5, "max_length": 20} and found.steps == 300 and found.optimizer == "adamw"
    with pytest.raises(ValueError, match=r"preset 'cifar'.*listops"):
        preset("cifar")
    with pytest.raises(TypeError, match="data is a int"):
        preset("digits", data=3)


INTEGERS = [
    *("dim", "heads", "layers", "ffn", "steps_per_layer", "batch_size", "steps", "warmup", "bottleneck_layer"),
    *("seed", "data_seed", "save_every", "keep", "eval_every", "eval_examples"),
]
NUMBERS = ["learning_rate", "weight_decay", "clip", "label_smoothing", "beta", "decay", "noise"]


@pytest.mark.bad_input  # as users have it: the type checker of the tests takes int for Python's alone
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("name", INTEGERS)
def test_integers_of_numpy_are_pythons(name, kind):
    others: dict[str, Any] = {"model": "simulator"} if name == "steps_per_layer" else {}
    ours: dict[str, Any] = {**others, name: 4}
    theirs: dict[str, Any] = {**others, name: kind(4)}
    plain, given = TrainConfig(**ours), TrainConfig(**theirs)
    assert given == plain and type(getattr(given, name)) is int
    assert json.dumps(dataclasses.asdict(given)) == json.dumps(dataclasses.asdict(plain))


@pytest.mark.bad_input  # as users have it: the type checker of the tests takes int for Python's alone
@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_numbers_of_numpy_are_pythons(name, kind):
    options: dict[str, Any] = {name: kind(0.5), "optimizer": "adamw"}
    given = TrainConfig(**options)
    assert type(getattr(given, name)) is float and getattr(given, name) == 0.5
    json.dumps(dataclasses.asdict(given))


@pytest.mark.bad_input  # as users have it: the type checker of the tests takes int for Python's alone
def test_options_of_numpy_are_pythons():
    given = TrainConfig(data={"patch": np.int64(2), "sizes": (np.int64(3), 4)}, options={"gamma": np.float32(0.5)})
    assert json.dumps(given.data) == '{"patch": 2, "sizes": [3, 4]}' and type(given.options["gamma"]) is float


def test_options_in_a_named_tuple_are_a_tuple():
    """A named one is made of separate values, and JSON knows no names of its parts."""
    sizes = collections.namedtuple("sizes", "train test")
    given = TrainConfig(data={"sizes": sizes(np.int64(3), 4)})
    assert given.data == {"sizes": (3, 4)} and type(given.data["sizes"]) is tuple


@pytest.mark.bad_input  # as users have it: the type checker of the tests takes int for Python's alone
def test_a_presets_warm_up_follows_steps_of_any_kind():
    assert preset("digits", steps=np.int64(400)).warmup == preset("digits", steps=400).warmup == 25


@pytest.mark.parametrize("wrong", [True, 2.0, "2", np.float64(2), np.bool_(True)])
@pytest.mark.parametrize("name", ["steps", "bottleneck_layer"])
def test_other_types_are_no_integers(name, wrong):
    options: dict[str, Any] = {name: wrong}
    with pytest.raises(TypeError, match=f"{name}="):
        TrainConfig(**options)
