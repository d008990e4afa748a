"""Parts of speed.py: the rate of each product of the field alone, attention by its blocks, what a second start takes."""

import functools
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from pdejax._products import product
from pdejax.terms import _kernels


def shapes(n: int, dim: int, heads: int, ffn: int) -> dict[str, tuple[int, int, int, int]]:
    """(rows, summed, columns, times per field) of the forward products; each has two more in reverse mode."""
    rows = min(n, _kernels._BLOCK_BYTES["cpu"] // (4 * n))
    blocks, width = heads * -(-n // rows), dim // heads
    return {
        "queries, keys, values": (n, dim, 3 * dim, 1),
        "scores of a block": (rows, width, n, blocks),
        "values of a block": (rows, n, width, blocks),
        "out of heads": (n, dim, dim, 1),
        "W1": (n, dim, ffn, 1),
        "W2": (n, ffn, dim, 1),
    }


def products(take_turns, torch, n: int, dim: int, heads: int, ffn: int, rounds: int) -> dict:
    """Each product and its two transposes alone, as the library lays them out, as JAX would, and in PyTorch; and their sum, below
    which no evaluation and no gradient of the field can come. One step with a checkpoint takes the forward products twice."""
    out: dict = {}
    bounds = {"forward": 0.0, "gradient": 0.0, "gradient, PyTorch": 0.0}
    for name, (rows, summed, columns, times) in shapes(n, dim, heads, ffn).items():
        random = np.random.default_rng(0)
        x, w, c = (
            jnp.asarray(random.normal(size=s), jnp.float32)
            for s in ((rows, summed), (summed, columns), (rows, columns))
        )
        table = take_turns(_calls(x, w, c, torch), 5 * rounds, quiet=True)
        work = 2.0 * rows * summed * columns
        rates = {key: work * (1 if "forward" in key else 2) / item["min"] / 1e9 for key, item in table.items()}
        out[name] = table | {"Gflop/s": rates, "times per field": times}
        bounds["forward"] += times * table["forward"]["min"]
        bounds["gradient"] += times * (2 * table["forward"]["min"] + table["transposes"]["min"])
        if torch is not None:
            both = table["forward, PyTorch"]["min"] + table["transposes, PyTorch"]["min"]
            bounds["gradient, PyTorch"] += times * both
        print(f"  {name:<24}" + "  ".join(f"{key} {rate:.0f}" for key, rate in rates.items()) + " Gflop/s", flush=True)
    found = {name: seconds for name, seconds in bounds.items() if seconds}
    print("  a step's products alone: " + "  ".join(f"{name} {1e3 * s:.2f} ms" for name, s in found.items()))
    return out | {"seconds of the products of a step": found}


def _calls(x, w, c, torch):
    def transposes(multiply, x, w, c):
        return jax.vjp(multiply, x, w)[1](c)

    calls = {}
    for kind, multiply in (("", product), (", JAX", jnp.matmul)):
        forward, back = jax.jit(multiply), jax.jit(functools.partial(transposes, multiply))
        calls[f"forward{kind}"] = lambda f=forward: jax.block_until_ready(f(x, w))
        calls[f"transposes{kind}"] = lambda f=back: jax.block_until_ready(f(x, w, c))
    if torch is not None:
        a, b, d = (torch.tensor(np.asarray(y)) for y in (x, w, c))
        calls["forward, PyTorch"] = lambda: a @ b
        calls["transposes, PyTorch"] = lambda: (d @ b.T, a.T @ d)
    return calls


def attention_by_blocks(take_turns, n: int, heads: int, width: int, rounds: int) -> dict:
    """Seconds of blocked attention and of its gradient, by MiB of a block of scores, heads at once, and batch."""
    out: dict = {}
    random = np.random.default_rng(0)
    for batch in (1, 8):
        q, k, v = (jnp.asarray(random.normal(size=(batch, n, heads, width)), jnp.float32) for _ in range(3))
        calls = {}
        for mib in (0.5, 1, 2, 4):
            for together in (1, 4):
                calls |= _blocked_calls(q, k, v, mib, together, f"batch {batch}, {mib} MiB, {together} heads at once")
        out |= take_turns(calls, rounds)
    return out


def _blocked_calls(q, k, v, mib: float, together: int, name: str) -> dict:
    kept = _kernels._BLOCK_BYTES["cpu"], _kernels._HEADS_AT_ONCE
    _kernels._BLOCK_BYTES["cpu"], _kernels._HEADS_AT_ONCE = int(mib * 2**20), together
    try:
        value = jax.vmap(lambda q, k, v: _kernels.attend(q, k, v, implementation="blocked"))
        gradient = jax.grad(lambda *x: jnp.sum(value(*x) ** 2), (0, 1, 2))
        programs = [jax.jit(f).lower(q, k, v).compile() for f in (value, gradient)]
    finally:
        _kernels._BLOCK_BYTES["cpu"], _kernels._HEADS_AT_ONCE = kept
    return {
        f"{name}, {what}": lambda f=f: jax.block_until_ready(f(q, k, v))
        for what, f in zip(("forward", "gradient"), programs, strict=True)
    }


COMMANDS = {
    "convergence": ("convergence", "--steps", "4", "8", "16", "32", "--solvers", "euler", "rk4", "tsit5"),
    "stability": ("stability", "--families", "--solvers", "euler", "rk4"),
}


def starts() -> dict:
    """Seconds of a command, in wall time and of all cores, the first time and the second, with the programs of the first kept."""
    out: dict = {}
    for name, command in COMMANDS.items():
        with tempfile.TemporaryDirectory() as folder:
            first, second = (_start(command, pathlib.Path(folder)) for _ in range(2))
        share = {kind: second[kind] / first[kind] for kind in first}
        out[name] = {"command": " ".join(command), "first": first, "second": second, "second / first": share}
        print(
            f"  {name}: {first['wall']:.1f} s, then {second['wall']:.1f} s ({share['wall']:.2f}; all cores {share['cores']:.2f})"
        )
    return out


def _start(command: tuple[str, ...], folder: pathlib.Path) -> dict[str, float]:
    keep = {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    program = [sys.executable, "-m", "pdejax", *command]
    status = subprocess.run(
        program, env=os.environ | keep, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ).returncode
    if status not in (0, 1):  # 1: the study says that something is not as it should be
        raise RuntimeError(f"pdejax {' '.join(command)} ended with status {status}.")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - started, "cores": cores}
