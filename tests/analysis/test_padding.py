"""What is linearized with a mask is that of the real tokens alone: padding adds no eigenvalue, no growth and no curvature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax.analysis import stability
from pdejax.analysis.jacobian import _operator
from pdejax.analysis.numerics import field_constants

REAL, PADDED, D = 4, 6, 3
MASK = jnp.arange(PADDED) < REAL
# Each token decays at a rate of its own: 1 at real ones, 50 at padding.
RATES = np.where(np.arange(PADDED) < REAL, 1.0, 50.0)[:, None]


def field(t, u, args):
    del t, args
    return -jnp.asarray(RATES[: u.shape[0]], u.dtype) * u


STATE = jnp.asarray(np.random.default_rng(0).normal(size=(PADDED, D)))


@pytest.mark.parametrize("complete", [True, False])
def test_padding_is_left_out(complete, monkeypatch):
    if not complete:  # by products, as for large states
        monkeypatch.setattr(_operator, "COMPLETE", 0)
    bounds = stability.spectral_bounds(field, STATE, mask=MASK)["field"]
    constants = field_constants(field, jnp.zeros(1), STATE[None], MASK)
    found = {
        "predict_dt_max": (stability.predict_dt_max(field, STATE, "euler", mask=MASK).dt_max, 2.0),
        "measure_dt_max": (stability.measure_dt_max(field, STATE, "euler", mask=MASK).dt_max, 2.0),
        "rightmost": (bounds.rightmost, -1.0),
        "leftmost": (bounds.leftmost, -1.0),
        "log_norm": (bounds.log_norm, -1.0),
        "lipschitz": (bounds.lipschitz, 1.0),
        "log_norm_on_trajectory": (constants.log_norm_on_trajectory, -1.0),
        "lipschitz_on_trajectory": (constants.lipschitz_on_trajectory, 1.0),
        "curvature_on_trajectory": (
            constants.curvature_on_trajectory,
            np.sqrt(np.mean(np.sum(np.asarray(STATE)[:REAL] ** 2, 1))),
        ),
    }
    for name, (value, exact) in found.items():
        np.testing.assert_allclose(value, exact, rtol=2e-3, err_msg=name)


def test_a_stiff_token_that_is_real_counts():
    assert stability.predict_dt_max(field, STATE, "euler").dt_max == pytest.approx(2 / 50, rel=1e-6)
    alone = stability.predict_dt_max(field, STATE, "euler", mask=jnp.arange(PADDED) != 0).dt_max
    assert alone == pytest.approx(2 / 50, rel=1e-6)


def test_attention_over_padded_keys_is_the_short_sequence():
    equation = pj.MasterEquation(pj.Attention(D, 1, key=jax.random.key(0)), pj.FeedForward(D, 8, key=jax.random.key(1)))
    short = stability.spectral_bounds(equation, STATE[:REAL])["field"]
    padded = stability.spectral_bounds(equation, STATE, mask=MASK)["field"]
    np.testing.assert_allclose(np.sort_complex(padded.eigenvalues), np.sort_complex(short.eigenvalues), atol=1e-9)
    np.testing.assert_allclose(padded.field_of_values, short.field_of_values, atol=1e-9)


def test_few_real_tokens_of_many_are_taken_whole():
    """Two real tokens of 300, decoupled: u' = −5u, whose exact eigenvalues are known without iterating."""
    equation = pj.MasterEquation(stabilization=pj.LinearDamping(5.0))
    mask = jnp.arange(300) < 2
    found = pj.analysis.predict_dt_max(equation, jnp.ones((300, 2)), "euler", mask=mask)
    assert found.complete and float(found.dt_max) == pytest.approx(0.4, rel=1e-7)
    bounds = stability.spectral_bounds(equation, jnp.ones((300, 2)), mask=mask)
    for found in bounds.values():
        np.testing.assert_allclose(np.real(found.eigenvalues), -5.0, rtol=1e-9)
