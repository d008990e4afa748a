"""Compiled programs are dropped before their memory maps run out, and not sooner."""

import sys

import jax
import jax.numpy as jnp
import pytest

from pdejax.studies._programs import forget_programs


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory maps are counted on Linux only")
def test_programs_are_dropped_only_where_there_are_many():
    double = jax.jit(lambda x: 2.0 * x)
    double(jnp.ones(3))
    assert not forget_programs(most=10**9)
    assert double._cache_size() == 1
    assert forget_programs(most=0)
    assert double._cache_size() == 0
    assert jnp.array_equal(double(jnp.ones(3)), jnp.full(3, 2.0))
