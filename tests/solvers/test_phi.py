"""φ-functions against their power series summed with 60 digits."""

from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.solvers._phi import phi as eager_phi

phi = jax.jit(eager_phi, static_argnums=1)

_rng = np.random.default_rng(0)
POINTS = {
    "negative": -np.concatenate([np.geomspace(1e-8, 45.0, 60), np.linspace(1.0, 3.0, 40), [2.0, 0.0]]),
    "positive": np.concatenate([np.geomspace(1e-8, 45.0, 60), np.linspace(1.0, 3.0, 40)]),
    "left": np.geomspace(1e-6, 30.0, 80) * np.exp(1j * _rng.uniform(np.pi / 2, 3 * np.pi / 2, 80)),
    "imaginary": 1j * np.concatenate([np.linspace(-12.0, 12.0, 61), [2.0, -2.0]]),
}


def _series(z: complex, k: int) -> tuple[Decimal, Decimal]:
    """φ_k(z) = Σ_j z^j / (j + k)!, real and imaginary part."""
    a, b = Decimal(z.real), Decimal(z.imag)
    term = (Decimal(1), Decimal(0))
    for j in range(1, k + 1):
        term = (term[0] / j, term[1])
    total, j = term, 0
    while j < 3 * abs(z) + 60:
        j += 1
        term = ((term[0] * a - term[1] * b) / (k + j), (term[0] * b + term[1] * a) / (k + j))
        total = (total[0] + term[0], total[1] + term[1])
    return total


def _relative(value: complex, exact: tuple[Decimal, Decimal]) -> float:
    real, imag = Decimal(value.real) - exact[0], Decimal(value.imag) - exact[1]
    return float(((real**2 + imag**2) / (exact[0] ** 2 + exact[1] ** 2)).sqrt())


@pytest.mark.parametrize("name", POINTS)
def test_values(name):
    points = POINTS[name]
    values = [np.asarray(v) for v in phi(jnp.asarray(points), 4)]
    assert all(v.dtype == points.dtype for v in values)
    with localcontext() as context:
        context.prec = 80
        for k, row in enumerate(values):
            worst = max(
                _relative(complex(v), _series(complex(z), k))
                for z, v in zip(points.tolist(), row.tolist(), strict=True)
            )
            assert worst < 1e-15, (k, worst)


@pytest.mark.parametrize("name", POINTS)
def test_single_precision(name):
    points = POINTS[name].astype(np.complex64 if name in ("left", "imaginary") else np.float32)
    single = phi(jnp.asarray(points), 3)
    double = phi(jnp.asarray(points.astype(np.complex128 if points.dtype == np.complex64 else np.float64)), 3)
    for a, b in zip(single, double, strict=True):
        assert a.dtype == points.dtype
        assert np.max(np.abs(np.asarray(a) - np.asarray(b)) / np.abs(np.asarray(b))) < 1e-6


def test_far_left():
    """φ_k(z) → −1 / ((k−1)! z)."""
    z = -1e9
    values = phi(jnp.asarray(z), 4)
    np.testing.assert_allclose(values, [0.0, -1 / z, -1 / z, -0.5 / z, -1 / z / 6], rtol=1e-8)


def test_scalars_and_shapes():
    assert [v.shape for v in phi(jnp.zeros((3, 1)), 2)] == [(3, 1)] * 3
    np.testing.assert_allclose(phi(jnp.asarray(0.0), 6), [1, 1, 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720], rtol=1e-15)
    (only,) = phi(jnp.asarray(1.0), 0)
    assert float(only) == pytest.approx(np.e, rel=1e-15)


@pytest.mark.parametrize("name", POINTS)
def test_derivatives(name):
    """φ_k' = φ_k − k φ_{k+1}, forwards and backwards, also at 0 and where series and recurrence meet."""
    z = jnp.asarray(POINTS[name])
    exact = phi(z, 4)
    _, tangents = jax.jit(lambda v: jax.jvp(lambda w: phi(w, 3), (v,), (jnp.ones_like(v),)))(z)
    for k in range(4):
        np.testing.assert_allclose(tangents[k], exact[k] - k * exact[k + 1], rtol=1e-12, atol=1e-15)
    if not jnp.iscomplexobj(z):
        backward = jax.jit(jax.grad(lambda v: sum(jnp.sum(p) for p in phi(v, 3))))(z)
        np.testing.assert_allclose(backward, sum(tangents), rtol=1e-12, atol=1e-15)


def test_second_derivative_at_zero():
    second = jax.jit(jax.hessian(lambda v: phi(v, 3)[3]))(jnp.asarray(0.0))
    assert float(second) == pytest.approx(2 / 120, rel=1e-14)


@pytest.mark.parametrize("largest", [-1, 7])
def test_refuses(largest):
    with pytest.raises(ValueError, match="from 0 to 6"):
        phi(jnp.zeros(()), largest)
