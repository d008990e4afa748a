"""Predicted iterations against those needed, fields that expand refused, and the bias of gradients stopped early."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax.analysis.parallel import gradient_bias, predict_iterations
from pdejax.analysis.parallel._predict import _predicted

U0 = jax.random.normal(jax.random.key(30), (4, 4))


def smooth(strength, damping, seed=0, steps=256):
    a, b, c = jax.random.split(jax.random.key(seed), 3)
    block = pj.MasterEquation(
        pj.Attention(4, 1, key=a, strength=strength),
        pj.FeedForward(4, 8, key=b, activation="tanh", strength=strength),
        pj.LinearDamping(damping),
    )
    return pj.Discretization(pj.smooth_random(block, 4.0, key=c), "euler", t1=4.0, steps=steps)


@pytest.mark.parametrize("method", ["mgrit", "parareal", "newton"])
def test_iterations_are_those_predicted(method):
    """256 steps of smooth weights, exponents from below to above zero: within one."""
    gaps, exponents = [], []
    for strength, damping in ((0.3, 1.0), (0.6, 0.6), (0.6, 0.001), (1.0, 0.001)):
        d = smooth(strength, damping)
        how = {"method": method, "tolerance": 1e-8, "coarsening": 16 if method == "newton" else 4}
        predicted = predict_iterations(d, U0, **how)
        needed = pj.simulate_in_parallel(d, U0, **how)
        assert bool(needed.converged)
        gaps.append(int(predicted.iterations) - int(needed.iterations))
        exponents.append(float(predicted.exponent))
    assert max(map(abs, gaps)) <= 1, gaps
    assert exponents[0] < -0.5 and exponents[-1] > 0.2


def test_what_the_page_says_of_the_kept_figures():
    """Within one to 1e-8 where the flow does not expand much; and no solve is called converged that is not."""
    path = pathlib.Path(__file__).parents[2] / "benchmarks" / "results" / "parallel.json"
    rows = json.loads(path.read_text())["results"]["rows"]
    seen = [row for row in rows if "predicted" in row and row["tolerance"] == 1e-8]
    gaps = {}
    for row in seen:
        gaps.setdefault(row["field"], []).append(abs(row["predicted"] - row["iterations"]))
    assert max(max(gaps[kind]) for kind in ("contracting", "damped", "weakly expanding")) <= 1
    assert max(gaps["strong"]) > 2
    assert all(row["converged"] and row["residual"] <= row["tolerance"] for row in rows)


@pytest.mark.parametrize("method", ["mgrit", "newton"])
def test_a_field_that_expands_is_refused(method):
    """Nothing but propagation will end it: as many iterations as there are chunks or steps, and more steps in a row than N."""
    d = smooth(40.0, 0.0, steps=64)
    predicted = predict_iterations(d, U0, method=method, tolerance=1e-8)
    assert not bool(predicted.pays) and int(predicted.iterations) >= int(predicted.most) - 1
    assert float(predicted.exponent) > 1 and "does NOT pay" in repr(predicted)
    needed = pj.simulate_in_parallel(d, U0, method=method, tolerance=1e-8)
    assert int(needed.iterations) >= int(predicted.most) - 1


def test_exponents_are_measured_where_the_coarse_steps_are_exact():
    """u' = −u/2 in one chunk; and a constant field, whose coarse steps make no error."""
    one = pj.Discretization(lambda t, u: -u / 2, "euler", t1=1.0, steps=7)
    assert float(predict_iterations(one, jnp.ones((1, 1))).exponent) == pytest.approx(np.log(0.5))
    still = predict_iterations(pj.Discretization(lambda t, u: 1.0 + 0 * u, "euler", t1=1.0, steps=16), jnp.ones((1, 1)))
    assert float(still.exponent) == pytest.approx(0.0, abs=1e-12) and int(still.iterations) == 0


@pytest.mark.parametrize("a", [0.98, 1.01])
def test_predictions_of_linear_fields_are_near_the_closed_form(a):
    """u' = λ u: parareal's errors are known in closed form, here all residuals; 8 chunks of 8 steps."""
    d = pj.Discretization(lambda t, u: 64 * (a - 1) * u, "euler", t1=1.0, steps=64)
    predicted = predict_iterations(d, jnp.ones((1, 1)), method="parareal", coarsening=8, tolerance=1e-30)
    chunks, fine, coarse = 8, a**8, 1 + 8 * (a - 1)
    shift = np.eye(chunks + 1, k=-1)
    propagate = (fine - coarse) * np.linalg.solve(np.eye(chunks + 1) - coarse * shift, shift)
    scale = max(coarse ** np.arange(chunks + 1))
    error = coarse ** np.arange(chunks + 1) - fine ** np.arange(chunks + 1)
    residuals = [np.abs(error[1:] - fine * error[:-1]).max()]
    for _ in range(chunks - 2):
        residuals.append(np.abs((fine - coarse) * error[:-1]).max())
        error = propagate @ error
    np.testing.assert_allclose(predicted.residuals[: len(residuals)], np.asarray(residuals) / scale, rtol=0.35)
    assert float(predicted.exponent) == pytest.approx(8 * np.log(coarse), rel=1e-6)


@pytest.mark.parametrize("method", ["parareal", "mgrit", "newton"])
def test_no_verdict_from_what_is_not_finite(method):
    nan = dict.fromkeys(("growth", "share", "defects"), jnp.full(4, jnp.nan)) | {"scale": jnp.asarray(jnp.nan)}
    assert not bool(_predicted(nan, 64, 16, method, jnp.asarray(1e-6), jnp.asarray(1.0)).pays)
    numbers = {
        "growth": jnp.full(4, 1e200),
        "share": jnp.full(4, 1e200),
        "defects": jnp.ones(4),
        "scale": jnp.asarray(1.0),
    }
    found = _predicted(numbers, 64, 16, method, jnp.asarray(1e-6), jnp.asarray(1.0))
    assert int(found.iterations) == {"parareal": 4, "mgrit": 2, "newton": 64}[method] and not bool(found.pays)


def test_bias_falls_with_the_cycles_and_is_estimated():
    d = smooth(0.6, 0.6, steps=32)
    found = gradient_bias(d, U0, loss=lambda u: jnp.sum(u**2), iterations=(0, 3), coarsening=4)
    bias = np.asarray(found.bias)
    assert 1e-3 < bias[0] < 1 and 1e-9 < bias[1] < 0.2**3 * bias[0]
    # One cycle more is so much better that it stands for the exact gradient; four are exact on 8 chunks.
    np.testing.assert_allclose(found.estimate[0], bias[0], rtol=0.2)
    np.testing.assert_allclose(found.estimate[1], bias[1], rtol=1e-6)
    np.testing.assert_allclose(found.cosine, 1, atol=0.1)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"method": "newton"}, "gradient_bias: method='newton' solves its adjoint in one go"),
        ({"iterations": ()}, "gradient_bias: iterations is empty"),
        ({"field": True}, "gradient_bias: the field has no arrays"),
        ({"iterations": (-1,)}, "gradient_bias: iterations"),
    ],
)
def test_what_has_no_bias_to_measure_is_refused(more, words):
    d = smooth(1.0, 0.0, steps=16)
    if more.pop("field", False):
        d = d.replace(field=lambda t, u: -u)
    with pytest.raises(ValueError, match=words):
        gradient_bias(d, U0, loss=jnp.sum, **more)
