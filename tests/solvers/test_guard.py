"""BlowupGuard on u' = u², which blows up at 1/u(0), and on fields that fail in other ways."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.solvers import RK4, BlowupGuard, Euler, GuardState, Kvaerno5, Tsit5

FIXED = diffrax.ConstantStepSize()
PID = diffrax.PIDController(rtol=1e-8, atol=1e-10)


def guard(controller, limit):
    """A guard whose limit is traced, so that tests share their compilations."""
    return BlowupGuard(controller, jnp.asarray(limit))


def run(field, u0, controller, solver=None, t0=0.0, t1=1.0, dt0=1e-3, save=None, adjoint=None):
    """A solve from t0 to t1; by Tsit5 for adaptive steps, by RK4 for fixed ones, unless `solver` is given."""
    if solver is None:
        solver = Tsit5() if isinstance(controller, diffrax.AbstractAdaptiveStepSizeController) else RK4()
    t0, t1, dt0 = (jnp.asarray(t) for t in (t0, t1, dt0))
    save = diffrax.SaveAt(t1=True, controller_state=True) if save is None else save
    return _run(field, u0, controller, solver, t0, t1, dt0, save, adjoint or diffrax.ForwardMode())


@eqx.filter_jit
def _run(field, u0, controller, solver, t0, t1, dt0, save, adjoint):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        t0,
        t1,
        dt0,
        u0,
        stepsize_controller=controller,
        saveat=save,
        adjoint=adjoint,
        max_steps=4096,
        throw=False,
    )


def square(t, u, args):
    return u**2


def test_fixed_steps_end_at_the_limit():
    solution = run(square, jnp.array([[2.0]]), guard(FIXED, 1e6))
    state = solution.controller_state
    assert isinstance(state, GuardState) and bool(state.diverged)
    assert 0.5 < float(state.blowup_time) < 0.51
    assert diffrax.RESULTS[solution.result] == diffrax.RESULTS[diffrax.RESULTS.nonlinear_divergence]
    # The solve ended there, with the state that went past the limit.
    np.testing.assert_allclose(int(solution.stats["num_steps"]), round(float(state.blowup_time) / 1e-3))
    assert bool(jnp.all(jnp.isfinite(solution.ys))) and float(jnp.max(solution.ys)) > 1e6


def test_fixed_steps_keep_the_last_finite_state():
    """Without a limit it is the first NaN or infinity that ends the solve, and it does not reach the
    output.
    """
    solution = run(square, jnp.array([[2.0]]), guard(FIXED, jnp.inf))
    assert bool(solution.controller_state.diverged)
    assert 0.5 < float(solution.controller_state.blowup_time) < 0.51
    assert diffrax.RESULTS[solution.result] == diffrax.RESULTS[diffrax.RESULTS.nonfinite]
    assert bool(jnp.all(jnp.isfinite(solution.ys)))


@pytest.mark.parametrize("limit, tolerance", [(1e6, 2e-6), (jnp.inf, 1e-14)])
def test_adaptive_steps_find_the_singularity(limit, tolerance):
    """1/u = t* − t: the limit is passed at t* − 1e-6; without a limit the step size falls to rounding."""
    solution = run(square, jnp.array([[2.0]]), guard(PID, limit))
    state = solution.controller_state
    assert bool(state.diverged)
    np.testing.assert_allclose(float(state.blowup_time), 0.5, atol=tolerance)
    assert int(solution.stats["num_steps"]) < 600
    expected = diffrax.RESULTS.dt_min_reached if np.isinf(limit) else diffrax.RESULTS.nonlinear_divergence
    assert diffrax.RESULTS[solution.result] == diffrax.RESULTS[expected]
    assert bool(jnp.all(jnp.isfinite(solution.ys)))


@pytest.mark.parametrize("u0", [1e6, 1e-3])
def test_scale_of_time_does_not_matter(u0):
    solution = run(square, jnp.array([[u0]]), guard(PID, jnp.inf), t1=2.0 / u0, dt0=1e-2 / u0)
    np.testing.assert_allclose(float(solution.controller_state.blowup_time) * u0, 1.0, rtol=1e-6)


@pytest.mark.parametrize("controller", [FIXED, PID], ids=["fixed", "adaptive"])
def test_bounded_solves_are_not_touched(controller):
    """Bit for bit the wrapped controller's steps, nothing reported."""

    def field(t, u, args):
        return jnp.sin(3.0 * t) * u - u**3

    u0 = jnp.array([[2.0]])
    save = diffrax.SaveAt(ts=jnp.linspace(0.0, 1.0, 7), controller_state=True)
    plain = run(field, u0, controller, save=save, dt0=0.01)
    guarded = run(field, u0, guard(controller, 10.0), save=save, dt0=0.01)
    assert bool(jnp.all(plain.ys == guarded.ys)) and plain.stats == guarded.stats
    assert bool(diffrax.is_successful(guarded.result))
    assert not bool(guarded.controller_state.diverged)
    assert float(guarded.controller_state.blowup_time) == np.inf


def test_reverse_time():
    """u' = −u² from t = 1 back to 0 with u(1) = 2 blows up at t = 1/2."""
    for controller, tolerance in ((FIXED, 0.01), (PID, 1e-13)):
        guarded = guard(controller, jnp.inf)
        solution = run(lambda t, u, args: -(u**2), jnp.array([[2.0]]), guarded, t0=1.0, t1=0.0, dt0=-1e-3)
        np.testing.assert_allclose(float(solution.controller_state.blowup_time), 0.5, atol=tolerance)


def test_a_field_that_is_not_finite_ends_at_once():
    """NaN at the start: an adaptive controller would refuse steps until max_steps."""
    for controller in (FIXED, PID):
        solution = run(lambda t, u, args: jnp.nan * u, jnp.ones((1, 1)), guard(controller, 1e3))
        assert bool(solution.controller_state.diverged)
        assert float(solution.controller_state.blowup_time) <= 1e-3
        assert int(solution.stats["num_steps"]) < 80
        assert bool(jnp.all(solution.ys == 1.0))


def test_infinities_do_not_trap_the_controller():
    """An infinite candidate makes diffrax's scaled error inf/inf and its next step NaN; here it is a
    refusal.
    """

    def field(t, u, args):
        return jnp.where(t > 0.3, jnp.inf, 1.0) * jnp.ones_like(u)

    guarded = run(field, jnp.zeros((1, 1)), guard(PID, jnp.inf), dt0=0.1)
    np.testing.assert_allclose(float(guarded.controller_state.blowup_time), 0.3, rtol=1e-12)
    np.testing.assert_allclose(guarded.ys, 0.3, rtol=1e-6)
    assert int(guarded.stats["num_steps"]) < 100


def test_a_jump_in_depth_is_no_blow_up():
    """Steps to just before and after a jump, as short as the floats allow, pass."""

    def field(t, u, args):
        return jnp.where(t > 1 / 3, 5.0, -1.0) * u

    jump = jnp.array([1 / 3])
    for controller in (
        guard(diffrax.ClipStepSizeController(PID, jump_ts=jump), 1e3),
        diffrax.ClipStepSizeController(guard(PID, 1e3), jump_ts=jump),
    ):
        solution = run(field, jnp.ones((1, 1)), controller)
        assert bool(diffrax.is_successful(solution.result))
        np.testing.assert_allclose(solution.ys[0], np.exp(-1 / 3 + 10 / 3), rtol=1e-6)


def test_vmap_ends_each_lane_by_itself():
    u0 = jnp.array([4.0, 0.5, 2.0])[:, None, None]
    for controller, tolerance in ((FIXED, 5e-3), (PID, 2e-3)):
        guarded = guard(controller, 1e3)
        solution = jax.vmap(lambda u, guarded=guarded: run(square, u, guarded))(u0)
        state = solution.controller_state
        assert state.diverged.tolist() == [True, False, True]
        np.testing.assert_allclose(state.blowup_time, [0.25, np.inf, 0.5], atol=tolerance)
        np.testing.assert_allclose(solution.ys[1, 0], 1.0, rtol=1e-6)  # 0.5 / (1 − 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("controller, limit", [(FIXED, 0.9), (PID, 1e3)])
def test_derivatives(controller, limit):
    """Forward and reverse mode, of a bounded solve (u → u/(1 − u), slope 1/(1 − u)²) and of one that is
    ended.
    """
    guarded = guard(controller, limit)

    def end(u, adjoint):
        return run(square, jnp.full((1, 1), u), guarded, dt0=0.02, adjoint=adjoint).ys[-1, 0, 0]

    slope = jax.jvp(lambda u: end(u, diffrax.ForwardMode()), (0.5,), (1.0,))[1]
    reverse = jax.grad(lambda u: end(u, diffrax.RecursiveCheckpointAdjoint()))(0.5)
    np.testing.assert_allclose(slope, reverse, rtol=1e-12)
    solution = run(square, jnp.full((1, 1), 0.5), guarded, dt0=0.02)
    assert bool(solution.controller_state.diverged) == (limit == 0.9)
    # u(t) = u0 / (1 − u0 t) has the slope (u(t)/u0)² at the time, itself fixed, where the solve ended.
    np.testing.assert_allclose(slope, (float(solution.ys[-1, 0, 0]) / 0.5) ** 2, rtol=1e-6)


def test_implicit_solvers_take_their_tolerances_through_the_guard():
    def stiff(t, u, args):
        return -1e4 * (u - jnp.cos(t))

    solution = run(stiff, jnp.zeros((2, 1)), guard(PID, 1e3), Kvaerno5(), dt0=1e-4)
    assert bool(diffrax.is_successful(solution.result))
    np.testing.assert_allclose(solution.ys[0], np.cos(1.0), atol=1e-3)
    with pytest.raises(ValueError, match="tolerances for the implicit solver have not been specified"):
        run(stiff, jnp.zeros((2, 1)), guard(FIXED, 1e3), Kvaerno5(), dt0=0.1)


def test_pid_is_still_refused_where_there_is_no_error_estimate():
    with pytest.raises(RuntimeError, match="does not provide error estimates"):
        run(square, jnp.ones((1, 1)), guard(PID, 1e3), RK4())


def test_float32_and_a_limit_beyond_it():
    times = {"t0": jnp.float32(0), "t1": jnp.float32(1), "dt0": jnp.float32(1e-3)}
    u0 = jnp.array([[2.0]], jnp.float32)
    for controller, limit, tolerance in ((FIXED, 1e300, 0.01), (PID, jnp.float32(1e4), 2e-4)):
        solution = run(square, u0, BlowupGuard(controller, limit), **times)
        assert solution.controller_state.blowup_time.dtype == jnp.float32 and solution.ys.dtype == jnp.float32
        assert bool(solution.controller_state.diverged)
        np.testing.assert_allclose(float(solution.controller_state.blowup_time), 0.5, atol=tolerance)


def test_one_compilation_for_all_limits():
    traces = []

    def field(t, u, args):
        traces.append(None)
        return u**2

    counts = []
    for limit in (10.0, 1e3, 1e5):
        solution = run(field, jnp.array([[2.0]]), guard(FIXED, limit), Euler())
        assert bool(solution.controller_state.diverged)
        counts.append(len(traces))
    assert counts[0] == counts[-1]


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((diffrax.ConstantStepSize, 1.0), TypeError, "must be a diffrax step-size controller"),
        (("pid", 1.0), TypeError, "must be a diffrax step-size controller"),
        ((FIXED, 0.0), ValueError, "limit must be positive"),
        ((FIXED, float("nan")), ValueError, "limit must be positive"),
        ((PID, -1), ValueError, "limit must be positive"),
        ((PID, "1"), TypeError, "limit must be a positive number"),
        ((PID, True), TypeError, "limit must be a positive number"),
        ((PID, jnp.ones(2)), TypeError, "limit must be a positive number"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        BlowupGuard(*arguments)
