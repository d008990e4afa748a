"""What a measuring function depends on beside its arguments: its code, and the values that it is bound to."""

import dataclasses
import dis
import functools
import hashlib
import inspect
import math
import types
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdejax.runs._code import code_digest, library_digest


def code_of(measure: Callable[..., Any]) -> str:
    """Digest of the code of a measuring function, which may be a partial, jitted, a method, or an object that is called."""
    inner = _inner(measure)
    return code_digest(inner if inspect.isroutine(inner) else type(inner))


def bound_to(measure: Callable[..., Any], said: bool) -> Any:
    """What a measuring function is bound to, as JSON: arguments of partials, defaults, variables of enclosing functions, global
    numbers, words and arrays. Arrays go by their SHA-256, functions by their code and what they are bound to themselves.

    Raises `ValueError` for an object that says nothing of itself, unless `said`: `given` speaks for it.
    """
    return _Reader(said).read(measure, "measure")


def versions() -> dict[str, str]:
    """Versions of what computes; of pdejax the source as well, which changes without its version."""
    return {**{name: version(name) for name in ("pdejax", "jax", "jaxlib")}, "source": library_digest()}


def _inner(measure: Any) -> Any:
    """The function inside partials and wrappers."""
    while True:
        if isinstance(measure, functools.partial):
            measure = measure.func
        elif hasattr(measure, "__wrapped__"):
            measure = measure.__wrapped__
        else:
            return measure


@dataclasses.dataclass
class _Reader:
    said: bool
    inside: set[int] = dataclasses.field(default_factory=set)

    def read(self, value: Any, where: str) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float | complex | bytes):
            # JSON has neither NaN nor infinity.
            return value if isinstance(value, float) and math.isfinite(value) else repr(value)
        if isinstance(value, np.dtype | np.generic) or _is_array(value):
            return str(value) if isinstance(value, np.dtype) else _array(value)
        if isinstance(value, type | types.ModuleType):
            return f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else value.__name__
        if id(value) in self.inside:
            return "itself"
        self.inside.add(id(value))
        try:
            return self._compound(value, where)
        finally:
            self.inside.discard(id(value))

    def _compound(self, value: Any, where: str) -> Any:
        if isinstance(value, Mapping):
            rows = [[self.read(key, where), self.read(item, f"{where}[{key!r}]")] for key, item in value.items()]
            return sorted(rows, key=repr)
        if isinstance(value, list | tuple | set | frozenset):
            rows = [self.read(item, where) for item in value]
            return sorted(rows, key=repr) if isinstance(value, set | frozenset) else rows
        if isinstance(value, functools.partial):
            return [self.read(x, where) for x in (value.func, value.args, value.keywords)]
        if hasattr(value, "__wrapped__"):
            return self.read(value.__wrapped__, where)
        if inspect.ismethod(value):
            return [self.read(value.__func__, where), self.read(value.__self__, f"{where}.__self__")]
        if inspect.isfunction(value):
            return self._function(value, where)
        if dataclasses.is_dataclass(value):
            kind = type(value)
            own = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
            return [code_digest(kind), kind.__qualname__, self.read(own, where)]
        if callable(value) and hasattr(value, "__name__"):  # of NumPy, of JAX, of C: of what versions say
            return f"{getattr(value, '__module__', '')}.{value.__name__}"
        if self.said:
            return f"{type(value).__module__}.{type(value).__qualname__}"
        raise ValueError(
            f"Sweep: {where} is a {type(value).__name__}, which says nothing of itself; say in given=… what of it results "
            "depend on."
        )

    def _function(self, function: Any, where: str) -> Any:
        variables = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        found: dict[str, Any] = {"code": code_digest(function), "name": function.__qualname__}
        found["defaults"] = [self.read(x, f"a default of {where}") for x in function.__defaults__ or ()]
        for name, value in (function.__kwdefaults__ or {}).items():
            found[f"default {name}"] = self.read(value, f"{where}'s default {name}")
        for name, cell in variables.items():
            try:
                found[f"variable {name}"] = self.read(cell.cell_contents, f"{name} of {where}")
            except ValueError as error:
                if str(error) != "Cell is empty":
                    raise
        for name in sorted(_names(function.__code__)):
            value = function.__globals__.get(name)
            if isinstance(value, bool | int | float | complex | str | np.generic) or _is_array(value):
                found[f"global {name}"] = self.read(value, name)
        return found


def _names(code: types.CodeType) -> set[str]:
    """Global names that code reads."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    own = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return own.union(*inner)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | jax.Array) and value.dtype != object


def _array(value: Any) -> Any:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.ascontiguousarray(value)
    return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
