"""Attention maps along the trajectory of a discretization, at the states at which its solver evaluates them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pdejax._depth import DepthVarying, take_layer
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._simulate import begun, loop_begins
from pdejax._types import Field, Mask
from pdejax.solvers import linear_part
from pdejax.solvers._base import fresh_step
from pdejax.solvers._splitting import AbstractSplitting
from pdejax.terms import FieldArgs


def attention_maps(
    owner: str, d: Discretization, states: Float[Array, "layers n d"], mask: Mask | None
) -> Float[Array, "maps H n n"]:
    """Attention weights `(L, H, n, n)` at the beginning of each of L equal parts of the depth, from `states (L + 1, n, d)`.

    A Strang splitting takes half a step of the other terms before it evaluates A: the map is the one it uses then, as in a
    Macaron block. Adaptive steps have no such step: the map at the state itself.

    Raises `ValueError`, naming `owner`, for a field without attention.
    """
    count = states.shape[0] - 1
    if d.field.needs_start:
        # The state that the loop begins with, if it is one of these.
        place = loop_begins(d, count)
        d = begun(owner, d, states[0], mask) if place is None else d.given(states[place])
    places = jnp.arange(count)
    starts = d.t0 + (d.t1 - d.t0) / count * places.astype(states.dtype)
    field, args = d.field, FieldArgs(mask)

    def one(index: Array, t: Array, u: Field) -> Float[Array, "H n n"]:
        here, solver = field, d.solver
        if isinstance(field, DepthVarying):
            # Of piecewise-constant weights the layer in which this part begins.
            layer = d.layers[0] + index * len(d.layers) // count if d.layers else None
            here = field.at(t) if layer is None else field.layer(layer)
            solver = solver if layer is None else take_layer(solver, layer)
        if not isinstance(here, MasterEquation):
            raise ValueError(f"{owner}: the field, {field.describe()}, has no attention term to take maps of.")
        return _map(owner, here, _before_attention(d, solver, here, t, u, args), mask)

    return jax.vmap(one)(places, starts, states[:-1])


def _map(owner: str, field: MasterEquation, u: Field, mask: Mask | None) -> Float[Array, "H n n"]:
    for term in field.terms:
        found = term.maps(u, mask)
        if found is not None:
            return found
    raise ValueError(f"{owner}: the field, {field.describe()}, has no attention term to take maps of.")


def _before_attention(
    d: Discretization, solver: Any, field: MasterEquation, t: Array, u: Field, args: FieldArgs
) -> Field:
    """The field at which the first step from (t, u) evaluates the first term: in a Strang splitting, after the halves before."""
    if not isinstance(solver, AbstractSplitting) or linear_part(solver) is not None:
        return u
    h, terms = 0.0 if d.adaptive else d.step, field.multiterm(d.split).terms
    for i, start, end in solver.schedule():
        if i == 0:
            break
        u, _ = fresh_step(solver.solvers[i], terms[i], t + start * h, t + end * h, u, args)
    return u
