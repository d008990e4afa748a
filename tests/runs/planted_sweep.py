"""A sweep with a closed form, for processes that are killed, sharded, or have several devices."""

import contextlib
import hashlib
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from pdejax.runs.sweep import Sweep, run_sweep

STEPS = (0.5, 1.0, 1.5)


def decay(key, *, rate, stages, kind):
    """Euler's steps on u' = −ru from a random start: u₀(1 − rh)^k, over a loop, as a solve has."""
    start = jax.random.normal(key, (3,))
    sign = {"decay": -1.0, "growth": 1.0}[kind]

    def body(u, _):
        return u * (1 + sign * rate / stages), None

    end, _ = jax.lax.scan(body, start, length=stages)
    return {"end": end, "softmax": jnp.exp(rate * end) / jnp.sum(jnp.exp(rate * end)), "above": jnp.sum(end > 0)}


sweep = Sweep(
    measure=decay,
    axes={"rate": (0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.5), "stages": (4, 5), "kind": ("decay", "growth")},
    static=("stages",),
    seeds=10,
    chunk=25,
    lanes=4,
    dims={"end": ("component",), "softmax": ("component",), "above": ()},
    coords={"component": STEPS},
)


@contextlib.contextmanager
def held(folder: pathlib.Path, chunk: int) -> Iterator[None]:
    """Another process holds a chunk, until it is killed: whoever dies lets go."""
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'a+b'); fcntl.lockf(f, fcntl.LOCK_EX, 1, int(sys.argv[2])); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder / "locks"), str(chunk)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            yield
        finally:
            holder.kill()


def files(folder: pathlib.Path) -> dict[str, str]:
    """Digests of all files of the store."""
    store = folder / "sweep.zarr"
    found = sorted(path for path in store.rglob("*") if path.is_file() and ".partial" not in path.name)
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    shard = sys.argv[2] if len(sys.argv) > 2 else None
    progress = run_sweep(sweep, sys.argv[1], shard=shard, report=lambda text: print(text, flush=True))
    print(f"devices {jax.device_count()}, done {progress.done} of {progress.chunks}", flush=True)
