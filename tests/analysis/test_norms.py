"""Norms of fields: mesh-consistent, blind to padding."""

import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.analysis import mesh_norm
from pdejax.analysis.numerics import token_max_norm
from pdejax.solvers import Grid


def samples(n):
    x = (jnp.arange(float(n)) + 0.5) / n
    return jnp.stack([jnp.cos(3 * x), x**2], axis=1)


def test_by_hand():
    u = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    assert float(mesh_norm(u)) == pytest.approx(5 / 2**0.5)
    assert float(token_max_norm(u)) == 5.0


def test_the_norm_of_a_function_does_not_depend_on_the_mesh():
    exact = np.sqrt(0.5 + np.sin(6) / 12 + 0.2)
    assert float(mesh_norm(samples(4000))) == pytest.approx(exact, rel=1e-7)
    assert float(mesh_norm(samples(40))) == pytest.approx(exact, rel=1e-3)


def test_it_is_the_grids_own_norm():
    u = samples(9)
    assert float(mesh_norm(u)) == pytest.approx(float(Grid(9).norm(u)), rel=1e-14)
    assert float(token_max_norm(u)) == pytest.approx(float(Grid(9).max_norm(u)), rel=1e-14)


@pytest.mark.parametrize("norm", [mesh_norm, token_max_norm])
def test_padding_does_not_count(norm):
    u = samples(7)
    padded = jnp.concatenate([u, jnp.full((3, 2), 1e6)])
    assert float(norm(padded, jnp.arange(10) < 7)) == pytest.approx(float(norm(u)), rel=1e-14)


@pytest.mark.parametrize("norm", [mesh_norm, token_max_norm])
def test_leading_axes_are_kept(norm):
    us = jnp.stack([samples(5), 2 * samples(5), -samples(5)])
    one = float(norm(us[0]))
    np.testing.assert_allclose(norm(us), [one, 2 * one, one], rtol=1e-14)
    np.testing.assert_allclose(norm(us[None], jnp.ones(5, bool)), [[one, 2 * one, one]], rtol=1e-14)
