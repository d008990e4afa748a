"""Speed of Lyapunov exponents beside the forward solve, and of a layer Jacobian too large to form.

`lyapunov_ratio()` and `jacobian_large()` return dictionaries of figures; times in seconds after compilation.
"""

import resource
import time

import equinox as eqx
import jax
import jax.numpy as jnp

import pdejax
from pdejax.analysis.jacobian._lyapunov import lyapunov_exponents
from pdejax.analysis.jacobian._operator import layer_jacobian


def lyapunov_ratio(n: int = 256, d: int = 128, k: int = 4, steps: int = 64, repeats: int = 5) -> dict:
    """Time of k exponents over that of the forward solve of the same RK4 steps, per exponent: the aim is 10 at most. Both are
    timed in turn; `ratio` is that of the minima, `ratio_median` of the medians."""
    equation, u0 = _equation(d), _field(n, d)
    key = jax.random.key(1)

    flow = pdejax.Discretization(equation, "rk4", t1=1.0, steps=steps)

    def solve():
        return pdejax.simulate(flow, u0, save="end").us

    def exponents():
        return lyapunov_exponents(flow, u0, k=k, key=key).exponents.value

    forward, whole = _times([solve, exponents], repeats)
    return {
        "n": n,
        "d": d,
        "k": k,
        "steps": steps,
        "forward_min": min(forward),
        "forward_median": sorted(forward)[len(forward) // 2],
        "exponents_min": min(whole),
        "exponents_median": sorted(whole)[len(whole) // 2],
        "ratio": min(whole) / min(forward) / k,
        "ratio_median": sorted(whole)[len(whole) // 2] / sorted(forward)[len(forward) // 2] / k,
        "peak_memory_mb": _memory(),
        "device": jax.devices()[0].device_kind,
    }


def jacobian_large(n: int = 1000, d: int = 128, iterations: int = 40, h: float = 0.1) -> dict:
    """Extreme singular values of I + h ∂F/∂u at n·d entries, float32, with residuals; the dense matrix would take
    4·(n·d)² bytes."""
    step = pdejax.Discretization(_equation(d), "euler", t1=h, steps=1)
    jacobian = layer_jacobian(step, _field(n, d), step=0)
    key = jax.random.key(3)
    (taken,) = _times([lambda: jacobian.singular_values(key=key, iterations=iterations).values], 1)
    found = jacobian.singular_values(key=key, iterations=iterations)
    reached = jnp.linalg.norm(jacobian.matvec(found.right[0]))
    return {
        "entries": n * d,
        "iterations": iterations,
        "seconds": min(taken),
        "largest": float(found.largest),
        "largest_residual": float(found.residuals[0]),
        "largest_reached": float(reached),
        "smallest": float(found.smallest),
        "smallest_residual": float(found.residuals[-1]),
        "converged": [bool(x) for x in found.converged],
        "frobenius": float(found.frobenius),
        "edge": float(found.edge),
        "peak_memory_mb": _memory(),
        "dense_mb": 4 * (n * d) ** 2 / 2**20,
        "device": jax.devices()[0].device_kind,
    }


def _equation(d: int) -> pdejax.MasterEquation:
    first, second = jax.random.split(jax.random.key(0))
    made = pdejax.MasterEquation(pdejax.Attention(d, 4, key=first), pdejax.FeedForward(d, 4 * d, key=second))
    return jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, made)


def _field(n: int, d: int) -> jax.Array:
    return jax.random.normal(jax.random.key(2), (n, d), jnp.float32)


def _times(functions, repeats: int) -> list[list[float]]:
    """Seconds of each function, in turn, after one call to compile."""
    for function in functions:
        jax.block_until_ready(function())
    found: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for times, function in zip(found, functions, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            times.append(time.perf_counter() - start)
    return found


def _memory() -> float:
    """Peak resident memory of the process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
