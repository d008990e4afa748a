"""Stability polynomials of pdejax.exact against diffrax's tableaus, and their limits on the negative real axis."""

import diffrax
import numpy as np
import pytest

from pdejax import exact


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("heun", diffrax.Heun),
        ("midpoint", diffrax.Midpoint),
        ("bosh3", diffrax.Bosh3),
        ("dopri5", diffrax.Dopri5),
        ("tsit5", diffrax.Tsit5),
        ("dopri8", diffrax.Dopri8),
    ],
)
def test_stability_polynomials_are_those_of_the_tableaus(name, solver):
    tableau = solver.tableau
    weights = tableau.b_sol
    a = np.zeros((len(weights), len(weights)))
    for i, row in enumerate(tableau.a_lower, start=1):
        a[i, :i] = row
    powers, column = [1.0], np.ones(len(weights))
    for _ in weights:
        powers.append(float(weights @ column))
        column = a @ column
    stated = exact.stability_polynomial(name)
    np.testing.assert_allclose(powers[: len(stated)], stated, rtol=1e-13)
    np.testing.assert_allclose(powers[len(stated) :], 0, atol=1e-18)


@pytest.mark.parametrize(
    ("name", "limit", "digits"),
    [
        ("euler", 2.0, 1e-14),
        ("heun", 2.0, 1e-14),
        ("midpoint", 2.0, 1e-14),
        ("rk4", 2.78529, 5e-6),
        ("bosh3", 2.5127, 5e-5),
        ("dopri5", 3.3066, 5e-5),
        ("tsit5", 3.5068, 5e-5),
        ("dopri8", 5.1666, 5e-5),
    ],
)
def test_real_axis_limits(name, limit, digits):
    found = exact.real_axis_limit(name)
    assert abs(found - limit) <= digits
    polynomial = np.polynomial.Polynomial(exact.stability_polynomial(name))
    assert np.all(np.abs(polynomial(-np.linspace(0, found, 20_001))) <= 1 + 1e-12)
    assert np.all(np.abs(polynomial(-found * np.linspace(1 + 1e-9, 1.5, 1000))) > 1)


def test_real_axis_limit_of_other_polynomials():
    # Runge–Kutta–Chebyshev T_s(1 + z/s²) touches ±1 inside and leaves at −2s².
    for s in (2, 3, 5):
        chebyshev = np.polynomial.Chebyshev.basis(s).convert(kind=np.polynomial.Polynomial)
        coefficients = chebyshev(np.polynomial.Polynomial([1.0, 1 / s**2])).coef
        assert exact.real_axis_limit(coefficients / coefficients[0]) == pytest.approx(2 * s**2, rel=1e-6)
    assert exact.real_axis_limit([1.0, -1.0]) == 0.0
    assert exact.real_axis_limit([1.0, 1.0, 0.5, 0.0]) == pytest.approx(2.0, abs=1e-12)
