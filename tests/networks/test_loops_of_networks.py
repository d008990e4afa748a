"""Looped Transformers: the passes by hand, lifted exactly, trained; their loops as maps, ALBERT's and an injected one too."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stored
from drawn import drawn

import pdejax as pj
from pdejax.analysis.loops import classify_loop, loop_of

SIZES = {"vocab": 7, "dim": 8, "heads": 2, "ffn": 16, "dtype": "float64", "param_dtype": "float64"}
IDS, MASK = np.asarray([1, 4, 2, 6, 0]), np.asarray([True, True, True, True, False])
FORMS = {
    "pre": {"layers": 2, "loops": 3},
    "post, prelude and coda": {"layers": 4, "loops": 3, "prelude": 1, "coda": 1, "norm": "post"},
    "sandwich norms and a head": {
        "layers": 3, "loops": 2, "coda": 1, "norm": "peri", "head": "classification", "classes": 3,
    },
    "macaron": {"layers": 2, "loops": 2, "block": "macaron"},
    "injection": {"layers": 2, "loops": 3, "coda": 1, "injection": "add"},
    "injection, post": {"layers": 2, "loops": 2, "norm": "post", "injection": "add"},
    "injection, parallel": {"layers": 2, "loops": 2, "block": "parallel", "injection": "add"},
    "injection, macaron and gated": {
        "layers": 2, "loops": 2, "block": "macaron", "residual": "gated", "residual_scale": 0.3, "injection": "add",
    },
    "injection after a prelude": {"layers": 5, "loops": 3, "prelude": 2, "coda": 1, "injection": "add"},
    "injection after a prelude, post": {"layers": 3, "loops": 2, "prelude": 1, "norm": "post", "injection": "add"},
    "injection after a prelude, peri": {
        "layers": 3, "loops": 2, "prelude": 1, "coda": 1, "norm": "peri", "injection": "add", "head": "lm",
    },
    "injection after a prelude, macaron": {
        "layers": 2, "loops": 2, "prelude": 1, "block": "macaron", "norm": "post", "injection": "add",
    },
}  # fmt: skip
SLOW = (
    "macaron", "injection, parallel", "injection, macaron and gated", "injection after a prelude, macaron",
)  # fmt: skip


@functools.cache
def made(form):
    return drawn(pj.Architecture(**SIZES | FORMS[form]))


@functools.cache
def seen(form):
    """Logits, states and maps of the model itself, in NumPy."""
    return jax.tree.map(np.asarray, made(form).observe(IDS, MASK))


def by_hand(form):
    """States of every layer: the same layers as a stack that is written out, and run a layer at a time."""
    model = made(form)
    a = model.architecture
    core = list(range(a.prelude, a.layers - a.coda))
    order = [*range(a.prelude), *core * a.loops, *range(a.layers - a.coda, a.layers)]
    single = a.replace(layers=1, loops=1, prelude=0, coda=0, injection="none")
    u = start = seen(form)[1][0]
    parameters = {name: np.asarray(value) for name, value in model.parameters().items()}
    states = [u]
    for place, layer in enumerate(order):
        named = {
            name: value[layer : layer + 1] if name.startswith("layers/") else value
            for name, value in parameters.items()
        }
        if place == a.prelude:
            start = u
        if a.injection == "add" and layer == core[0] and place < len(order) - a.coda:
            u = u + start
        u = np.asarray(pj.Transformer.from_parameters(single, named).run(u, MASK))[-1]
        states.append(u)
    return np.stack(states)


@pytest.mark.parametrize("form", [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in FORMS])
def test_the_passes_by_hand(form):
    model = made(form)
    _, states, maps = seen(form)
    assert len(states) == model.architecture.depth + 1 == len(maps) + 1
    np.testing.assert_allclose(states, by_hand(form), rtol=1e-11, atol=1e-12)
    assert f"gone through {model.architecture.loops} times" in repr(model)


@pytest.mark.parametrize("form", [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in FORMS])
def test_lifted_exactly(form):
    model = made(form)
    net = pj.as_network(model)
    for ours, own in zip(net.observe(IDS, MASK), seen(form), strict=True):
        np.testing.assert_allclose(ours, own, rtol=1e-10, atol=1e-12)
    assert net.discretization.field.stored == model.architecture.layers


@pytest.mark.parametrize(
    "form", ["pre", "post, prelude and coda", "injection", "injection, post", "injection after a prelude"]
)
def test_iterates_of_the_loop(form):
    """Every pass of `loop_of` is the model's own state after it; its output is the model's."""
    model = made(form)
    a = model.architecture
    loop = loop_of(model, IDS, mask=MASK)
    core = a.layers - a.prelude - a.coda
    logits, states, _ = seen(form)
    own = states[a.prelude :: core][: a.loops + 1]
    found = np.asarray(loop.states(a.loops + 4))
    assert loop.trained == a.loops
    np.testing.assert_allclose(found[: a.loops + 1][:, MASK], own[:, MASK], rtol=1e-11, atol=1e-12)
    assert not np.any(found[:, ~MASK])
    out = np.asarray(loop.outputs(jnp.asarray(found[a.loops : a.loops + 1])))[0]
    np.testing.assert_allclose(out[MASK], logits[MASK], rtol=1e-11, atol=1e-12)
    # The sub-layers one after another are the pass.
    u = jnp.asarray(found[1])
    for part in loop.parts:
        u = part(u)
    np.testing.assert_allclose(np.asarray(u)[MASK], found[2][MASK], rtol=1e-11, atol=1e-12)
    assert len(loop.names) == len(loop.parts) == 2 * core + (a.injection == "add")


@pytest.mark.parametrize(("form", "layers"), [("post, prelude and coda", 4), ("injection after a prelude, peri", 3)])
def test_gradients_are_those_of_every_pass(form, layers):
    """Along a direction of all weights, against a central difference; the looped weights are stored once."""
    model = made(form)
    parameters = {name: np.asarray(value) for name, value in model.parameters().items()}
    assert parameters["layers/attention/q/kernel"].shape[0] == layers

    @jax.jit
    def loss(named):
        return jnp.sum(jnp.sin(pj.Transformer.from_parameters(model.architecture, named)(IDS, MASK)))

    slope = jax.jit(jax.grad(loss))(parameters)
    random = np.random.default_rng(1)
    way = {name: random.standard_normal(x.shape) for name, x in parameters.items()}
    along = sum(float(np.vdot(slope[name], way[name])) for name in parameters)
    there = [float(loss({n: x + s * 1e-6 * way[n] for n, x in parameters.items()})) for s in (1, -1)]
    assert along == pytest.approx((there[0] - there[1]) / 2e-6, rel=1e-6)


WRONG = {
    "a prelude without loops": ({"prelude": 1}, "belong to a loop"),
    "injection without loops": ({"injection": "add"}, "belong to a loop"),
    "nothing to loop over": ({"layers": 2, "loops": 2, "prelude": 1, "coda": 1}, "leave none of layers=2"),
    "no loops": ({"loops": 0}, "loops=0"),
    "another injection": ({"loops": 2, "injection": "gate"}, "injection='gate'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_architectures_that_are_no_loop(name):
    changes, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        pj.Architecture(**SIZES | changes)


def test_what_a_loop_cannot_be():
    with pytest.raises(ValueError, match="weights='constant', not 'linear'"):
        pj.SimulatorConfig.of(**SIZES | {"layers": 2, "loops": 2, "weights": "linear"})
    with pytest.raises(ValueError, match="coupled layers have no order"):
        pj.MultilayerSimulatorConfig.of(**SIZES | {"layers": 2, "loops": 2})
    with pytest.raises(ValueError, match="may depend on t"):
        loop_of(pj.Discretization(lambda t, u, args: -t * u, "euler", t1=1.0, steps=2), jnp.ones((2, 2)))


def test_a_saved_loop_comes_back(tmp_path):
    model = made("injection")
    pj.save_model(tmp_path / "model.npz", model)
    again, _ = pj.load_model(tmp_path / "model.npz")
    assert again.architecture == model.architecture
    np.testing.assert_array_equal(again(IDS), model(IDS))


def test_layers_in_depth_by_stored_index():
    """A field with prelude and coda is the one written out, its weights stored once."""
    field = pj.lift(made("sandwich norms and a head")).field
    assert field.order.tolist() == [0, 1, 0, 1, 2] and field.size == 5 and field.stored == 3
    assert "3 layers, 2 of them gone through 2 times" in repr(field)
    for wrong in ({"passes": 2, "prelude": 3}, {"passes": 1, "coda": 3}):
        with pytest.raises(ValueError, match="leave none of the 3 layers"):
            pj.DepthVarying(field.stacked, 5.0, **wrong)


@pytest.mark.slow
def test_albert_is_a_loop_of_one_layer(tmp_path):
    """A tiny ALBERT of random weights: twelve of its passes are a deeper network's states; its fixed point is certified."""
    config = stored.CONFIG | {"model_type": "albert", "embedding_size": 7}
    tensors = {name: 0.5 * x for name, x in stored.arrays(config).items()}
    stored.write(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(config))
    net = pj.load_pretrained(tmp_path, dtype="float64")
    ids = np.asarray([3, 5, 7, 11])
    loop = loop_of(net, ids)
    assert loop.trained == 3 and loop.names == ("interaction, norm after", "reaction, norm after")
    np.testing.assert_allclose(loop.states(3), net.hidden_states(ids), rtol=1e-11, atol=1e-13)
    d = net.discretization
    deeper = net.replace(discretization=d.replace(t1=12.0, steps=12), layers=12).hidden_states(ids)
    np.testing.assert_allclose(loop.states(12), deeper, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(loop.outputs(loop.states(3)[3:])[0], net(ids), rtol=1e-10, atol=1e-12)
    found = classify_loop(loop)
    if found.kind in ("fixed point", "cycle"):
        u = found.point.state
        for _ in range(found.period):
            u = loop(u)
        np.testing.assert_allclose(u, found.point.state, atol=1e-9)
    else:
        assert found.kind in ("marginal", "expanding") and found.bounded  # a norm after every pass bounds it
