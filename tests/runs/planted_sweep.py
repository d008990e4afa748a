"""A sweep with a closed form, for processes that are killed, sharded, or have several devices."""

import hashlib
import pathlib
import sys

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
