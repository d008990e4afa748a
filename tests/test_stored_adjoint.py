"""`adjoint="stored"`: the gradient of fixed steps with what came of products with weights kept."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj

N, D, HIDDEN = 5, 4, 6
U0 = jax.random.normal(jax.random.key(1), (N, D))


def field(key: int = 0, gate: bool = False) -> pj.MasterEquation:
    a, b = jax.random.split(jax.random.key(key))
    norm = pj.LayerNorm(D)
    return pj.MasterEquation(
        pj.Attention(D, 2, key=a, norm=norm),
        pj.FeedForward(D, HIDDEN, key=b, norm=norm, gate=gate),
        pj.LinearDamping(0.1),
    )


def loss(d: pj.Discretization, u: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(pj.simulate(d, u, save="end").us[-1]))


def by_hand(equation, u: jax.Array) -> jax.Array:
    for k in range(3):
        u = u + equation(jnp.asarray(k / 3), u, None) / 3
    return jnp.sum(jnp.sin(u))


SOLVES = {
    "euler": pj.Discretization(field(), "euler", t1=1.0, steps=3),
    "rk4, gated": pj.Discretization(field(gate=True), "rk4", t1=1.0, steps=2),
    "strang": pj.Discretization(field(), "strang", t1=1.0, steps=2),
    "layers": pj.Discretization(pj.DepthVarying.from_layers([field(0), field(1)], 2.0), "heun", t1=2.0, steps=2),
}


def products(d: pj.Discretization) -> int:
    """Matrix products in the program of a gradient, those in the body of a loop once."""
    values, rest = eqx.partition(d, eqx.is_inexact_array)
    found = jax.make_jaxpr(jax.grad(lambda v, u: loss(eqx.combine(v, rest), u)))(values, U0)
    text = str(found)
    return text.count("pdejax_product[") + text.count("dot_general[")


@pytest.mark.parametrize("name", SOLVES)
def test_the_derivatives_are_those_of_the_default(name):
    d = SOLVES[name]
    stored, plain = (eqx.filter_jit(eqx.filter_grad(loss))(d.replace(adjoint=how), U0) for how in ("stored", None))
    for ours, theirs in zip(jax.tree.leaves(stored), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_the_gradient_is_that_of_steps_written_out():
    d = SOLVES["euler"].replace(adjoint="stored")
    ours = eqx.filter_grad(lambda e: loss(d.replace(field=e), U0))(d.field)
    theirs = eqx.filter_jit(eqx.filter_grad(by_hand))(d.field, U0)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)
    _, slope = jax.jvp(lambda u: loss(d, u), (U0,), (jnp.ones_like(U0),))
    np.testing.assert_allclose(slope, jnp.sum(jax.grad(lambda u: by_hand(d.field, u))(U0)), rtol=1e-11)


@pytest.mark.parametrize(("name", "again"), [("euler", 4), ("rk4, gated", 5)])
def test_no_weights_are_multiplied_twice(name, again):
    """The default does again, of each evaluation, queries, keys and values (one product), what goes into an activation and a
    gate, and both outputs, which the derivatives of the strengths need."""
    d = SOLVES[name].replace(solver="euler")
    assert products(d) - products(d.replace(adjoint="stored")) == again


def test_it_needs_a_number_of_steps():
    with pytest.raises(ValueError, match=r"Discretization: adjoint='stored' .* give steps, or leave adjoint out"):
        pj.Discretization(field(), "tsit5", t1=1.0, rtol=1e-6, atol=1e-6, adjoint="stored")


def test_a_traced_number_of_steps_serves_forward_mode():
    d = SOLVES["euler"].replace(adjoint="stored")

    @jax.jit
    def slope(steps):
        return jax.jvp(lambda u: loss(d.replace(steps=steps), u), (U0,), (U0,))[1]

    np.testing.assert_allclose(slope(3), jax.jvp(lambda u: loss(d, u), (U0,), (U0,))[1], rtol=1e-12)
