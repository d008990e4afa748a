"""Test configuration: float64, strict promotion, and a compilation cache that outlives the run."""

import functools
import gc
import inspect
import os
import pathlib
import time

os.environ.setdefault("MPLBACKEND", "Agg")
# Most of a test's time is compilation: without LLVM's optimizations, and with XLA's older emitters, it takes less than half of
# it. What users run is compiled in full by `make verify`, `make convergence` and the benchmarks.
_QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_enable_concurrency_optimized_scheduler=false"
)
os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()

import jax
import jaxtyping
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

_cache = pathlib.Path(__file__).parent.parent / ".jax_cache"
jax.config.update("jax_compilation_cache_dir", str(_cache))
# Small programs too: to read one takes a quarter of the time of compiling it, and the processes of a run share them.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_ignore_collect(collection_path, config):
    """To read all tests takes half a minute: files without slow ones are left out where those alone are asked for."""
    if config.option.markexpr == "slow" and collection_path.match("test_*.py"):
        return True if "mark.slow" not in collection_path.read_text() else None


def pytest_collection_modifyitems(items):
    """Files with the most slow tests first, so that two processes end together."""
    slow: dict[pathlib.Path, int] = {}
    for item in items:
        slow[item.path] = slow.get(item.path, 0) + (item.get_closest_marker("slow") is not None)
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish():
    """What is there when the tests begin stays: the garbage collector need not look through millions of objects at every turn."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


_looked = {"at": 0.0}


@pytest.fixture(autouse=True)
def few_programs():
    """Every few seconds, drop compiled programs where there are many: a whole run makes thousands (see `forget_programs`)."""
    yield
    if time.monotonic() - _looked["at"] > 5.0:
        from pdejax.runs._parts import forget_programs, release_memory

        if forget_programs():
            release_memory()
        _looked["at"] = time.monotonic()


@pytest.fixture(autouse=True)
def own_errors(request):
    """No runtime type checker in tests that expect an error: it must be the library's own, which users get."""
    expects = _expects_an_error(request.function) or request.node.get_closest_marker("bad_input")
    jaxtyping.config.update("jaxtyping_disable", bool(expects))
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@functools.cache
def _expects_an_error(test) -> bool:
    return "pytest.raises" in inspect.getsource(test)


@pytest.fixture
def getkey():
    """A function that returns a fresh PRNG key on every call, the same sequence in every test."""
    state = {"key": jax.random.key(0)}

    def get():
        state["key"], key = jax.random.split(state["key"])
        return key

    return get


@pytest.fixture
def relative():
    """Relative error ‖a − b‖ / ‖b‖ in the Frobenius norm, as a Python float."""

    def error(a, b) -> float:
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, (a.shape, b.shape)
        scale = np.linalg.norm(np.ravel(b))
        return float(np.linalg.norm(np.ravel(a - b)) / (scale if scale > 0 else 1.0))

    return error
