"""Step limits: predicted ones against closed forms and dense eigenvalues, measured ones against the predicted."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax import exact, solvers
from pdejax.analysis.stability import _jacobian, _limits, _spectrum, measure_dt_max, predict_dt_max

EXPLICIT = ["euler", "heun", "rk4", "bosh3", "tsit5", "dopri5"]
N, D = 16, 2


def linear(matrix):
    """u' = u M on one token."""
    m = jnp.asarray(matrix, float)
    reaction = pj.FeedForward(len(m), len(m), key=jax.random.key(0), activation="identity")
    return pj.MasterEquation(reaction=eqx.tree_at(lambda r: (r.w1, r.w2), reaction, (jnp.eye(len(m)), m)))


def transformer(strength, gamma):
    keys = jax.random.split(jax.random.key(5), 2)
    return pj.MasterEquation(
        interaction=pj.Attention(D, key=keys[0], leak=True, strength=strength),
        reaction=pj.FeedForward(D, 4, key=keys[1], strength=strength),
        diffusion=pj.Diffusion(pj.Grid(N), 0.5),
        stabilization=pj.LinearDamping(gamma),
    )


@pytest.fixture(scope="module")
def u():
    return jax.random.normal(jax.random.key(6), (N, D))


@pytest.mark.parametrize("name", EXPLICIT)
def test_diffusion_is_limited_by_the_real_axis(name, u):
    equation = pj.MasterEquation(diffusion=pj.Diffusion(pj.Grid(N), 0.5))
    predicted = predict_dt_max(equation, u, name)
    expected = exact.diffusive_step_limit(name, 0.5, 1 / N, n=N)
    np.testing.assert_allclose(predicted.dt_max, expected, rtol=1e-6)
    assert predicted.complete and predicted.converged and predicted.eigenvalue.real < 0


def test_oscillation_limits_each_scheme_in_its_own_way():
    a, b = 0.3, 2.0
    turning = linear([[-a, b], [-b, -a]])
    one = jnp.ones((1, 2))
    # |1 + hλ|² = 1 − 2ah + h²(a² + b²) ≤ 1.
    np.testing.assert_allclose(predict_dt_max(turning, one, "euler").dt_max, 2 * a / (a**2 + b**2), rtol=1e-6)
    pure = linear([[0.0, b], [-b, 0.0]])
    assert predict_dt_max(pure, one, "euler").dt_max == 0
    np.testing.assert_allclose(predict_dt_max(pure, one, "rk4").dt_max, 8**0.5 / b, rtol=1e-3)


def test_a_growing_mode_may_follow_the_flow():
    one = jnp.ones((1, 2))
    assert predict_dt_max(linear(np.eye(2)), one, "euler").dt_max == np.inf
    np.testing.assert_allclose(predict_dt_max(linear(np.diag([1.0, -10.0])), one, "euler").dt_max, 0.2, rtol=1e-6)
    measured = measure_dt_max(linear(np.diag([1.0, -10.0])), one, "euler")
    assert measured.growth == pytest.approx(1.0)
    assert predict_dt_max(linear(np.zeros((2, 2))), one, "euler").dt_max == np.inf


def test_prediction_from_dense_eigenvalues(u):
    equation = transformer(3.0, 1.0)
    jacobian = jax.jit(jax.jacfwd(lambda v: equation(0.0, v.reshape(u.shape), None).ravel()))(u.ravel())
    values = np.linalg.eigvals(np.asarray(jacobian))
    decaying = values[values.real < 0]
    expected = np.min(-2 * decaying.real / np.abs(decaying) ** 2)
    np.testing.assert_allclose(predict_dt_max(equation, u, "euler").dt_max, expected, rtol=1e-6)


def test_prediction_by_iteration_equals_the_dense_one(u, monkeypatch):
    equation = transformer(1.0, 0.5)
    dense = predict_dt_max(equation, u, "rk4")
    monkeypatch.setattr(_limits, "DENSE", 4)
    iterated = predict_dt_max(equation, u, "rk4")
    assert not iterated.complete and iterated.converged
    np.testing.assert_allclose(iterated.dt_max, dense.dt_max, rtol=2e-3)

    def nothing(jacobian, rightmost):
        return {"leftmost": _jacobian.Found(np.zeros(0), False)}

    monkeypatch.setattr(_limits, "extreme_eigenvalues", nothing)
    with pytest.raises(RuntimeError, match="no eigenvalue of the Jacobian converged"):
        predict_dt_max(equation, u, "rk4")


def test_a_partly_converged_iteration_is_said(u, monkeypatch):
    monkeypatch.setattr(_limits, "DENSE", 4)
    found = {"leftmost": _jacobian.Found(np.array([-10.0]), True), "imaginary": _jacobian.Found(np.zeros(0), False)}
    monkeypatch.setattr(_limits, "extreme_eigenvalues", lambda jacobian, rightmost: found)
    predicted = predict_dt_max(transformer(1.0, 0.5), u, "euler")
    assert not predicted.converged and "imaginary" in predicted.note
    assert predicted.dt_max == pytest.approx(0.2, rel=1e-6)


def agree(name, u):
    for strength, gamma in ((0.0, 0.0), (1.0, 0.0), (1.0, 5.0)):
        equation = transformer(strength, gamma)
        predicted, measured = predict_dt_max(equation, u, name), measure_dt_max(equation, u, name)
        assert abs(measured.dt_max / predicted.dt_max - 1) < 0.02, (strength, gamma)
        assert measured.dt_max < measured.bracket < 1.002 * measured.dt_max


@pytest.mark.parametrize("name", ["euler", "bosh3"])
def test_measured_agrees_with_predicted(name, u):
    agree(name, u)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heun", "rk4", "tsit5", "dopri5"])
def test_measured_agrees_with_predicted_everywhere(name, u):
    agree(name, u)


@pytest.mark.slow
def test_rkc2_is_measured_like_any_other(u):
    found = pytest.importorskip("pdejax.solvers._rkc")
    agree(found.RKC2(stages=6), u)


def test_a_splitting_gets_the_terms(u):
    grid, d, gamma = pj.Grid(N), 0.5, 40.0
    equation = pj.MasterEquation(diffusion=pj.Diffusion(grid, d), stabilization=pj.LinearDamping(gamma))
    largest = 4 * d * N**2 * np.cos(np.pi / (2 * N)) ** 2
    # The factors of both parts multiply: (1 − hγ)(1 − hλ) ≥ −1 has the product's smaller root beyond both limits.
    h = np.linspace(1.5 / largest, 2.5 / largest, 20001)
    expected = h[np.abs((1 - h * gamma) * (1 - h * largest)) <= 1][-1]
    measured = measure_dt_max(equation, u, solvers.LieTrotter((diffrax.Euler(), diffrax.Euler())))
    np.testing.assert_allclose(measured.dt_max, expected, rtol=0.01)
    with pytest.raises(ValueError, match=r"3 sub-solvers.*2 terms"):
        measure_dt_max(equation, u, solvers.LieTrotter((diffrax.Euler(),) * 3))
    with pytest.raises(ValueError, match="takes the terms"):
        predict_dt_max(equation, u, "strang")
    with pytest.raises(ValueError, match=r"MultiTerm"):
        measure_dt_max(equation, u, diffrax.SemiImplicitEuler())
    with pytest.raises(TypeError, match="terms is a str"):
        measure_dt_max(equation, u, "euler", terms="both")


def test_an_implicit_scheme_has_no_limit(u):
    assert predict_dt_max(pj.MasterEquation(diffusion=pj.Diffusion(pj.Grid(N), 0.5)), u, "kvaerno5").dt_max == np.inf


def test_bad_input_says_what_to_do(u):
    equation = transformer(1.0, 0.0)
    for limit in (predict_dt_max, measure_dt_max):
        with pytest.raises(ValueError, match=r"unknown solver 'rk5'"):
            limit(equation, u, "rk5")
        with pytest.raises(ValueError, match="not finite"):
            limit(equation, u.at[0, 0].set(jnp.inf), "euler")
        with pytest.raises(ValueError, match="16 tokens"):
            limit(equation, u[:3], "euler")
    for steps in (10, -1, 100.0, True):
        with pytest.raises(ValueError, match="steps="):
            measure_dt_max(equation, u, "euler", steps=steps)


def test_growth_that_did_not_converge_is_said(u, monkeypatch):
    monkeypatch.setattr(_limits, "DENSE", 4)
    monkeypatch.setattr(_spectrum, "DENSE", 4)
    monkeypatch.setattr(_jacobian.Jacobian, "support", lambda self, angle: _jacobian.Found(np.zeros(0), False))
    measured = measure_dt_max(transformer(1.0, 5.0), u, "euler")
    assert "interaction" in measured.note and "diffusion" not in measured.note


def test_a_solver_without_forward_derivative_is_named(u):
    with pytest.raises(TypeError, match=r"RKC2 has no forward-mode derivative"):
        measure_dt_max(transformer(1.0, 0.0), u, solvers.RKC2(scan_kind="checkpointed"))


def test_an_exponential_solver_gets_the_terms_it_is_handed(u):
    """φ-functions integrate the diffusion exactly: what is left of the limit is the damping's, at h γ = 2 for ETDRK1 (exponential
    Euler): on the mean, where diffusion is zero, it is explicit Euler."""
    gamma = 40.0
    equation = pj.MasterEquation(diffusion=pj.Diffusion(pj.Grid(N), 0.5), stabilization=pj.LinearDamping(gamma))
    operator = solvers.DiagonalizableOperator(pj.Grid(N), 0.5)
    terms = diffrax.MultiTerm(diffrax.ODETerm(equation.only(["stabilization"])), diffrax.ODETerm(operator))
    np.testing.assert_allclose(measure_dt_max(equation, u, "etdrk1", terms=terms).dt_max, 2 / gamma, rtol=0.02)
