"""Attention's sum over keys as an integral: the order of its quadratures."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.solvers import Grid
from pdejax.terms import Attention

D, H, T = 8, 2, 0.3


def smooth(x):
    """A field that does not vanish at the ends, (n, D)."""
    modes = [np.sin(3 * x + 0.3), np.cos(2 * x), x**2, np.exp(-x), x, 1 + 0 * x, np.sin(5 * x), np.cos(4 * x + 1)]
    return np.stack(modes, axis=1)


def periodic(x):
    return np.stack([np.sin(2 * np.pi * (1 + k % 3) * x + k) for k in range(D)], axis=1)


def integral(term, function, x):
    """A(u)(x) = Σ_h W_O ∫ K(x, y) W_V u(y) dy by 200 Gauss–Legendre points."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    y, w = 0.5 * (nodes + 1), 0.5 * weights
    q, k = (np.einsum("nd,dhk->nhk", u, np.asarray(p)) for u, p in ((function(x), term.wq), (function(y), term.wk)))
    kernel = w * np.exp(np.einsum("ihk,jhk->hij", q, k) / np.sqrt(q.shape[-1]))
    kernel = kernel / kernel.sum(axis=-1, keepdims=True)
    return np.einsum("hij,jd,dhk,hke->ie", kernel, function(y), term.wv, term.wo)


@eqx.filter_jit
def run(term, u):
    return term(T, u, None)


def spatial_orders(make, points, function, key):
    errors = []
    for n in (32, 64, 128):
        term, x = make(n, key), np.asarray(points(n))
        errors.append(np.abs(run(term, function(x)) - integral(term, function, x)).max())
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:])), errors


def trapezoid(n):
    return np.concatenate([[0.5], np.ones(n - 2), [0.5]]) / (n - 1)


def clustered(n):
    return np.linspace(0, 1, n) ** 2


def clustered_weights(n):
    return np.gradient(clustered(n)) * np.concatenate([[0.5], np.ones(n - 2), [0.5]])


QUADRATURES = {
    "neumann": (lambda n: Grid(n).points, lambda n: {"grid": Grid(n)}, 2),
    "dirichlet": (lambda n: Grid(n, "dirichlet").points, lambda n: {"grid": Grid(n, "dirichlet")}, 2),
    "dirichlet-equal-weights": (lambda n: Grid(n, "dirichlet").points, lambda n: {}, 1),
    "ends-included": (lambda n: np.linspace(0, 1, n), lambda n: {"weights": jnp.asarray(trapezoid(n))}, 2),
    "ends-equal-weights": (lambda n: np.linspace(0, 1, n), lambda n: {}, 1),
    "clustered-equal-weights": (clustered, lambda n: {}, 0),
}


@pytest.mark.parametrize("name", QUADRATURES)
def test_order_in_space(name, getkey):
    points, options, order = QUADRATURES[name]
    orders, errors = spatial_orders(lambda n, key: Attention(D, H, key=key, **options(n)), points, smooth, getkey())
    assert min(errors) > 1e-12
    np.testing.assert_allclose(orders, order, atol=0.15)


def test_spectral_in_space(getkey):
    """Periodic fields on the periodic grid, and Gauss–Legendre weights, reach rounding with few tokens."""
    key = getkey()
    x = Grid(48, "periodic").points
    term = Attention(D, H, key=key, grid=Grid(48, "periodic"))
    np.testing.assert_allclose(run(term, periodic(np.asarray(x))), integral(term, periodic, np.asarray(x)), atol=1e-10)
    nodes, weights = np.polynomial.legendre.leggauss(16)
    x = 0.5 * (nodes + 1)
    term = Attention(D, H, key=key, weights=jnp.asarray(0.5 * weights))
    np.testing.assert_allclose(run(term, smooth(x)), integral(term, smooth, x), atol=1e-10)
