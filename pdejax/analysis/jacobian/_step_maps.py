"""Depth as a sequence of maps u ← Φ_k(u): what derivatives of a whole solve are taken of, step by step."""

import abc
import functools
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int

from pdejax._check import token_mask, traced
from pdejax._depth import DepthVarying, take_layer
from pdejax._discretization import Discretization
from pdejax._equation import AbstractEquation
from pdejax._integrate import Problem, Split, terms_of, with_loops, with_root_tolerances
from pdejax._types import Mask
from pdejax.models import Simulator, Transformer
from pdejax.models._block import attention_mask
from pdejax.solvers import linear_part
from pdejax.solvers._base import fresh_step
from pdejax.terms import FieldArgs
from pdejax.terms._kernels import keep_saved


class AbstractMaps(eqx.Module):
    """`count` maps; `maps(k, u)` is the state after map k, `maps.depths(dtype)` the `count + 1` depths between them."""

    count: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, k: Int[ArrayLike, ""], u: Array) -> Array:
        """Φ_k(u), of the shape of u."""

    @abc.abstractmethod
    def depths(self, dtype: Any) -> Float[Array, " k"]:
        """Where the maps begin and end."""


class EquationMaps(AbstractMaps):
    """`inner` steps of a solver each, of equal length, as `simulate` takes them; piecewise-constant weights layer by layer."""

    equation: AbstractEquation
    solver: diffrax.AbstractSolver
    args: FieldArgs
    t0: Array
    t1: Array
    split: Split = eqx.field(static=True)
    layers: tuple[int, ...] = eqx.field(static=True)
    count: int = eqx.field(static=True)
    inner: int = eqx.field(static=True, default=1)

    def __call__(self, k: Int[ArrayLike, ""], u: Array) -> Array:
        if self.inner == 1:
            return self._step(k, u)

        @functools.partial(jax.checkpoint, policy=keep_saved, prevent_cse=False)
        def step(u, j):
            return self._step(k * self.inner + j, u), None

        return jax.lax.scan(step, u, jnp.arange(self.inner))[0]

    def depths(self, dtype: Any) -> Float[Array, " k"]:
        return (self.t0 + (self.t1 - self.t0) * jnp.linspace(0.0, 1.0, self.count + 1, dtype=self.t0.dtype)).astype(
            dtype
        )

    def _step(self, j, u: Array) -> Array:
        total = self.count * self.inner
        j = jnp.asarray(j)
        start, stop = (self.t0 + (self.t1 - self.t0) * ((j + i).astype(u.dtype) / total) for i in (0, 1))
        equation, solver = self.equation, self.solver
        if self.layers:
            assert isinstance(equation, DepthVarying)
            index = self.layers[0] + j // (total // len(self.layers))
            equation, solver = equation.layer(index), take_layer(solver, index)
        terms = terms_of(equation, self.split, u, self.args)
        return fresh_step(solver, terms, start, stop, u, self.args)[0]


class BlockMaps(AbstractMaps):
    """A Transformer's own layers, normalizations included; depth is measured in layers."""

    graph: Any = eqx.field(static=True)
    weights: Any
    mask: Mask | None
    causal: bool = eqx.field(static=True)
    count: int = eqx.field(static=True)

    def __call__(self, k: Int[ArrayLike, ""], u: Array) -> Array:
        block = nnx.merge(self.graph, jax.tree.map(lambda x: x[k], self.weights))
        return block(u, attention_mask(self.mask, u.shape[0], self.causal), False)[0]

    def depths(self, dtype: Any) -> Float[Array, " k"]:
        return jnp.arange(self.count + 1).astype(dtype)


class FunctionMaps(AbstractMaps):
    """`step(k, u)`, a user's function, or matrices `(count, N, N)`; `spacing` is the depth of one."""

    step: Callable[..., Array] | None
    matrices: Array | None
    spacing: Array
    count: int = eqx.field(static=True)

    def __call__(self, k: Int[ArrayLike, ""], u: Array) -> Array:
        if self.matrices is not None:
            return self.matrices[k] @ u
        assert self.step is not None
        return self.step(k, u)

    def depths(self, dtype: Any) -> Float[Array, " k"]:
        return jnp.arange(self.count + 1).astype(dtype) * self.spacing.astype(dtype)


def equation_maps(
    owner: str,
    system: Any,
    u0: Any,
    *,
    t0: Any,
    t1: Any,
    steps: Any,
    solver: Any,
    mask: Any,
    split: Any,
    maps: int | None,
) -> tuple[EquationMaps, Array]:
    """The steps of a solve as maps (`maps` of them, or one per step), and the initial state with zeros at padding.

    Raises what `simulate` raises, before anything compiles.
    """
    if mask is not None:
        if jnp.ndim(u0) < 2:
            raise ValueError(
                f"{owner}: mask needs a field (n, d) with an axis of tokens; u0 has shape {jnp.shape(u0)}."
            )
        u0 = without_padding(jnp.asarray(u0), token_mask(owner, mask, jnp.shape(u0)[-2]))
    if solver == "auto":
        raise ValueError(f"{owner}: solver='auto' is for simulate; name one here, such as 'rk4'.")
    d = Discretization(system, solver, t0=t0, t1=t1, steps=steps, split=split)
    u0, args = d.check_state(owner, u0, mask)
    if not u0.ndim:
        raise ValueError(f"{owner}: a field must have at least one axis; give u0 of shape (1,) for one number.")
    found = jax.eval_shape(d.field, jax.ShapeDtypeStruct((), u0.dtype), u0, args)
    if getattr(found, "shape", None) != u0.shape:
        raise ValueError(f"{owner}: the field gives {found} for a state of shape {u0.shape}; the shapes must agree.")
    return discretization_maps(owner, d, u0, args, maps), u0


def discretization_maps(owner: str, d: Discretization, u0: Array, args: FieldArgs, maps: int | None) -> EquationMaps:
    """The steps of a discretization as maps."""
    d, _ = d.settled(owner, u0, args)
    assert d.solver is not None
    count = d.steps if maps is None else maps
    if count < 1 or d.steps % count or (d.layers and count % len(d.layers) and len(d.layers) % count):
        raise ValueError(
            f"{owner}: {count} depths do not divide the {d.steps} steps equally; choose a divisor of steps."
        )
    return EquationMaps(
        equation=d.field,
        solver=d.solver,
        args=args,
        t0=jnp.asarray(d.t0, u0.dtype),
        t1=jnp.asarray(d.t1, u0.dtype),
        split="linear" if linear_part(d.solver) is not None else d.split,
        layers=d.layers,
        count=count,
        inner=d.steps // count,
    )


def ready(maps: AbstractMaps, u0: Array) -> AbstractMaps:
    """With loops that serve both modes of differentiation and root finders near round-off; inside jit."""
    if not isinstance(maps, EquationMaps):
        return maps
    problem = Problem(maps.equation, u0, maps.args, maps.solver, maps.t0, maps.t1, None)
    solver = with_loops(with_root_tolerances(problem), "bounded").solver
    return eqx.tree_at(lambda m: m.solver, maps, solver)


def block_maps(model: Transformer, mask: Mask | None) -> BlockMaps:
    """The layers of a Transformer."""
    graph, weights = nnx.split(model.layers)
    sizes = model.architecture
    return BlockMaps(graph=graph, weights=weights, mask=mask, causal=sizes.causal, count=sizes.layers)


def simulator_maps(model: Simulator, u: Array, mask: Mask | None) -> EquationMaps:
    """The layers of a Simulator, `steps_per_layer` steps each."""
    config = model.config
    d = Discretization(model.equation(u.shape[0]), model.solver(), t1=config.t1, steps=config.steps)
    return discretization_maps("simulator_maps", d, u, FieldArgs(mask), model.architecture.layers)


def through(maps: AbstractMaps, u: Array, start: int = 0, stop: int | None = None) -> Array:
    """The state after the maps `start` … `stop` − 1; reverse mode keeps one state per map."""

    @functools.partial(jax.checkpoint, policy=keep_saved, prevent_cse=False)
    def step(u, k):
        return maps(k, u), None

    return jax.lax.scan(step, u, jnp.arange(start, maps.count if stop is None else stop))[0]


def in_batches(function: Callable[[Array], Any], x: Array, size: int) -> Any:
    """`jax.lax.map` with `size` entries at once, the last ones repeated to fill a batch: a remainder would compile anew."""
    count = x.shape[0]
    size = min(size, count)
    index = np.minimum(np.arange(-(-count // size) * size), count - 1)
    found = jax.lax.map(function, x[index], batch_size=size)
    return jax.tree.map(lambda leaf: leaf[:count], found)


def without_padding(u: Array, mask: Mask | None) -> Array:
    """Zeros at padded tokens, whatever was there."""
    return u if mask is None else jnp.where(real_entries(u.shape, mask), u, jnp.zeros((), u.dtype))


def real_entries(shape: tuple[int, ...], mask: Mask | None) -> Array:
    """Which entries of a field `(..., n, d)` belong to real tokens."""
    return jnp.ones(shape, bool) if mask is None else jnp.broadcast_to(mask[:, None], shape)


def real_count(shape: tuple[int, ...], mask: Mask | None) -> int:
    """How many entries are real; all of them where the mask is traced."""
    known = mask is not None and not traced(mask)
    return int(np.prod(shape)) * (int(np.sum(np.asarray(mask))) if known else 1) // (shape[-2] if known else 1)
