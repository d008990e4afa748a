"""Tiny flows of the claims by equal RK4 steps."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from pdejax.solvers import RK4
from pdejax.solvers._base import fresh_step


def rk4_steps(field, u0: Array, step: Array, number: int, retraction) -> tuple[Array, Array]:
    """The last and all fields after `number` RK4 steps, each retracted. A scan of its own, because these fields are tiny:
    compiling `simulate` for each of them would take longer than the evidence is worth."""
    term = diffrax.ODETerm(lambda t, u, args: field(u))

    def advance(u, _):
        u, _ = fresh_step(RK4(), term, jnp.zeros_like(step), step, u, None)
        u = u if retraction is None else retraction(u)
        return u, u

    return jax.lax.scan(advance, u0, None, length=number)


@eqx.filter_jit
def flow(equation, u0s: Array, t1: float, steps: int | Array, retraction=None) -> Array:
    """Fields at t1 `(k, n, d)` from `u0s (k, n, d)`."""

    def one(u0):
        def advance(_, u):
            return rk4_steps(lambda v: equation(0.0, v, None), u, t1 / jnp.asarray(steps, float), 1, retraction)[0]

        return jax.lax.fori_loop(0, steps, advance, u0)

    return jax.vmap(one)(u0s)
