"""The own term of `examples/10_own_term.py` takes part in everything, without a line changed elsewhere."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

import pdejax as pj


def class_of_the_example():
    """The class as the example prints it: 25 lines, no more."""
    path = pathlib.Path(__file__).parent.parent / "examples" / "10_own_term.py"
    [node] = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)]
    text = ast.get_source_segment(path.read_text(), node)
    assert len(text.splitlines()) <= 25
    space = {
        "pj": pj,
        "DiagonalizableOperator": pj.solvers.DiagonalizableOperator,
        "Laplacian": pj.Laplacian,
        "__name__": "example",
    }
    exec(text, space)
    return space["HyperDiffusion"]


HyperDiffusion = class_of_the_example()
N, D, KAPPA = 16, 4, 2e-4
GRID = pj.Grid(N)
KEY = jax.random.key(0)
U = jnp.asarray(np.cos(np.pi * np.asarray(GRID.points))[:, None] * np.arange(1.0, D + 1))
TERM = HyperDiffusion(GRID, jnp.asarray(KAPPA))


def fourth_difference():
    """−κ(∇_h²)² as a dense matrix, from the three-point stencil with mirrored ends."""
    second = np.diag(np.full(N, -2.0)) + np.diag(np.ones(N - 1), 1) + np.diag(np.ones(N - 1), -1)
    second[0, 0] = second[-1, -1] = -1.0
    second *= N**2
    return -KAPPA * second @ second


def equation():
    attention = pj.Attention(D, 2, key=KEY, strength=0.5)
    return pj.MasterEquation(attention, pj.FeedForward(D, 6, key=KEY, leak=True, strength=0.5), hyper=TERM)


def test_the_operator_is_the_stencil_applied_twice():
    np.testing.assert_allclose(jax.jit(lambda u: TERM(0.0, u, None))(U), fourth_difference() @ U, rtol=1e-9, atol=1e-9)


def solved(solver, tolerance):
    return pj.simulate(pj.Discretization(equation(), solver, t1=0.2, rtol=tolerance, atol=tolerance), U)


@pytest.fixture(scope="module")
def tight():
    return solved("dopri8", 1e-10).us[-1]


@pytest.mark.parametrize("solver", ["ark4", "rkc2", "auto"])
def test_solvers_take_it(solver, tight):
    """The stiff solvers agree with a tight explicit solve of the whole equation; `auto` takes an exponential one."""
    run = solved(solver, 1e-7)
    np.testing.assert_allclose(run.us[-1], tight, rtol=1e-5, atol=1e-5)
    if solver == "auto":
        assert run.choice.startswith("etdrk4")


def test_alone_it_decays_as_its_exponential():
    alone = pj.Discretization(pj.MasterEquation(TERM), "etdrk4", t1=0.2, steps=1)
    np.testing.assert_allclose(pj.simulate(alone, U).us[-1], expm(0.2 * fourth_difference()) @ U, rtol=1e-10)


def test_bounds_and_contributions_count_it():
    e = equation()
    names = []

    @jax.jit
    def both(u):
        parts = e.contributions(0.0, u)
        names.extend(parts)
        return sum(parts.values()), e(0.0, u)

    np.testing.assert_allclose(*both(U), rtol=1e-12)
    assert names == ["interaction", "reaction", "hyper"]
    assert e.describe() == "attention + feed-forward + hyper diffusion"
    stiffest = float(np.max(np.abs(np.linalg.eigvalsh(fourth_difference()))))
    limit = pj.analysis.predict_dt_max(pj.MasterEquation(TERM), U, "euler").dt_max
    assert float(limit) == pytest.approx(2 / stiffest, rel=1e-6)
    with_it = pj.analysis.stability.field_lipschitz(e, N, 1.0, norm="frobenius")
    without = pj.analysis.stability.field_lipschitz(e.replace(hyper=None), N, 1.0, norm="frobenius")
    assert with_it.bound - without.bound == pytest.approx(stiffest, rel=1e-9)


def test_gradients_reach_its_coefficient():
    def loss(kappa, solver):
        e = pj.MasterEquation(HyperDiffusion(GRID, kappa))
        return jnp.sum(pj.simulate(pj.Discretization(e, solver, t1=0.2, steps=20), U).us[-1] ** 2)

    kappa, eps = jnp.asarray(KAPPA), 1e-9
    for solver in ("etdrk4", "ark4"):
        run = jax.jit(lambda kappa, solver=solver: jax.vmap(jax.value_and_grad(lambda k: loss(k, solver)))(kappa))
        values, slopes = run(kappa + eps * np.asarray([1.0, -1.0, 0.0]))
        assert float(slopes[2]) == pytest.approx(float(values[0] - values[1]) / (2 * eps), rel=1e-5)
