"""Compiled programs in long runs: kept on disk, and dropped before the kernel refuses the process another memory map."""

import contextlib
import gc
import hashlib
import pathlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

_MAPS = pathlib.Path("/proc/self/maps")
_CPUINFO = pathlib.Path("/proc/cpuinfo")
_SECONDS = 0.5


def forget_programs(most: int = 30_000) -> bool:
    """Drop compiled programs where the process holds more than `most` memory maps; whether it did.

    Each program of XLA's takes several memory maps, of which Linux allows a process 65,530 by default (`vm.max_map_count`);
    beyond them the process dies without a message. Programs that are needed again are compiled again.
    """
    if not _MAPS.exists() or _MAPS.read_bytes().count(b"\n") <= most:
        return False
    jax.clear_caches()
    gc.collect()
    return True


def cache_folder() -> str | None:
    """Where JAX keeps compiled programs, if it does."""
    name = "jax_compilation_cache_dir"  # a setting that type checkers do not know
    return getattr(jax.config, name)


@contextlib.contextmanager
def kept_programs(folder: pathlib.Path) -> Iterator[None]:
    """Programs that took more than half a second to compile are kept in `folder` and read from there, within this context.

    A second seed compiles nothing that the first did, nor does a run that goes on. Processors with other instructions get
    folders of their own. Where the caller has a compilation cache (`jax_compilation_cache_dir`), that one serves.
    """
    if cache_folder() is not None:
        yield
        return
    changes = {
        "jax_compilation_cache_dir": str(folder / _processor()),
        "jax_persistent_cache_min_compile_time_secs": _SECONDS,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in changes}
    try:
        for name, value in changes.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # else a process that has compiled already goes on without
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _processor() -> str:
    """A digest of what the processor can do: a program of another may hold instructions that this one has not."""
    try:
        lines = _CPUINFO.read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = ""
    return hashlib.sha256(flags.encode()).hexdigest()[:8]
