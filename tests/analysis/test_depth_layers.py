"""Layers in any order and any number of steps, their nulls and their surgery, beside loops over the layers themselves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax.analysis.depth import (
    branch_sizes,
    layer_field,
    layer_surgery,
    matched_null,
    refine_layers,
    run_layers,
    shuffle_layers,
)
from pdejax.analysis.depth._nulls import branch_ratios, drawn_ends
from pdejax.analysis.jacobian._systems import shuffled_on_host
from pdejax.analysis.numerics import fit_order

B, N, D, L = 3, 5, 6, 4
RNG = np.random.default_rng(0)
U0 = jnp.asarray(RNG.standard_normal((B, N, D)))
MASK = jnp.asarray([[True] * 5, [True] * 4 + [False], [True] * 3 + [False] * 2])
SIZES = {"vocab": 7, "dim": D, "heads": 2, "layers": L, "ffn": 8, "dtype": "float64", "param_dtype": "float64"}


class Layer(eqx.Module):
    """u + tanh(u M) h: an Euler step of a field with a matrix of its own."""

    m: jax.Array
    h: jax.Array

    def __call__(self, u):
        return u + self.h * jnp.tanh(u @ self.m)


def planted(weights, h=1.0):
    return pj.network([Layer(jnp.asarray(m), jnp.asarray(h)) for m in weights])


WEIGHTS = 0.4 * RNG.standard_normal((L, D, D))
NET = planted(WEIGHTS)


def by_hand(order, u=U0, weights=WEIGHTS, h=1.0):
    states = [np.asarray(u) * np.asarray(MASK)[..., None]]
    for l in order:
        states.append(states[-1] + h * np.tanh(states[-1] @ weights[l]))
    return np.stack(states)


@pytest.mark.parametrize("options", [{}, {"norm": "post"}, {"block": "parallel"}, {"block": "macaron"}], ids=str)
def test_a_models_layers_one_after_another_are_the_model(options):
    model = pj.Transformer(pj.Architecture(**SIZES | {"head": "none"} | options), rngs=nnx.Rngs(0))
    tokens, mask = jnp.asarray([1, 4, 2, 0, 3]), MASK[1]
    expected = np.where(mask[:, None], model.hidden_states(tokens, mask), 0)
    u0 = model.embed(tokens)
    np.testing.assert_allclose(run_layers(model, u0, mask=mask), expected, rtol=1e-10, atol=1e-12)
    if options.get("norm") == "post":  # a model is turned into its field; a field stays as it is
        np.testing.assert_allclose(run_layers(layer_field(model), u0, mask=mask), expected, rtol=1e-10, atol=1e-12)


def test_a_stack_gone_through_twice_has_its_layers_twice():
    stacked = NET.discretization.field.stacked
    d = pj.Discretization(pj.DepthVarying(stacked, 2.0 * L, passes=2), "euler", t1=2.0 * L, steps=2 * L)
    expected = by_hand([*range(L), *range(L)])
    for system in (d, layer_field(d), d.replace(t1=float(L + 1), steps=L + 1)):
        found = run_layers(system, U0, mask=MASK)
        np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-12, atol=1e-13)
    part = layer_field(d.replace(t0=float(L - 1), t1=float(L + 1), steps=2))
    found = run_layers(part, expected[L - 1], mask=MASK)
    np.testing.assert_allclose(found, expected[L - 1 : L + 2], rtol=1e-12, atol=1e-13)


def test_any_order_and_steps_are_the_loop_over_layers():
    order = [2, 0, 3, 3, 1]
    np.testing.assert_allclose(run_layers(NET, U0, order=order, mask=MASK), by_hand(order), rtol=1e-12, atol=1e-13)
    found = run_layers(NET, U0, order=order, steps=[1, 0, 2, 1, 0], mask=MASK)[-1]
    u = by_hand([2])[-1]
    for h, l in ((0.5, 3), (0.5, 3), (1.0, 3)):
        u = u + h * np.tanh(u @ WEIGHTS[l])
    np.testing.assert_allclose(found, u, rtol=1e-12, atol=1e-13)
    alone = run_layers(NET, U0[1], order=order, mask=MASK[1])
    np.testing.assert_allclose(alone, by_hand(order)[:, 1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_schemes_keep_their_order_over_the_whole_stack_and_over_a_window(solver, order):
    field = layer_field(NET).replace(solver=solver)
    for window in (None, (1, 3)):
        ends = np.asarray(refine_layers(field, U0, factors=(4, 8, 16, 32), window=window, mask=MASK))
        steps = np.linalg.norm((ends[1:] - ends[:-1]).reshape(3, -1), axis=1)
        assert fit_order([1 / 4, 1 / 8, 1 / 16], steps).order == pytest.approx(order, abs=0.2)


def test_a_window_refines_its_layers_alone():
    u = by_hand([0])[-1]
    for _ in range(3):
        u = u + np.tanh(u @ WEIGHTS[1]) / 3
    for l in (2, 3):
        u = u + np.tanh(u @ WEIGHTS[l])
    np.testing.assert_allclose(refine_layers(NET, U0, factors=(3,), window=(1, 2), mask=MASK)[0], u, rtol=1e-12)


def test_moves_of_a_smooth_euler_network_are_known():
    """The layers of u' = −u: the last state is (1 − h)^L u; half the step moves it by a ratio known beforehand."""
    h = 0.3
    net = pj.network([lambda u: u - h * u] * L)
    ends = np.asarray(refine_layers(net, U0, factors=(1, 2, 4), mask=MASK))
    for k, end in zip((1, 2, 4), ends, strict=True):
        np.testing.assert_allclose(end, (1 - h / k) ** (L * k) * by_hand([])[0], rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"norm": "post"}], ids=str)
def test_the_null_moves_the_state_as_far_in_every_layer(options):
    model = pj.Transformer(pj.Architecture(**SIZES | {"head": "none"} | options), rngs=nnx.Rngs(1))
    null = matched_null(model, U0, mask=MASK, key=jax.random.key(3))
    a, b = run_layers(model, U0, mask=MASK), run_layers(null, U0, mask=MASK)
    whole = [np.asarray(x).reshape(L + 1, -1) for x in (a, b)]
    sizes = [np.linalg.norm(x[1:] - x[:-1], axis=1) / np.linalg.norm(x[:-1], axis=1) for x in whole]
    np.testing.assert_allclose(sizes[1], sizes[0], rtol=1e-6)
    own = np.asarray(branch_sizes(model, U0, mask=MASK))
    x = np.asarray(a)
    np.testing.assert_allclose(
        own, np.linalg.norm(x[1:] - x[:-1], axis=(2, 3)) / np.linalg.norm(x[:-1], axis=(2, 3)), rtol=1e-10
    )
    assert np.linalg.norm(np.asarray(b - a)[-1]) > 0.1 * np.linalg.norm(x[-1])


def test_a_null_drawn_layer_by_layer_is_the_one_drawn_at_once():
    """Its last states at h and h/2, without a copy of the weights, are those of the null that is kept."""
    model = pj.Transformer(pj.Architecture(**SIZES | {"head": "none", "norm": "post"}), rngs=nnx.Rngs(1))
    key, field = jax.random.key(3), layer_field(model, length=N)
    expected = refine_layers(matched_null(model, U0, mask=MASK, key=key), U0, factors=(1, 2), mask=MASK)
    # Whatever lies at padding, it counts for nothing.
    found = drawn_ends(field, branch_ratios(field, U0, MASK), U0, MASK, key)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    other = drawn_ends(field, branch_ratios(field, U0, MASK), U0, MASK, jax.random.key(4))
    assert not np.allclose(found[1], other[1])


def test_shuffled_layers_are_the_same_layers_in_another_order():
    found = np.asarray(run_layers(shuffle_layers(NET, key=jax.random.key(1)), U0, mask=MASK))
    fits = [
        order
        for order in np.ndindex(*(L,) * L)
        if len(set(order)) == L and np.allclose(found, by_hand(order), rtol=1e-10, atol=1e-12)
    ]
    assert len(fits) == 1 and fits[0] != tuple(range(L))


def test_weights_shuffled_by_numpy_are_the_same_entries_layer_by_layer():
    field = layer_field(NET)
    other = shuffled_on_host(field, key=jax.random.key(2))
    before, after = (np.asarray(d.field.stacked.function.equation.function.layer.m) for d in (field, other))
    assert after.shape == before.shape and not np.any(np.all(after == before, axis=(1, 2)))
    np.testing.assert_array_equal(np.sort(after.reshape(L, -1)), np.sort(before.reshape(L, -1)))


def test_copies_of_one_stored_layer_are_one_layer_of_a_null():
    """A loop of two between a first and a last layer, and one layer at all depths: whatever the null, drawn at once or layer by
    layer, shuffled, or made of a null."""
    looped = pj.Transformer(
        pj.Architecture(**SIZES | {"head": "none", "loops": 3, "prelude": 1, "coda": 1}), rngs=nnx.Rngs(1)
    )
    stored = SIZES["layers"]
    middle = list(range(1, stored - 1))
    one = pj.MasterEquation(pj.terms.FeedForward(D, 12, key=jax.random.key(0)))
    tied = pj.network([lambda u: u] * L).replace(discretization=pj.Discretization(one, "euler", t1=float(L), steps=L))
    for system, places in ((looped, [0, *middle * 3, stored - 1]), (tied, [0] * L)):
        field, key = layer_field(system, length=N), jax.random.key(3)
        assert np.array_equal(field.field.stacked.function.source, places)
        first = np.asarray([places.index(place) for place in places])
        for null in (
            matched_null(system, U0, mask=MASK, key=key),
            matched_null(matched_null(system, U0, mask=MASK, key=key), U0, mask=MASK, key=key),
            shuffled_on_host(field, key=key),
        ):
            matrices = [x for x in jax.tree.leaves(eqx.filter(null.field, eqx.is_inexact_array)) if x.ndim > 2]
            assert matrices and all(np.array_equal(x, x[first]) for x in matrices)
            others = [x[np.unique(first)] for x in matrices]
            assert all(not np.any(np.all(x[1:] == x[:-1], axis=tuple(range(1, x.ndim)))) for x in others)
    # `field` and `key` are those of the tied network.
    expected = refine_layers(matched_null(tied, U0, mask=MASK, key=key), U0, factors=(1, 2), mask=MASK)
    for ours, theirs in zip(drawn_ends(field, branch_ratios(field, U0, MASK), U0, MASK, key), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


class Sum(eqx.Module):
    def __call__(self, u, mask, label):
        return jnp.sum(u * mask[:, None].astype(u.dtype)) * label


def test_surgery_is_the_loop_over_layers_and_first_order_is_the_derivative():
    labels = jnp.asarray([1.0, -2.0, 0.5])
    found = layer_surgery(NET, U0, loss=Sum(), labels=labels, mask=MASK)
    own = by_hand(range(L))
    real = np.asarray(MASK)[..., None]

    def check(place, l, order):
        end = by_hand(order)[-1]
        move = np.linalg.norm((end - own[-1]) * real, axis=(1, 2)) / np.linalg.norm(own[-1] * real, axis=(1, 2))
        np.testing.assert_allclose(found.moves[place, l], move, rtol=1e-9)
        change = np.sum((end - own[-1]) * real, axis=(1, 2)) * np.asarray(labels)
        np.testing.assert_allclose(found.losses[place, l], change, rtol=1e-8, atol=1e-10)

    for l in range(L):
        check(0, l, [k for k in range(L) if k != l])
        check(2, l, sorted([*range(L), l]))
        if l < L - 1:
            order = list(range(L))
            order[l], order[l + 1] = l + 1, l
            check(1, l, order)

        # Central differences of the layers behind, along u_l − u_{l+1}.
        def behind(u, l=l):
            for k in range(l + 1, L):
                u = u + np.tanh(u @ WEIGHTS[k])
            return u

        step, along = 1e-6, own[l] - own[l + 1]
        slope = (behind(own[l + 1] + step * along) - behind(own[l + 1] - step * along)) / (2 * step)
        expected = np.linalg.norm(slope * real, axis=(1, 2)) / np.linalg.norm(own[-1] * real, axis=(1, 2))
        np.testing.assert_allclose(found.estimates[0, l], expected, rtol=1e-6)
        np.testing.assert_allclose(
            found.loss_estimates[0, l], np.sum(slope * real, axis=(1, 2)) * np.asarray(labels), rtol=1e-6, atol=1e-8
        )
        flat = [own[k].reshape(B, -1) for k in (l, l + 1)]
        cosine = np.sum(flat[0] * flat[1], 1) / np.linalg.norm(flat[0], axis=1) / np.linalg.norm(flat[1], axis=1)
        np.testing.assert_allclose(found.cosines[l], 1 - cosine, rtol=1e-9)
    assert np.all(np.isnan(found.moves[1, -1])) and np.all(np.isnan(found.estimates[1]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: run_layers(NET, U0, order=[0, 7]), "order=7"),
        (lambda: run_layers(NET, U0, order=[0, 1], steps=[1]), "one each"),
        (lambda: run_layers(NET, U0, order=np.asarray([0.5])), "whole numbers"),
        (lambda: run_layers(NET, U0[0, 0]), "shape"),
        (lambda: run_layers(NET, U0.at[0, 0, 0].set(jnp.nan)), "not finite"),
        (lambda: run_layers(NET.discretization.replace(solver="tsit5", rtol=1e-3, atol=1e-3), U0), "adaptive"),
        (lambda: refine_layers(NET, U0, window=(2, 2)), r"window\[1\]"),
        (lambda: refine_layers(NET, U0, factors=()), "empty"),
        (lambda: layer_surgery(NET, U0, loss=Sum()), "labels"),
        (lambda: layer_surgery(NET, U0, loss=Sum(), labels=jnp.ones(2)), "one entry each"),
        (lambda: matched_null(pj.network([lambda u: u] * 2), U0), "no weight matrices"),
        (lambda: shuffle_layers(planted(WEIGHTS[:1])), "no other order"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
