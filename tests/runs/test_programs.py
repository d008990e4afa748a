"""Compiled programs are dropped before their memory maps run out, and not sooner."""

import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from pdejax.runs._parts import cache_folder, forget_programs, kept_programs


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory maps are counted on Linux only")
def test_programs_are_dropped_only_where_there_are_many():
    double = jax.jit(lambda x: 2.0 * x)
    double(jnp.ones(3))
    assert not forget_programs(most=10**9)
    assert double._cache_size() == 1
    assert forget_programs(most=0)
    assert double._cache_size() == 0
    assert jnp.array_equal(double(jnp.ones(3)), jnp.full(3, 2.0))


@pytest.fixture
def hits():
    """How many programs were read instead of compiled."""
    seen: list[str] = []

    def listen(name, **_):
        if name == "/jax/compilation_cache/cache_hits":
            seen.append(name)

    jax.monitoring.register_event_listener(listen)
    yield seen
    jax.monitoring.unregister_event_listener(listen)


def fresh():
    """A function that JAX has not seen, though its program is always the same."""
    return jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T)


def test_programs_are_read_again_in_the_context_and_only_there(tmp_path, monkeypatch, hits):
    before = cache_folder()
    monkeypatch.setattr("pdejax.runs._parts._LEAST_SECONDS", 0.0)
    x = jnp.ones((3, 3))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        hits.clear()  # those of the tests' own folder
        with kept_programs(tmp_path):
            first = fresh()(x)
            files = [path for path in tmp_path.rglob("*") if path.is_file()]
            assert files and not hits
            assert jnp.array_equal(fresh()(x), first) and len(hits) == 1
        assert cache_folder() is None
        fresh()(x)
        assert len(hits) == 1
        # A damaged file costs a compilation, no more.
        for path in files:
            path.write_bytes(b"damaged")
        with kept_programs(tmp_path), pytest.warns(UserWarning, match="persistent compilation cache"):
            assert jnp.array_equal(fresh()(x), first)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


def test_the_callers_own_cache_serves(tmp_path):
    assert cache_folder() is not None  # as in all tests
    with kept_programs(tmp_path / "programs"):
        fresh()(jnp.ones((2, 2)))
    assert not (tmp_path / "programs").exists()
