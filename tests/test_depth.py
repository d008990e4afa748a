"""Weights that vary with depth, leaf by leaf against SciPy; sampling by layers; the two kinds of random weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from pdejax import DepthVarying, Discretization, LayerStack, MasterEquation, iid, simulate, smooth_random
from pdejax._depth import take_layer
from pdejax.solvers import Euler, Grid, LieTrotter, Retract
from pdejax.terms import Attention, Diffusion, FeedForward, LayerNorm, LinearDamping

N, D, K, T1 = 6, 4, 5, 2.0
DEPTHS = [-0.3, 0.0, 0.1, 0.2, 0.39, 0.4, 1.0, 1.234, 1.8, 1.99, 2.0, 2.6]


def equation(key, **options):
    k1, k2 = jax.random.split(key)
    return MasterEquation(
        interaction=Attention(D, 2, key=k1, bias=True, norm=LayerNorm(D)),
        reaction=FeedForward(D, 3, key=k2, **options),
        diffusion=Diffusion(Grid(N), 0.02),
        stabilization=LinearDamping(0.1),
    )


@eqx.filter_jit
def call(field, t, u):
    return field(t, u, None)


@eqx.filter_jit
def at(varying, t):
    return varying.at(t)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


def layers(getkey, count=K):
    """Layers in which every leaf differs."""
    made = [equation(getkey()) for _ in range(count)]
    return [jax.tree.map(lambda x, l=l: x + 0.01 * l**2 if eqx.is_array(x) else x, m) for l, m in enumerate(made)]


def natural_spline(knots, values, t):
    """SciPy's natural cubic spline, extended linearly."""
    spline = CubicSpline(knots, values, bc_type="natural")
    inside = np.clip(t, knots[0], knots[-1])
    return spline(inside) + spline(inside, 1) * (t - inside)


# A spline of two or three knots is a case of its own.
@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *(("cubic", count) for count in (1, 2, 3)),
        *((kind, n) for kind in ("constant", "linear", "cosine") for n in (1, K)),
        ("cubic", K),
    ],
)
def test_at(kind, count, getkey):
    made = layers(getkey, count)
    varying = DepthVarying.from_layers(made, T1, kind)
    assert varying.size == count and varying.names() == made[0].names()
    values = [np.stack(columns) for columns in zip(*map(leaves, made), strict=True)]
    centres = (np.arange(count) + 0.5) * T1 / count
    for t in DEPTHS:
        for value, leaf in zip(values, leaves(at(varying, jnp.asarray(t))), strict=True):
            if kind == "constant":
                slow = value[min(max(int(np.floor(t * count / T1 + 1e-12)), 0), count - 1)]
            elif kind == "linear":
                weights = [np.interp(t, centres, np.eye(count)[l]) for l in range(count)]
                slow = np.tensordot(weights, value, axes=1)
            elif kind == "cosine":
                slow = sum(value[k] * np.cos(np.pi * k * t / T1) for k in range(count))
            elif count == 1:
                slow = value[0]
            else:
                slow = natural_spline(centres, value, t)
            np.testing.assert_allclose(leaf, slow, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_layers_sit_at_their_centres(kind, getkey):
    """Sampling at the centres gives the layers back; constant weights hold on their whole interval."""
    made = layers(getkey)
    smooth, steps = DepthVarying.from_layers(made, T1, kind), DepthVarying.from_layers(made, T1)
    np.testing.assert_allclose(steps.edges(), [0.0, 0.4, 0.8, 1.2, 1.6, 2.0])
    for l in range(K):
        for a, b in zip(leaves(at(smooth, jnp.asarray((l + 0.5) * T1 / K))), leaves(made[l]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
        assert eqx.tree_equal(at(steps, jnp.asarray((l + 0.999) * T1 / K)), made[l])
        assert eqx.tree_equal(steps.layer(l), made[l])


def test_call_uses_the_weights_of_its_depth(getkey):
    varying = DepthVarying.from_layers(layers(getkey), T1, "cubic")
    u = jnp.asarray(np.random.default_rng(0).standard_normal((N, D)))
    t = jnp.asarray(1.234)
    du = call(varying, t, u)
    np.testing.assert_allclose(du, call(at(varying, t), t, u), rtol=1e-12, atol=1e-14)
    by_name = jax.jit(lambda t, u: varying.contributions(t, u))(t, u)
    np.testing.assert_allclose(sum(map(np.asarray, by_name.values())), du, rtol=1e-12, atol=1e-14)
    only = varying.only(("reaction",))
    assert only.kind == "cubic" and only.size == K and only.names() == ("reaction",)
    np.testing.assert_allclose(call(only, t, u), by_name["reaction"], rtol=1e-12, atol=1e-14)
    assert jax.eval_shape(varying, t, u.astype(jnp.float32)).dtype == jnp.float32


def test_float32_weights_stay_float32(getkey):
    """A float64 depth must not raise the precision of float32 weights."""
    single = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_array(x) else x, layers(getkey, 3))
    for kind in ("constant", "linear", "cubic", "cosine"):
        varying = DepthVarying.from_layers(single, T1, kind)
        inside = jax.eval_shape(lambda t, varying=varying: eqx.filter(varying.at(t), eqx.is_array), jnp.asarray(0.7))
        assert {leaf.dtype for leaf in jax.tree.leaves(inside)} == {np.dtype("float32")}


def test_damping_is_that_of_the_strongest_layer(getkey):
    made = layers(getkey)
    varying = DepthVarying.from_layers(made, T1)
    assert float(varying.damping()) == pytest.approx(max(float(m.damping()) for m in made))
    smooth = smooth_random(made[0], T1, key=getkey())
    assert float(smooth.damping()) == pytest.approx(float(made[0].damping()))


def test_sampling_at_centres_is_second_order(getkey):
    """Replacing smooth θ(t) by L constant layers taken at their centres: ∫θ keeps order 2, at left ends order 1."""
    smooth = smooth_random(equation(getkey()), T1, key=getkey())

    @jax.jit
    def w1(t):
        return smooth.at(t).reaction.w1

    nodes, weights = np.polynomial.legendre.leggauss(20)
    half = T1 / 2  # over part of the depth: over all of it the cosines would integrate to 0 exactly
    exact = sum(w * half / 2 * np.asarray(w1(half / 2 * (1 + x))) for x, w in zip(nodes, weights, strict=True))
    errors = {"centre": [], "left": []}
    for count in (8, 16, 32):
        for name, offset in (("centre", 0.5), ("left", 0.0)):
            total = sum(np.asarray(w1((l + offset) * half / count)) for l in range(count)) * half / count
            errors[name].append(np.abs(total - exact).max())
    for name, order in (("centre", 2), ("left", 1)):
        np.testing.assert_allclose(np.log2(np.divide(errors[name][:-1], errors[name][1:])), order, atol=0.15)


def test_smooth_random(getkey):
    """θ₀ + a Σ k⁻² rms(θ₀) ξ_k cos(πkt/T): matrices vary at that scale, everything else stands still."""
    base = equation(getkey())
    varying = smooth_random(base, T1, key=getkey(), modes=3, amplitude=0.25)
    assert varying.kind == "cosine" and varying.size == 4
    moving, draws = set(), []
    names = [
        jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(base) if eqx.is_array(leaf)
    ]
    for name, start, stacked in zip(names, leaves(base), leaves(varying.stacked), strict=True):
        np.testing.assert_array_equal(stacked[0], start)
        if np.any(stacked[1:]):
            moving.add(name)
            rms = np.sqrt(np.mean(start**2))
            draws += [stacked[k] * k**2 / (0.25 * rms) for k in (1, 2, 3)]
    assert moving == {f".terms[0].{w}" for w in ("wq", "wk", "wv", "wo")} | {".terms[1].w1", ".terms[1].w2"}
    draws = np.concatenate([np.ravel(d) for d in draws])
    assert abs(np.mean(draws)) < 4 / len(draws) ** 0.5 and abs(np.var(draws) - 1) < 6 / len(draws) ** 0.5
    still = smooth_random(base, T1, key=getkey(), modes=0)
    assert eqx.tree_equal(at(still, jnp.asarray(1.3)), base, rtol=1e-14)


@pytest.mark.parametrize("scaling, power", [("1/L", 0.0), ("1/sqrt(L)", 0.5), ("1", 1.0)])
def test_iid_scaling(scaling, power, getkey):
    """u ← u + s(L) F_l(u) is an Euler step h = 1/L of strength s(L)·L, whatever strength a layer had."""

    def make(key):
        k1, k2 = jax.random.split(key)
        return MasterEquation(
            interaction=Attention(D, 2, key=k1, strength=2.0), reaction=FeedForward(D, 3, key=k2, leak=True)
        )

    key, count = getkey(), 4
    drawn = iid(make, count, key=key, scaling=scaling)
    assert (drawn.size, drawn.t1, drawn.kind) == (count, 1.0, "constant")
    u = jnp.asarray(np.random.default_rng(0).standard_normal((N, D)))
    for l, k in enumerate(jax.random.split(key, count)):
        plain = make(k)
        np.testing.assert_allclose(call(drawn.layer(l), 0.0, u), count**power * call(plain, 0.0, u), rtol=1e-12)


def test_iid_without_attention(getkey):
    drawn = iid(lambda key: MasterEquation(reaction=FeedForward(D, 3, key=key)), 4, key=getkey(), scaling="1")
    np.testing.assert_array_equal(drawn.stacked.reaction.strength, np.full(4, 4.0))


def test_layers_that_do_not_stack(getkey):
    with pytest.raises(ValueError, match="same structure"):
        DepthVarying.from_layers([equation(getkey()), equation(getkey(), activation="relu")], T1)
    with pytest.raises(ValueError, match="same structure"):
        DepthVarying.from_layers([equation(getkey()), equation(getkey()).only(("reaction",))], T1)
    with pytest.raises(ValueError, match="leading layer axis"):
        DepthVarying(equation(getkey()), T1)
    with pytest.raises(ValueError, match="no layers"):
        DepthVarying.from_layers([], T1)


def test_layer_stack(getkey):
    """A solver that carries one norm per layer hands out the right one, and refuses to be used without layers."""
    norms = [eqx.tree_at(lambda m: m.bias, LayerNorm(D), jnp.full(D, float(l))) for l in range(3)]
    stacked = LayerStack(jax.tree.map(lambda *x: jnp.stack(x), *norms))
    solver = LieTrotter((Retract(Euler(), stacked), Euler()))
    for l in range(3):
        assert eqx.tree_equal(take_layer(solver, l).solvers[0].retraction, norms[l])
    with pytest.raises(ValueError, match="one retraction per layer"):
        stacked(jnp.zeros((N, D)))


def test_a_stack_gone_through_twice(getkey):
    """As many layers as passes times the stack, the same weights stored once; each solve is that of the repeated stack."""
    made, u = layers(getkey, 2), jax.random.normal(getkey(), (N, D))
    looped = DepthVarying(DepthVarying.from_layers(made, T1).stacked, T1, passes=2)
    repeated = DepthVarying.from_layers([*made, *made], T1)
    assert looped.size == 4 and len(looped.edges()) == 5 and leaves(looped)[0].shape[0] == 2
    for t in (0.1, 0.6, 1.1, 1.9):
        np.testing.assert_array_equal(call(looped, t, u), call(repeated, t, u))
    assert looped.only(("reaction",)).passes == looped.looked_at().passes == 2
    ends = [
        simulate(Discretization(field, "euler", t1=T1, steps=4), u, save="layers").us for field in (looped, repeated)
    ]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-13)
    assert "2 layers, gone through 2 times, over t" in repr(looped)
    for wrong, words in (({"kind": "linear", "passes": 2}, "needs kind='constant'"), ({"passes": 0}, "passes=0")):
        with pytest.raises(ValueError, match=words):
            DepthVarying(looped.stacked, T1, **wrong)
