"""Solves under jit, export, shard_map, vmap, derivatives and `jax_debug_nans`; and depth as a number in both precisions."""

import diffrax
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj

U0 = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))


def decay(rate=1.0):
    return pj.MasterEquation(pj.LinearDamping(rate))


def model(**changes):
    config = {"vocab": 16, "dim": 8, "heads": 2, "layers": 2, "ffn": 16, "norm": "pre"} | changes
    return pj.Transformer(pj.Architecture(**config), rngs=nnx.Rngs(0))


GRID = pj.Grid(4)
DIFFUSING = pj.MasterEquation(pj.Diffusion(GRID, 0.05), pj.LinearDamping(0.5))
FIXED = pj.Discretization(decay(), "euler", t1=1.0, steps=4)
ADAPTIVE = pj.Discretization(decay(), "tsit5", t1=1.0, rtol=1e-6, atol=1e-6)
LAYERS = pj.Discretization(pj.DepthVarying.from_layers([decay(1.0), decay(2.0)], 2.0), "euler", t1=2.0, steps=4)
SOLVES = {
    "fixed": (FIXED, {}),
    "fixed, every step": (FIXED, {"save": "steps"}),
    "fixed, depths": (FIXED, {"save": [0.3, 1.0]}),
    "layers": (LAYERS, {}),
    "adaptive": (ADAPTIVE, {}),
    "adaptive, depths": (ADAPTIVE, {"save": [0.3, 1.0]}),
    "exponential": (FIXED.replace(field=DIFFUSING, solver="etdrk4"), {}),
    "implicit-explicit": (FIXED.replace(field=DIFFUSING, solver="ark4"), {}),
    "stabilized": (FIXED.replace(field=DIFFUSING, solver="rkc2"), {}),
    "splitting": (FIXED.replace(field=DIFFUSING, solver="strang"), {}),
    "stages": (FIXED.replace(solver="heun", steps=4), {"save": [0.25, 1.0]}),
    "recursive adjoint": (FIXED.replace(adjoint="recursive"), {}),
}


def run(name):
    d, how = SOLVES[name]
    return lambda u: pj.simulate(d, u, **how).us


@pytest.mark.parametrize("name", SOLVES)
def test_no_callback_is_left_in_a_solve(name):
    """A program that calls back into Python can be neither exported nor stored in the compilation cache."""
    assert "callback" not in jax.jit(run(name)).lower(U0).as_text()


@pytest.mark.parametrize("name", ["layers", "adaptive, depths", "exponential"])
def test_no_callback_is_left_in_a_gradient(name):
    assert "callback" not in jax.jit(jax.grad(lambda u: jnp.sum(run(name)(u)))).lower(U0).as_text()


def test_the_one_solve_that_keeps_a_callback():
    """diffrax looks at the first step that it is given, as it is for a backsolve adjoint: `simulate` says so."""
    backsolve = ADAPTIVE.replace(adjoint="backsolve")
    assert "callback" in jax.jit(lambda u: pj.simulate(backsolve, u).us).lower(U0).as_text()
    assert "neither exported nor kept in the compilation cache" in " ".join(str(pj.simulate.__doc__).split())


def test_adaptive_depths_under_vmap():
    """u0·e^(−t) at each depth, twice at the same one too."""
    us = np.stack([U0, 2 * U0])
    found = np.asarray(jax.jit(jax.vmap(lambda u: pj.simulate(ADAPTIVE, u, save=[0.3, 0.3, 1.0]).us))(us))
    for index, depth in enumerate([0.3, 0.3, 1.0]):
        np.testing.assert_allclose(found[:, index], us * np.exp(-depth), rtol=1e-5)


def test_export():
    exported = jax.export.export(jax.jit(run("fixed")))(jax.ShapeDtypeStruct(U0.shape, U0.dtype))
    np.testing.assert_allclose(exported.call(U0)[0], 0.75**4 * U0, rtol=1e-14)


def sharded(function):
    mesh = jax.make_mesh((1,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=jax.P("b"), out_specs=jax.P("b")))


@pytest.mark.parametrize("name", ["fixed, every step", "fixed, depths", "layers", "exponential"])
def test_shard_map_with_its_check(name):
    """Values and gradients of a batch spread over devices, with the default check of `jax.shard_map`."""

    @jax.vmap
    def both(u):
        return run(name)(u), jax.grad(lambda v: jnp.sum(run(name)(v) ** 2))(u)

    batch = np.stack([U0, 2 * U0])
    spread, alone = jax.jit(lambda batch: (sharded(both)(batch), both(batch)))(batch)
    for found, expected in zip(spread, alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_shard_map_is_refused_in_words_where_loops_are_not_ours():
    for name in ("adaptive", "stabilized"):
        with pytest.raises(ValueError, match="check_vma=False"):
            sharded(jax.vmap(run(name)))(jnp.stack([U0]))


@pytest.mark.parametrize("name", ["fixed, every step", "fixed, depths", "layers", "adaptive", "exponential"])
def test_debug_nans_is_not_set_off(name):
    """What marks a missing blow-up or interval inside the library is nothing that a hunt for NaN should find."""
    with jax.debug_nans(True):
        value, slope = jax.value_and_grad(lambda u: jnp.sum(run(name)(u)))(U0)
        assert np.isfinite(value) and np.isfinite(slope).all()
        assert pj.Figure(jnp.ones(3)).value.shape == (3,)


# --- Lanes that blow up -------------------------------------------------------------------------------------------


def test_gradient_of_what_was_lost_is_not_finite():
    """u' = u²: one lane of a batch blows up. Its value is NaN and its gradient is no number either, the other's is exact;
    a loss that leaves the lane out has the gradient of the other alone."""
    d = pj.Discretization(lambda t, u, args: u**2, "euler", t1=1.0, steps=50)
    lanes = jnp.asarray([[[0.5]], [[40.0]]])

    def end(u):
        return pj.simulate(d, u).us[-1, 0, 0]

    value, slope = jax.jit(jax.vmap(jax.value_and_grad(end)))(lanes)
    u, du = 0.5, 1.0
    for _ in range(50):
        u, du = u + u**2 / 50, du * (1 + 2 * u / 50)
    assert float(value[0]) == pytest.approx(u, rel=1e-12) and float(slope[0, 0, 0]) == pytest.approx(du, rel=1e-12)
    assert np.isnan(value[1]) and not np.isfinite(slope[1]).any()

    def masked(us):
        found = jax.vmap(lambda u: pj.simulate(d, u))(us)
        return jnp.sum(jnp.where(found.complete, found.us[:, -1, 0, 0], 0.0))

    kept = jax.jit(jax.grad(masked))(lanes)
    assert float(kept[0, 0, 0]) == pytest.approx(du, rel=1e-12) and float(kept[1, 0, 0]) == 0.0


@pytest.mark.parametrize("d", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def test_reduce_keeps_the_type_that_it_returns(d):
    """Complex numbers keep their imaginary part, integers above 2²⁴ every digit, in float32 as well."""

    def several(t, u, args):
        return {
            "z": jax.lax.complex(u[0, 0], 2 * u[0, 0]),
            "n": jnp.asarray(2**24 + 1, jnp.int32),
            "yes": u[0, 0] > 0.0,
        }

    found = pj.simulate(d, jnp.ones((1, 1), jnp.float32), save=[0.5, 1.0], reduce=several).us
    assert found["z"].dtype == jnp.complex64 and found["n"].dtype == jnp.int32 and found["yes"].dtype == bool
    np.testing.assert_allclose(found["z"].imag, 2 * found["z"].real, rtol=1e-6)
    np.testing.assert_array_equal(found["n"], [2**24 + 1] * 2)


# --- Depth as a number --------------------------------------------------------------------------------------------

ONE = jnp.ones((1, 1), jnp.float32)


@pytest.mark.parametrize("t0, span, steps", [(1e4, 1.0, 100), (0.0, 1.0, 200_000), (-1e3, 3.0, 999)])
def test_step_counts_are_exact_in_float32(t0, span, steps):
    """Eagerly, under jit and with a traced number: (1 − γh)^steps, γ = 1/span."""
    d = pj.Discretization(decay(1.0 / span), "euler", t0=t0, t1=t0 + span, steps=steps)
    runs = (
        pj.simulate(d, ONE),
        jax.jit(lambda u: pj.simulate(d, u))(ONE),
        jax.jit(lambda u, n: pj.simulate(d.replace(steps=n), u))(ONE, steps),
    )
    for found in runs:
        assert int(found.stats.steps) == steps and bool(found.complete)
        assert float(found.us[0, 0, 0]) == pytest.approx((1 - 1 / steps) ** steps, rel=2e-4)


def test_gradient_takes_the_steps_of_the_value():
    d = pj.Discretization(decay(), "euler", t0=1e4, t1=1e4 + 1, steps=100)
    slope = jax.grad(lambda u: pj.simulate(d, u).us[-1, 0, 0])(ONE)
    assert float(slope[0, 0]) == pytest.approx(float(pj.simulate(d, ONE).us[-1, 0, 0]), rel=1e-6)


def test_layers_by_many_steps():
    field = pj.DepthVarying.from_layers([decay(0.1)] * 96, 96.0)
    found = pj.simulate(pj.Discretization(field, "euler", t1=96.0, steps=96 * 2000), ONE)
    assert int(found.stats.steps) == 96 * 2000 and bool(found.complete)


@pytest.mark.parametrize("how", [{"rtol": 1e-3, "atol": 1e-6, "solver": "tsit5"}, {"steps": 3, "solver": "euler"}])
def test_depths_that_float32_does_not_resolve(how):
    """Refused in words where known; where traced, no number comes out."""
    d = pj.Discretization(decay(), t0=1e8, t1=1e8 + 1, **how)
    with pytest.raises(ValueError, match=r"do not resolve .* in float32"):
        pj.simulate(d, ONE)
    found = jax.jit(lambda t: pj.simulate(pj.Discretization(decay(), t0=t, t1=t + 1, **how), ONE))(jnp.float32(1e8))
    assert not bool(found.complete) and np.isnan(found.us).all()


def test_own_adjoint_counts_too():
    """diffrax rounds steps near t1: the same number of steps, or a refusal."""
    d = pj.Discretization(decay(), "euler", t1=1.0, steps=5000, adjoint=diffrax.RecursiveCheckpointAdjoint())
    assert int(pj.simulate(d, ONE).stats.steps) == 5000
    with pytest.raises(ValueError, match="do not resolve 100 steps"):
        pj.simulate(d.replace(t0=1e4, t1=1e4 + 1, steps=100, adjoint="recursive"), ONE)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: pj.lift(model()).replace(t0=1.0, t1=1 + 1e-8, steps=2), "same layer boundary to rounding"),
        (lambda: pj.Discretization(decay(), t1=1.0, steps=2**31), "steps are counted in int32"),
        (
            lambda: pj.lift(model(norm="post")).replace(solver=pj.lift(model(norm="post", layers=3)).solver),
            "made for a model of 3 layers, but the field has 2",
        ),
        (
            lambda: pj.simulate(
                pj.Discretization(
                    pj.DepthVarying.from_layers([decay()] * 2, 2.0, "linear"), "euler", t0=0.2, t1=0.8, steps=2
                ),
                U0,
                save="layers",
            ),
            "no layer begins or ends in",
        ),
    ],
)
def test_depths_refused_in_words(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_depths_accepted():
    """Depths computed in float32 reach t1 to rounding; sizes of NumPy are integers."""
    depths = jnp.linspace(0.1, 0.7, 7, dtype=jnp.float32)
    found = pj.simulate(pj.Discretization(decay(), "rk4", t0=0.1, t1=0.7, steps=64), U0, save=depths)
    np.testing.assert_allclose(found.us[-1], np.exp(-0.6) * U0, rtol=1e-6)
    pj.Discretization(decay(), t1=1.0, rtol=1e-3, atol=1e-3, max_steps=np.int64(100))


# --- Functions and ids of the user --------------------------------------------------------------------------------


def test_a_field_of_two_arguments():
    two = pj.Discretization(lambda t, u: -u, "euler", t1=1.0, steps=4)
    np.testing.assert_allclose(pj.simulate(two, U0).us[0], 0.75**4 * U0, rtol=1e-14)
    assert pj.analysis.stability.spectral_bounds(lambda t, u: -2.0 * u, U0)["field"].log_norm == pytest.approx(-2.0)
    with pytest.raises(TypeError, match=r"it must take \(t, u, args\) or \(t, u\)"):
        pj.Discretization(lambda u: -u, "euler", t1=1.0, steps=4)


def test_token_ids_closed_over_and_beyond_int32():
    """Known ids are checked inside jit too; ids are looked at before JAX makes them int32."""
    net, tokens = model(), jnp.arange(5)
    for one in (net, pj.as_network(net)):
        np.testing.assert_allclose(
            jax.jit(lambda one=one: one.hidden_states(tokens))(), one.hidden_states(tokens), rtol=1e-5, atol=1e-5
        )
    for wrong in (np.array([0, 2**32 + 1]), np.array([0, 16])):
        with pytest.raises(ValueError, match="they must lie in"):
            net.hidden_states(wrong)
        with pytest.raises(ValueError, match="they must lie in"):
            jax.jit(lambda wrong=wrong: net.hidden_states(wrong))()
