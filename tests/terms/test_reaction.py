"""The feed-forward term against scalar loops, its external source, and the trace of its Jacobian."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.solvers import Grid
from pdejax.terms import FeedForward, LayerNorm, RMSNorm

N, D, HIDDEN = 5, 4, 6

ACTIVATIONS = {
    "relu": lambda z: z if z > 0 else 0.0,
    "gelu": lambda z: 0.5 * z * (1 + math.erf(z / math.sqrt(2))),
    "gelu_tanh": lambda z: 0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "silu": lambda z: z / (1 + math.exp(-z)),
    "tanh": math.tanh,
    "identity": lambda z: z,
}


def field(seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((N, D)))


def build(key, **options):
    """A feed-forward with random biases and random scales of its norms."""
    term = FeedForward(D, HIDDEN, key=key, **options)

    def where(module):
        norms = [norm for norm in (module.norm, module.norm_out) if norm is not None]
        biases = [bias for bias in (module.b1, module.b2, module.bg) if bias is not None]
        return [*biases, *(norm.scale for norm in norms)]

    random = np.random.default_rng(5)
    return eqx.tree_at(where, term, [x + 0.5 * random.standard_normal(x.shape) for x in where(term)])


@eqx.filter_jit
def run(term, u, t=0.0):
    """The term as one program: call by call each operation is compiled alone."""
    return term(t, u, None)


def twin_norm(norm, row):
    centre = np.mean(row) if isinstance(norm, LayerNorm) else 0.0
    shift = np.asarray(norm.bias) if isinstance(norm, LayerNorm) else 0.0
    return np.asarray(norm.scale) * (row - centre) / np.sqrt(np.mean((row - centre) ** 2) + norm.eps) + shift


def twin_token(term, row):
    """Everything but leak and source for one token, one hidden unit at a time."""

    def bias(b, size):
        return np.zeros(size) if b is None else np.asarray(b)

    w1, w2, b1, b2 = np.asarray(term.w1), np.asarray(term.w2), bias(term.b1, HIDDEN), bias(term.b2, D)
    x = row if term.norm is None else twin_norm(term.norm, row)
    out = b2
    for h in range(HIDDEN):
        z = b1[h] + sum(x[k] * w1[k, h] for k in range(D))
        if term.wg is not None:
            g = bias(term.bg, HIDDEN)[h] + sum(x[k] * term.wg[k, h] for k in range(D))
            out = out + ACTIVATIONS[term.activation](float(g)) * z * w2[h]
        else:
            out = out + ACTIVATIONS[term.activation](z) * w2[h]
    return out if term.norm_out is None else twin_norm(term.norm_out, out)


CASES = {
    **{name: {"activation": name} for name in ACTIVATIONS},
    "leak": {"leak": True, "strength": 0.6},
    "pre": {"norm": LayerNorm(D, eps=1e-2), "strength": -1.2},
    "peri": {"norm": RMSNorm(D), "norm_out": RMSNorm(D), "leak": True, "activation": "silu"},
    "no biases": {"bias": False},
    **{f"gated {name}": {"activation": name, "gate": True} for name in ("silu", "gelu", "tanh")},
    "swiglu": {"activation": "silu", "gate": True, "bias": False, "norm": RMSNorm(D, eps=1e-2), "leak": True},
}


@pytest.mark.parametrize("name", CASES)
def test_twin(name, getkey):
    term, u = build(getkey(), **CASES[name]), field()
    slow = np.stack([twin_token(term, row) - (row if term.leak else 0.0) for row in np.asarray(u)])
    np.testing.assert_allclose(run(term, u), float(term.strength) * slow, rtol=1e-12, atol=1e-14)


def test_pointwise(getkey):
    """A token's reaction depends on that token alone."""
    term, u = build(getkey(), norm=LayerNorm(D)), field()
    same, u = np.array([0, 1, 3, 4]), np.asarray(u)
    plain, changed = (np.asarray(run(term, v)) for v in (u, u + (np.arange(N) == 2)[:, None]))
    np.testing.assert_array_equal(plain[same], changed[same])
    np.testing.assert_allclose(run(term, u[2:3]), plain[2:3], rtol=1e-13)


def test_linear_reaction_is_a_matrix(getkey):
    term, u = FeedForward(D, HIDDEN, activation="identity", key=getkey()), field()
    np.testing.assert_allclose(run(term, u), np.asarray(u) @ np.asarray(term.w1) @ np.asarray(term.w2), rtol=1e-12)


@pytest.mark.parametrize("grid", [None, Grid(N, "dirichlet"), Grid(N, "periodic", length=3.0)])
def test_source_sees_positions_and_depth(grid, getkey):
    def source(x, t):
        return jnp.stack([jnp.sin(x) * t, x**2, t + 0 * x, jnp.cos(t * x)], axis=1)

    term, u = build(getkey(), source=source, grid=grid, strength=0.3, leak=True), field()
    bare = eqx.tree_at(lambda m: m.source, term, None)
    x = {
        None: [(i + 0.5) / N for i in range(N)],
        "dirichlet": [(i + 1) / (N + 1) for i in range(N)],
        "periodic": [3.0 * i / N for i in range(N)],
    }[None if grid is None else grid.boundary]
    for t in (0.4, 2.5):
        slow = [[math.sin(s) * t, s**2, t, math.cos(t * s)] for s in x]
        # The source is external: α scales neither it nor does the leak reach it.
        np.testing.assert_allclose(np.asarray(run(term, u, t)) - run(bare, u, t), slow, rtol=1e-12, atol=1e-14)
    du = jax.eval_shape(lambda u: term(0.4, u, None), jnp.zeros((N, D), jnp.float32))
    assert du.dtype == jnp.float32


def test_gates_against_torch(getkey):
    """SwiGLU by torch's `silu` and `linear`: the gate is what is activated."""
    torch = pytest.importorskip("torch")
    term, u = build(getkey(), activation="silu", gate=True), field()
    x, w1, w2, wg, b1, b2, bg = (
        torch.tensor(np.asarray(a)) for a in (u, term.w1, term.w2, term.wg, term.b1, term.b2, term.bg)
    )
    linear = torch.nn.functional.linear
    hidden = torch.nn.functional.silu(linear(x, wg.T, bg)) * linear(x, w1.T, b1)
    np.testing.assert_allclose(run(term, u), linear(hidden, w2.T, b2).numpy(), rtol=1e-12, atol=1e-14)


def test_biases_may_be_absent(getkey):
    bare, gated = FeedForward(D, HIDDEN, bias=False, key=getkey()), FeedForward(D, HIDDEN, gate=True, key=getkey())
    assert FeedForward(D, HIDDEN, gate=True, activation="relu", key=getkey()).smoothness == 0.0
    assert bare.b1 is bare.b2 is bare.wg is bare.bg is None
    assert gated.wg.shape == (D, HIDDEN) and gated.bg.shape == (HIDDEN,)
    np.testing.assert_array_equal(bare(0.0, jnp.zeros((N, D)), None), 0)


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_jacobian_trace(activation, gate, getkey):
    term, u = build(getkey(), activation=activation, gate=gate), field()
    both = jax.jit(lambda u: (jax.jacfwd(lambda v: term(0.0, v, None))(u), term.jacobian_trace(u), term.coefficient(u)))
    jacobian, trace, coefficient = map(np.asarray, both(u))
    slow = [sum(jacobian[i, k, i, k] for k in range(D)) for i in range(N)]
    np.testing.assert_allclose(trace, slow, rtol=1e-12, atol=1e-13)
    # What diffusivity studies read, by the name that terms share.
    np.testing.assert_array_equal(coefficient, trace)


@pytest.mark.parametrize(
    "norms",
    [{"norm": LayerNorm(D)}, {"norm_out": RMSNorm(D)}, CASES["peri"], CASES["swiglu"]],
)
def test_jacobian_trace_through_norms(norms, getkey):
    """By central differences of the scalar twin; leak and strength are no part of ∂FFN/∂u."""
    term, u = build(getkey(), **norms), np.asarray(field())
    h = 1e-5
    slow = np.zeros(N)
    for i in range(N):
        for k in range(D):
            step = h * np.eye(D)[k]
            slow[i] += (twin_token(term, u[i] + step)[k] - twin_token(term, u[i] - step)[k]) / (2 * h)
    np.testing.assert_allclose(jax.jit(lambda u: term.jacobian_trace(u))(u), slow, rtol=1e-7, atol=1e-8)


def test_damping(getkey):
    assert float(build(getkey(), leak=True, strength=1.5).damping()) == 1.5
    assert float(build(getkey(), strength=1.5).damping()) == 0.0


@pytest.mark.parametrize("name", ["gelu", "silu", "peri", "gated silu"])
def test_float32_stays_float32(name, getkey):
    term, u = build(getkey(), **CASES[name]), field()
    single = np.asarray(u, np.float32)
    found = run(term, single)
    assert found.dtype == jax.eval_shape(lambda u: term.jacobian_trace(u), single).dtype == jnp.float32
    np.testing.assert_allclose(found, run(term, u), rtol=1e-5, atol=1e-5)


def test_transformations(getkey):
    term = build(getkey(), **CASES["peri"])
    batch = jnp.stack([field(s) for s in range(3)])
    batched = eqx.filter_jit(jax.vmap(lambda u: term(0.0, u, None)))(batch)
    np.testing.assert_allclose(batched, np.stack([run(term, u) for u in np.asarray(batch)]), rtol=1e-12, atol=1e-14)
    arrays, static = eqx.partition(term, eqx.is_inexact_array)

    @jax.jit
    def loss(arrays, u):
        return jnp.sum(field(9) * eqx.combine(arrays, static)(0.0, u, None))

    point, random, h = (arrays, batch[0]), np.random.default_rng(2), 1e-6
    direction = jax.tree.map(lambda x: np.asarray(random.standard_normal(x.shape)), point)
    ends = (jax.tree.map(lambda p, v, s=s: np.asarray(p) + s * h * v, point, direction) for s in (1, -1))
    ahead, behind = (float(loss(*end)) for end in ends)
    both = jax.jit(lambda p, v: (jax.grad(loss, argnums=(0, 1))(*p), jax.jvp(loss, p, v)[1]))
    gradient, forward = both(point, direction)
    reverse = float(sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, direction))))
    assert reverse == pytest.approx((ahead - behind) / (2 * h), rel=1e-7)
    assert reverse == pytest.approx(float(forward), rel=1e-11)
