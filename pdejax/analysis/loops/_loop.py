"""A loop: a map of states, applied again and again, for one input."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pdejax import _check
from pdejax._arguments import checked
from pdejax._depth import DepthVarying, take_layer
from pdejax._discretization import Discretization
from pdejax._equation import FunctionField
from pdejax._integrate import terms_of
from pdejax._step_maps import Flow, SolverSteps, real_entries, steps_of, without_padding
from pdejax._types import Mask
from pdejax.analysis.jacobian._systems import discretization_of, is_system
from pdejax.models._pairing import functional
from pdejax.solvers._base import fresh_step
from pdejax.solvers._splitting import AbstractSplitting

_OWNER = "loop_of"


class Loop(eqx.Module):
    """A loop u ← G(u) on one sequence, from the state it begins with: `loop(u)` is G(u), zeros at padding.

    - `step`: G. `start (n, d)`: the state before the first pass. `mask (n,)` or None.
    - `trained`: how often the network goes through it, or None for a function.
    - `names`: the sub-layers of a pass in their order, of which `parts` are the maps; one, the whole, where they are not known.
    - `read`: from a state of the loop to the network's output: the coda and the head; None for a function.

    Made by `loop_of`. An equinox module: batches of loops by `jax.vmap` over its arrays.
    """

    step: Callable[[Array], Array]
    start: Float[Array, "..."]
    mask: Mask | None
    parts: tuple[Callable[[Array], Array], ...]
    read: Callable[[Array], Any] | None
    names: tuple[str, ...] = eqx.field(static=True)
    trained: int | None = eqx.field(static=True)

    def __call__(self, u: Array) -> Array:
        return without_padding(self.step(without_padding(u, self.mask)), self.mask)

    def states(self, loops: int) -> Float[Array, "..."]:
        """Return the states `(loops + 1, n, d)` before the first pass and after each of them.

        Raises `ValueError` for fewer than one."""
        return _states(self, _check.integer("Loop.states", "loops", loops))

    def outputs(self, states: Array) -> Any:
        """Return what the network's coda and head make of each of these states `(k, n, d)`. Raises `ValueError` where there is
        no head, as of a function."""
        if self.read is None:
            raise ValueError("Loop.outputs: this loop has no head; make it of a network.")
        return _outputs(self, states)

    def astype(self, dtype: Any) -> "Loop":
        """Return the loop with its numbers, weights and state, in another type."""
        return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, self)

    def __repr__(self) -> str:
        often = "" if self.trained is None else f", {self.trained} times in the network"
        return f"loop of {', '.join(self.names)} on a state {tuple(getattr(self.start, 'shape', ()))}{often}"


class Repeated(eqx.Module):
    """G applied `count` times, an array, so that one program serves all periods; derivatives in forward mode."""

    step: Callable[[Array], Array]
    count: Array

    def __call__(self, u: Array) -> Array:
        return jax.lax.fori_loop(0, self.count, lambda _, u: self.step(u), u)


@checked
def loop_of(system: Any, inputs: Any, *, mask: Any = None) -> Loop:
    r"""Give the loop that a network is on one input: the map G of its repeated layers and the state it begins with.

    | `system` | G, one pass | `inputs` |
    |---|---|---|
    | `Transformer` or `Simulator` with `loops` | the layers between prelude and coda; injection included | tokens |
    | a `Network` whose field is gone through several times (Ouro) | one pass, the norm at its end included | tokens |
    | a `Network` of one field for all depths (ALBERT) | one layer | tokens |
    | any other `Network`, `Transformer` or `Simulator` | all its layers, as if they were repeated | tokens |
    | a `Discretization` | the same of its field | the state `(n, d)` |
    | a function `u -> u` | itself | the state |

    Layers are those of the discretization it is given, so that `net.replace(discretization=net.discretization.refine(2))` has
    the loop of the finer steps. `mask (n,)`: True at real tokens.

    Raises `ValueError`/`TypeError` for inputs that do not fit, adaptive steps, and a field that may depend on t by itself.
    """
    if not isinstance(system, Discretization) and not is_system(system):
        if not callable(system):
            raise TypeError(
                f"{_OWNER}: the system is a {type(system).__name__}; give a Network, a Transformer, a Simulator, a Discretization"
                " or a function u -> u."
            )
        return _of_function(system, inputs, mask)
    plain = isinstance(system, Discretization)
    model: Any = system if plain else functional(system)
    if plain:
        u0 = inputs
    else:
        with _check.spoken_by(_OWNER, "inputs does not fit the model: "):
            u0 = model.embed(inputs)
    d = discretization_of(_OWNER, system, np.shape(u0)[-2] if np.ndim(u0) > 1 else None)
    return _of_discretization(d, u0, mask, None if plain else model)


def _of_function(function: Any, state: Any, mask: Any) -> Loop:
    u = _check.real_array(_OWNER, "inputs", state, "a state that the function maps")
    real = None if mask is None else _check.token_mask(_OWNER, mask, u.shape[-2] if u.ndim > 1 else 0)
    _check.finite(_OWNER, "inputs", u)
    found = jax.eval_shape(function, u)
    if getattr(found, "shape", None) != u.shape:
        raise ValueError(f"{_OWNER}: the function gives {found} for shape {u.shape}; it must keep the shape.")
    return Loop(function, without_padding(u, real), real, (function,), None, ("the map",), None)


def _of_discretization(d: Discretization, u0: Any, mask: Any, model: Any) -> Loop:
    field = d.field
    layered = bool(d.layers)
    if not layered and isinstance(field, DepthVarying | FunctionField):
        raise ValueError(
            f"{_OWNER}: the field {field.describe()} may depend on t, so that no map is repeated; give the function u -> u, or "
            "layers by pdejax.network([…])."
        )
    if layered and len(d.layers) != field.size:
        raise ValueError(f"{_OWNER}: the discretization has {len(d.layers)} of {field.size} layers; give all of them.")
    # Of one field for all depths a layer is a part of the depth as the network counts them, of a discretization a step.
    count = len(d.layers) if layered else d.steps if model is None else model.layers
    maps, u, real = steps_of(_OWNER, d, u0, mask, count=count)
    ready = _Ready(maps)
    passes = field.passes if layered else count
    first = field.prelude if layered else 0
    core = (field.stored - field.prelude - field.coda) if layered else 1
    if first:
        u = _start(ready, u, first)
    stop = first + core
    names, parts = _sub_layers(maps, range(first, stop), layered)
    read = None if model is None else _Read(ready, model.head, real, first + passes * core)
    return Loop(_Pass(ready, first, stop), u, real, parts, read, names, passes)


class _Ready(eqx.Module):
    """The maps of a discretization, prepared for derivatives where they are used, inside jit."""

    maps: SolverSteps

    def __call__(self, u: Array, start: int, stop: int) -> Array:
        return Flow(self.maps.ready(u), start, stop)(u)


class _Pass(eqx.Module):
    """The layers `start` to before `stop`."""

    ready: _Ready
    start: int = eqx.field(static=True)
    stop: int = eqx.field(static=True)

    def __call__(self, u: Array) -> Array:
        return self.ready(u, self.start, self.stop)


class _Read(eqx.Module):
    """The layers after the loop, then the head."""

    ready: _Ready
    head: Callable[..., Any]
    mask: Mask | None
    start: int = eqx.field(static=True)

    def __call__(self, u: Array) -> Any:
        if self.start < self.ready.maps.count:
            u = self.ready(u, self.start, self.ready.maps.count)
        return self.head(u, self.mask)


class _SubLayer(eqx.Module):
    """One sub-step of one layer of a splitting: a term, its step and what is done after it."""

    maps: SolverSteps
    layer: int = eqx.field(static=True)
    part: int = eqx.field(static=True)

    def __call__(self, u: Array) -> Array:
        maps = self.maps.ready(u)
        d, index = maps.d, self.layer
        ts = maps.depths(u.dtype)
        field, solver = (d.field.layer(index), take_layer(d.solver, index)) if d.layers else (d.field, d.solver)
        terms: Any = terms_of(field, d.split, u, maps.args)
        return fresh_step(solver.solvers[self.part], terms.terms[self.part], ts[index], ts[index + 1], u, maps.args)[0]


def _sub_layers(
    maps: SolverSteps, layers: range, layered: bool
) -> tuple[tuple[str, ...], tuple[Callable[[Array], Array], ...]]:
    """Names and maps of the sub-layers of a pass: the terms of a splitting that takes each once, else whole layers."""
    names, parts = [], []
    d = maps.d
    for place, layer in enumerate(layers):
        which = "" if len(layers) == 1 else f"layer {place + 1} "
        schedule = d.solver.schedule() if isinstance(d.solver, AbstractSplitting) else ()
        if maps.inner == 1 and d.split and sorted(schedule) == [(i, 0.0, 1.0) for i in range(len(d.split))]:
            for part, _, _ in schedule:
                group = d.split[part]
                if group == ("injection",) and place:
                    # Once per pass, before its first layer.
                    continue
                after = getattr(d.solver.solvers[part], "retraction", None) is not None
                names.append(f"{which}{' and '.join(group)}{', norm after' if after else ''}")
                parts.append(_SubLayer(maps, layer if layered else 0, part))
        else:
            names.append(f"{which}whole".strip())
            parts.append(_Pass(_Ready(maps), layer, layer + 1))
    return tuple(names), tuple(parts)


@eqx.filter_jit
def _start(ready: _Ready, u: Array, stop: int) -> Array:
    return ready(u, 0, stop)


@eqx.filter_jit
def _states(loop: Loop, loops: int) -> Array:
    def step(u, _):
        new = loop(u)
        return new, new

    start = without_padding(loop.start, loop.mask)
    return jnp.concatenate([start[None], jax.lax.scan(step, start, length=loops)[1]])


def repeated(loop: Callable[[Array], Array], count: int) -> Repeated:
    """G^p."""
    return Repeated(loop, jnp.asarray(count))


@eqx.filter_jit
def applied(function: Callable[[Array], Array], u: Array) -> Array:
    """One evaluation, compiled."""
    return function(u)


@eqx.filter_jit
def _outputs(loop: Loop, states: Array) -> Any:
    assert loop.read is not None
    return jax.lax.map(loop.read, states)


def entries(loop: Loop) -> np.ndarray:
    """Which entries of the flattened state belong to real tokens."""
    return np.asarray(real_entries(loop.start.shape, loop.mask)).ravel()
