"""The master equation as the sum of its terms, and the coupled system v1 (17) against the loops of v1 (20)."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax import MasterEquation, MultilayerEquation
from pdejax._equation import stack, unstack
from pdejax.solvers import Grid
from pdejax.terms import (
    Attention,
    Diffusion,
    Exchange,
    FeedForward,
    FieldArgs,
    LinearDamping,
    SpatialNorm,
)

N, D, LAYERS = 6, 4, 3
NAMES = ("interaction", "reaction", "diffusion", "stabilization")
MASK = jnp.array([True, True, True, True, False, True])


@eqx.filter_jit
def call(field, t, u, args=None):
    return field(t, u, args)


def field(seed=0, shape=(N, D)):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def terms(key, strength=1.0):
    k1, k2 = jax.random.split(key)
    return {
        "interaction": Attention(D, 2, leak=True, strength=strength, key=k1),
        "reaction": FeedForward(D, 5, source=lambda x, t: t * x[:, None] * jnp.ones((1, D), x.dtype), key=k2),
        "diffusion": Diffusion(Grid(N), 0.03),
        "stabilization": SpatialNorm(0.5, eps=0.1),
    }


@pytest.fixture
def everything(getkey):
    return terms(getkey())


def test_sum_of_terms(everything):
    equation, u, args = MasterEquation(**everything), field(), FieldArgs(MASK)
    by_name, apart, whole = jax.jit(
        lambda u: (
            list(equation.contributions(0.7, u, args).values()),
            [everything[name](0.7, u, args) for name in equation.contributions(0.7, u, args)],
            equation(0.7, u, args),
        )
    )(u)
    assert equation.names() == NAMES
    for part, term in zip(by_name, apart, strict=True):
        np.testing.assert_array_equal(part, term)
    np.testing.assert_allclose(whole, sum(map(np.asarray, by_name)), rtol=1e-14)
    np.testing.assert_allclose(float(equation.damping()), sum(float(t.damping()) for t in everything.values()))


@pytest.mark.parametrize("name", NAMES)
def test_term_off_is_the_simpler_model(everything, name):
    u = field()
    without = MasterEquation(**{k: v for k, v in everything.items() if k != name})
    assert name not in without.names()
    full = MasterEquation(**everything)
    np.testing.assert_allclose(
        np.asarray(call(without, 0.7, u)) + call(everything[name], 0.7, u), call(full, 0.7, u), rtol=1e-13
    )
    others = tuple(k for k in NAMES if k != name)
    assert eqx.tree_equal(full.only(others), without)
    alone = full.only((name,))
    assert alone.names() == (name,)
    np.testing.assert_array_equal(call(alone, 0.7, u), call(everything[name], 0.7, u))


def test_strength_zero_is_term_off(getkey):
    key, u = getkey(), field()
    on = MasterEquation(**terms(key, strength=0.0))
    off = MasterEquation(**{k: v for k, v in terms(key).items() if k != "interaction"})
    np.testing.assert_array_equal(call(on, 0.7, u), call(off, 0.7, u))


@pytest.mark.parametrize(
    "split", [None, (("interaction",), ("reaction", "diffusion"), ("stabilization",)), (NAMES[::-1],)]
)
def test_multiterm(everything, split):
    equation, u = MasterEquation(**everything), field()
    groups = equation.multiterm(split)
    expected = [(name,) for name in NAMES] if split is None else split
    assert [term.vector_field.names() for term in groups.terms] == [
        tuple(name for name in NAMES if name in group) for group in expected
    ]
    for term, group in zip(groups.terms, expected, strict=True):
        slow = sum(np.asarray(call(everything[name], 0.7, u)) for name in group)
        np.testing.assert_allclose(eqx.filter_jit(term.vf)(0.7, u, None), slow, rtol=1e-13, atol=1e-15)
    parts = eqx.filter_jit(groups.vf)(0.7, u, None)
    np.testing.assert_allclose(sum(map(np.asarray, parts)), call(equation, 0.7, u), rtol=1e-13)


def test_is_a_diffrax_vector_field(everything):
    """`ODETerm(equation)` in plain diffrax: four Euler steps by hand."""
    equation, u = MasterEquation(**everything), field()
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(equation), diffrax.Euler(), 0.0, 1.0, 0.25, u, FieldArgs(MASK), throw=True
    )
    for k in range(4):
        u = np.asarray(u) + 0.25 * np.asarray(call(equation, 0.25 * k, u, FieldArgs(MASK)))
    np.testing.assert_allclose(solution.ys[0], u, rtol=1e-13)


def test_pure_and_transformable(everything):
    equation = MasterEquation(**everything)
    batch = field(shape=(3, N, D))
    loop = np.stack([call(equation, 0.7, u) for u in np.asarray(batch)])
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda u: equation(0.7, u)))(batch), loop, rtol=1e-13, atol=1e-14)
    single = jax.eval_shape(lambda u: equation(0.7, u, FieldArgs(MASK)), batch[0].astype(jnp.float32))
    assert single.dtype == jnp.float32


# --- The coupled layers of v1 (4), (17)–(20) ----------------------------------------------------------------


def layer(key, diffusivity):
    k1, k2 = jax.random.split(key)
    return MasterEquation(
        interaction=Attention(D, 2, strength=0.8, key=k1),
        reaction=FeedForward(D, 5, key=k2),
        diffusion=Diffusion(Grid(N), diffusivity),
        stabilization=LinearDamping(0.1),
    )


@pytest.fixture
def coupled(getkey):
    layers = [layer(getkey(), 0.01 * (l + 1)) for l in range(LAYERS)]
    exchange = [Exchange(D, key=getkey(), scale=0.5) for _ in range(LAYERS - 1)]
    exchange = [eqx.tree_at(lambda c: c.b, c, jnp.full(D, 0.1 * l - 0.3)) for l, c in enumerate(exchange)]
    return layers, exchange


def twin(layers, exchange, u, args=None):
    """The right-hand side of v1 (20), one layer at a time, with nothing entering the first nor leaving the last."""
    du = [np.asarray(call(layers[l], 0.7, u[l], args)) for l in range(len(layers))]
    for l in range(len(layers)):
        if l > 0:
            du[l] = du[l] + np.asarray(u[l - 1]) @ np.asarray(exchange[l - 1].w).T + np.asarray(exchange[l - 1].b)
        if l < len(layers) - 1:
            du[l] = du[l] - np.asarray(u[l]) @ np.asarray(exchange[l].w).T - np.asarray(exchange[l].b)
    return np.stack(du)


def test_multilayer_twin(coupled):
    layers, exchange = coupled
    equation, u = MultilayerEquation(layers, exchange), field(1, (LAYERS, N, D))
    for args in (None, FieldArgs(MASK)):
        slow = twin(layers, exchange, u, args)
        np.testing.assert_allclose(call(equation, 0.7, u, args), slow, rtol=1e-12, atol=1e-13)
    assert jax.eval_shape(lambda v: equation(0.7, v), u.astype(jnp.float32)).dtype == jnp.float32


def test_exchange_conserves_the_sum_over_layers(coupled):
    layers, exchange = coupled
    equation, u = MultilayerEquation(layers, exchange), field(1, (LAYERS, N, D))
    moved = call(equation.only(("exchange",)), 0.7, u)
    np.testing.assert_allclose(np.sum(moved, axis=0), 0.0, atol=1e-14)
    assert np.abs(moved).max() > 0.1
    apart = sum(np.asarray(call(layers[l], 0.7, u[l])) for l in range(LAYERS))
    np.testing.assert_allclose(np.sum(call(equation, 0.7, u), axis=0), apart, rtol=1e-12, atol=1e-13)


def test_multilayer_parts(coupled):
    layers, exchange = coupled
    equation, u = MultilayerEquation(layers, exchange), field(1, (LAYERS, N, D))
    assert equation.names() == (*NAMES, "exchange")
    by_name = jax.jit(lambda v: equation.contributions(0.7, v))(u)
    np.testing.assert_allclose(sum(map(np.asarray, by_name.values())), call(equation, 0.7, u), rtol=1e-12, atol=1e-13)
    alone = [call(part.diffusion, 0.7, v) for part, v in zip(layers, u, strict=True)]
    np.testing.assert_allclose(by_name["diffusion"], alone, rtol=1e-12, atol=1e-13)
    apart = call(equation.only(("interaction", "reaction")), 0.7, u)
    np.testing.assert_allclose(apart, by_name["interaction"] + by_name["reaction"], rtol=1e-12, atol=1e-13)
    groups = equation.multiterm((("interaction", "exchange"), ("reaction", "diffusion", "stabilization")))
    first = call(groups.terms[0].vector_field, 0.7, u)
    np.testing.assert_allclose(first, by_name["interaction"] + by_name["exchange"], rtol=1e-12, atol=1e-13)
    # The bound on the damping is at least the spectral radius of the whole linear part.
    linear = equation.only(("diffusion", "stabilization", "exchange"))
    jacobian = jax.jit(jax.jacfwd(lambda v: linear(0.7, v)))(u).reshape(u.size, u.size)
    assert np.abs(np.linalg.eigvals(jacobian)).max() <= float(equation.damping())


def test_one_layer_is_the_master_equation(getkey):
    single, u = layer(getkey(), 0.02), field()
    equation = MultilayerEquation([single], [])
    assert equation.names() == NAMES
    np.testing.assert_allclose(call(equation, 0.7, u[None])[0], call(single, 0.7, u), rtol=1e-12, atol=1e-14)


def test_stack_and_unstack(getkey):
    layers = [layer(getkey(), 0.1 * l) for l in range(LAYERS)]
    stacked = stack(layers)
    for l in range(LAYERS):
        assert eqx.tree_equal(unstack(stacked, l), layers[l])
        assert eqx.tree_equal(eqx.filter_jit(unstack)(stacked, jnp.asarray(l)), layers[l])
