"""`simulate` against a field, weights and integrators written in NumPy and SciPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulate_twin import T1, D, N, Tally, distance, field, master, numpy_cosine_field, numpy_field, scipy_solve

from pdejax import DepthVarying, MasterEquation, simulate, smooth_random
from pdejax._discretization import Discretization
from pdejax.terms import FeedForward, LinearDamping

# --- Orders, one trace, and counts, from the same runs ------------------------------------------------------

ORDERS = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4, "lietrotter": 1, "strang": 2}
PER_STEP = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4, "lietrotter": 1, "strang": 3}
STEPS = (4, 6, 8, 11, 13, 16, 23, 32, 64, 128)


@pytest.fixture(scope="module")
def smooth():
    """Weights smooth in depth, with counting terms, and the exact end state by SciPy."""
    tally = Tally()
    k1, k2 = jax.random.split(jax.random.key(1))
    varying = smooth_random(master(k1, tally), T1, key=k2)
    return tally, varying, field(), scipy_solve(numpy_cosine_field(varying), field(), T1)[0]


@pytest.fixture(scope="module")
def sweep(smooth):
    """Per solver and number of steps: the end state, the steps and evaluations reported, evaluations and traces counted."""
    tally, varying, u0, _ = smooth
    results = {}
    for solver in ORDERS:
        for steps in STEPS:
            before = tally.traced, tally.evaluated
            run = simulate(Discretization(varying, solver, t1=T1, steps=steps), u0, save="end")
            end = np.asarray(run.us[0])
            counted = tally.evaluated - before[1]
            results[solver, steps] = (
                end,
                int(run.stats.steps),
                int(run.stats.evaluations),
                counted,
                tally.traced - before[0],
            )
    return results


@pytest.mark.slow
@pytest.mark.parametrize("solver", ORDERS)
def test_order(solver, sweep, smooth):
    errors = np.array([distance(sweep[solver, steps][0], smooth[3]) for steps in (32, 64, 128)])
    print(solver, errors, np.log2(errors[:-1] / errors[1:]))
    assert errors.min() > 1e-12  # above the rounding floor
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), ORDERS[solver], atol=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ORDERS)
def test_one_trace_serves_every_step_size(solver, sweep):
    traces = [sweep[solver, steps][4] for steps in STEPS]
    assert traces[0] > 0 and traces[1:] == [0] * 9


@pytest.mark.slow
@pytest.mark.parametrize("solver", ORDERS)
def test_steps_and_evaluations_are_those_taken(solver, sweep):
    """Both terms tick once in an evaluation of the field."""
    for steps in STEPS:
        _, taken, reported, ticks, _ = sweep[solver, steps]
        assert taken == steps
        assert reported == PER_STEP[solver] * steps
        assert ticks == 2 * reported


@pytest.mark.slow
def test_euler_is_the_plain_loop(smooth, sweep):
    _, varying, u0, _ = smooth
    f, u = numpy_cosine_field(varying), np.asarray(u0)
    for k in range(13):
        u = u + T1 / 13 * f(k * T1 / 13, u)
    np.testing.assert_allclose(sweep["euler", 13][0], u, rtol=1e-12, atol=1e-13)


def test_start_at_another_depth(smooth):
    """t0 ≠ 0: the weights are those of the actual depth, and two halves make a whole."""
    tally, varying, u0, _ = smooth
    f = numpy_cosine_field(varying)
    simulate(Discretization(varying, "rk4", t1=T1, steps=20), u0, save="end")
    traced = tally.traced
    late = simulate(Discretization(varying, "rk4", t0=0.4, t1=1.1, steps=64), u0, save="end")
    assert distance(late.us[0], scipy_solve(f, u0, 1.1, 0.4)[0]) < 1e-8
    np.testing.assert_allclose(late.ts, [1.1])
    first = simulate(Discretization(varying, "rk4", t1=0.6, steps=8), u0)
    second = simulate(Discretization(varying, "rk4", t0=0.6, t1=T1, steps=12), first.us[-1])
    whole = simulate(Discretization(varying, "rk4", t1=T1, steps=20), u0)
    np.testing.assert_allclose(second.us, whole.us, rtol=1e-12, atol=1e-13)
    assert tally.traced == traced  # t0 and t1 are traced as well


def test_adaptive_reaches_its_tolerance(smooth):
    tally, varying, u0, exact = smooth
    errors, evaluations = [], []
    traced = None
    for tolerance in (1e-4, 1e-7, 1e-10):
        before = tally.evaluated
        run = simulate(Discretization(varying, t1=T1, rtol=tolerance, atol=tolerance), u0)
        errors.append(distance(run.us[-1], exact))
        counted = tally.evaluated - before
        assert counted == 2 * int(run.stats.evaluations)
        evaluations.append(counted)
        assert bool(run.complete) and not bool(run.diverged) and np.isinf(float(run.blowup_time))
        traced = tally.traced if traced is None else traced
    assert tally.traced == traced
    for error, tolerance in zip(errors, (1e-4, 1e-7, 1e-10), strict=True):
        assert error < 20 * tolerance
    assert evaluations[0] < evaluations[1] < evaluations[2]


def test_order_off_the_grid_and_one_trace(smooth):
    """Saved depths between the steps keep order 4, the initial depth is the initial field, and depths that fall on
    steps, on both ends or on each other are right too. Ten numbers of steps, one trace."""
    tally, varying, u0, _ = smooth
    irrational = T1 * ((np.arange(1, 30) * np.sqrt(2)) % 1)
    depths = np.sort(np.concatenate([[0.0, 0.75, 0.75, T1], irrational]))
    unique, copies = np.unique(depths, return_inverse=True)
    exact = scipy_solve(numpy_cosine_field(varying), u0, T1, ts=unique)[copies]
    errors, traced = {}, []
    for steps in STEPS:
        run = simulate(Discretization(varying, "rk4", t1=T1, steps=steps), u0, save=depths)
        np.testing.assert_array_equal(run.ts, depths)
        np.testing.assert_array_equal(run.us[0], u0)
        # The mean over many depths: at one of them the error depends on where in its step it lies.
        errors[steps] = np.sqrt(np.mean((np.asarray(run.us) - exact) ** 2))
        traced.append(tally.traced)
    assert len(set(traced)) == 1
    measured = np.array([errors[steps] for steps in (32, 64, 128)])
    assert measured.min() > 1e-12
    np.testing.assert_allclose(np.log2(measured[:-1] / measured[1:]), 4, atol=0.15)
    end = simulate(Discretization(varying, "rk4", t1=T1, steps=128), u0, save="end").us[0]
    np.testing.assert_allclose(run.us[-1], end, rtol=1e-12)


def test_layers_of_smooth_weights(smooth):
    """Smooth weights are integrated in one go, but the depths that divide them into layers can still be asked for."""
    _, varying, u0, _ = smooth
    run = simulate(Discretization(varying, "rk4", t1=T1, steps=64), u0, save="layers")
    np.testing.assert_allclose(run.ts, np.linspace(0, T1, varying.size + 1))
    assert distance(run.us, scipy_solve(numpy_cosine_field(varying), u0, T1, ts=run.ts)) < 1e-7


def test_relu_caps_rk4_at_order_two():
    """u' = 1 + relu(u) has a kink at u = 0: u = −a + t until t = a, e^{t−a} − 1 after. Many a, the worst counts."""
    reaction = FeedForward(1, 1, activation="relu", key=jax.random.key(0))
    ones = (jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones(1))
    reaction = eqx.tree_at(lambda m: (m.w1, m.w2, m.b2), reaction, ones)
    a = np.linspace(0.31, 0.52, 16)[:, None]
    exact = np.expm1(1.0 - a)
    errors = [
        distance(
            simulate(Discretization(MasterEquation(reaction=reaction), "rk4", t1=1.0, steps=n), jnp.asarray(-a)).us[0],
            exact,
        )
        for n in (16, 32, 64, 128)
    ]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(orders > 1.6) and np.all(orders < 2.4), orders


# --- Piecewise-constant weights -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layered():
    """Three layers over [0, 1.5], and the exact states at given depths, layer by layer by SciPy."""
    tally = Tally()
    layers = [master(key, tally) for key in jax.random.split(jax.random.key(2), 3)]

    def exact(u0, depths):
        u, out, start = np.asarray(u0), [], 0.0
        for l, part in enumerate(layers):
            stop = 0.5 * (l + 1)
            inside = [t for t in depths if start < t <= stop or (t == 0.0 and l == 0)]
            values = scipy_solve(numpy_field(part), u, stop, start, [*inside, stop] if stop not in inside else inside)
            out += list(values[: len(inside)])
            u, start = values[-1], stop
        return np.stack(out)

    return DepthVarying.from_layers(layers, T1), layers, exact


@pytest.mark.slow
def test_layer_by_layer_keeps_order_four(layered):
    """Jumps of the weights cost nothing if no step crosses them, on the layers' ends and between the steps."""
    equation, layers, exact = layered
    depths = np.array([0.0, 0.2, 0.5, 0.61, 0.93, 1.0, 1.3, 1.5])
    reference = exact(field(), depths)
    errors, traced = [], []
    for steps in (24, 48, 96):
        run = simulate(Discretization(equation, "rk4", t1=T1, steps=steps), field(), save=depths)
        assert int(run.stats.steps) == steps and int(run.stats.evaluations) == 4 * steps
        errors.append(distance(run.us, reference))
        traced.append(layers[0].interaction.tally.traced)
    assert len(set(traced)) == 1
    assert min(errors) > 1e-12
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 4, atol=0.25)


def euler_by_layers(layers, u, steps):
    """States after every step of Euler, `steps` in each layer of length 0.5."""
    states = [np.asarray(u)]
    for part in layers:
        f = numpy_field(part)
        for _ in range(steps):
            states.append(states[-1] + 0.5 / steps * f(0.0, states[-1]))
    return np.stack(states)


def test_layers_are_the_default_and_part_of_the_depth(layered):
    equation, layers, _ = layered
    states = euler_by_layers(layers, field(), 2)
    run = simulate(Discretization(equation, "euler", t1=T1, steps=6), field())
    np.testing.assert_allclose(run.ts, [0.0, 0.5, 1.0, 1.5])
    np.testing.assert_array_equal(run.us[0], field())
    np.testing.assert_allclose(run.us, states[::2], rtol=1e-12, atol=1e-13)
    # Starting inside: layers 1 and 2 only, with their own weights.
    part = simulate(Discretization(equation, "euler", t0=0.5, t1=T1, steps=4), run.us[1], save="steps")
    np.testing.assert_allclose(part.us, states[2:], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(part.ts, [0.5, 0.75, 1.0, 1.25, 1.5])


def test_to_xarray(layered):
    equation, _, _ = layered
    run = simulate(Discretization(equation, "euler", t1=T1, steps=6), field())
    data = run.to_xarray()
    assert data["u"].dims == ("depth", "token", "feature") and data["u"].shape == (4, N, D)
    np.testing.assert_array_equal(data["u"].sel(depth=1.0), run.us[2])
    assert data.attrs["steps"] == data.attrs["evaluations"] == 6 and data.attrs["diverged"] == 0
    assert np.isinf(data.attrs["blowup_time"])


def test_reduce_over_layers(layered):
    equation, layers, _ = layered
    run = simulate(
        Discretization(equation, "euler", t1=T1, steps=6), field(), reduce=lambda t, u, args: jnp.mean(u) + 10 * t
    )
    slow = euler_by_layers(layers, field(), 2)[::2].mean(axis=(1, 2)) + 10 * np.array([0.0, 0.5, 1.0, 1.5])
    np.testing.assert_allclose(run.us, slow, rtol=1e-12)


def test_adaptive_across_layers(layered):
    """Tight tolerances on jumping weights, at the layers' ends and between, with few steps: none may cross a jump."""
    equation, layers, exact = layered
    depths = np.array([0.25, 0.5, 0.9, 1.5])
    tally = layers[0].interaction.tally
    before = tally.evaluated
    run = simulate(Discretization(equation, t1=T1, rtol=1e-8, atol=1e-8), field(), save=depths)
    assert distance(run.us, exact(field(), depths)) < 1e-6
    assert bool(run.complete)
    assert tally.evaluated - before == 2 * int(run.stats.evaluations)
    assert int(run.stats.steps) + int(run.stats.rejected) < 60  # 338 and worse order when steps cross (NUMERICS §1)


@pytest.mark.parametrize("dtype, count, t1", [("float64", 7, 0.9), ("float32", 5, 0.9)])
def test_depths_on_layer_edges_whatever_the_rounding(dtype, count, t1):
    """l·t1/L is not the same number computed in another order: no edge may fall out of its layer."""
    rates = 0.1 * np.arange(1, count + 1)
    layers = [MasterEquation(stabilization=LinearDamping(float(rate))) for rate in rates]
    depths = np.linspace(0.0, t1, count + 1)
    equation = DepthVarying.from_layers(layers, t1)
    run = simulate(Discretization(equation, "rk4", t1=t1, steps=2 * count), jnp.ones((2, 2), dtype), save=depths)
    exact = np.exp(-np.concatenate([[0.0], np.cumsum(rates * t1 / count)]))
    np.testing.assert_allclose(run.us[:, 0, 0], exact, rtol=1e-6)
    assert run.us.dtype == run.ts.dtype == dtype


# --- What is saved ------------------------------------------------------------------------------------------


def test_save_steps_and_reduce(smooth):
    _, varying, u0, _ = smooth
    f, h = numpy_cosine_field(varying), T1 / 5
    u, states = np.asarray(u0), [np.asarray(u0)]
    for k in range(5):
        u = u + h * f(k * h, u)
        states.append(u)
    run = simulate(Discretization(varying, "euler", t1=T1, steps=5), u0, save="steps")
    np.testing.assert_allclose(run.us, states, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(run.ts, np.linspace(0, T1, 6), rtol=1e-14)

    def norms(t, u, args):
        return {"size": jnp.sqrt(jnp.sum(u**2)), "depth": t, "mask": args.mask is None, "largest": jnp.argmax(u)}

    reduced = simulate(Discretization(varying, "euler", t1=T1, steps=5), u0, save="steps", reduce=norms)
    np.testing.assert_allclose(reduced.us["size"], [np.linalg.norm(s) for s in states], rtol=1e-12)
    np.testing.assert_allclose(reduced.us["depth"], run.ts, rtol=1e-14)
    assert reduced.us["mask"].dtype == bool and np.all(reduced.us["mask"])
    assert jnp.issubdtype(reduced.us["largest"].dtype, jnp.integer)
    np.testing.assert_array_equal(reduced.us["largest"], [np.argmax(s) for s in states])
    between = simulate(Discretization(varying, "euler", t1=T1, steps=5), u0, save=[0.0, h, 3 * h, T1], reduce=norms)
    np.testing.assert_allclose(between.us["size"], [np.linalg.norm(states[k]) for k in (0, 1, 3, 5)], rtol=1e-12)
    np.testing.assert_allclose(between.us["depth"], between.ts, rtol=1e-13)


def test_adaptive_steps_are_saved_as_taken(smooth):
    _, varying, u0, exact = smooth
    run = simulate(Discretization(varying, t1=T1, rtol=1e-6, atol=1e-6), u0, save="steps")
    assert len(run.ts) == int(run.stats.steps) + 1
    assert run.ts[0] == 0.0 and run.ts[-1] == T1 and np.all(np.diff(run.ts) > 0)
    np.testing.assert_array_equal(run.us[0], u0)
    assert np.isfinite(run.us).all() and distance(run.us[-1], exact) < 1e-5
