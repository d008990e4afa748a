"""The stability function taken from a solver's own step, against its tableau and against Chebyshev's polynomials."""

import diffrax
import numpy as np
import pytest
from numpy.polynomial import chebyshev, polynomial

from pdejax import solvers
from pdejax.analysis.stability import stability_factor

RNG = np.random.default_rng(0)
Z = RNG.uniform(-5, 2, 60) + 1j * RNG.uniform(-4, 4, 60)


@pytest.mark.parametrize("name", ["euler", "heun", "rk4", "bosh3", "tsit5", "dopri5", "kvaerno5"])
def test_equals_the_rational_function_of_the_tableau(name):
    numerator, denominator = solvers.stability_function(solvers.get_solver(name))
    expected = np.abs(polynomial.polyval(Z, numerator) / polynomial.polyval(Z, denominator))
    np.testing.assert_allclose(stability_factor(name, Z), expected, rtol=1e-9)


@pytest.mark.parametrize("stages", [3, 8])
def test_rkc2_is_a_shifted_chebyshev_polynomial(stages):
    found = pytest.importorskip("pdejax.solvers._rkc")
    # Verwer, Hundsdorfer and Sommeijer (1990): R(z) = 1 − b T_s(w0) + b T_s(w0 + w1 z), damping 2/13.
    series = np.zeros(stages + 1)
    series[-1] = 1
    w0 = 1 + 2 / 13 / stages**2
    t, t1, t2 = (chebyshev.chebval(w0, chebyshev.chebder(series, m)) for m in (0, 1, 2))
    w1, b = t1 / t2, t2 / t1**2
    z = np.linspace(-0.65 * stages**2, 0, 40)
    expected = np.abs(1 - b * t + b * chebyshev.chebval(w0 + w1 * z, series))
    np.testing.assert_allclose(stability_factor(found.RKC2(stages=stages), z), expected, rtol=1e-9, atol=1e-9)


def test_keeps_shapes_and_goes_beyond_one_batch():
    z = np.linspace(-3, 0, 4500).reshape(45, 100)
    np.testing.assert_allclose(stability_factor("euler", z), np.abs(1 + z), rtol=1e-12)
    assert stability_factor("euler", -0.5).shape == () and stability_factor("euler", np.zeros((0, 2))).shape == (0, 2)
    assert not np.isfinite(stability_factor("rk4", -1e200))


def test_bad_input_says_what_to_do():
    with pytest.raises(ValueError, match=r"unknown solver 'eulr'.*'euler'"):
        stability_factor("eulr", 0.0)
    with pytest.raises(TypeError, match="Euler"):
        stability_factor(diffrax.Euler, 0.0)
    with pytest.raises(TypeError, match="z='half' must be"):
        stability_factor("euler", "half")
    for apart in ("strang", solvers.LieTrotter((diffrax.Euler(), diffrax.Euler())), diffrax.SemiImplicitEuler()):
        with pytest.raises(ValueError, match=r"takes the terms.*measure_dt_max"):
            stability_factor(apart, 0.0)
