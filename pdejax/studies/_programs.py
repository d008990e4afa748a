"""Long runs and compiled programs: dropped before the kernel refuses the process another memory map."""

import gc
import pathlib

import jax

_MAPS = pathlib.Path("/proc/self/maps")


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
