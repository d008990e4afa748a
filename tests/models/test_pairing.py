"""A Transformer and its simulator: equal at the native step, and apart by the scheme's order otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn

import pdejax as pj
from pdejax.models import Simulator, SimulatorConfig, pair, untrained_field

TOKENS = np.array([3, 1, 10, 0, 7, 3, 8])
MASK = np.array([True, True, False, True, True, True, False])
REAL = np.flatnonzero(MASK)


def transformer(**options) -> pj.Transformer:
    sizes = {"vocab": 11, "dim": 8, "heads": 2, "layers": 3, "ffn": 5, "dtype": "float64", "param_dtype": "float64"}
    return drawn(pj.Architecture(**sizes | options), spread=0.5)


HEAD = {"head": "classification", "classes": 4}
BLOCKS = {
    "pre": {**HEAD, "positions": "learned", "max_length": 9, "residual_scale": 0.6},
    "scaled": {**HEAD, "embedding_scale": 8**0.5},
    "post-rms": {**HEAD, "norm": "post", "norm_type": "rmsnorm", "bias": True},
    "peri-decoder": {"norm": "peri", "head": "lm", "causal": True, "positions": "rotary", "activation": "silu"},
    "parallel": {**HEAD, "block": "parallel", "vocab": None, "inputs": 2, "bias": True},
    "macaron-gated-post": {**HEAD, "block": "macaron", "norm": "post", "residual": "gated", "residual_scale": 0.35},
    "non-residual": {"norm": "none", "residual": "none", "activation": "tanh", "head": "none"},
}


QUICK = ("pre", "scaled", "post-rms", "peri-decoder")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in BLOCKS])
def test_shared_is_the_transformer(name):
    """Logits, hidden states and attention maps, to rounding, on the real tokens."""
    model = transformer(**BLOCKS[name])
    tokens = TOKENS if model.architecture.inputs is None else np.random.default_rng(0).normal(size=(7, 2))
    ours = pair(model).observe(tokens, MASK)
    ours, theirs = (tuple(map(np.asarray, seen)) for seen in (ours, model.observe(tokens, MASK)))
    if model.architecture.head != "classification":
        ours, theirs = ((logits[REAL], *rest) for logits, *rest in (ours, theirs))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(ours[1][:, REAL], theirs[1][:, REAL], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(ours[2][:, :, REAL], theirs[2][:, :, REAL], rtol=1e-10, atol=1e-12)


def test_a_scaled_embedding_is_lifted_exactly():
    """As a network, the initial field is the model's own, and so are all states and the logits after it."""
    model = transformer(**BLOCKS["scaled"])
    ours = pj.as_network(model)
    np.testing.assert_allclose(ours.embed(TOKENS), model.embed(TOKENS), rtol=1e-15)
    np.testing.assert_allclose(ours.hidden_states(TOKENS), model.hidden_states(TOKENS), rtol=1e-10, atol=1e-12)
    plain = pj.Transformer.from_parameters(model.architecture.replace(embedding_scale=1.0), model.parameters())
    table = model.parameters()["embedding/embedding"][TOKENS]
    np.testing.assert_allclose(ours.embed(TOKENS) - plain.embed(TOKENS), (8**0.5 - 1) * table, rtol=1e-12, atol=1e-14)


def test_shared_has_every_parameter_and_its_own_memory():
    model = transformer(**BLOCKS["pre"])
    ours, theirs = pair(model).parameters(), model.parameters()
    assert sum(v.size for v in ours.values()) == sum(v.size for v in theirs.values())
    assert sorted(float(jnp.sum(v)) for v in ours.values()) == pytest.approx(
        sorted(float(jnp.sum(v)) for v in theirs.values())
    )
    mine, yours = ({v.unsafe_buffer_pointer() for v in tree.values()} for tree in (ours, theirs))
    assert not mine & yours


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "order", "steps"), [("lietrotter", 1, (16, 32)), ("strang", 2, (8, 16)), ("rk4", 4, (4, 8))]
)
def test_the_gap_falls_with_the_order_of_the_scheme(solver, order, steps):
    """To a tight-tolerance solve of the lifted field, which is another path through the library."""
    model = transformer(**BLOCKS["pre"])
    u0 = model.embed(TOKENS)
    limit = pj.simulate(pj.Discretization(pj.lift(model).field, "dopri8", t1=3.0, rtol=1e-11, atol=1e-11), u0).us
    gaps = [
        float(jnp.linalg.norm(pair(model, steps=3 * per_layer, solver=solver).hidden_states(TOKENS)[-1] - limit[-1]))
        for per_layer in steps
    ]
    assert gaps[1] < gaps[0]
    assert abs(np.log2(gaps[0] / gaps[1]) - order) < 0.2


def test_smooth_weights_through_the_transformers_own():
    """The layers' weights are the knots: a spline passes through them at the layers' centres."""
    model = transformer(**BLOCKS["pre"])
    for kind in ("linear", "cubic"):
        equation = pair(model, steps=6, solver="rk4", weights=kind).discretization().field
        np.testing.assert_allclose(equation.at(1.5).interaction.wq, model.layer_weights()["wq"][1], rtol=1e-12)


def test_distilled_starts_from_the_transformers_field():
    model = transformer(**BLOCKS["pre"])
    student = pair(model, "distilled", key=jax.random.key(5), norm="none", leak=True, steps=6)
    np.testing.assert_allclose(student.embed(TOKENS), model.embed(TOKENS), rtol=1e-14)
    u = np.random.default_rng(0).normal(size=(7, 8))
    np.testing.assert_allclose(student.readout(jnp.asarray(u), None), pair(model).readout(jnp.asarray(u), None))
    fresh = Simulator(student.config, key=jax.random.key(5)).parameters()
    for name, value in student.parameters().items():
        assert np.array_equal(value, fresh[name]) == name.startswith("stacked"), name
    null = untrained_field(student, jax.random.key(6))
    assert null.config == student.config
    np.testing.assert_array_equal(null.embed(TOKENS), student.embed(TOKENS))
    assert not np.allclose(null.parameters()["stacked/interaction/wq"], student.parameters()["stacked/interaction/wq"])


def test_independent_has_nothing_of_the_transformer():
    model = transformer(**BLOCKS["post-rms"])
    student = pair(model, "independent", key=jax.random.key(5))
    again = Simulator(SimulatorConfig(model.architecture), key=jax.random.key(5))
    shared = pair(model).parameters()
    for name, value in student.parameters().items():
        np.testing.assert_array_equal(value, again.parameters()[name])
        assert not np.array_equal(value, shared[name]), name
    bare = pair(model, "independent", key=jax.random.key(5), stabilization="none", leak=True, layers=2)
    assert bare.architecture.layers == 2 and bare.config.t1 == 2.0 and not bare.config.head_norm


@pytest.mark.parametrize(
    ("block", "call", "says"),
    [
        ("pre", lambda m: pair(m, "share"), "did you mean 'shared'"),
        ("pre", lambda m: pair(m, "distilled"), "give key"),
        ("pre", lambda m: pair(m, key=jax.random.key(0)), "key has no use"),
        ("pre", lambda m: pair(m, steps=4), "multiple of layers=3"),
        ("pre", lambda m: pair(m, diffusion="scalar"), r"\['diffusion'\].*can change only"),
        ("pre", lambda m: pair(m, steps=0), "steps=0 must be an integer of at least 1"),
        ("pre", lambda m: pair(m, solver="eulers"), "did you mean 'euler'"),
        ("pre", lambda m: pair(m, weights="shared"), "one set of weights"),
        ("post-rms", lambda m: pair(m, solver="rk4"), "two substeps"),
        ("post-rms", lambda m: pair(m, weights="linear"), "two substeps"),
        ("pre", lambda m: pair(m, "distilled", key=jax.random.key(0), vocab=12), "another embedding or head"),
        ("pre", lambda m: pair(m, "distilled", key=jax.random.key(0), head_norm=False), "another embedding or head"),
        (
            "scaled",
            lambda m: pair(m, "distilled", key=jax.random.key(0), embedding_scale=1.0),
            "another embedding or head",
        ),
        (
            "peri-decoder",
            lambda m: pair(m, "distilled", key=jax.random.key(0), diffusion="scalar"),
            "leak the future",
        ),
    ],
)
def test_bad_pairs(block, call, says):
    with pytest.raises(ValueError, match=says):
        call(transformer(**BLOCKS[block]))


@pytest.mark.slow
def test_float32_and_bfloat16_transformers():
    model = transformer(**HEAD, dtype="float32", param_dtype="float32")
    np.testing.assert_allclose(pair(model)(TOKENS, MASK), model(TOKENS, MASK), rtol=2e-4, atol=2e-5)
    narrow = pj.Transformer.from_parameters(model.architecture.replace(dtype="bfloat16"), model.parameters())
    ours, exact = pair(narrow)(TOKENS, MASK), model(TOKENS, MASK)
    assert ours.dtype == jnp.float32  # the simulator keeps its state and its head wide
    assert float(jnp.linalg.norm(ours - exact) / jnp.linalg.norm(exact)) < 0.05
