"""`simulate` with masks, batches, splittings, coupled layers, blow-up and small precision, against NumPy and SciPy."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulate_twin import D, N, field, master, numpy_field, numpy_terms, scipy_solve

from pdejax import DepthVarying, DivergenceError, MasterEquation, MultilayerEquation, simulate
from pdejax._discretization import Discretization
from pdejax.solvers import RK4, Euler, Grid, Kvaerno5, LieTrotter, Midpoint
from pdejax.terms import AbstractTerm, Attention, Diffusion, Exchange, LinearDamping, SpatialNorm

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
    run = simulate(Discretization(equation, "euler", t1=1.0, steps=4), field(), mask=mask)
    np.testing.assert_allclose(run.us[-1][mask], u, rtol=1e-12, atol=1e-13)


def test_batches_by_vmap_and_jit(getkey):
    equation, batch = master(getkey()), field(3, (3, N, D))

    @jax.jit
    @jax.vmap
    def run(u):
        return simulate(Discretization(equation, "heun", t1=1.0, steps=8), u, save=[0.25, 1.0])

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
        run = simulate(Discretization(equation, t1=1.0, steps=3, **options), field())
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
    run = simulate(Discretization(equation, "euler", t1=4 * h, steps=4), u0, save="steps")
    u = np.asarray(u0)
    for k in range(4):
        np.testing.assert_allclose(run.us[k], u, rtol=1e-12, atol=1e-13)
        u = u + h * (np.stack([local(l, u[l]) for l in range(3)]) + coupling(u))
    np.testing.assert_allclose(run.us[4], u, rtol=1e-12, atol=1e-13)
    assert run.to_xarray()["u"].dims == ("depth", "layer", "token", "feature")
    split = (("interaction", "reaction", "diffusion", "stabilization"), ("exchange",))
    split_run = simulate(Discretization(equation, "lietrotter", t1=4 * h, steps=4, split=split), u0)
    u = np.asarray(u0)
    for _ in range(4):
        u = u + h * np.stack([local(l, u[l]) for l in range(3)])
        u = u + h * coupling(u)
    np.testing.assert_allclose(split_run.us[0], u, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
def test_implicit_and_step_doubling():
    """Kvaerno5 with fixed steps beyond every explicit stability limit, in both precisions; HalfSolver makes RK4 adaptive."""
    stiff = MasterEquation(stabilization=LinearDamping(jnp.array([1.0, 300.0])))
    for dtype, tolerance in (("float64", 1e-6), ("float32", 1e-4)):
        run = simulate(Discretization(stiff, Kvaerno5(), t1=1.0, steps=8), jnp.ones((2, 1), dtype))
        assert bool(run.complete) and run.us.dtype == dtype
        np.testing.assert_allclose(run.us[0, :, 0], [np.exp(-1.0), 0.0], atol=tolerance)
        assert int(run.stats.evaluations) == -1
    half = simulate(Discretization(stiff, diffrax.HalfSolver(RK4()), t1=0.1, rtol=1e-9, atol=1e-9), jnp.ones((2, 1)))
    np.testing.assert_allclose(half.us[0, :, 0], np.exp([-0.1, -30.0]), atol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exactly_as_many_steps_as_asked(dtype):
    """Whatever the interval, however its length divides."""
    equation, u0 = MasterEquation(stabilization=LinearDamping(1e-6)), jnp.ones((1, 1), dtype)
    for t0, t1 in ((0.0, 1.0), (0.0, 0.3), (0.1, 0.7), (-3.0, 11.0), (0.0, 6.0), (0.0, 1e-3), (100.0, 101.0)):
        for steps in (1, 3, 7, 10, 49, 100, 999):
            run = simulate(Discretization(equation, "euler", t0=t0, t1=t1, steps=steps), u0)
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
    d = Discretization(equation, "euler", t1=10.0, steps=100)
    predicted = int(np.ceil(np.log(1e6) / np.log(1.5))) * 0.1
    run = simulate(d, u0, blowup=1e6, save="steps")
    assert bool(run.diverged) and not bool(run.complete)
    assert float(run.blowup_time) == pytest.approx(predicted, rel=1e-12)
    k = round(predicted / 0.1)
    np.testing.assert_allclose(run.us[:k, 0, 0], (-1.5) ** np.arange(k), rtol=1e-10)
    assert np.isnan(run.us[k + 1 :]).all() and len(run.us) == 101
    assert int(run.stats.steps) == k
    end = simulate(d, u0, blowup=1e6)
    assert np.isnan(end.us).all() and float(end.blowup_time) == pytest.approx(predicted, rel=1e-12)
    depths = simulate(d, u0, blowup=1e6, save=[1.05, 3.0, 9.0])
    assert np.isfinite(depths.us[:2]).all() and np.isnan(depths.us[2]).all()
    with pytest.raises(DivergenceError, match=r"blew up at depth t = 3\.5"):
        simulate(d, u0, blowup=1e6, throw=True)
    # Below the limit 2 the same field decays.
    stable = simulate(d.replace(steps=126), u0, blowup=1e6, throw=True)
    assert not bool(stable.diverged) and abs(float(stable.us[0, 0, 0])) == pytest.approx(
        (250 / 126 - 1) ** 126, rel=1e-9
    )


@pytest.mark.parametrize("adaptive", [True, False])
def test_finite_time_blow_up(adaptive):
    """The first token reaches infinity at t* = 1/(2·1.25): seen by both kinds of stepping, and the past is kept."""
    u0 = jnp.array([[1.0, 0.5], [0.1, 0.2]])
    options = {"rtol": 1e-9, "atol": 1e-9} if adaptive else {"steps": 2000, "solver": "rk4"}
    run = simulate(Discretization(MasterEquation(reaction=Cubic()), t1=1.0, **options), u0, save=[0.0, 0.2, 0.38, 0.7])
    assert bool(run.diverged)
    assert float(run.blowup_time) == pytest.approx(0.4, abs=1e-6 if adaptive else 2e-3)
    size = np.sqrt(1.25 / (1 - 2.5 * np.array([0.0, 0.2, 0.38])))
    np.testing.assert_allclose(np.linalg.norm(run.us[:3, 0], axis=1), size, rtol=1e-6)
    assert np.isnan(run.us[3]).all()


def test_divergence_in_a_batch_and_under_jit():
    """One lane of a batch blows up, the other does not notice; under jit `throw` raises when the result arrives."""

    def run(gamma, throw=False):
        equation = MasterEquation(stabilization=LinearDamping(gamma))
        return simulate(
            Discretization(equation, "euler", t1=10.0, steps=100), jnp.ones((1, 1)), blowup=1e6, throw=throw
        )

    both = jax.vmap(run)(jnp.array([1.0, 25.0]))
    np.testing.assert_array_equal(both.diverged, [False, True])
    np.testing.assert_array_equal(both.complete, [True, False])
    np.testing.assert_allclose(both.us[:, 0, 0, 0], [0.9**100, np.nan], rtol=1e-10)
    np.testing.assert_allclose(both.blowup_time, [np.inf, 3.5], rtol=1e-12)
    np.testing.assert_array_equal(both.stats.steps, [100, 35])
    with pytest.raises(RuntimeError, match="did not reach t1"):
        jax.jit(lambda gamma: run(gamma, throw=True).us)(25.0).block_until_ready()


@pytest.mark.parametrize("differentiated", [False, True])
def test_what_is_saved_around_a_blow_up(differentiated):
    """Both paths of a fixed-step solve, plain and under a derivative: two depths inside one step, on the line between its
    ends; the depth of the blow-up; and nothing after it, in later layers neither."""
    # In the last layer Euler would take what is left to 0, which looks like a result.
    layers = [MasterEquation(stabilization=LinearDamping(rate)) for rate in (1.0, 50.0, 20.0)]
    d, u0 = Discretization(DepthVarying.from_layers(layers, 3.0), "euler", t1=3.0, steps=60), jnp.ones((2, 2))

    def run(u):
        found = simulate(d, u, blowup=10.0, save=[0.51, 0.54, 1.0, 1.3, 2.2, 2.9])
        return found.us, found.blowup_time

    us, time = jax.jvp(run, (u0,), (jnp.zeros_like(u0),))[0] if differentiated else run(u0)
    begin, end = 0.95**10, 0.95**11
    x = np.array([0.2, 0.8])  # of the step from 0.5 to 0.55
    np.testing.assert_allclose(us[:2, 0, 0], begin + x * (end - begin), rtol=1e-12)
    np.testing.assert_allclose(us[2:4, 0, 0], [0.95**20, 0.95**20 * 1.5**6], rtol=1e-10)
    assert np.isnan(us[4:]).all()
    crossing = np.ceil(np.log(10.0 / 0.95**20) / np.log(1.5))
    assert float(time) == pytest.approx(1.0 + 0.05 * crossing, rel=1e-12)


def test_blow_up_across_layers():
    """Layer 1 of three grows: what follows is NaN, and so is nothing before."""
    layers = [MasterEquation(stabilization=LinearDamping(rate)) for rate in (1.0, 50.0, 1.0)]
    run = simulate(
        Discretization(DepthVarying.from_layers(layers, 3.0), "euler", t1=3.0, steps=60), jnp.ones((2, 2)), blowup=10.0
    )
    # Euler with h = 0.05 multiplies by 0.95 twenty times, then by −1.5.
    crossing = np.ceil(np.log(10.0 / 0.95**20) / np.log(1.5))
    assert bool(run.diverged) and float(run.blowup_time) == pytest.approx(1.0 + 0.05 * crossing, rel=1e-12)
    np.testing.assert_allclose(run.us[:2, 0, 0], [1.0, 0.95**20], rtol=1e-12)
    assert np.isnan(run.us[2:]).all()


def test_steps_that_run_out_are_reported():
    equation, u0 = MasterEquation(stabilization=LinearDamping(1e4)), jnp.ones((1, 1))
    run = simulate(Discretization(equation, t1=10.0, rtol=1e-6, atol=1e-6, max_steps=50), u0)
    assert not bool(run.complete) and not bool(run.diverged)
    assert int(run.stats.steps) + int(run.stats.rejected) == 50
    assert np.isnan(run.us).all()  # not the state of some earlier depth under the label t1
    depths = simulate(Discretization(equation, t1=10.0, rtol=1e-6, atol=1e-6, max_steps=50), u0, save=[0.0, 1e-4, 10.0])
    np.testing.assert_allclose(depths.us[:2, 0, 0], [1.0, np.exp(-1.0)], rtol=1e-5)
    assert np.isnan(depths.us[2]).all()
    layers = DepthVarying.from_layers([equation, equation], 10.0)
    halves = simulate(Discretization(layers, t1=10.0, rtol=1e-6, atol=1e-6, max_steps=50), u0)
    assert not bool(halves.complete) and not bool(halves.diverged)
    assert halves.us[0] == 1.0 and np.isnan(halves.us[1:]).all()
    with pytest.raises(DivergenceError, match="did not reach t1; raise max_steps"):
        simulate(Discretization(equation, t1=10.0, rtol=1e-6, atol=1e-6, max_steps=50), u0, throw=True)


def test_progress_meter(capsys, getkey):
    simulate(Discretization(master(getkey()), "euler", t1=1.0, steps=20), field(), progress=True).us.block_until_ready()
    jax.effects_barrier()
    shown = capsys.readouterr()
    assert "100.00%" in shown.out + shown.err


def test_progress_of_layers(capsys, getkey):
    layers = DepthVarying.from_layers([master(getkey()) for _ in range(3)], 3.0)
    simulate(Discretization(layers, "euler", t1=3.0, steps=3), field(), progress=True)
    jax.effects_barrier()
    assert capsys.readouterr().err.splitlines() == ["layer 1 of 3", "layer 2 of 3", "layer 3 of 3"]


def test_float32_all_the_way(getkey):
    """float64 weights, a float32 field: everything stays float32 and agrees to its precision."""
    equation = master(getkey())
    exact = scipy_solve(numpy_field(equation), field(), 1.0)
    for options in ({"steps": 32, "solver": "rk4"}, {"rtol": 1e-5, "atol": 1e-5}):
        single = simulate(Discretization(equation, t1=1.0, **options), field().astype(jnp.float32))
        assert {single.us.dtype, single.ts.dtype, single.blowup_time.dtype} == {jnp.dtype("float32")}
        np.testing.assert_allclose(single.us, exact, rtol=1e-4, atol=1e-4)


def test_one_token_and_one_feature(getkey):
    """N = 1 and d = 1 are sequences too: softmax over one key is 1, so u' = W_O W_V u."""
    attention = Attention(1, 1, key=getkey())
    run = simulate(
        Discretization(MasterEquation(interaction=attention), t1=1.0, rtol=1e-10, atol=1e-10), jnp.full((1, 1), 2.0)
    )
    rate = float(attention.wv[0, 0, 0] * attention.wo[0, 0, 0])
    assert float(run.us[0, 0, 0]) == pytest.approx(2.0 * np.exp(rate), rel=1e-9)


def test_printed_results(getkey):
    """What a notebook shows: numbers, not arrays."""
    d = Discretization(master(getkey()), "heun", t1=1.0, steps=4)
    run = simulate(d, field(), save="steps")
    assert repr(run).splitlines() == [
        f"Trajectory of states {(5, N, D)}, depth first",
        "t        5 depths in [0, 1]",
        "solve    4 steps, 0 rejected, 8 field evaluations",
        "complete",
    ]
    assert repr(run.stats) == "4 steps, 0 rejected, 8 field evaluations"
    assert "depth" in run._repr_html_()
    blown = simulate(Discretization(MasterEquation(reaction=Cubic()), "rk4", t1=1.0, steps=99), 3 * jnp.ones((2, 2)))
    assert "diverged at t = 0.0" in repr(blown)
    both = jax.vmap(lambda u: simulate(d, u))(jnp.stack([field(), field()]))
    assert repr(both).startswith(f"Trajectories {(2, 1, N, D)}") and "4 steps" in repr(both)
    shown = []
    jax.jit(lambda u: shown.append(repr(simulate(d, u))) or u)(field())
    assert shown[0].endswith("(traced)")
