"""Block = field + solver + step: every row of the table, for the whole stack, against the Flax Transformer."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax.solvers import LieTrotter, Retract, Strang

ROWS = {
    "pre-LN sequential": {"norm": "pre"},
    "pre-LN sequential, scaled": {"norm": "pre", "residual_scale": 0.35},
    "no norm": {"norm": "none", "residual_scale": 0.5},
    "parallel": {"norm": "pre", "block": "parallel"},
    "parallel, no norm": {"norm": "none", "block": "parallel", "residual_scale": 0.5},
    "parallel, peri": {"norm": "peri", "block": "parallel"},
    "macaron": {"norm": "pre", "block": "macaron"},
    "macaron, peri": {"norm": "peri", "block": "macaron"},
    "macaron, post": {"norm": "post", "block": "macaron"},
    "peri-LN": {"norm": "peri"},
    "post-LN": {"norm": "post"},
    "post-LN, scaled, rms": {"norm": "post", "norm_type": "rmsnorm", "residual_scale": 0.5},
    "non-residual": {"norm": "none", "residual": "none"},
    "non-residual, pre": {"norm": "pre", "residual": "none"},
    "non-residual, post": {"norm": "post", "residual": "none"},
    "gated": {"norm": "pre", "residual": "gated", "residual_scale": 0.3},
    "gated, macaron": {"norm": "none", "residual": "gated", "residual_scale": 0.3, "block": "macaron"},
    "gated, post": {"norm": "post", "residual": "gated", "residual_scale": 0.3},
}
# Each entry rides along with some rows, so that every option meets several blocks without compiling the product of all.
OPTIONS = (
    {"positions": "rotary", "activation": "gelu"},
    {"positions": "learned", "max_length": 20, "activation": "relu", "causal": True},
    {"positions": "sinusoidal", "bias": True, "activation": "silu"},
    {"positions": "none", "norm_type": "rmsnorm", "activation": "gelu_tanh", "bias": True, "causal": True},
)


def build(row: dict, option: dict, dtype: str = "float64", **sizes) -> pj.Transformer:
    sizes = {"vocab": 11, "dim": 12, "heads": 3, "layers": 3, "ffn": 20} | sizes
    config = pj.TransformerConfig(**(sizes | option | row | {"dtype": dtype, "param_dtype": dtype}))
    return perturbed(pj.Transformer(config, rngs=nnx.Rngs(1)))


def perturbed(model: pj.Transformer) -> pj.Transformer:
    """Norm scales and biases away from their trivial initial values, so that losing one of them shows."""
    rng = np.random.default_rng(0)
    moved = {
        name: value + 0.3 * rng.normal(size=value.shape).astype(value.dtype)
        for name, value in model.parameters().items()
    }
    return pj.Transformer.from_parameters(model.config, moved)


def stack_error(model: pj.Transformer, tokens, mask=None) -> float:
    equation = pj.lift(model)
    layers = model.config.layers
    ours = pj.simulate(
        equation, model.embed(tokens), t1=equation.t1, steps=layers, solver=pj.native_solver(model), mask=mask
    )
    theirs = model.hidden_states(tokens, mask)
    assert ours.us.shape == theirs.shape == (layers + 1, tokens.shape[0], model.config.dim)
    assert ours.us.dtype == theirs.dtype
    valid = slice(None) if mask is None else np.flatnonzero(mask)
    return float(jnp.linalg.norm((ours.us - theirs)[:, valid]) / jnp.linalg.norm(theirs[:, valid]))


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_an_identity(name, dtype, tolerance):
    option = OPTIONS[list(ROWS).index(name) % len(OPTIONS)]
    model = build(ROWS[name], option, dtype)
    tokens = jnp.arange(9) * 7 % 11
    mask = jnp.arange(9) < 7
    assert stack_error(model, tokens, mask) <= tolerance


@pytest.mark.parametrize(
    "sizes, n", [({"dim": 8, "heads": 1, "layers": 1}, 1), ({"dim": 10, "heads": 5, "layers": 5, "ffn": 7}, 17)]
)
@pytest.mark.parametrize("name", ["pre-LN sequential", "post-LN"])
def test_other_shapes(name, sizes, n):
    model = build(ROWS[name], {"positions": "sinusoidal"}, **sizes)
    assert stack_error(model, jnp.arange(n) % 11) <= 1e-12


def test_a_wrong_weight_would_be_seen():
    model = build(ROWS["pre-LN sequential"], OPTIONS[2])
    tokens = jnp.arange(9)
    moved = dict(model.parameters())
    name = next(k for k in moved if k.endswith("bias") and "norm2" in k)
    moved[name] = moved[name] + 1e-6
    other = pj.Transformer.from_parameters(model.config, moved)
    equation = pj.lift(other)
    ours = pj.simulate(equation, model.embed(tokens), t1=3.0, steps=3, solver=pj.native_solver(other)).us
    assert float(jnp.linalg.norm(ours - model.hidden_states(tokens)) / jnp.linalg.norm(ours)) > 1e-9


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o["positions"])
def test_attention_maps_are_the_models(option):
    model = build(ROWS["pre-LN sequential"], option)
    tokens, mask = jnp.arange(8), jnp.arange(8) < 6
    equation, maps = pj.lift(model), model.attention_maps(tokens, mask)
    states = model.hidden_states(tokens, mask)
    for layer in range(3):
        ours = equation.layer(layer).interaction.weights(states[layer], mask)
        np.testing.assert_allclose(ours[:, :6], maps[layer][:, :6], atol=1e-12)


def test_native_solvers_are_those_of_the_table():
    def solver(name):
        return pj.native_solver(build(ROWS[name], OPTIONS[0]))

    assert type(solver("pre-LN sequential")) is LieTrotter
    assert type(solver("macaron")) is Strang
    assert type(solver("parallel")).__name__ == "Euler"
    assert all(isinstance(sub, Retract) for sub in solver("post-LN").solvers)


def test_gate_is_the_step():
    # A gated residual of scale h over L layers is explicit Euler of the leaky field over depth h·L: depth, not layers, counts.
    model = build(ROWS["gated"], OPTIONS[0])
    equation = pj.lift(model)
    assert equation.t1 == pytest.approx(0.9)
    plain = build(ROWS["non-residual, pre"], OPTIONS[0])
    np.testing.assert_allclose(np.asarray(pj.lift(plain).t1), 3.0)


def test_refining_a_non_residual_network_makes_it_residual():
    # One leaky layer at h = 1 forgets its input; the same field at small h keeps part of it (v2 Thm 3.4 is about the step).
    model = build(ROWS["non-residual"], {"positions": "sinusoidal"}, layers=1)
    u0 = model.embed(jnp.arange(9))
    equation, native = pj.lift(model), pj.native_solver(model)
    coarse = pj.simulate(equation, u0, t1=1.0, steps=1, solver=native).us[-1]
    np.testing.assert_allclose(coarse, model.run(u0)[-1], atol=1e-12)
    limit = pj.simulate(equation, u0, t1=1.0, rtol=1e-10, atol=1e-10, solver="dopri8").us[-1]
    errors = [
        float(jnp.linalg.norm(pj.simulate(equation, u0, t1=1.0, steps=m, solver=native).us[-1] - limit))
        for m in (32, 64, 128)
    ]
    ratios = np.asarray(errors[:-1]) / np.asarray(errors[1:])
    np.testing.assert_allclose(ratios, 2.0, atol=0.15)


def test_a_layered_retraction_needs_its_own_equation():
    model = build(ROWS["post-LN"], OPTIONS[0])
    single = pj.lift(model).layer(0)
    with pytest.raises(ValueError, match="one retraction per layer"):
        pj.simulate(single, model.embed(jnp.arange(5)), t1=1.0, steps=1, solver=pj.native_solver(model))
