"""Step limits: predicted ones against closed forms and dense eigenvalues, measured ones against the predicted."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax import exact, solvers
from pdejax.analysis.jacobian import _operator
from pdejax.analysis.jacobian._krylov import Found
from pdejax.analysis.stability import _limits, measure_dt_max, predict_dt_max, spectral_bounds, step_constants
from pdejax.terms import AbstractTerm, Linear

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
    monkeypatch.setattr(_operator, "COMPLETE", 4)
    iterated = predict_dt_max(equation, u, "rk4")
    assert not iterated.complete and iterated.converged
    np.testing.assert_allclose(iterated.dt_max, dense.dt_max, rtol=2e-3)

    def nothing(jacobian, rightmost):
        return {"leftmost": Found(np.zeros(0), False)}

    monkeypatch.setattr(_limits, "extreme_eigenvalues", nothing)
    with pytest.raises(RuntimeError, match="no eigenvalue of the Jacobian converged"):
        predict_dt_max(equation, u, "rk4")


def test_a_partly_converged_iteration_is_said(u, monkeypatch):
    monkeypatch.setattr(_operator, "COMPLETE", 4)
    found = {"leftmost": Found(np.array([-10.0]), True), "imaginary": Found(np.zeros(0), False)}
    monkeypatch.setattr(_limits, "extreme_eigenvalues", lambda jacobian, rightmost: found)
    predicted = predict_dt_max(transformer(1.0, 0.5), u, "euler")
    assert not predicted.converged and "imaginary" in predicted.note
    assert predicted.dt_max == pytest.approx(0.2, rel=1e-6)


def agree(name, u):
    for strength, gamma in ((0.0, 0.0), (1.0, 0.0), (1.0, 5.0)):
        equation = transformer(strength, gamma)
        predicted, measured = predict_dt_max(equation, u, name), measure_dt_max(equation, u, name)
        assert abs(measured.dt_max / predicted.dt_max - 1) < 0.02, (strength, gamma)
        low, high = measured.interval
        assert low <= measured.dt_max <= high
        assert high < 1.1 * low or "upper bound" in measured.note
        # Attention is nonlinear, and some of its modes grow.
        assert predicted.sharp == (strength == 0)
        assert low <= predicted.dt_max <= high or not predicted.sharp


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
    with pytest.raises(ValueError, match=r"3 sub-solvers.*2 parts"):
        measure_dt_max(equation, u, solvers.LieTrotter((diffrax.Euler(),) * 3))
    with pytest.raises(ValueError, match="takes the terms"):
        predict_dt_max(equation, u, "strang")


def test_an_implicit_scheme_has_no_limit(u):
    assert predict_dt_max(pj.MasterEquation(diffusion=pj.Diffusion(pj.Grid(N), 0.5)), u, "kvaerno5").dt_max == np.inf


def test_bad_input_says_what_to_do(u):
    equation = transformer(1.0, 0.0)
    for limit in (predict_dt_max, measure_dt_max):
        with pytest.raises(ValueError, match=r"unknown solver 'rk5'"):
            limit(equation, u, "rk5")
        with pytest.raises(ValueError, match="NaN or infinite"):
            limit(equation, u.at[0, 0].set(jnp.inf), "euler")
        with pytest.raises(ValueError, match="16 tokens"):
            limit(equation, u[:3], "euler")
    for steps in (10, -1, 100.0, True):
        with pytest.raises((TypeError, ValueError), match="steps="):
            measure_dt_max(equation, u, "euler", steps=steps)


def test_growth_that_did_not_converge_is_said(u, monkeypatch):
    monkeypatch.setattr(_operator, "COMPLETE", 4)
    monkeypatch.setattr(_operator.Jacobian, "support", lambda self, angle: Found(np.zeros(0), False))
    monkeypatch.setattr(_operator.Jacobian, "extreme", lambda self, which: Found(np.zeros(0), False))
    measured = measure_dt_max(transformer(1.0, 5.0), u, "euler")
    assert "interaction" in measured.note and "diffusion" not in measured.note
    assert "dt_max may be too large" in measured.note


LINEAR = {
    # Eigenvalues −1 and −1.2 behind a shear, which makes the log-norm 2.9: a flow that decays allows no growth.
    "shear": ([[-1.0, 8.0], [0.0, -1.2]], "euler", 2 / 1.2, "non-normal"),
    "shear, rk4": ([[-1.0, 8.0], [0.0, -1.2]], "rk4", 2.7852935634 / 1.2, "non-normal"),
    "decaying rotation": ([[-0.5, 2.0], [-2.0, -0.5]], "euler", 1 / 4.25, ""),
    "rotation": ([[0.0, 2.0], [-2.0, 0.0]], "euler", 0.0, ""),
    "rotation, heun": ([[0.0, 2.0], [-2.0, 0.0]], "heun", 0.0, ""),
    "rotation, rk4": ([[0.0, 2.0], [-2.0, 0.0]], "rk4", 2**0.5, ""),
    "symmetric": ([[-3.0, 1.0], [1.0, -3.0]], "euler", 0.5, ""),
}


@pytest.mark.parametrize(("shorter", "clear", "off"), [(1.02, 1.05, 0.12), (0.97, 1.05, 0.18), (1.01, 1.3, 0.3)])
def test_an_interval_reaches_six_times_as_far_as_half_as_many_steps_would_move_the_limit(shorter, clear, off):
    """Growth that sets in at 1 over all steps, at `shorter` over half as many, and is past doubt at `clear`."""

    def excess(sizes):
        late = np.where(sizes > clear, 10.0, np.where(sizes > 1.0, 1.0, 0.0))
        return np.stack([late, np.where(sizes > shorter, 1.0, 0.0)], axis=1)

    low, high = _limits._widened(excess, 1.0, 1.0005)
    assert (low, high) == pytest.approx((1 - off, 1 + off), abs=0.01)


@pytest.mark.parametrize("name", LINEAR)
def test_the_interval_holds_the_exact_limit(name):
    matrix, solver, limit, why = LINEAR[name]
    predicted = predict_dt_max(linear(matrix), jnp.ones((1, 2)), solver)
    measured = measure_dt_max(linear(matrix), jnp.ones((1, 2)), solver)
    assert measured.interval[0] <= limit <= measured.interval[1] and measured.note == ""
    assert measured.interval[0] <= measured.dt_max <= measured.interval[1] < 1.3 * measured.interval[0] + 0.5
    assert (measured.interval[0] == 0) == (limit == 0)
    assert predicted.dt_max == pytest.approx(limit, abs=5e-3)  # Heun's |R| = 1 + 1e-9 at h = 0.0047
    assert predicted.sharp == (why == "") and why in predicted.note


def _rk4(f, h, y):
    k1 = f(0, y, None)
    k2 = f(0, y + h / 2 * k1, None)
    k3 = f(0, y + h / 2 * k2, None)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(0, y + h * k3, None))


def test_a_prediction_says_when_it_is_not_sharp():
    """A nonlinear field, and one with a growing mode, which hides a decaying one that the scheme amplifies: |1 − 10h| against
    e^{h + h²/2} and not against 1."""
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4)))

    def tanh(t, v, args):
        return jnp.tanh(v @ weights) - v

    v = jax.random.normal(jax.random.key(0), (3, 4))
    predicted, measured = predict_dt_max(tanh, v, "euler"), measure_dt_max(tanh, v, "euler")
    assert not predicted.sharp and predicted.note.startswith("nonlinear")
    assert measured.interval[0] <= predicted.dt_max <= measured.interval[1]  # one stage, at v itself
    # Four stages at four states: the derivative of the step is no polynomial of the Jacobian at v.
    predicted, measured = predict_dt_max(tanh, v, "rk4"), measure_dt_max(tanh, v, "rk4")
    assert predicted.note.startswith("nonlinear") and "between the stages" in predicted.note
    step = jax.jacfwd(lambda h, y: _rk4(tanh, h, y), 1)
    for h, stable in ((measured.interval[0], True), (measured.interval[1], False), (predicted.dt_max, False)):
        radius = np.abs(np.linalg.eigvals(np.asarray(step(h, v)).reshape(12, 12))).max()
        assert (radius < 1) == stable
    growing = linear(np.diag([1.0, -10.0]))
    predicted, measured = (
        predict_dt_max(growing, jnp.ones((1, 2)), "euler"),
        measure_dt_max(growing, jnp.ones((1, 2)), "euler"),
    )
    assert not predicted.sharp and "measured limit lies above" in predicted.note
    assert "upper bound" in measured.note and measured.dt_max > 1.1 * predicted.dt_max
    h = np.linspace(0.2, 0.3, 10001)
    hidden = h[10 * h - 1 <= np.exp(h + 0.5 * h**2)][-1]
    assert measured.interval[0] <= hidden <= measured.interval[1]


def test_a_solver_without_forward_derivative_is_named(u):
    with pytest.raises(TypeError, match=r"RKC2 has no forward-mode derivative"):
        measure_dt_max(transformer(1.0, 0.0), u, solvers.RKC2(scan_kind="checkpointed"))


def test_an_exponential_solver_gets_the_linear_part(u):
    """φ-functions integrate diffusion and damping exactly; what is left, a reaction of −40u, is explicit and limits the step."""
    equation = pj.MasterEquation(
        reaction=linear(-40.0 * np.eye(D)).reaction,
        diffusion=pj.Diffusion(pj.Grid(N), 0.5),
        stabilization=pj.LinearDamping(1.0),
    )
    # ETDRK1 on u' = −(c + λ)u − 40u: |e^{−hc} − 40(1 − e^{−hc})/c| ≤ 1 on the mean, where diffusion is zero, c = 1.
    h = np.linspace(0.01, 0.1, 90001)
    expected = h[np.abs(np.exp(-h) - 40 * (1 - np.exp(-h))) <= 1][-1]
    np.testing.assert_allclose(measure_dt_max(equation, u, "etdrk1").dt_max, expected, rtol=0.02)


def test_a_discretization_brings_its_solver_and_depth(u):
    equation = transformer(1.0, 0.5)
    d = pj.Discretization(equation, "rk4", t1=1.0, steps=10)
    assert predict_dt_max(d, u) == predict_dt_max(equation, u, "rk4")
    assert predict_dt_max(d, u, "euler") == predict_dt_max(equation, u, "euler")
    layered = pj.DepthVarying.from_layers([equation, transformer(3.0, 1.0)], 2.0)
    second = predict_dt_max(pj.Discretization(layered, "euler", t1=2.0, steps=2), u, t=1.5)
    assert second.dt_max == pytest.approx(predict_dt_max(transformer(3.0, 1.0), u, "euler").dt_max, rel=1e-12)
    with pytest.raises(ValueError, match="predict_dt_max: a field alone has no solver"):
        predict_dt_max(equation, u)


class Hyper(AbstractTerm):
    """A user's own −κ∂⁴, which gives its symbol."""

    grid: pj.Grid
    kappa: jax.Array

    def __call__(self, t, u, args):
        return self.linear(u.shape[0]).operator(t, u, args)

    def damping(self):
        return 16 * self.kappa / jnp.asarray(self.grid.spacing) ** 4

    def check(self, n, d):
        pass

    def linear(self, n, mask=None):
        values = pj.Laplacian(self.grid).eigenvalues()
        return Linear(solvers.DiagonalizableOperator(self.grid, symbol=-self.kappa * values**2), whole=True)

    def lipschitz(self, radius, n, norm="token_max", spread=0.0):
        return 16 * float(self.kappa) / float(self.grid.spacing) ** 4


def test_a_users_own_linear_term_is_exact_and_limits_the_step(u):
    grid = pj.Grid(N)
    largest = 1e-3 * (4 * N**2 * np.cos(np.pi / (2 * N)) ** 2) ** 2
    equation = pj.MasterEquation(hyper=Hyper(grid, jnp.asarray(1e-3)))
    bounds = spectral_bounds(equation, u)["hyper"]
    assert bounds.method == "exact"
    np.testing.assert_allclose([bounds.leftmost.real, bounds.lipschitz], [-largest, largest], rtol=1e-10)
    np.testing.assert_allclose(predict_dt_max(equation, u, "euler").dt_max, 2 / largest, rtol=1e-6)
    np.testing.assert_allclose(measure_dt_max(equation, u, "euler").dt_max, 2 / largest, rtol=0.01)
    constants = step_constants(equation, N, 1.0)
    # It says that it is Lipschitz, not that its steps are averages: no certificate.
    assert constants.rest_lipschitz >= largest and constants.dt_max == 0
