"""A chunk of a sweep measured: side by side by `vmap`, over this process's devices by `shard_map`, or run by run in Python."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from pdejax.runs.sweep._sweep import SEED, Chunk, Sweep

AXIS = "runs"


class Measurer:
    """Measures chunks of a sweep; `measurer(chunk)` gives arrays of the chunk's shape and that of what is measured, by name.

    One program per combination of values that are compiled for serves all chunks: the last ones are padded. Devices share a
    chunk in whole rounds of `lanes` runs, so that each run is computed alike on any number of devices.
    """

    def __init__(self, sweep: Sweep, devices: Sequence[Any] | None = None):
        # This process's devices only: processes share no program, so that one may come, go or die without the others.
        found = jax.local_devices() if devices is None else list(devices)
        self.sweep, self.mesh = sweep, Mesh(np.array(found), (AXIS,), axis_types=(AxisType.Auto,))
        self._programs: dict[tuple[Any, ...], Callable[..., Any]] = {}

    @functools.cached_property
    def types(self) -> dict[str, np.dtype]:
        """The type of everything that is measured; of Python's numbers float64."""
        return _types(self.sweep) if self.sweep.traced else {name: np.dtype(float) for name in self.sweep.dims}

    def __call__(self, chunk: Chunk) -> dict[str, np.ndarray]:
        sweep = self.sweep
        points = np.meshgrid(*(sweep.values(name)[part] for name, part in self._parts(chunk)), indexing="ij")
        columns = {name: column.ravel() for name, column in zip(sweep.grid, points, strict=True)}
        found = self._traced(columns, chunk.runs) if sweep.traced else self._in_python(columns, chunk.runs)
        shaped = {}
        for name, kind in self.types.items():
            values = np.asarray(found[name])
            if not np.can_cast(values.dtype, kind, "same_kind"):
                raise ValueError(
                    f"Sweep: measure gives {name!r} as {values.dtype} here and as {kind} at the first point; give one type, such "
                    "as float, everywhere."
                )
            values = values.astype(kind)
            shaped[name] = values.reshape(*chunk.shape, *sweep.sizes(name))
        return shaped

    def _parts(self, chunk: Chunk) -> Sequence[tuple[str, slice]]:
        return list(zip(self.sweep.grid, chunk.region, strict=True))

    def _traced(self, columns: dict[str, np.ndarray], runs: int) -> dict[str, np.ndarray]:
        fixed = tuple(_plain(columns[name][0]) for name in self.sweep.constants)
        if fixed not in self._programs:
            self._programs[fixed] = self._compiled(fixed)
        padded = self._padded()
        # Beyond the grid's end the last run is measured again, and dropped.
        index = np.minimum(np.arange(padded), runs - 1)
        moving = {name: column[index] for name, column in columns.items() if name not in self.sweep.constants}
        found = self._programs[fixed]({name: _as_traced(column) for name, column in moving.items()})
        return {name: np.asarray(values)[:runs] for name, values in found.items()}

    def _padded(self) -> int:
        """Runs of a program: whole rounds of lanes on every device."""
        whole, devices = math.prod(self.sweep.chunk_shape), self.mesh.size
        lanes = self.sweep.lanes or -(-whole // devices)
        return -(-whole // (devices * lanes)) * devices * lanes

    def _compiled(self, fixed: tuple[Any, ...]) -> Callable[..., Any]:
        one = _one(self.sweep, fixed)
        here = self._padded() // self.mesh.size
        lanes = min(self.sweep.lanes or here, here)

        def all_here(points):
            return jax.lax.map(one, points, batch_size=lanes)

        spec = PartitionSpec(AXIS)
        # Without the check of varying axes: loops of a solve do not pass it, and nothing is exchanged here.
        shared = jax.shard_map(all_here, mesh=self.mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return jax.jit(shared)

    def _in_python(self, columns: dict[str, np.ndarray], runs: int) -> dict[str, np.ndarray]:
        names = [name for name in self.sweep.grid if name != SEED]
        rows = []
        for i in range(runs):
            point = {name: _plain(columns[name][i]) for name in names}
            row = self.sweep.measure(self.sweep.base + int(columns[SEED][i]), **point)
            rows.append({name: _fits(self.sweep, name, row) for name in self.sweep.dims})
        return {name: np.stack([row[name] for row in rows]) for name in self.sweep.dims}


def _one(sweep: Sweep, fixed: tuple[Any, ...]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A run as a function of its traced values."""
    constants = dict(zip(sweep.constants, fixed, strict=True))

    def one(point):
        point = dict(point)
        key = jax.random.fold_in(jax.random.key(sweep.base), point.pop(SEED))
        found = sweep.measure(key, **constants, **point)
        return {name: jnp.asarray(_fits(sweep, name, found)) for name in sweep.dims}

    return one


def _types(sweep: Sweep) -> dict[str, np.dtype]:
    """The type of everything that is measured; raises where a run gives something else than the sweep says."""
    fixed = tuple(_plain(sweep.values(name)[0]) for name in sweep.constants)
    names = [name for name in sweep.grid if name not in sweep.constants]
    point = {name: jax.eval_shape(lambda n=name: _as_traced(sweep.values(n)[:1])[0]) for name in names}
    return {name: np.dtype(found.dtype) for name, found in jax.eval_shape(_one(sweep, fixed), point).items()}


def _fits(sweep: Sweep, name: str, found: Any) -> Any:
    if name not in found:
        raise ValueError(f"Sweep: measure gives {sorted(found)}, but dims has {name!r}; they must agree.")
    if np.shape(found[name]) != sweep.sizes(name):
        raise ValueError(
            f"Sweep: measure gives {name!r} of shape {np.shape(found[name])}; by dims and coords it must be {sweep.sizes(name)}."
        )
    return found[name]


def _as_traced(column: np.ndarray) -> Any:
    """Values of an axis in JAX's own types: floats, integers or booleans."""
    kind = jnp.result_type({"f": float, "b": bool}.get(column.dtype.kind, int))
    with np.errstate(over="ignore"):
        cast = column.astype(kind)
    lost = column[np.isinf(cast) if column.dtype.kind == "f" else cast != column]
    if lost.size:
        raise ValueError(
            f"Sweep: an axis has {lost[0]}, beyond {kind}, as JAX is set; make the axis static or set jax_enable_x64."
        )
    return jnp.asarray(column, kind)


def _plain(value: Any) -> Any:
    """A value of an axis as Python has it."""
    return value.item() if hasattr(value, "item") else value
