"""What a sweep is: axes, seeds, a measuring function, and the manifest of chunks that follows from them."""

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pdejax import _check as check
from pdejax.runs._files import digest, plain

SEED = "seed"
_KINDS = "biufU"  # booleans, integers, floats, words


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Name a chunk of a sweep: its number and its region of the grid, `start[i] ≤ index i < stop[i]`, seeds last."""

    number: int
    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def region(self) -> tuple[slice, ...]:
        """The region as slices of an array of the grid's shape."""
        return tuple(itertools.starmap(slice, zip(self.start, self.stop, strict=True)))

    @property
    def shape(self) -> tuple[int, ...]:
        """How many points the region has along every axis."""
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def runs(self) -> int:
        """How many runs it holds."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Declare a sweep: one run per point of the product of `axes` and per seed.

    - `measure(key, **point)`: a JAX function that measures one run, from a PRNG key and the point's values by the names of the
      axes. It returns numbers or arrays by name. The same seed has the same key at every point: points are compared pairwise.
    - `axes`: values by name, numbers or words; `seeds`: how many seeds, the last axis of the grid, `seed`.
    - `static`: axes whose values are Python constants of `measure`, such as a number of tokens: each value is compiled for. Words
      always are. All other values are traced: runs go side by side by `vmap`, and over devices by `shard_map`.
    - `dims`: what is measured, by name, each with the names of its own axes: `{"cosine": ("depth",), "clusters": ()}`. `coords`:
      the values along those axes.
    - `chunk`: the most runs of a chunk, the unit that is measured and kept. `lanes`: how many of them go side by side on a
      device, the rest in turn: as it is fixed, results do not depend on the number of devices. None: as many as there are.
    - `traced`: False for a `measure(seed, **point)` that is plain Python, such as a study: its runs go one after the other.
    - `base`: the seed that all keys are made from. `name`, `attrs`: what the data says of itself. `given`: whatever else the
      results depend on, such as a configuration; a store of other content is refused. Numbers, words, arrays, functions and
      dataclasses that `measure` is bound to (partial, defaults, closure) need not be said; other objects must.

    Raises `ValueError`/`TypeError` naming the argument.
    """

    measure: Callable[..., Mapping[str, Any]]
    axes: Mapping[str, Sequence[Any]]
    dims: Mapping[str, Sequence[str]]
    coords: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    seeds: int = 1
    static: Sequence[str] = ()
    chunk: int = 256
    lanes: int | None = 32
    traced: bool = True
    base: int = 0
    name: str = "sweep"
    attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    given: Any = None

    def __post_init__(self):
        if not callable(self.measure):
            raise TypeError(f"Sweep: measure={self.measure!r} must be a function measure(key, **point).")
        for name, least in (("seeds", 1), ("chunk", 1), ("base", 0)):
            check.integer("Sweep", name, getattr(self, name), least)
        if self.lanes is not None:
            check.integer("Sweep", "lanes", self.lanes)
        if not self.axes:
            raise ValueError("Sweep: axes is empty; give at least one axis, such as {'beta': (1.0, 2.0)}.")
        for name, values in self.axes.items():
            _check_values("axes", name, values)
            if name == SEED:
                raise ValueError("Sweep: an axis is called 'seed'; the seeds are an axis of their own, give seeds=….")
        for name in self.static:
            check.choice("Sweep", "static", name, tuple(self.axes))
        _check_takes(self.measure, tuple(self.axes))
        if not self.dims:
            raise ValueError("Sweep: dims is empty; name what is measured, such as {'cosine': ()}.")
        for name, values in self.coords.items():
            _check_values("coords", name, values)
        for name, own in self.dims.items():
            if name in self.axes or name in self.coords or name == SEED:
                raise ValueError(f"Sweep: {name!r} is both measured and an axis; call one of them otherwise.")
            for axis in own:
                if axis not in self.coords:
                    raise ValueError(
                        f"Sweep: {name!r} has an axis {axis!r} without coords; give coords={{{axis!r}: …}}."
                    )

    def __repr__(self) -> str:
        axes = ", ".join(f"{name} ({size})" for name, size in zip(self.grid, self.shape, strict=True))
        return f"Sweep({self.name!r} over {axes}: {self.runs:,} runs)"

    @property
    def grid(self) -> tuple[str, ...]:
        """Names of the grid's axes, seeds last."""
        return (*self.axes, SEED)

    @property
    def shape(self) -> tuple[int, ...]:
        """The grid's shape."""
        return (*(len(values) for values in self.axes.values()), self.seeds)

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return math.prod(self.shape)

    @property
    def constants(self) -> tuple[str, ...]:
        """The axes that are compiled for: those in `static`, and words."""
        return tuple(
            name for name, values in self.axes.items() if name in self.static or np.asarray(values).dtype.kind == "U"
        )

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """The shape of a chunk that is not cut by the grid's end: as many whole axes from the last on as `chunk` runs hold, part
        of the next, and one value of what is compiled for."""
        left, shape = self.chunk, []
        for name, size in reversed(list(zip(self.grid, self.shape, strict=True))):
            take = 1 if name in self.constants else max(1, min(size, left))
            if take > 1:
                # Parts of equal size rather than a small rest.
                take = -(-size // -(-size // take))
            left = left // take
            shape.append(take)
        return tuple(reversed(shape))

    def chunks(self) -> tuple[Chunk, ...]:
        """Return the manifest: all chunks in order, the same on every machine, those of one program after another."""
        size = self.chunk_shape
        counts = [-(-whole // part) for whole, part in zip(self.shape, size, strict=True)]
        # What is compiled for goes outermost, so that shards, which take every n-th chunk, share dear and cheap programs alike.
        order = sorted(range(len(counts)), key=lambda axis: self.grid[axis] not in self.constants)
        found = []
        for number, turned in enumerate(itertools.product(*(range(counts[axis]) for axis in order))):
            place = [turned[order.index(axis)] for axis in range(len(counts))]
            start = tuple(at * part for at, part in zip(place, size, strict=True))
            stop = tuple(min(first + part, whole) for first, part, whole in zip(start, size, self.shape, strict=True))
            found.append(Chunk(number, start, stop))
        return tuple(found)

    def share(self, index: int, count: int) -> tuple[Chunk, ...]:
        """Return the chunks of shard `index` of `count`: every `count`-th, so that no two shards have one in common."""
        check.integer("Sweep.share", "count", count)
        check.integer("Sweep.share", "index", index, 0, count - 1)
        return self.chunks()[index::count]

    def values(self, name: str) -> np.ndarray:
        """Return the values along an axis of the grid or of what is measured."""
        return np.arange(self.seeds) if name == SEED else np.asarray({**self.axes, **self.coords}[name])

    def sizes(self, output: str) -> tuple[int, ...]:
        """Return the shape of what is measured in one run."""
        return tuple(len(self.coords[axis]) for axis in self.dims[output])

    def identity(self) -> dict[str, Any]:
        """Return what the results depend on: all but where and in which order they are measured."""
        import jax

        from pdejax.runs.sweep._identity import bound_to, code_of, versions

        kept = {name: np.asarray(values).tolist() for name, values in self.axes.items()}
        found = {
            "name": self.name,
            "axes": kept,
            "dims": {name: list(own) for name, own in self.dims.items()},
            "coords": {name: np.asarray(values).tolist() for name, values in self.coords.items()},
            "seeds": self.seeds,
            "static": list(self.constants),
            "chunk": list(self.chunk_shape),
            "lanes": self.lanes,
            "base": self.base,
            "given": plain(self.given),
            "code": code_of(self.measure),
            "bound": digest(bound_to(self.measure, said=self.given is not None)),
            "float64": bool(jax.config.read("jax_enable_x64")),
            "versions": versions(),
        }
        return {**found, "key": digest(found)}


def _check_takes(measure: Callable[..., Any], axes: tuple[str, ...]) -> None:
    """Refuse a measuring function that does not take the axes by their names, before a run is measured."""
    try:
        signature = inspect.signature(measure)
    except (TypeError, ValueError):  # a builtin says nothing of what it takes
        return
    try:
        signature.bind(None, **dict.fromkeys(axes))
    except TypeError as error:
        raise TypeError(
            f"Sweep: measure takes ({', '.join(signature.parameters)}), not a key and the axes {', '.join(axes)} by name: "
            f"{error}."
        ) from None


def _check_values(what: str, name: str, values: Any) -> None:
    array = np.asarray(values)
    if array.ndim != 1 or not array.size or array.dtype.kind not in _KINDS:
        raise ValueError(f"Sweep: {what}[{name!r}]={values!r} must be one or more numbers, or words, in a sequence.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"Sweep: {what}[{name!r}] has values that are not finite; leave them out.")
    if what == "axes" and len(np.unique(array)) < array.size:
        raise ValueError(f"Sweep: axes[{name!r}] has a value twice; name each once, and ask for more seeds.")
