"""`simulate` against a field, weights and integrators written in NumPy and SciPy."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import erf

from pdejax import DepthVarying, DivergenceError, MasterEquation, MultilayerEquation, simulate, smooth_random
from pdejax.solvers import RK4, Euler, Grid, Kvaerno5, LieTrotter, Midpoint
from pdejax.terms import AbstractTerm, Attention, Diffusion, Exchange, FeedForward, LinearDamping, SpatialNorm

N, D, T1 = 6, 4, 1.5


class Tally:
    """How often a term was called while tracing, and how often it was evaluated while running."""

    def __init__(self):
        self.traced = self.evaluated = 0

    def tick(self, _):
        self.evaluated += 1
        return np.zeros(())


class Counted(AbstractTerm):
    """A term that counts its calls."""

    term: AbstractTerm
    tally: Tally = eqx.field(static=True)

    def __call__(self, t, u, args):
        self.tally.traced += 1
        # Not jax.debug.callback: that one would keep evaluations alive which nothing reads.
        zero = jax.pure_callback(self.tally.tick, jax.ShapeDtypeStruct((), jnp.float64), jnp.sum(u) + t)
        return self.term(t, u, args) + zero

    def damping(self):
        return self.term.damping()

    def check(self, n, d):
        self.term.check(n, d)


def field(seed=0, shape=(N, D)):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def master(key, tally=None, **options):
    k1, k2 = jax.random.split(key)
    interaction = Attention(D, 2, leak=True, strength=0.8, key=k1)
    reaction = FeedForward(D, 6, key=k2, **options)
    if tally is not None:
        interaction, reaction = Counted(interaction, tally), Counted(reaction, tally)
    return MasterEquation(interaction=interaction, reaction=reaction)


# --- The same in NumPy --------------------------------------------------------------------------------------


def numpy_terms(equation):
    """[A(u), R(u)] of `master` as NumPy functions."""
    a, r = equation.interaction, equation.reaction
    a, r = (x.term if isinstance(x, Counted) else x for x in (a, r))
    wq, wk, wv, wo, w1, b1, w2, b2 = (np.asarray(w) for w in (a.wq, a.wk, a.wv, a.wo, r.w1, r.b1, r.w2, r.b2))

    def interaction(u):
        logits = np.einsum("id,dhk,je,ehk->hij", u, wq, u, wk, optimize=True) / np.sqrt(wq.shape[-1])
        kernel = np.exp(logits - logits.max(axis=-1, keepdims=True))
        kernel /= kernel.sum(axis=-1, keepdims=True)
        return float(a.strength) * (np.einsum("hij,jd,dhk,hke->ie", kernel, u, wv, wo, optimize=True) - u)

    def reaction(u):
        z = u @ w1 + b1
        return {"gelu": 0.5 * z * (1 + erf(z / np.sqrt(2))), "relu": np.maximum(z, 0)}[r.activation] @ w2 + b2

    return [interaction, reaction]


def numpy_field(equation):
    terms = numpy_terms(equation)
    return lambda t, u: sum(f(u) for f in terms)


def numpy_cosine_field(varying):
    """θ(t) = Σ θ_k cos(πkt/T), then the field with those weights."""
    arrays, static = eqx.partition(varying.stacked, eqx.is_array)
    stacked = jax.tree.map(np.asarray, arrays)

    def f(t, u):
        basis = np.cos(np.pi * np.arange(varying.size) * t / varying.t1)
        weights = jax.tree.map(lambda leaf: np.tensordot(basis, leaf, axes=1), stacked)
        return numpy_field(eqx.combine(weights, static))(t, u)

    return f


def scipy_solve(f, u0, t1, t0=0.0, ts=None):
    """DOP853 to near rounding; the values at `ts` (default t1)."""
    ts = [t1] if ts is None else ts
    shape = np.shape(u0)
    solution = solve_ivp(
        lambda t, y: f(t, y.reshape(shape)).ravel(), (t0, t1), np.ravel(u0), "DOP853", ts, rtol=1e-13, atol=1e-13
    )
    return solution.y.T.reshape(len(ts), *shape)


def distance(a, b):
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))))


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
            run = simulate(varying, u0, t1=T1, steps=steps, solver=solver, save="end")
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


@pytest.mark.parametrize("solver", ORDERS)
def test_one_trace_serves_every_step_size(solver, sweep):
    traces = [sweep[solver, steps][4] for steps in STEPS]
    assert traces[0] > 0 and traces[1:] == [0] * 9


@pytest.mark.parametrize("solver", ORDERS)
def test_steps_and_evaluations_are_those_taken(solver, sweep):
    """Both terms tick once in an evaluation of the field."""
    for steps in STEPS:
        _, taken, reported, ticks, _ = sweep[solver, steps]
        assert taken == steps
        assert reported == PER_STEP[solver] * steps
        assert ticks == 2 * reported


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
    traced = tally.traced
    late = simulate(varying, u0, t0=0.4, t1=1.1, steps=64, solver="rk4", save="end")
    assert distance(late.us[0], scipy_solve(f, u0, 1.1, 0.4)[0]) < 1e-8
    np.testing.assert_allclose(late.ts, [1.1])
    first = simulate(varying, u0, t1=0.6, steps=8, solver="rk4")
    second = simulate(varying, first.us[-1], t0=0.6, t1=T1, steps=12, solver="rk4")
    whole = simulate(varying, u0, t1=T1, steps=20, solver="rk4")
    np.testing.assert_allclose(second.us, whole.us, rtol=1e-12, atol=1e-13)
    assert tally.traced == traced  # t0 and t1 are traced as well


def test_adaptive_reaches_its_tolerance(smooth):
    tally, varying, u0, exact = smooth
    errors, evaluations = [], []
    traced = None
    for tolerance in (1e-4, 1e-7, 1e-10):
        before = tally.evaluated
        run = simulate(varying, u0, t1=T1, rtol=tolerance, atol=tolerance)
        errors.append(distance(run.us[-1], exact))
        counted = tally.evaluated - before
        assert counted == 2 * int(run.stats.evaluations)
        evaluations.append(counted)
        assert bool(run.complete) and not bool(run.diverged) and np.isnan(float(run.blowup_time))
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
        run = simulate(varying, u0, t1=T1, steps=steps, solver="rk4", save=depths)
        np.testing.assert_array_equal(run.ts, depths)
        np.testing.assert_array_equal(run.us[0], u0)
        # The mean over many depths: at one of them the error depends on where in its step it lies.
        errors[steps] = np.sqrt(np.mean((np.asarray(run.us) - exact) ** 2))
        traced.append(tally.traced)
    assert len(set(traced)) == 1
    measured = np.array([errors[steps] for steps in (32, 64, 128)])
    assert measured.min() > 1e-12
    np.testing.assert_allclose(np.log2(measured[:-1] / measured[1:]), 4, atol=0.15)
    end = simulate(varying, u0, t1=T1, steps=128, solver="rk4", save="end").us[0]
    np.testing.assert_allclose(run.us[-1], end, rtol=1e-12)


def test_relu_caps_rk4_at_order_two():
    """u' = 1 + relu(u) has a kink at u = 0: u = −a + t until t = a, e^{t−a} − 1 after. Many a, the worst counts."""
    reaction = FeedForward(1, 1, activation="relu", key=jax.random.key(0))
    ones = (jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones(1))
    reaction = eqx.tree_at(lambda m: (m.w1, m.w2, m.b2), reaction, ones)
    a = np.linspace(0.31, 0.52, 16)[:, None]
    exact = np.expm1(1.0 - a)
    errors = [
        distance(
            simulate(MasterEquation(reaction=reaction), jnp.asarray(-a), t1=1.0, steps=n, solver="rk4").us[0], exact
        )
        for n in (16, 32, 64, 128)
    ]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(orders > 1.6) and np.all(orders < 2.4), orders


# --- Piecewise-constant weights -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layered():
    """Three layers over [0, 1.5], and the exact states at given depths, layer by layer by SciPy."""
    layers = [master(key) for key in jax.random.split(jax.random.key(2), 3)]

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
    equation, _, exact = layered
    depths = np.array([0.0, 0.2, 0.5, 0.61, 0.93, 1.0, 1.3, 1.5])
    reference = exact(field(), depths)
    errors = []
    for steps in (24, 48, 96):
        run = simulate(equation, field(), t1=T1, steps=steps, solver="rk4", save=depths)
        assert int(run.stats.steps) == steps and int(run.stats.evaluations) == 4 * steps
        errors.append(distance(run.us, reference))
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
    run = simulate(equation, field(), t1=T1, steps=6, solver="euler")
    np.testing.assert_allclose(run.ts, [0.0, 0.5, 1.0, 1.5])
    np.testing.assert_array_equal(run.us[0], field())
    np.testing.assert_allclose(run.us, states[::2], rtol=1e-12, atol=1e-13)
    # Starting inside: layers 1 and 2 only, with their own weights.
    part = simulate(equation, run.us[1], t0=0.5, t1=T1, steps=4, solver="euler", save="steps")
    np.testing.assert_allclose(part.us, states[2:], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(part.ts, [0.5, 0.75, 1.0, 1.25, 1.5])


def test_to_xarray(layered):
    equation, _, _ = layered
    run = simulate(equation, field(), t1=T1, steps=6, solver="euler")
    data = run.to_xarray()
    assert data["u"].dims == ("depth", "token", "feature") and data["u"].shape == (4, N, D)
    np.testing.assert_array_equal(data["u"].sel(depth=1.0), run.us[2])
    assert data.attrs["steps"] == data.attrs["evaluations"] == 6 and data.attrs["diverged"] == 0
    assert np.isnan(data.attrs["blowup_time"])


def test_reduce_over_layers(layered):
    equation, layers, _ = layered
    run = simulate(equation, field(), t1=T1, steps=6, solver="euler", reduce=lambda t, u, args: jnp.mean(u) + 10 * t)
    slow = euler_by_layers(layers, field(), 2)[::2].mean(axis=(1, 2)) + 10 * np.array([0.0, 0.5, 1.0, 1.5])
    np.testing.assert_allclose(run.us, slow, rtol=1e-12)


def test_adaptive_across_layers(layered):
    """Tight tolerances on jumping weights, at the layers' ends and between, with few steps: none may cross a jump."""
    equation, _, exact = layered
    depths = np.array([0.25, 0.5, 0.9, 1.5])
    run = simulate(equation, field(), t1=T1, rtol=1e-8, atol=1e-8, save=depths)
    assert distance(run.us, exact(field(), depths)) < 1e-6
    assert bool(run.complete)
    assert int(run.stats.steps) + int(run.stats.rejected) < 60  # 338 and worse order when steps cross (NUMERICS §1)


@pytest.mark.parametrize("dtype, count, t1", [("float64", 7, 0.9), ("float32", 5, 0.9)])
def test_depths_on_layer_edges_whatever_the_rounding(dtype, count, t1):
    """l·t1/L is not the same number computed in another order: no edge may fall out of its layer."""
    rates = 0.1 * np.arange(1, count + 1)
    layers = [MasterEquation(stabilization=LinearDamping(float(rate))) for rate in rates]
    depths = np.linspace(0.0, t1, count + 1)
    equation = DepthVarying.from_layers(layers, t1)
    run = simulate(equation, jnp.ones((2, 2), dtype), t1=t1, steps=2 * count, solver="rk4", save=depths)
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
    run = simulate(varying, u0, t1=T1, steps=5, solver="euler", save="steps")
    np.testing.assert_allclose(run.us, states, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(run.ts, np.linspace(0, T1, 6), rtol=1e-14)

    def norms(t, u, args):
        return {"size": jnp.sqrt(jnp.sum(u**2)), "depth": t, "mask": args.mask is None, "largest": jnp.argmax(u)}

    reduced = simulate(varying, u0, t1=T1, steps=5, solver="euler", save="steps", reduce=norms)
    np.testing.assert_allclose(reduced.us["size"], [np.linalg.norm(s) for s in states], rtol=1e-12)
    np.testing.assert_allclose(reduced.us["depth"], run.ts, rtol=1e-14)
    assert np.all(reduced.us["mask"] == 1.0)  # whatever is kept is a float, so that NaN can mark what is missing
    np.testing.assert_array_equal(reduced.us["largest"], [np.argmax(s) for s in states])
    between = simulate(varying, u0, t1=T1, steps=5, solver="euler", save=[0.0, h, 3 * h, T1], reduce=norms)
    np.testing.assert_allclose(between.us["size"], [np.linalg.norm(states[k]) for k in (0, 1, 3, 5)], rtol=1e-12)
    np.testing.assert_allclose(between.us["depth"], between.ts, rtol=1e-13)


def test_adaptive_steps_are_saved_as_taken(smooth):
    _, varying, u0, exact = smooth
    run = simulate(varying, u0, t1=T1, rtol=1e-6, atol=1e-6, save="steps")
    assert len(run.ts) == int(run.stats.steps) + 1
    assert run.ts[0] == 0.0 and run.ts[-1] == T1 and np.all(np.diff(run.ts) > 0)
    np.testing.assert_array_equal(run.us[0], u0)
    assert np.isfinite(run.us).all() and distance(run.us[-1], exact) < 1e-5


# --- Masks, batches, splittings, coupled layers -------------------------------------------------------------


def test_mask_is_dropping_the_padding(getkey):
    """Attention, FFN and SpatialNorm under a mask: four Euler steps of the real tokens alone."""
    parts = master(getkey())
    equation = MasterEquation(parts.interaction, parts.reaction, stabilization=SpatialNorm(0.4, eps=0.1))
    mask = np.array([True, False, True, True, False, True])
    f, u = numpy_field(parts), np.asarray(field())[mask]
    for _ in range(4):
        centred = u - u.mean(axis=0)
        spread = np.mean(np.sum(centred**2, axis=1))
        u = u + 0.25 * (f(0.0, u) - 0.4 * centred / np.sqrt(spread + 0.1))
    run = simulate(equation, field(), t1=1.0, steps=4, solver="euler", mask=mask)
    np.testing.assert_allclose(run.us[-1][mask], u, rtol=1e-12, atol=1e-13)


def test_batches_by_vmap_and_jit(getkey):
    equation, batch = master(getkey()), field(3, (3, N, D))

    @jax.jit
    @jax.vmap
    def run(u):
        return simulate(equation, u, t1=1.0, steps=8, solver="heun", save=[0.25, 1.0])

    together, f = run(batch), numpy_field(equation)
    for u, states in zip(np.asarray(batch), together.us, strict=True):
        for k in range(8):
            first = f(0.0, u)
            u = u + 0.125 / 2 * (first + f(0.0, u + 0.125 * first))
            if k in (1, 7):
                np.testing.assert_allclose(states[(1, 7).index(k)], u, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(together.stats.steps, [8, 8, 8])
    np.testing.assert_array_equal(together.stats.evaluations, [16, 16, 16])
    assert together.ts.shape == (3, 2) and not together.diverged.any()


def numpy_flow(solver, f, h, u):
    """One step of Euler or the midpoint rule."""
    return u + h * (f(u) if solver == "euler" else f(u + h / 2 * f(u)))


def test_splittings_are_the_compositions(getkey):
    """Lie–Trotter in the order of `split`; Strang ½R, A, ½R."""
    equation = master(getkey())
    a, r = numpy_terms(equation)
    h = 1.0 / 3

    def loop(schedule):
        u = np.asarray(field())
        for _ in range(3):
            for kind, f, part in schedule:
                u = numpy_flow(kind, f, part * h, u)
        return u

    swapped = (("reaction",), ("interaction",))
    cases = [
        ({"solver": LieTrotter((Midpoint(), Euler())), "split": swapped}, [("midpoint", r, 1), ("euler", a, 1)], 1.5),
        ({"solver": "strang"}, [("midpoint", r, 0.5), ("midpoint", a, 1), ("midpoint", r, 0.5)], 3),
    ]
    for options, schedule, cost in cases:
        run = simulate(equation, field(), t1=1.0, steps=3, **options)
        np.testing.assert_allclose(run.us[0], loop(schedule), rtol=1e-12, atol=1e-13)
        assert int(run.stats.evaluations) == np.ceil(3 * cost)


def test_coupled_layers(getkey):
    """v1 (20): explicit Euler on L coupled fields, by loops over layers, tokens and the stencil; and split."""
    parts = [master(getkey()) for _ in range(3)]
    layers = [
        MasterEquation(p.interaction, p.reaction, Diffusion(Grid(N), 0.01 * (l + 1)), LinearDamping(0.1))
        for l, p in enumerate(parts)
    ]
    exchange = [Exchange(D, key=getkey()) for _ in range(2)]
    h, dx = 0.05, 1.0 / N

    def local(l, u):
        du = numpy_field(parts[l])(0.0, u) - 0.1 * u
        for i in range(N):
            left, right = u[max(i - 1, 0)], u[min(i + 1, N - 1)]
            du[i] += 0.01 * (l + 1) * (left - 2 * u[i] + right) / dx**2
        return du

    def coupling(u):
        du = np.zeros_like(u)
        for l in range(2):
            flow = u[l] @ np.asarray(exchange[l].w).T + np.asarray(exchange[l].b)
            du[l + 1] += flow
            du[l] -= flow
        return du

    u0 = field(4, (3, N, D))
    equation = MultilayerEquation(layers, exchange)
    run = simulate(equation, u0, t1=4 * h, steps=4, solver="euler", save="steps")
    u = np.asarray(u0)
    for k in range(4):
        np.testing.assert_allclose(run.us[k], u, rtol=1e-12, atol=1e-13)
        u = u + h * (np.stack([local(l, u[l]) for l in range(3)]) + coupling(u))
    np.testing.assert_allclose(run.us[4], u, rtol=1e-12, atol=1e-13)
    assert run.to_xarray()["u"].dims == ("depth", "layer", "token", "feature")
    split = (("interaction", "reaction", "diffusion", "stabilization"), ("exchange",))
    split_run = simulate(equation, u0, t1=4 * h, steps=4, solver="lietrotter", split=split)
    u = np.asarray(u0)
    for _ in range(4):
        u = u + h * np.stack([local(l, u[l]) for l in range(3)])
        u = u + h * coupling(u)
    np.testing.assert_allclose(split_run.us[0], u, rtol=1e-12, atol=1e-13)


def test_implicit_and_step_doubling():
    """Kvaerno5 with fixed steps beyond every explicit stability limit, in both precisions; HalfSolver makes RK4 adaptive."""
    stiff = MasterEquation(stabilization=LinearDamping(jnp.array([1.0, 300.0])))
    for dtype, tolerance in (("float64", 1e-6), ("float32", 1e-4)):
        run = simulate(stiff, jnp.ones((2, 1), dtype), t1=1.0, steps=8, solver=Kvaerno5())
        assert bool(run.complete) and run.us.dtype == dtype
        np.testing.assert_allclose(run.us[0, :, 0], [np.exp(-1.0), 0.0], atol=tolerance)
        assert int(run.stats.evaluations) == -1
    half = simulate(stiff, jnp.ones((2, 1)), t1=0.1, rtol=1e-9, atol=1e-9, solver=diffrax.HalfSolver(RK4()))
    np.testing.assert_allclose(half.us[0, :, 0], np.exp([-0.1, -30.0]), atol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exactly_as_many_steps_as_asked(dtype):
    """Whatever the interval, however its length divides."""
    equation, u0 = MasterEquation(stabilization=LinearDamping(1e-6)), jnp.ones((1, 1), dtype)
    for t0, t1 in ((0.0, 1.0), (0.0, 0.3), (0.1, 0.7), (-3.0, 11.0), (0.0, 6.0), (0.0, 1e-3), (100.0, 101.0)):
        for steps in (1, 3, 7, 10, 49, 100, 999):
            run = simulate(equation, u0, t0=t0, t1=t1, steps=steps, solver="euler")
            assert int(run.stats.steps) == steps and bool(run.complete)
    np.testing.assert_allclose(run.us[0], (1 - 1e-6 / 999) ** 999, rtol=1e-5)


# --- Divergence ---------------------------------------------------------------------------------------------


class Cubic(AbstractTerm):
    """u' = |u|² u per token: |u|² = s/(1 − 2st), which ends at t* = 1/(2s)."""

    def __call__(self, t, u, args):
        return u * jnp.sum(u**2, axis=1, keepdims=True)

    def damping(self):
        return jnp.zeros(())

    def check(self, n, d):
        del n, d


def test_explicit_instability_is_reported():
    """Euler on u' = −γu multiplies by 1 − hγ = −1.5: it passes the limit in the predicted step, and not before."""
    equation, u0 = MasterEquation(stabilization=LinearDamping(25.0)), jnp.ones((2, 2))
    options = {"t1": 10.0, "steps": 100, "solver": "euler", "blowup": 1e6}
    predicted = int(np.ceil(np.log(1e6) / np.log(1.5))) * 0.1
    run = simulate(equation, u0, **options, save="steps")
    assert bool(run.diverged) and not bool(run.complete)
    assert float(run.blowup_time) == pytest.approx(predicted, rel=1e-12)
    k = round(predicted / 0.1)
    np.testing.assert_allclose(run.us[:k, 0, 0], (-1.5) ** np.arange(k), rtol=1e-10)
    assert np.isnan(run.us[k + 1 :]).all() and len(run.us) == 101
    assert int(run.stats.steps) == k
    end = simulate(equation, u0, **options)
    assert np.isnan(end.us).all() and float(end.blowup_time) == pytest.approx(predicted, rel=1e-12)
    depths = simulate(equation, u0, **options, save=[1.05, 3.0, 9.0])
    assert np.isfinite(depths.us[:2]).all() and np.isnan(depths.us[2]).all()
    with pytest.raises(DivergenceError, match=r"blew up at depth t = 3\.5"):
        simulate(equation, u0, **options, throw=True)
    # Below the limit 2 the same field decays.
    stable = simulate(equation, u0, **options | {"steps": 126}, throw=True)
    assert not bool(stable.diverged) and abs(float(stable.us[0, 0, 0])) == pytest.approx(
        (250 / 126 - 1) ** 126, rel=1e-9
    )


@pytest.mark.parametrize("adaptive", [True, False])
def test_finite_time_blow_up(adaptive):
    """The first token reaches infinity at t* = 1/(2·1.25): seen by both kinds of stepping, and the past is kept."""
    u0 = jnp.array([[1.0, 0.5], [0.1, 0.2]])
    options = {"rtol": 1e-9, "atol": 1e-9} if adaptive else {"steps": 2000, "solver": "rk4"}
    run = simulate(MasterEquation(reaction=Cubic()), u0, t1=1.0, save=[0.0, 0.2, 0.38, 0.7], **options)
    assert bool(run.diverged)
    assert float(run.blowup_time) == pytest.approx(0.4, abs=1e-6 if adaptive else 2e-3)
    size = np.sqrt(1.25 / (1 - 2.5 * np.array([0.0, 0.2, 0.38])))
    np.testing.assert_allclose(np.linalg.norm(run.us[:3, 0], axis=1), size, rtol=1e-6)
    assert np.isnan(run.us[3]).all()


def test_blow_up_across_layers():
    """Layer 1 of three grows: what follows is NaN, and so is nothing before."""
    layers = [MasterEquation(stabilization=LinearDamping(rate)) for rate in (1.0, 50.0, 1.0)]
    run = simulate(
        DepthVarying.from_layers(layers, 3.0), jnp.ones((2, 2)), t1=3.0, steps=60, solver="euler", blowup=10.0
    )
    # Euler with h = 0.05 multiplies by 0.95 twenty times, then by −1.5.
    crossing = np.ceil(np.log(10.0 / 0.95**20) / np.log(1.5))
    assert bool(run.diverged) and float(run.blowup_time) == pytest.approx(1.0 + 0.05 * crossing, rel=1e-12)
    np.testing.assert_allclose(run.us[:2, 0, 0], [1.0, 0.95**20], rtol=1e-12)
    assert np.isnan(run.us[2:]).all()


def test_steps_that_run_out_are_reported():
    equation, u0 = MasterEquation(stabilization=LinearDamping(1e4)), jnp.ones((1, 1))
    run = simulate(equation, u0, t1=10.0, rtol=1e-6, atol=1e-6, max_steps=50)
    assert not bool(run.complete) and not bool(run.diverged)
    assert int(run.stats.steps) + int(run.stats.rejected) == 50
    assert np.isnan(run.us).all()  # not the state of some earlier depth under the label t1
    depths = simulate(equation, u0, t1=10.0, rtol=1e-6, atol=1e-6, max_steps=50, save=[0.0, 1e-4, 10.0])
    np.testing.assert_allclose(depths.us[:2, 0, 0], [1.0, np.exp(-1.0)], rtol=1e-5)
    assert np.isnan(depths.us[2]).all()
    layers = DepthVarying.from_layers([equation, equation], 10.0)
    halves = simulate(layers, u0, t1=10.0, rtol=1e-6, atol=1e-6, max_steps=50)
    assert not bool(halves.complete) and not bool(halves.diverged)
    assert halves.us[0] == 1.0 and np.isnan(halves.us[1:]).all()
    with pytest.raises(DivergenceError, match="did not reach t1; raise max_steps"):
        simulate(equation, u0, t1=10.0, rtol=1e-6, atol=1e-6, max_steps=50, throw=True)


def test_progress_meter(capsys, getkey):
    simulate(master(getkey()), field(), t1=1.0, steps=20, solver="euler", progress=True).us.block_until_ready()
    jax.effects_barrier()
    shown = capsys.readouterr()
    assert "100.00%" in shown.out + shown.err


def test_float32_all_the_way(getkey):
    """float64 weights, a float32 field: everything stays float32 and agrees to its precision."""
    equation = master(getkey())
    exact = scipy_solve(numpy_field(equation), field(), 1.0)
    for options in ({"steps": 32, "solver": "rk4"}, {"rtol": 1e-5, "atol": 1e-5}):
        single = simulate(equation, field().astype(jnp.float32), t1=1.0, **options)
        assert {single.us.dtype, single.ts.dtype, single.blowup_time.dtype} == {jnp.dtype("float32")}
        np.testing.assert_allclose(single.us, exact, rtol=1e-4, atol=1e-4)


def test_one_token_and_one_feature(getkey):
    """N = 1 and d = 1 are sequences too: softmax over one key is 1, so u' = W_O W_V u."""
    attention = Attention(1, 1, key=getkey())
    run = simulate(MasterEquation(interaction=attention), jnp.full((1, 1), 2.0), t1=1.0, rtol=1e-10, atol=1e-10)
    rate = float(attention.wv[0, 0, 0] * attention.wo[0, 0, 0])
    assert float(run.us[0, 0, 0]) == pytest.approx(2.0 * np.exp(rate), rel=1e-9)
