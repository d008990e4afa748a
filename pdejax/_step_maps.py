"""Depth as a sequence of maps u ← Φ_k(u), the steps of a discretization: what derivatives of a whole solve are taken of."""

import abc
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from pdejax._check import integer, token_mask, traced
from pdejax._depth import DepthVarying, take_layer
from pdejax._discretization import Discretization
from pdejax._integrate import Problem, terms_of, with_loops, with_root_tolerances
from pdejax._simulate import begun
from pdejax._types import Mask
from pdejax.solvers import linear_part
from pdejax.solvers._base import fresh_step, looks_back
from pdejax.terms import FieldArgs
from pdejax.terms._kernels import keep_saved


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


def length(x: Array) -> Array:
    """Euclidean length of a state."""
    return jnp.sqrt(jnp.sum(x**2))


def unit(x: Array) -> Array:
    """A state of length 1 in the same direction; 0 stays 0."""
    size = length(x)
    return jnp.where(size > 0, x / jnp.where(size > 0, size, 1), 0)


class AbstractMaps(eqx.Module):
    """`count` maps; `maps(k, u)` is the state after map k, `maps.depths(dtype)` the `count + 1` depths between them."""

    count: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, k: Int[ArrayLike, ""], u: Array) -> Array:
        """Φ_k(u), of the shape of u."""

    @abc.abstractmethod
    def depths(self, dtype: Any) -> Float[Array, " k"]:
        """Where the maps begin and end."""

    def ready(self, u: Array) -> "AbstractMaps":
        """The maps prepared for both modes of differentiation, inside jit, for states such as `u`."""
        del u
        return self


class SolverSteps(AbstractMaps):
    """`inner` steps of a discretization each, as `simulate` takes them; piecewise-constant weights layer by layer.

    With fewer steps than layers, each takes the weights of the first layer it goes over.
    """

    d: Discretization
    args: FieldArgs
    count: int = eqx.field(static=True)
    inner: int = eqx.field(static=True)

    def __call__(self, k: Int[ArrayLike, ""], u: Array) -> Array:
        if self.inner == 1:
            return self._step(k, u)

        @functools.partial(jax.checkpoint, policy=keep_saved, prevent_cse=False)
        def step(u, j):
            return self._step(k * self.inner + j, u), None

        return jax.lax.scan(step, u, jnp.arange(self.inner))[0]

    def depths(self, dtype: Any) -> Float[Array, " k"]:
        wide = dtype if isinstance(self.d.t1, float | int) else jnp.asarray(self.d.t1).dtype
        t0, t1 = jnp.asarray(self.d.t0, wide), jnp.asarray(self.d.t1, wide)
        return (t0 + (t1 - t0) * jnp.linspace(0.0, 1.0, self.count + 1, dtype=wide)).astype(dtype)

    def ready(self, u: Array) -> "SolverSteps":
        """With loops that serve both modes of differentiation and root finders near round-off."""
        d = self.d
        assert d.solver is not None
        times = jnp.asarray(d.t0, u.dtype), jnp.asarray(d.t1, u.dtype)
        problem = Problem(d.field, u, self.args, d.solver, *times, None)
        solver = with_loops(with_root_tolerances(problem), "bounded").solver
        return eqx.tree_at(lambda m: m.d.solver, self, solver)

    def _step(self, j, u: Array) -> Array:
        d, total = self.d, self.count * self.inner
        assert d.solver is not None
        j, t0, t1 = jnp.asarray(j), jnp.asarray(d.t0, u.dtype), jnp.asarray(d.t1, u.dtype)
        start, stop = (t0 + (t1 - t0) * ((j + i).astype(u.dtype) / total) for i in (0, 1))
        field, solver = d.field, d.solver
        if d.layers:
            assert isinstance(field, DepthVarying)
            index = d.layers[0] + (j * len(d.layers)) // total
            field, solver = field.layer(index), take_layer(solver, index)
        split = "linear" if linear_part(solver) is not None else d.split
        return fresh_step(solver, terms_of(field, split, u, self.args), start, stop, u, self.args)[0]


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


def steps_of(
    owner: str, d: Discretization, u0: Any, mask: Any = None, *, count: int | None = None
) -> tuple[SolverSteps, Array, Mask | None]:
    """The steps of a discretization as `count` maps (default: one each), the state with zeros at padding, and the mask.

    Raises `TypeError`/`ValueError`, which name `owner`, for what does not fit, before anything compiles.
    """
    if d.adaptive:
        raise ValueError(f"{owner}: steps are adaptive, so that their number is not known; give d.replace(steps=…).")
    if traced(d.steps):
        raise TypeError(f"{owner}: steps is traced; it must be a Python integer here, since every step is a map.")
    u = jnp.asarray(u0)
    if mask is not None and u.ndim > 1:
        # What lies at padding may be anything, NaN included.
        u = without_padding(u, token_mask(owner, mask, u.shape[-2]))
    u, args = d.check_state(owner, u, mask)
    if not u.ndim:
        raise ValueError(f"{owner}: a state must have at least one axis; give shape (1,) for one number.")
    d, _ = begun(owner, d, u, args.mask).settled(owner, u, args)
    if looks_back(d.solver):
        raise ValueError(
            f"{owner}: a step of {type(d.solver).__name__} depends on the step before, so that it is no map of the state; take a "
            "one-step solver, such as 'midpoint'."
        )
    # A field that changes the shape of the state says so here.
    jax.eval_shape(d.field, jax.ShapeDtypeStruct((), u.dtype), u, args)
    steps = int(d.steps)
    count = steps if count is None else integer(owner, "depths", count, most=steps)
    if steps % count or (d.layers and count % len(d.layers) and len(d.layers) % count):
        raise ValueError(f"{owner}: {count} depths do not divide the {steps} steps equally; choose a divisor of steps.")
    return SolverSteps(d=d, args=args, count=count, inner=steps // count), u, args.mask


class Flow(eqx.Module):
    """The maps `start` … `stop` − 1 one after another, as one function of the state; reverse mode keeps one state per map."""

    maps: AbstractMaps
    start: int = eqx.field(static=True, default=0)
    stop: int | None = eqx.field(static=True, default=None)

    def __call__(self, u: Array) -> Array:
        @functools.partial(jax.checkpoint, policy=keep_saved, prevent_cse=False)
        def step(u, k):
            return self.maps(k, u), None

        return jax.lax.scan(step, u, jnp.arange(self.start, self.maps.count if self.stop is None else self.stop))[0]


class OneMap(eqx.Module):
    """Map number `index` as a function of the state, prepared for derivatives where it is used, inside jit."""

    maps: AbstractMaps
    index: Array

    def __call__(self, u: Array) -> Array:
        return self.maps.ready(u)(self.index, u)
