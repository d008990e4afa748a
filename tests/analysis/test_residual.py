"""Fidelity to the input: the cosine, the bound of v2 (17) where it fails, the sharp bound where it is attained."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.optimize import minimize_scalar

from pdejax.analysis.residual._fidelity import (
    adversarial_update,
    fidelity,
    fidelity_bound,
    fidelity_report,
    residual_ratio,
)

N, D = 5, 4
U0 = jax.random.normal(jax.random.key(0), (N, D))


def test_fidelity_and_ratio_by_numpy():
    us = jax.random.normal(jax.random.key(1), (3, 2, N, D))
    rho, r = np.asarray(fidelity(us, U0)), np.asarray(residual_ratio(us, U0))
    v = np.asarray(U0).ravel()
    for index in np.ndindex(3, 2):
        w = np.asarray(us[index]).ravel()
        assert rho[index] == pytest.approx(w @ v / np.linalg.norm(w) / np.linalg.norm(v), rel=1e-13)
        assert r[index] == pytest.approx(np.linalg.norm(w - v) / np.linalg.norm(v), rel=1e-13)
    assert float(fidelity(U0, U0)) == pytest.approx(1) and float(residual_ratio(U0, U0)) == 0


@pytest.mark.parametrize("r", [0.1, 0.5, 0.9, 0.99])
def test_sharp_bound_is_the_minimum(r):
    """Minimized over the angle of I in the plane that u₀ and I span: by symmetry nothing else matters."""

    def cosine(a):
        return (1 + r * math.cos(a)) / math.hypot(1 + r * math.cos(a), r * math.sin(a))

    least = minimize_scalar(cosine, bounds=(0, math.pi), method="bounded", options={"xatol": 1e-12}).fun
    assert float(fidelity_bound(r)) == pytest.approx(least, rel=1e-9)
    assert float(fidelity_bound(r, claimed=True)) < least


@pytest.mark.parametrize("r", [0.0, 0.3, 0.95, 1.5, 2.0])
def test_adversary_attains_the_sharp_bound(r):
    update = adversarial_update(U0, r, key=jax.random.key(1))
    assert float(residual_ratio(U0 + update, U0)) == pytest.approx(r, rel=1e-13)
    assert float(fidelity(U0 + update, U0)) == pytest.approx(float(fidelity_bound(r)), abs=1e-13)


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-3, 0.999), st.integers(0, 10**6))
def test_no_update_is_worse_than_the_sharp_bound(r, seed):
    rng = np.random.default_rng(seed)
    update = rng.standard_normal((N, D)) + rng.standard_normal() * 3 * np.asarray(U0)
    update = update * (r * float(jnp.linalg.norm(U0)) / np.linalg.norm(update))
    rho = float(fidelity(U0 + jnp.asarray(update), U0))
    assert rho >= float(fidelity_bound(r)) - 1e-12
    assert rho >= float(fidelity_bound(r, claimed=True)) - 1e-12


def test_counterexample_to_the_claimed_bound():
    end = U0 - 2 * U0
    assert float(fidelity(end, U0)) == pytest.approx(-1)
    assert float(fidelity_bound(residual_ratio(end, U0), claimed=True)) == pytest.approx(-1 / 3)
    report = fidelity_report(jnp.stack([end, U0]), U0)
    assert (report.below_one, report.above_one) == (1, 1)
    assert (report.violated_below, report.violated_above, report.sharp_violated) == (0, 1, 0)


def test_bounds_at_their_edges():
    r = jnp.array([0.0, 1.0, 1.0 + 1e-9, 7.0])
    assert np.asarray(fidelity_bound(r)).tolist() == [1.0, 0.0, -1.0, -1.0]
    assert np.asarray(fidelity_bound(r, claimed=True))[:2].tolist() == [1.0, 0.0]
    assert float(fidelity_bound(0)) == 1.0  # an integer is a ratio too
    slope = jax.grad(fidelity_bound)(0.6)
    assert float(slope) == pytest.approx(-0.6 / 0.8)


def test_report_of_a_rotation():
    """A decaying field u₀e^{−3t} keeps ρ = 1; a rotation violates v2 (17) once r > 1, and never the sharp bound."""
    report = fidelity_report(jnp.exp(-3 * jnp.linspace(0.0, 1.0, 21))[:, None, None] * U0[None], U0)
    assert np.asarray(report.fidelity) == pytest.approx(1)
    assert report.violated_above == report.violated_below == 0 and report.below_one == 21
    # Rotation by π in the plane of two features: ρ = cos t, r = 2 sin(t/2).
    matrix = np.zeros((D, D))
    matrix[0, 1], matrix[1, 0] = 1.0, -1.0
    t = np.linspace(0, math.pi, 50)
    flat = U0.at[:, 2:].set(0)
    us = jnp.stack([flat @ expm(s * matrix) for s in t])
    turned = fidelity_report(us, flat)
    assert np.asarray(turned.fidelity) == pytest.approx(np.cos(t), abs=1e-12)
    assert np.asarray(turned.ratio) == pytest.approx(2 * np.sin(t / 2), abs=1e-12)
    r = 2 * np.sin(t / 2)
    assert turned.violated_above == int(np.sum(np.cos(t) < (1 - r) / (1 + r) - 1e-12)) > 0
    assert turned.violated_below == turned.sharp_violated == 0


def test_samples_that_blew_up_count_nowhere():
    us = jnp.stack([U0, U0 * jnp.nan, U0 * jnp.inf])
    report = fidelity_report(us, U0)
    assert report.below_one + report.above_one == 1
    assert report.violated_above == report.sharp_violated == 0


def test_bad_input_of_the_adversary():
    for call, words in (
        (lambda: adversarial_update(U0, -0.1, key=jax.random.key(0)), "ratio=-0.1"),
        (lambda: adversarial_update(U0, 1.0, key=jax.random.key(0)), "not 1"),
        (lambda: adversarial_update(U0, math.nan, key=jax.random.key(0)), "ratio=nan"),
        (lambda: adversarial_update(jnp.ones((1, 1)), 0.5, key=jax.random.key(0)), "orthogonal"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
