"""The continuum limit measured on tiny fields: orders, bounds, references, masks, layers."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax.analysis import convergence, mesh_norm
from pdejax.analysis.numerics import expected_order, measure_constants, measure_scheme, solve_reference
from pdejax.analysis.numerics._convergence import check_depths

N, D, T = 5, 6, 1.0


def base(seed=0, activation="gelu"):
    keys = jax.random.split(jax.random.key(seed), 2)
    return pj.MasterEquation(
        interaction=pj.Attention(D, 2, key=keys[0], norm=pj.LayerNorm(D)),
        reaction=pj.FeedForward(D, 7, key=keys[1], norm=pj.LayerNorm(D), activation=activation),
    )


@pytest.fixture(scope="module")
def smooth():
    return pj.smooth_random(base(), T, key=jax.random.key(5))


@pytest.fixture(scope="module")
def u0():
    return 2 * jax.random.normal(jax.random.key(6), (N, D))


@pytest.fixture(scope="module")
def measured(smooth, u0):
    solvers = ("euler", "rk4", "lietrotter")
    return convergence(over(smooth), u0, steps=(64, 8, 16, 32), solvers=solvers)


def over(field, t1=T):
    """The field over depths [0, t1]; solver and steps are the sweep's."""
    return pj.Discretization(field, "dopri8", t1=t1, rtol=1e-6, atol=1e-6)


def record(result, solver):
    return next(scheme for scheme in result.schemes if scheme.solver == solver)


@pytest.mark.parametrize("solver, order", [("euler", 1), ("rk4", 4), ("lietrotter", 1)])
def test_orders(measured, solver, order):
    found = record(measured, solver)
    assert found.expected == order
    assert found.order == pytest.approx(order, abs=0.1)
    assert found.ci < 0.3
    assert found.steps == (8, 16, 32, 64)
    assert found.step_sizes == tuple(T / n for n in found.steps)
    assert all(a > b for a, b in zip(found.errors, found.errors[1:], strict=False))
    assert not any(found.diverged)


@pytest.mark.parametrize("solver", ["euler", "rk4", "lietrotter"])
def test_errors_are_what_they_are_called(measured, smooth, u0, solver):
    """The coarsest step recomputed plainly from the definitions."""
    found, truth, steps = record(measured, solver), measured.reference, 8
    end = pj.simulate(pj.Discretization(smooth, solver, t1=T, steps=steps), u0, save="end").us[-1]
    tokens = np.linalg.norm(np.asarray(end - truth.us[-1]), axis=1)
    sizes = np.linalg.norm(np.asarray(truth.us[-1]), axis=1)
    assert found.errors[0] == pytest.approx(np.linalg.norm(tokens) / np.linalg.norm(sizes), rel=1e-9)
    assert found.max_errors[0] == pytest.approx(tokens.max() / sizes.max(), rel=1e-9)
    # v2 (10): straight lines between the steps, compared off the grid. (As many depths as the measurement saves, so that
    # its compiled solve serves here too.)
    grid = np.linspace(0, T, steps + 1)
    depths = np.sort(np.resize(grid, 48))
    us = np.asarray(pj.simulate(pj.Discretization(smooth, solver, t1=T, steps=steps), u0, save=depths).us)
    us = us[np.searchsorted(depths, grid)]
    worst = 0.0
    for t, u in zip(truth.ts[:-1], np.asarray(truth.us[:-1]), strict=True):
        i = int(t / T * steps)
        w = t / T * steps - i
        worst = max(worst, np.linalg.norm((1 - w) * us[i] + w * us[i + 1] - u))
    assert found.uniform_errors[0] == pytest.approx(worst / np.linalg.norm(sizes), rel=1e-9)


@pytest.mark.parametrize("solver", ["euler", "rk4", "lietrotter"])
def test_the_linear_interpolant_is_of_order_two_at_most(measured, solver):
    found = record(measured, solver)
    assert found.uniform_order == pytest.approx(min(found.expected, 2), abs=0.15)


def test_dense_output_keeps_the_order(measured):
    found = record(measured, "rk4")
    rates = -np.diff(np.log2(found.dense_errors))
    assert np.all(np.abs(rates - 4) < 0.3)
    assert found.dense_errors[-1] < 1e-3 * found.uniform_errors[-1]


@pytest.mark.parametrize("solver, kind", [("euler", "a-priori"), ("rk4", "defect"), ("lietrotter", "defect")])
def test_bounds_hold_and_shrink_with_the_error(measured, solver, kind):
    found = record(measured, solver)
    assert found.bound_kind == kind
    for error, bound, loose in zip(found.errors, found.one_sided_bounds, found.v2_12_bounds, strict=True):
        assert error <= bound <= loose
    rate = math.log2(found.one_sided_bounds[-2] / found.one_sided_bounds[-1])
    assert rate == pytest.approx(found.expected, abs=0.2)


def test_evaluations_and_times(measured):
    assert record(measured, "euler").evaluations == (8, 16, 32, 64)
    assert record(measured, "rk4").evaluations == (32, 64, 128, 256)
    # Two terms, one evaluation of each per step: one of the whole field.
    assert record(measured, "lietrotter").evaluations == (8, 16, 32, 64)
    assert all(s > 0 for scheme in measured.schemes for s in scheme.seconds)


def test_the_reference_knows_its_own_error(measured, smooth, u0):
    reference = measured.reference
    assert 0 <= reference.error <= reference.uniform_error < 1e-10
    better = pj.simulate(pj.Discretization(smooth, "dopri8", t1=T, rtol=1e-14, atol=1e-14), u0, save=reference.ts).us
    true = float(jnp.max(mesh_norm(reference.us - better)) / mesh_norm(better[-1]))
    assert true <= max(3 * reference.uniform_error, 1e-12)
    assert reference.ts[-1] == T and np.all(np.diff(reference.ts) > 0)


@pytest.mark.slow
def test_layers_are_refined_one_by_one(u0):
    """Piecewise-constant weights keep every order, because no step crosses a layer."""
    equation = pj.DepthVarying.from_layers([base(seed) for seed in (1, 2, 3)], T)
    result = convergence(over(equation), u0, steps=(6, 12, 24, 48), solvers=("rk4",))
    for scheme in result.schemes:
        assert scheme.order == pytest.approx(scheme.expected, abs=0.1)
        assert scheme.uniform_order == pytest.approx(min(scheme.expected, 2), abs=0.2)
        assert all(e <= b for e, b in zip(scheme.errors, scheme.one_sided_bounds, strict=True))
    with pytest.raises(ValueError, match="3 layers"):
        convergence(over(equation), u0, steps=(4, 8), solvers=("rk4",), reference=result.reference)


@pytest.mark.slow
def test_padding_changes_nothing(smooth, u0, measured):
    """A padded sequence and its mask give the numbers of the sequence alone."""
    padded = jnp.concatenate([u0, jnp.full((2, D), 7.0)])
    mask = jnp.arange(N + 2) < N
    reference = solve_reference(over(smooth), padded, mask=mask, tolerance=1e-13)
    constants = measure_constants(over(smooth), reference, mask)
    found = measure_scheme(
        over(smooth), padded, steps=(8, 16), solver="euler", reference=reference, constants=constants, mask=mask
    )
    plain = record(measured, "euler")
    for name in ("errors", "max_errors", "uniform_errors", "dense_errors"):
        np.testing.assert_allclose(getattr(found, name), getattr(plain, name)[:2], rtol=1e-8)


def test_constants_can_be_given_by_an_existing_reference(measured, smooth, u0):
    again = convergence(over(smooth), u0, steps=(8, 16), solvers=("euler",), reference=measured.reference)
    assert again.reference is measured.reference
    assert again.constants == measured.constants
    assert record(again, "euler").errors == record(measured, "euler").errors[:2]
    assert math.isnan(record(again, "euler").ci)


def test_schemes_can_be_solvers_of_ones_own(measured, smooth, u0):
    own = measure_scheme(
        over(smooth),
        u0,
        steps=(8, 16),
        solver=pj.solvers.RK4(),
        reference=measured.reference,
        constants=measured.constants,
    )
    assert own.solver == "RK4" and math.isnan(own.expected)
    np.testing.assert_allclose(own.errors, record(measured, "rk4").errors[:2], rtol=1e-12)


def test_expected_orders():
    assert [expected_order(base(), name) for name in ("euler", "heun", "rk4", "dopri8")] == [1, 2, 4, 8]
    kinked = base(activation="relu")
    assert [expected_order(kinked, name) for name in ("euler", "heun", "rk4", "dopri8")] == [1, 2, 2, 2]
    assert expected_order(pj.smooth_random(kinked, 1.0, key=jax.random.key(0)), "rk4") == 2


def test_check_depths_lie_off_every_step_grid():
    depths = check_depths(3.0)
    assert np.all(np.diff(depths) > 0) and depths[0] > 0 and depths[-1] < 3
    assert np.max(np.diff(depths)) < 3 * 3 / len(depths)
    for n in (2, 3, 4, 6, 8, 64):
        steps = depths / 3 * n
        assert np.min(np.abs(steps - np.round(steps))) > 1e-3


def test_a_later_start_is_the_field_shifted():
    """Depths [1, 2] of f(t) are depths [0, 1] of f(t + 1)."""

    class Field(eqx.Module):
        shift: jax.Array

        def __call__(self, t, u, args):
            return jnp.sin(3 * (t + self.shift)) - u**3

    field, shifted = Field(jnp.asarray(0.0)), Field(jnp.asarray(1.0))
    u0 = jnp.full((2, 1), 0.4)
    late = pj.Discretization(field, "euler", t0=1.0, t1=2.0, steps=4)
    a = convergence(late, u0, steps=(8, 16), solvers=("heun",))
    b = convergence(late.replace(field=shifted, t0=0.0, t1=1.0), u0, steps=(8, 16), solvers=("heun",))
    assert (a.t0, a.t1) == (1, 2)
    np.testing.assert_allclose(a.schemes[0].errors, b.schemes[0].errors, rtol=1e-9)
    np.testing.assert_allclose(a.schemes[0].uniform_errors, b.schemes[0].uniform_errors, rtol=1e-9)


def test_a_reference_that_blows_up():
    explosive = pj.MasterEquation(interaction=pj.Attention(2, key=jax.random.key(0), kernel="linear", strength=50.0))
    with pytest.raises(RuntimeError, match=r"did not reach t1=5.*blow-up depth"):
        solve_reference(over(explosive, 5.0), 3 * jnp.eye(2))


def test_bad_input(measured, smooth, u0):
    with pytest.raises(ValueError, match="at least two step counts"):
        convergence(over(smooth), u0, steps=(8,))
    with pytest.raises(ValueError, match=r"float32.*enable_x64"):
        convergence(over(smooth), u0.astype(jnp.float32))
    with pytest.raises(ValueError, match="rk4"):
        convergence(over(smooth), u0, steps=(8, 16), solvers=("rk44",), reference=measured.reference)


class Stiff(eqx.Module):
    """u' = −rate (u − cos t): slow, and stiff for large rates."""

    rate: jax.Array

    def __call__(self, t, u, args):
        return -self.rate * (u - jnp.cos(t))


def stiff(rate):
    return Stiff(jnp.asarray(rate))


def test_a_stiff_field_says_what_its_reference_costs(capsys, monkeypatch):
    """A short solve is silent. A long one says how many steps stability asks for (the rate over the limit of Dopri8), and how far
    it is."""
    monkeypatch.setattr("pdejax.analysis.numerics._convergence.LONG", 50)
    limit = pj.solvers.SOLVERS["dopri8"].real_limit
    u0 = jnp.ones((1, 1))
    solve_reference(over(stiff(1.0)), u0, tolerance=1e-8)
    assert capsys.readouterr() == ("", "")
    found = solve_reference(over(stiff(1e3)), u0, tolerance=1e-8)
    out, err = capsys.readouterr()
    dopri8 = pj.solvers.get_solver("dopri8")
    each = pj.solvers.evaluations(dopri8, 3) - pj.solvers.evaluations(dopri8, 2)
    about = f"about {math.ceil(1e3 / limit):,} steps of Dopri8 for stability alone, of {each} evaluations, twice"
    assert err.startswith(f"solve_reference: the reference takes {about}\n") and "%" in err
    assert out == ""  # standard output is for results
    exact = (1e6 * np.cos(1.0) + 1e3 * np.sin(1.0)) / (1 + 1e6)  # the transient e^{−1000} is gone
    assert float(found.us[-1, 0, 0]) == pytest.approx(exact, rel=1e-7)


@jax.custom_jvp
def no_derivative(u):
    return -u


@no_derivative.defjvp
def _(primals, tangents):
    raise NotImplementedError("no derivative")


@jax.custom_vjp
def reverse_only(u):
    return -u


reverse_only.defvjp(lambda u: (-u, None), lambda _, g: (-g,))

DECAYS = {
    "a call into Python": lambda t, u, args: jax.pure_callback(lambda x: -np.asarray(x), u, u),
    "no derivative": lambda t, u, args: no_derivative(u),
    "reverse mode alone": lambda t, u, args: reverse_only(u),
    # √ at 0: its derivative at the start is infinite, and times 0 it is NaN.
    "a root at the start": lambda t, u, args: -u + 0 * jnp.sqrt(t + jnp.abs(u - u[:1, :1])),
}


@pytest.mark.parametrize("name", DECAYS)
def test_a_reference_needs_no_derivative(name, capsys):
    """u' = −u where the stiffness at the start cannot be estimated, which is a hint of the cost and no condition."""
    u0 = jnp.full((2, 1), 0.5)
    found = solve_reference(over(DECAYS[name]), u0, tolerance=1e-9)
    np.testing.assert_allclose(found.us[-1], 0.5 * math.exp(-1), rtol=1e-8)
    assert capsys.readouterr() == ("", "")
    if name == "a call into Python":  # what it says depends on the estimate alone, which all of them lack
        with pytest.raises(RuntimeError, match=r"^solve_reference: 3 steps.*not smooth\. Choose"):
            solve_reference(over(DECAYS[name]).replace(max_steps=3), u0, tolerance=1e-12, progress=False)


def test_progress_goes_to_standard_error(capsys):
    """Of fixed steps, of adaptive ones (diffrax's meter) and of layers: nothing on standard output, which is for results."""
    u0, field = jnp.ones((2, 1)), pj.MasterEquation(stabilization=pj.LinearDamping(1.0))
    layers = pj.DepthVarying.from_layers([field, field], 1.0)
    for d in (
        pj.Discretization(field, "euler", t1=1.0, steps=4),
        pj.Discretization(field, "tsit5", t1=1.0, rtol=1e-6, atol=1e-6),
        pj.Discretization(layers, "tsit5", t1=1.0, rtol=1e-6, atol=1e-6),
    ):
        jax.block_until_ready(pj.simulate(d, u0, progress=True).us)
        jax.effects_barrier()
        out, err = capsys.readouterr()
        assert out == "" and ("100.00%" in err or "layer 2 of 2" in err)


def test_the_function_that_was_called_speaks(capsys, monkeypatch):
    monkeypatch.setattr("pdejax.analysis.numerics._convergence.LONG", 0)
    convergence(over(stiff(1.0)), jnp.ones((1, 1)), steps=(8, 16), solvers=("rk4",), tolerance=1e-8)
    said = [line for line in capsys.readouterr().err.splitlines() if "%" not in line]
    assert len(said) == 3 and all(line.startswith("convergence: ") for line in said)


def test_a_reference_that_runs_out_of_steps_says_so():
    """200 steps are not enough for stability: an error after one solve, with the depth reached and what to do."""
    short = over(stiff(2e3)).replace(max_steps=200)
    with pytest.raises(
        RuntimeError, match=r"200 steps of Dopri8.*came past depth 0\.\d+ and did not reach t1=1\.0"
    ) as caught:
        solve_reference(short, jnp.ones((1, 1)), tolerance=1e-8, progress=False)
    assert "stiff" in str(caught.value) and "max_steps" in str(caught.value)
    assert "nan" not in str(caught.value) and "inf" not in str(caught.value)
