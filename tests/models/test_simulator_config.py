"""What a simulator's configuration refuses, and the presets between bare and full."""

import dataclasses
import json

import equinox as eqx
import jax
import numpy as np
import pytest

import pdejax as pj
from pdejax.models import MultilayerSimulatorConfig, Simulator, SimulatorConfig

SIZES = {"vocab": 11, "dim": 8, "heads": 2, "layers": 3, "ffn": 12}


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"vocab": None}, ValueError, "either vocab"),
        ({"heads": 3}, ValueError, "heads=3 must divide dim=8"),
        ({"dim": 0}, ValueError, "dim=0 must be an integer"),
        ({"layers": 2.5}, TypeError, "layers=2.5 must be an integer"),
        ({"weights": "quadratic"}, ValueError, "weights='quadratic' must be one of 'constant'"),
        ({"weights": "lineal"}, ValueError, "did you mean 'linear'"),
        ({"steps": 4}, ValueError, "multiple of layers=3.*use 3 or 6"),
        ({"steps": 0}, ValueError, "SimulatorConfig: steps=0 must be an integer of at least 1"),
        ({"t1": -1.0}, ValueError, "t1=-1.0 must be one finite number > 0"),
        ({"t1": "3"}, TypeError, "t1='3' must be"),
        ({"solver": "eulers"}, ValueError, "did you mean 'euler'"),
        ({"solver": 3}, TypeError, "solver=3 must be a string"),
        ({"norm": "batch"}, ValueError, "norm='batch' must be one of 'pre', 'post', 'peri', 'none'"),
        ({"leak": 1}, TypeError, "leak=1 must be True or False"),
        ({"train_strength": "yes"}, TypeError, "train_strength='yes' must be True or False"),
        ({"strength": 0.0}, ValueError, "strength=0.0 must be one finite number > 0"),
        ({"diffusion": "matrix"}, ValueError, "diffusion='matrix' must be one of 'none', 'scalar', 'feature'"),
        ({"diffusivity": -0.1}, ValueError, "diffusivity=-0.1 must be one finite number > 0"),
        ({"gamma": float("nan")}, ValueError, "gamma=nan must be one real number.*NaN is none"),
        ({"boundary": "open"}, ValueError, "boundary='open' must be one of"),
        ({"domain": 0.0}, ValueError, "domain=0.0 must be one finite number > 0"),
        ({"stabilization": "post"}, ValueError, "stabilization='post' must be one of"),
        ({"implementation": "flash"}, ValueError, "implementation='flash' must be one of"),
        ({"dtype": "int8"}, ValueError, "dtype='int8' must be one of"),
        ({"param_dtype": "bfloat16"}, ValueError, "param_dtype='bfloat16' must be one of"),
        ({"width": 8}, TypeError, "width"),
        ({"head": "classification"}, ValueError, "classes belongs to head"),
        ({"head_norm": True}, ValueError, "head_norm=True needs a head"),
        ({"head_norm": 1, "head": "lm"}, TypeError, "head_norm=1 must be True or False"),
        ({"positions": "learned"}, ValueError, "give max_length"),
        ({"causal": True, "diffusion": "scalar"}, ValueError, "leak the future.*diffusion='none'"),
        ({"causal": True, "stabilization": "spatial"}, ValueError, "leak the future.*'layernorm'"),
        ({"solver": "etdrk4", "weights": "linear"}, ValueError, "varies within a step"),
        ({"solver": "ark4", "stabilization": "retraction"}, ValueError, "cannot be followed by a retraction"),
    ],
)
def test_bad_configs(options, error, says):
    with pytest.raises(error, match=says):
        SimulatorConfig.of(**SIZES | options)


def test_an_architecture_comes_first():
    with pytest.raises(
        TypeError, match=r"architecture=an object of type dict must be an Architecture .pdejax.Architecture"
    ):
        SimulatorConfig(SIZES)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"start": "zero"}, ValueError, "start='zero' must be one of 'embedding', 'first'"),
        ({"exchange": 0.0}, ValueError, "exchange=0.0 must be one finite number > 0"),
        ({"solver": "etdrk2"}, ValueError, "coupled layers do not have"),
        ({"solver": "lietrotter", "stabilization": "retraction"}, ValueError, "not defined for coupled layers"),
        ({"start": "first", "steps": 1}, ValueError, "layer 3 stays empty; use at least 2 steps"),
        ({"steps": 2.0}, TypeError, "steps=2.0 must be an integer"),
        ({"heads": 3}, ValueError, "heads=3 must divide"),
        ({"causal": True, "diffusion": "feature"}, ValueError, "leak the future"),
    ],
)
def test_bad_multilayer_configs(options, error, says):
    with pytest.raises(error, match=says):
        MultilayerSimulatorConfig.of(**SIZES | options)


def test_presets_are_the_ends_of_the_table():
    bare, full = SimulatorConfig.bare(**SIZES), SimulatorConfig.full(**SIZES)
    assert (bare.leak, bare.stabilization, bare.diffusion, bare.step) == (True, "none", "none", 1.0)
    assert (full.leak, full.stabilization, full.diffusion) == (False, "layernorm", "feature")
    assert (bare.architecture.norm, full.architecture.norm) == ("none", "pre")
    assert SimulatorConfig.bare(**SIZES, stabilization="damping").stabilization == "damping"
    assert SimulatorConfig.full(bare.architecture, steps=6).step == 0.5


@pytest.mark.parametrize(
    ("form", "settled"),
    [
        ({}, ("lietrotter", 3.0, False, 1.0, "none", True)),
        ({"residual_scale": 0.5}, ("lietrotter", 3.0, False, 0.5, "none", True)),
        ({"norm": "post"}, ("lietrotter", 3.0, False, 1.0, "retraction", False)),
        ({"block": "parallel", "norm": "peri"}, ("euler", 3.0, False, 1.0, "none", True)),
        ({"block": "macaron", "residual": "gated", "residual_scale": 0.25}, ("macaron", 0.75, True, 1.0, "none", True)),
        ({"norm": "none", "residual": "none"}, ("lietrotter", 3.0, True, 1.0, "none", False)),
    ],
)
def test_an_architecture_settles_field_solver_and_step(form, settled):
    """The table of `lift`: what is not given is what makes one step per layer the Transformer's block."""
    config = SimulatorConfig(pj.Architecture(**SIZES, **form, head="lm"))
    found = (config.solver, config.t1, config.leak, config.strength, config.stabilization, config.head_norm)
    assert found == settled and config.steps == 3 and config.steps_per_layer == 1


@pytest.mark.slow
def test_every_single_switch_away_from_bare_is_reachable():
    """One at a time, all others bare."""
    bare = SimulatorConfig.bare(**SIZES)
    for name, values in {
        "leak": (False,),
        "norm": ("pre", "peri"),
        "stabilization": ("damping", "spatial", "layernorm", "retraction"),
        "diffusion": ("scalar", "feature"),
        "steps": (6, 12),
        "weights": ("linear", "cubic", "shared"),
    }.items():
        for value in values:
            model = Simulator(SimulatorConfig.bare(bare.architecture, **{name: value}), key=jax.random.key(0))
            shapes = jax.eval_shape(model.observe, np.array([1, 2, 3]))
            assert [shape.shape for shape in shapes] == [(3, 8), (4, 3, 8), (3, 2, 3, 3)]


@pytest.mark.parametrize("cls", [SimulatorConfig, MultilayerSimulatorConfig])
def test_configs_survive_json(cls):
    config = cls.of(**SIZES, t1=1.5, steps=6, dtype="float32", head="lm", bias=True)
    again = json.loads(json.dumps(dataclasses.asdict(config)))
    assert cls(pj.Architecture(**again.pop("architecture")), **again) == config
    assert hash(config) == hash(config.replace(steps=6)) and config.replace(steps=9) != config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.t1 = 3


@pytest.fixture(scope="module")
def model():
    """Of shapes alone: what is refused is refused before anything is computed or compiled."""
    config = SimulatorConfig.of(**SIZES, max_length=6, head="classification", classes=3)
    return eqx.filter_eval_shape(Simulator, config, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("tokens", "mask", "error", "says"),
    [
        (np.array([1, 11]), None, ValueError, "ids from 1 to 11"),
        (np.array([[1, 2]]), None, ValueError, "one sequence"),
        (np.array([0.5, 1.0]), None, TypeError, "must be integer ids"),
        (np.array([], int), None, ValueError, "at least one token"),
        (np.arange(7), None, ValueError, "more than max_length=6"),
        (np.array([1, 2]), np.array([True]), ValueError, "must be 2 booleans"),
        (np.array([1, 2]), np.array([1, 0]), TypeError, "must be 2 booleans"),
        (np.array([1, 2]), np.array([False, False]), ValueError, "mask hides every token"),
    ],
)
def test_bad_inputs(model, tokens, mask, error, says):
    for call in (model, model.hidden_states, model.attention_maps, model.observe):
        with pytest.raises(error, match=says):
            call(tokens, mask)


def test_bad_fields_and_parameters(model):
    with pytest.raises(ValueError, match=r"u0 has shape \(4, 7\); it must be \(n, 8\)"):
        model.run(np.zeros((4, 7)))
    with pytest.raises(TypeError, match="real and floating"):
        model.run(np.zeros((4, 8), int))
    shapes = eqx.filter_eval_shape(lambda: Simulator(model.config, key=jax.random.key(0)).parameters())
    parameters = {name: np.zeros(shape.shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match="parameter 'readout/bias' must have shape"):
        Simulator.from_parameters(model.config, parameters | {"readout/bias": np.zeros(4)})
    parameters.pop("readout/bias")
    with pytest.raises(ValueError, match=r"missing \['readout/bias'\], unknown \['bias'\]"):
        Simulator.from_parameters(model.config, parameters | {"bias": np.zeros(3)})


def test_a_grid_needs_to_know_how_many_tokens():
    model = Simulator(SimulatorConfig.of(**SIZES, diffusion="scalar"), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"Simulator.discretization: .*give the number of tokens"):
        model.discretization()
    with pytest.raises(ValueError, match="at least 2 tokens"):
        model.hidden_states(np.array([1]))


def test_float64_needs_x64():
    with jax.enable_x64(False), pytest.raises(ValueError, match="64-bit mode"):
        Simulator(SimulatorConfig.of(**SIZES, dtype="float64", param_dtype="float64"), key=jax.random.key(0))


def test_a_causal_architecture_refuses_diffusion():
    with pytest.raises(ValueError, match="leak the future"):
        SimulatorConfig(pj.Architecture(**SIZES, causal=True), diffusion="scalar")
