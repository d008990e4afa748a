"""The stability function of any solver, by taking its step."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float, Shaped

from pdejax._arguments import checked
from pdejax._check import on_numbers
from pdejax.solvers import get_solver
from pdejax.solvers._base import check_sub_solver, fresh_step
from pdejax.solvers._terms import parts_of

BATCH = 4096  # values of z per call, so that every sweep uses one compiled function


@checked
@on_numbers
def stability_factor(
    solver: diffrax.AbstractSolver | str, z: Shaped[Array | np.ndarray, "..."] | complex | float
) -> np.ndarray:
    r"""$|R(z)|$: what one step of `solver` with $z = h\lambda$ does to the size of the solution of $u' = \lambda u$.

    `z`: complex values of any shape; returns floats of that shape (infinite or NaN where the step overflows). The step is
    the solver's own, on the real form $(x, y)' = (\mathrm{Re}\lambda\,x - \mathrm{Im}\lambda\,y,\;\mathrm{Im}\lambda\,x +
    \mathrm{Re}\lambda\,y)$, so no tableau is needed; where there is one this is |P(z)/Q(z)| of
    [`stability_function`][pdejax.solvers.stability_function]. The region of stability is where it is at most 1 (Hairer and
    Wanner, *Solving Ordinary Differential Equations II*, IV.2). Runs in the default float type.

    Raises `ValueError` for a name that is not in `pdejax.solvers.SOLVERS` and for a solver that takes its terms apart (its
    factor depends on how λ is shared out), `TypeError` for anything that is no solver.
    """
    resolved = whole_field_solver("stability_factor", solver)
    values = np.asarray(z)
    if not np.issubdtype(values.dtype, np.number):
        raise TypeError(f"stability_factor: z has type {values.dtype}; it must hold numbers hλ.")
    flat = values.ravel().astype(complex)
    parts = []
    for start in range(0, max(flat.size, 1), BATCH):
        chunk = flat[start : start + BATCH]
        padded = np.zeros((BATCH, 2))
        padded[: chunk.size] = np.stack([np.real(chunk), np.imag(chunk)], axis=1)
        parts.append(np.asarray(_factors(resolved, jnp.asarray(padded)))[: chunk.size])
    return np.concatenate(parts).reshape(values.shape)


def whole_field_solver(owner: str, solver: Any) -> diffrax.AbstractSolver:
    """A solver that takes the field as a whole, ready for single steps; else an error."""
    resolved = get_solver(solver, terms=2)
    if parts_of(resolved) is not None:
        raise ValueError(
            f"{owner}: {type(resolved).__name__} takes the terms of a field apart, so that |R| is no function of hλ alone. "
            "Give a solver for the whole field, or measure with measure_dt_max, which hands it the equation's terms."
        )
    return ready(resolved)


def ready(solver: diffrax.AbstractSolver) -> diffrax.AbstractSolver:
    """A solver ready for single steps and forward-mode derivatives.

    Implicit ones get a root finder with tolerances, which a single step cannot take from a controller, and a loop over
    their stages that forward mode can pass.
    """
    finder = getattr(solver, "root_finder", None)
    if finder is not None and not isinstance(finder.rtol, float | int | Array):
        newton = optx.Newton(rtol=1e-10, atol=1e-10)
        solver = eqx.tree_at(lambda s: s.root_finder, solver, newton)
    if getattr(solver, "scan_kind", "none") is None:
        solver = eqx.tree_at(lambda s: s.scan_kind, solver, "lax", is_leaf=lambda x: x is None)
    check_sub_solver(solver, "solver")
    return solver


def _rotation(t, y: Float[Array, " 2"], args: Float[Array, " 2"]) -> Float[Array, " 2"]:
    del t
    return jnp.stack([args[0] * y[0] - args[1] * y[1], args[1] * y[0] + args[0] * y[1]])


@eqx.filter_jit
def _factors(solver: diffrax.AbstractSolver, z: Float[Array, "m 2"]) -> Float[Array, " m"]:
    term = diffrax.ODETerm(_rotation)

    def factor(value):
        start = jnp.asarray([1.0, 0.0], value.dtype)
        y, _ = fresh_step(solver, term, jnp.zeros((), value.dtype), jnp.ones((), value.dtype), start, value)
        return jnp.hypot(y[0], y[1])

    return jax.vmap(factor)(z)
