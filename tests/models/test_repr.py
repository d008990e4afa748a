"""What is printed of models and configurations: a block with numbers, and never the modules."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax.analysis import layer_jacobian
from pdejax.analysis.jacobian._operator import FieldAt, Jacobian
from pdejax.analysis.numerics import Convergence, FieldConstants, Reference, SchemeConvergence
from pdejax.models._observe import Observed
from pdejax.training import TrainConfig
from pdejax.training._bottleneck import EstimatorState
from pdejax.training._fit import FitResult
from pdejax.training._kept import TrainedModel
from pdejax.training._step import Static, TrainState

SIZES = {"vocab": 11, "dim": 8, "heads": 2, "layers": 3, "ffn": 12}


def test_configurations_are_written_as_they_are_made():
    architecture = pj.Architecture(**SIZES, norm="post")
    config = pj.SimulatorConfig(architecture, steps=6)
    assert repr(architecture) == "Architecture(vocab=11, dim=8, heads=2, layers=3, ffn=12, norm='post')"
    assert repr(config).startswith(
        f"SimulatorConfig(architecture={architecture!r}, t1=3.0, steps=6, solver='lietrotter'"
    )
    scope = {"Architecture": pj.Architecture, "SimulatorConfig": pj.SimulatorConfig}
    assert eval(repr(config), scope) == config and eval(repr(architecture), scope) == architecture
    assert repr(TrainConfig(model="bare", heads=2)) == (
        "TrainConfig(dataset='listops', model='bare', heads=2, norm='none', steps=1000)"
    )


@pytest.mark.parametrize("kind", ["Transformer", "Simulator", "MultilayerSimulator"])
def test_a_model_is_a_block_with_numbers(kind):
    architecture = pj.Architecture(**SIZES, head="classification", classes=4)
    if kind == "Transformer":
        model = pj.Transformer(architecture, rngs=nnx.Rngs(0))
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    elif kind == "Simulator":
        model = pj.Simulator(pj.SimulatorConfig(architecture, diffusion="scalar"), key=jax.random.key(0))
        count = model.parameter_count
    else:
        model = pj.MultilayerSimulator(pj.MultilayerSimulatorConfig(architecture), key=jax.random.key(0))
        count = model.parameter_count
    lines = repr(model).splitlines()
    assert str(model) == repr(model)
    assert lines[0] == f"{kind}, {count:,} parameters" and len(lines) <= 5 and max(map(len, lines)) < 130
    assert "3 layers: attention + feed-forward (gelu), sequential, pre-LN" in lines[1]
    assert "in: 11 token ids, sinusoidal positions; out: 4 classes" in lines[3]
    assert "in: 11 token ids × 2.5," in repr(type(model).from_parameters(scaled(model), model.parameters()))
    if kind == "Simulator":
        assert "field: scalar diffusion; lietrotter, 3 steps of h = 1 over t in [0, 3]" in lines[4]


def scaled(model):
    """What the model is made of, its embedding times 2.5."""
    architecture = model.architecture.replace(embedding_scale=2.5)
    return architecture if isinstance(model, pj.Transformer) else model.config.replace(architecture=architecture)


def test_what_holds_arrays_shows_their_shapes():
    found = Observed(np.zeros(4), np.zeros((4, 2, 5, 8)), None)
    assert repr(found) == "Observed(logits (4,), states (4, 2, 5, 8), maps not asked for)"
    batch = pj.data.Batch(np.zeros((2, 5), np.int32), np.ones((2, 5), bool), np.zeros(2, np.int32))
    assert repr(batch) == "Batch(inputs (2, 5), mask (2, 5), labels (2,))"


WEIGHTS = {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(64)}
CONSTANTS = FieldConstants(1.0, 2.0, 3.0)
REFERENCE = Reference(np.linspace(0.1, 1, 17), jnp.ones((17, 40, 8)), 1e-13, 1e-12, 1e-13, 400, 0.1)
SCHEME = SchemeConvergence(
    "rk4", 4.0, 3.99, 0.02, tuple(range(4, 40)), tuple(range(4, 40)), *[(1e-3,) * 36] * 4, 2.0, *[(1e-3,) * 36] * 3,
    "defect", (1,) * 36, (0.1,) * 36, (False,) * 36
)  # fmt: skip


def holding_modules():
    """Every record that holds a model, a field, weights or long arrays, made without compiling anything."""
    model = pj.Transformer(pj.Architecture(**SIZES, norm="post"), rngs=nnx.Rngs(0))
    d, net, u = pj.lift(model), pj.as_network(model), jnp.ones((5, 8))
    state = TrainState(jnp.asarray(3), WEIGHTS, WEIGHTS, jax.random.key(0), EstimatorState(WEIGHTS, WEIGHTS))
    fit = FitResult(state, 3, {"loss": np.ones(1000)}, [], None, None, "done", (), ())
    return {
        "model": model,
        "discretization": d,
        "field": d.field,
        "network": net,
        "own network": pj.network([lambda u: u] * 40),
        "Jacobian of a step": layer_jacobian(d, u, step=0),
        "Jacobian of a layer": layer_jacobian(net, u, layer=1, mask=np.arange(5) < 3),
        "Jacobian of a field": Jacobian(FieldAt(d.field, 0.0, None), u),
        "Jacobian of a function": layer_jacobian(jnp.tanh, u),
        "Reference": REFERENCE,
        "SchemeConvergence": SCHEME,
        "Convergence": Convergence(REFERENCE, CONSTANTS, 0.0, 1.0, (SCHEME,) * 3),
        "TrainState": state,
        "EstimatorState": EstimatorState(WEIGHTS, WEIGHTS),
        "FitResult": fit,
        "Static": Static("flax", WEIGHTS),
        "TrainedModel": TrainedModel(model, TrainConfig(), 3, {"accuracy": 0.5}),
    }


def test_records_never_print_what_they_hold():
    """A few lines with numbers and words: no arrays, no trees of modules."""
    for name, record in holding_modules().items():
        text = repr(record)
        lines = text.splitlines()
        assert len(lines) <= 12 and max(map(len, lines)) <= 160, (name, text)
        for inside in ("f32[", "f64[", "Array(", "array(", "(\n", "object at 0x"):
            assert inside not in text, (name, text)


def test_a_jacobian_says_what_it_is_of():
    records = holding_modules()
    assert repr(records["Jacobian of a step"]) == "Jacobian of map 0 of 3 at a state (5, 8), known by its products"
    assert repr(records["Jacobian of a layer"]).startswith("Jacobian of map 1 of 3 at a state (5, 8), padding left out")
    assert "attention + feed-forward" in repr(records["Jacobian of a field"])
    assert "of tanh" in repr(records["Jacobian of a function"])


def pytrees():
    """Public modules with a `repr` of their own, and some without."""
    field = pj.MasterEquation(pj.FeedForward(4, 3, key=jax.random.key(0)), pj.LinearDamping(1.0))
    d = pj.Discretization(field, "euler", t1=1.0, steps=2)
    u = jnp.ones((3, 4))
    found = {name: x for name, x in holding_modules().items() if isinstance(x, eqx.Module)}
    return found | {
        "equation": field,
        "layers": pj.DepthVarying.from_layers([field, field], 1.0, "linear"),
        "coupled": pj.MultilayerEquation([field, field], [pj.Exchange(4, key=jax.random.key(0))]),
        "fixed": d,
        "adaptive": pj.Discretization(field, "tsit5", t1=1.0, rtol=1e-3, atol=1e-3),
        "trajectory": pj.simulate(d, u),
        "stats": pj.simulate(d, u).stats,
        "figure": pj.Figure(np.ones(3), np.zeros(3), 2 * np.ones(3), {"null": np.zeros(3)}),
        "record": layer_jacobian(d, u, step=0).singular_values(key=jax.random.key(0)),
        "rotary": pj.terms.Rotary(4),
        "attention": pj.Attention(4, 2, key=jax.random.key(0), rotary=10.0, window=2),
        "operator": pj.solvers.DiagonalizableOperator(pj.Grid(3), 0.1),
        "simulator": pj.Simulator(pj.SimulatorConfig(pj.Architecture(**SIZES)), key=jax.random.key(0)),
        "coupled simulator": pj.MultilayerSimulator(
            pj.MultilayerSimulatorConfig(pj.Architecture(**SIZES)), key=jax.random.key(0)
        ),
    }


def test_modules_between_transformations_have_a_repr():
    """The halves of `eqx.partition`, axes of a `vmap` or shapes in the place of arrays, and what is traced or stacked."""
    for name, module in pytrees().items():
        arrays, rest = eqx.partition(module, eqx.is_array)
        stacked = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * 2), arrays)
        forms = {
            "arrays": arrays,
            "the rest": rest,
            "axes": jax.tree.map(lambda _: 0, module),
            "switches": jax.tree.map(lambda _: True, module),
            "marks": jax.tree.map(lambda _: object(), module),
            "shapes": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays),
            "a stack": eqx.combine(stacked, rest),
        }
        for form, made in forms.items():
            assert isinstance(repr(made), str), (name, form)
        seen = []
        eqx.filter_make_jaxpr(lambda x, seen=seen: seen.append(repr(x)))(module)
        eqx.filter_vmap(lambda x, rest=rest, seen=seen: seen.append(repr(eqx.combine(x, rest))))(stacked)
        assert len(seen) == 2 and all(isinstance(text, str) for text in seen), name
