"""What a training run may not be, and what its presets are."""

import dataclasses

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
