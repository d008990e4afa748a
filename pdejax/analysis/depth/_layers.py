"""Layers as maps that can be run in any order, each in its own number of steps; and the field that they are Euler steps of."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from pdejax._arguments import checked
from pdejax._check import integer, traced
from pdejax._depth import DepthVarying, LayerStack, take_layer
from pdejax._discretization import Discretization
from pdejax._equation import FunctionField
from pdejax._integrate import terms_of
from pdejax._simulate import begun, check_start
from pdejax.analysis._states import token_mask
from pdejax.analysis.jacobian._systems import discretization_of, layers_of, sources
from pdejax.solvers import linear_part
from pdejax.solvers._base import fresh_step
from pdejax.solvers._written import one_line
from pdejax.terms import FieldArgs
from pdejax.terms._base import holds_input


class Batch(NamedTuple):
    """States `(b, n, d)` with zeros at padding, their mask `(b, n)`, and whether a batch was given."""

    u: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]
    batched: bool

    def given(self, x: Array, axis: int) -> Array:
        """A result with the axis of sequences at `axis`, without it where one sequence was given."""
        return x if self.batched else jnp.squeeze(x, axis)


def batch_of(owner: str, u0: Any, mask: Any) -> Batch:
    """States `(n, d)` or `(b, n, d)` as a batch. Raises `TypeError`/`ValueError`, naming `owner`, for anything else."""
    u = jnp.asarray(u0)
    if not jnp.issubdtype(u.dtype, jnp.floating):
        raise TypeError(
            f"{owner}: u0 has type {u.dtype}; states are real floating-point numbers, such as net.embed(tokens)."
        )
    if u.ndim not in (2, 3) or 0 in u.shape:
        raise ValueError(f"{owner}: u0 has shape {u.shape}; it must be (n, d) or (batch, n, d), with no axis of 0.")
    batched = u.ndim == 3
    u = u if batched else u[None]
    real = token_mask(owner, mask, u.shape[0], u.shape[1])
    clean = jnp.where(real[..., None], u, jnp.zeros((), u.dtype))
    if not traced(clean) and not np.all(np.isfinite(np.asarray(clean))):
        raise ValueError(f"{owner}: u0 has values that are not finite at real tokens; clean it, or mask the tokens.")
    return Batch(clean, real, batched)


class Layers(eqx.Module):
    """The layers of a discretization as maps: `layers.step(l, j, count, u, args)` is step j of `count` of layer l."""

    d: Discretization
    count: int = eqx.field(static=True)
    native: int = eqx.field(static=True)  # steps that a layer takes by itself

    __repr__ = one_line

    @property
    def span(self) -> Any:
        """Depth of one layer."""
        return (self.d.t1 - self.d.t0) / self.count

    def step(self, index: Any, j: Any, count: Any, u: Array, args: FieldArgs) -> Array:
        """The state after one step; everything may be traced."""
        d = self.d
        assert d.solver is not None
        t0, span = jnp.asarray(d.t0, u.dtype), jnp.asarray(self.span, u.dtype)
        start, stop = (
            t0 + span * (jnp.asarray(index).astype(u.dtype) + jnp.asarray(j + i).astype(u.dtype) / count)
            for i in (0, 1)
        )
        field, solver = d.field, d.solver
        if d.layers:
            field, solver = field.layer(d.layers[0] + index), take_layer(solver, d.layers[0] + index)
        split = "linear" if linear_part(solver) is not None else d.split
        return fresh_step(solver, terms_of(field, split, u, args), start, stop, u, args)[0]


def check_inputs(owner: str, d: Discretization, sequences: int) -> None:
    """Raise `ValueError` for a batch where the field adds the state that the loop of one sequence began with."""
    if sequences > 1 and holds_input(d.field):
        raise ValueError(
            f"{owner}: the field adds the state that the loop of one input began with, and u0 has {sequences}; call it for each "
            "input, with its own d.given(start) and u0[i]."
        )


def layers_as_maps(owner: str, system: Any, u: Array, mask: Array, sequences: int = 1) -> Layers:
    """The layers of a discretization or a model for `sequences` states such as `u (n, d)`; refusals name `owner`."""
    d = discretization_of(owner, system, u.shape[-2])
    if d.adaptive:
        raise ValueError(
            f"{owner}: steps are adaptive, so that layers have no number of steps; give d.replace(steps=…)."
        )
    if traced(d.steps):
        raise TypeError(f"{owner}: steps is traced; it must be a Python integer here.")
    count = layers_of(owner, system, d)
    if d.layers and len(d.layers) != count:
        raise ValueError(
            f"{owner}: the network shows {count} layers but its field has {len(d.layers)}; give network.replace(layers="
            f"{len(d.layers)})."
        )
    if d.steps % count:
        raise ValueError(f"{owner}: {d.steps} steps are not shared equally by {count} layers.")
    check_start(owner, d)
    check_inputs(owner, d, sequences)
    _, args = d.check_state(owner, u, mask)
    d, _ = d.settled(owner, u, args)
    return Layers(d, count, int(d.steps) // count)


@checked
def run_layers(
    system: Any,
    u0: ArrayLike,
    *,
    order: Sequence[int] | np.ndarray | None = None,
    steps: Sequence[int] | np.ndarray | None = None,
    mask: ArrayLike | None = None,
) -> Float[Array, "..."]:
    r"""Run the layers of a network in any order, each in its own number of steps:

    $$u_{i+1} = \Phi_{l_i}^{(k_i)}(u_i),\quad i = 0 \dots m - 1,$$

    with $\Phi_l^{(k)}$ layer l over its own depth in k equal steps of the solver. `steps` = 0 leaves an entry out. Skipped,
    swapped, repeated and shuffled layers, and windows of layers that are refined, are such runs.

    - `system`: a `Discretization` with layers, a `Network`, a `Transformer` or a `Simulator`; `u0`: states `(n, d)` or
      `(b, n, d)`, such as `net.embed(tokens)`; `mask (n,)` or `(b, n)`.
    - `order (m,)`: layers 0 … L − 1, default each once. `steps (m,)`: default what a layer takes by itself.

    Returns the states `(m + 1, [b,] n, d)`, the first given. Runs of one length share a compiled program. Cost: Σ k_i steps.
    Raises `ValueError`/`TypeError` for layers, numbers of steps, states or masks that do not fit.
    """
    owner = "run_layers"
    batch = batch_of(owner, u0, mask)
    own = _fields(owner, system, batch)
    if own is not None:
        found = [run_layers(d, u, order=order, steps=steps, mask=real) for d, u, real in own]
        return batch.given(jnp.stack(found, axis=1), 1)
    layers = layers_as_maps(owner, system, batch.u[0], batch.mask[0], len(batch.u))
    places = np.arange(layers.count) if order is None else _integers(owner, "order", order, layers.count - 1)
    counts = np.full(places.shape, layers.native) if steps is None else _integers(owner, "steps", steps, None)
    if counts.shape != places.shape:
        raise ValueError(f"{owner}: steps has {counts.size} entries for {places.size} layers of order; give one each.")
    return batch.given(states_of_run(layers, batch, places, counts), 1)


@checked
def refine_layers(
    system: Any,
    u0: ArrayLike,
    *,
    factors: Sequence[int] = (1, 2, 4, 8),
    window: tuple[int, int] | None = None,
    mask: ArrayLike | None = None,
) -> Float[Array, "..."]:
    r"""Refine the step of a network's layers: final states at h/k for every k of `factors`, `(factors, [b,] n, d)`.

    - `window` (a, b): only layers a ≤ l < b are refined, the others keep their step. Default: all.

    Weights are constant within a layer and integrated layer by layer, so a solver keeps its order. Systems, states and masks are
    those of [`run_layers`][pdejax.analysis.depth.run_layers]; all factors share a compiled program. Cost: Σ k solves. Raises
    as it does, and for a window outside 0 … L.
    """
    owner = "refine_layers"
    batch = batch_of(owner, u0, mask)
    own = _fields(owner, system, batch)
    if own is not None:
        found = [refine_layers(d, u, factors=factors, window=window, mask=real) for d, u, real in own]
        return batch.given(jnp.stack(found, axis=1), 1)
    layers = layers_as_maps(owner, system, batch.u[0], batch.mask[0], len(batch.u))
    chosen = [integer(owner, "factors", k) for k in factors]
    if not chosen:
        raise ValueError(f"{owner}: factors is empty; give at least one, such as (1, 2, 4).")
    begin, end = (0, layers.count) if window is None else window
    begin = integer(owner, "window[0]", begin, 0, layers.count - 1)
    end = integer(owner, "window[1]", end, begin + 1, layers.count)
    places = np.arange(layers.count)
    inside = (places >= begin) & (places < end)
    ends = [states_of_run(layers, batch, places, layers.native * np.where(inside, k, 1))[-1] for k in chosen]
    return batch.given(jnp.stack(ends), 1)


def _fields(owner: str, system: Any, batch: Batch) -> list[tuple[Discretization, Array, Array]] | None:
    """Each sequence's own discretization, state and mask, where a field adds the state that its loop began with; else None."""
    d = discretization_of(owner, system, batch.u.shape[-2])
    if not d.field.needs_start:
        return None
    return [(begun(owner, d, u, real), u, real) for u, real in zip(batch.u, batch.mask, strict=True)]


def states_of_run(layers: Layers, batch: Batch, order: np.ndarray, steps: np.ndarray) -> Float[Array, "m b n d"]:
    """What `run_layers` gives, from checked parts."""
    return _run(layers, batch.u, batch.mask, jnp.asarray(order, jnp.int32), jnp.asarray(steps, jnp.int32))


@eqx.filter_jit
def _run(
    layers: Layers,
    u0: Float[Array, "b n d"],
    mask: Bool[Array, "b n"],
    order: Int[Array, " m"],
    steps: Int[Array, " m"],
) -> Float[Array, "k b n d"]:
    return jax.vmap(lambda u, real: run_one(layers, u, real, order, steps), out_axes=1)(u0, mask)


def run_one(layers: Layers, u0: Array, mask: Array, order: Array, steps: Array) -> Float[Array, "k n d"]:
    """One sequence through a schedule, inside jit; forward-mode differentiable."""
    args = FieldArgs(mask)

    def entry(u, x):
        index, count = x

        def step(j, u):
            moved = layers.step(index, j, count.astype(u.dtype), u, args)
            return jnp.where(mask[:, None], moved, jnp.zeros((), u.dtype))

        u = jax.lax.fori_loop(0, count, step, u)
        return u, u

    _, us = jax.lax.scan(entry, u0, (order, steps))
    return jnp.concatenate([u0[None], us])


def _integers(owner: str, name: str, values: Any, most: int | None) -> np.ndarray:
    found = np.asarray(values)
    if found.ndim != 1 or not found.size or not np.issubdtype(found.dtype, np.integer):
        raise TypeError(
            f"{owner}: {name} has shape {found.shape} and type {found.dtype}; give a list of whole numbers."
        )
    for value in found:
        integer(owner, name, int(value), 0, most)
    return found


class Branch(eqx.Module):
    r"""$g\,(G_l(u) - u)/\Delta$ of one layer: its own map, its depth Δ, a gain g, 1 for the layer itself, and which stored
    layer it is: copies of one, such as the layers of a tied network, have one draw in a null."""

    equation: Any
    solver: Any
    start: Array
    gain: Array
    source: Array
    split: Any = eqx.field(static=True)
    inner: int = eqx.field(static=True)
    span: float = eqx.field(static=True)
    __name__: str = eqx.field(static=True)

    __repr__ = one_line

    def __call__(self, t: Any, u: Array, args: FieldArgs) -> Array:
        del t
        start = self.start.astype(u.dtype)
        solver = jax.tree.map(
            lambda x: x.value if isinstance(x, LayerStack) else x,
            self.solver,
            is_leaf=lambda x: isinstance(x, LayerStack),
        )
        split = "linear" if linear_part(solver) is not None else self.split

        def step(v, j):
            begin, end = (start + self.span * ((j + i).astype(u.dtype) / self.inner) for i in (0, 1))
            return fresh_step(solver, terms_of(self.equation, split, v, args), begin, end, v, args)[0], None

        v = jax.lax.scan(step, u, jnp.arange(self.inner))[0]
        return self.gain.astype(u.dtype) * (v - u) / self.span


@checked
def layer_field(system: Any, *, length: int | None = None) -> Discretization:
    r"""Give the discretization whose explicit Euler steps are a network's layers, whatever they are made of:

    $$\partial_t u = f(t, u),\qquad f(t, u) = (G_l(u) - u)/\Delta\quad\text{on layer } l,$$

    with $G_l$ the layer, all its substeps and normalizations included, and Δ its depth. Euler with one step per layer is the
    network itself; `layer_field(net).replace(solver="rk4")` is another scheme for the same field, of full order where the
    layer is smooth.

    - `system`: a `Discretization` with layers, a `Network`, a `Transformer` or a `Simulator`; `length`: tokens, for a simulator
      with diffusion.

    The weights are shared with the system, not copied, but for those of looped layers. Raises `ValueError`/`TypeError` for
    adaptive steps or no layers.
    """
    owner = "layer_field"
    d = discretization_of(owner, system, length)
    check_start(owner, d)
    if d.adaptive or traced(d.steps):
        raise ValueError(f"{owner}: steps must be a plain number; give d.replace(steps=…).")
    count = layers_of(owner, system, d)
    if d.name == "auto" or d.steps % count or (d.layers and len(d.layers) != count):
        raise ValueError(
            f"{owner}: {count} layers do not share the {d.steps} steps of {d!r}; give a solver, and steps that are a multiple."
        )
    span = float(d.t1 - d.t0) / count
    if d.layers:
        assert isinstance(d.field, DepthVarying)
        own = np.asarray(d.layers)
        whole = count == d.field.size == d.field.stored
        # A stack that is gone through several times has its layers once for every pass.
        order = d.field.order[own]
        equation = _each(lambda x: x if whole else x[order], d.field.stacked)
        solver = _stacked_solver(d.solver, count, own)
        source = sources(d.field.stacked)
        source = order if source is None else source[order]
    else:
        equation, solver = (
            _each(lambda x: jnp.broadcast_to(x, (count, *x.shape)), part) for part in (d.field, d.solver)
        )
        source = np.zeros(count, int)
    branch = Branch(
        equation,
        solver,
        jnp.asarray(float(d.t0) + span * np.arange(count)),
        jnp.ones(count),
        jnp.asarray(source, jnp.int32),
        d.split,
        d.steps // count,
        span,
        d.field.describe(),
    )
    return Discretization(DepthVarying(FunctionField(branch), span * count), "euler", t1=span * count, steps=count)


def _each(function: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x: function(x) if eqx.is_array(x) else x, tree)


def _stacked_solver(solver: Any, count: int, own: np.ndarray) -> Any:
    """A solver whose every array has an axis of layers in front: those of a `LayerStack` have, others are repeated."""

    def spread(part: Any) -> Any:
        if isinstance(part, LayerStack):
            return LayerStack(_each(lambda x: x[own], part.value))
        return jnp.broadcast_to(part, (count, *part.shape)) if eqx.is_array(part) else part

    return jax.tree.map(spread, solver, is_leaf=lambda x: isinstance(x, LayerStack))
