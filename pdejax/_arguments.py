"""Checks of a public function's arguments by its annotations, before its body runs.

`@checked` reads the annotations once, at the first call, and refuses an argument that does not fit them in the words of
`pdejax._check`: the function, the argument, what it was, what is allowed. Types, ranks, NaN and alternatives are checked here;
bounds of a number, and how arguments fit one another, by the function itself.
"""

import collections.abc
import dataclasses
import difflib
import functools
import inspect
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from pdejax._check import traced

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
# What users call the classes that stand for a kind of object.
_NAMES = {
    "AbstractEquation": "a MasterEquation, a DepthVarying",
    "AbstractTerm": "a term of pdejax.terms",
    "AbstractSolver": "a diffrax solver",
    "Discretization": "a Discretization (pdejax.Discretization or pdejax.lift makes one)",
    "Architecture": "an Architecture (pdejax.Architecture(vocab=…, dim=…) makes one)",
    "Rngs": "an nnx.Rngs",
    "Loop": "a Loop (pdejax.analysis.loops.loop_of makes one of a model or a map and its input)",
    "Network": "a Network (pdejax.as_network or pdejax.network makes one)",
    "Recipe": "a Recipe (pdejax.analysis.limits.Recipe(base, weights, alpha) makes one)",
    "CommonNoise": "a CommonNoise (pdejax.analysis.limits.CommonNoise(features) makes one)",
    "Sweep": "a Sweep (pdejax.runs.sweep.Sweep(measure=…, axes=…, dims=…) makes one)",
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What one branch of an annotation takes: a test that returns None or the error to raise, and its words."""

    words: str
    fault: Callable[[Any], type[Exception] | None]


def checked(function: F, owner: str | None = None) -> F:
    """Return the function with its arguments checked by their annotations; an `__init__` speaks for its class.

    A class whose `__init__` is made from its fields is decorated itself. Raises `TypeError` for a value of another type,
    `ValueError` for one that its type alone does not exclude: NaN as a number, an array of another rank, a word that is no
    alternative.
    """
    if inspect.isclass(function):
        setattr(function, "__init__", checked(function.__init__, function.__name__))  # noqa: B010
        return typing.cast(F, function)
    plain = inspect.unwrap(function)
    name = owner or (plain.__qualname__.split(".")[-2] if plain.__name__ == "__init__" else plain.__name__)
    signature = inspect.signature(function)

    @functools.cache
    def kinds() -> dict[str, tuple[Kind, ...]]:
        hints = _hints(plain)
        return {key: kinds_of(hints[key]) for key in signature.parameters if key in hints}

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        given = _bound(name, signature, plain, args, kwargs)
        for key, value in given.items():
            allowed = kinds().get(key, ())
            kind = signature.parameters[key].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                values = [(f"{key}[{i}]", one) for i, one in enumerate(value)]
            elif kind is inspect.Parameter.VAR_KEYWORD:
                values = list(value.items())
            else:
                values = [(key, value)]
            for label, one in values:
                if one is not signature.parameters[key].default:
                    require(name, label, one, allowed)
        return function(*args, **kwargs)

    return typing.cast(F, wrapped)


def names_checked(cls: type[T]) -> type[T]:
    """Return the class, whose `__init__` is made from its fields, with names that it does not have refused as `checked` does;
    values are its own to check."""
    plain = cls.__init__
    signature = inspect.signature(plain)

    @functools.wraps(plain)
    def wrapped(self, *args, **kwargs):
        _bound(cls.__name__, signature, plain, (self, *args), kwargs)
        plain(self, *args, **kwargs)

    setattr(cls, "__init__", wrapped)  # noqa: B010
    return cls


def _bound(
    name: str, signature: inspect.Signature, plain: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments by name. Raises `TypeError` for one that is missing, and for one too many, with what was probably meant."""
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        parameters = signature.parameters
        takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
        unknown = [] if takes_any else [key for key in kwargs if key not in parameters]
        # That an argument is missing says little where its name was mistyped.
        said = f"got an unexpected keyword argument {unknown[0]!r}" if unknown else error
        beside = _belongs(unknown, _hints(plain))
        close = (
            []
            if beside
            else [one for key in unknown for one in difflib.get_close_matches(key, _names_of(signature), 1)]
        )
        meant = f"; did you mean {' and '.join(close)}?" if close else "."
        raise TypeError(f"{name}: {said}; it takes {_parameters(signature)}{beside}{meant}") from None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations; without those of names that only type checkers see."""
    try:
        return typing.get_type_hints(function)
    except NameError:
        known = {key: hint for key, hint in function.__annotations__.items() if not isinstance(hint, str)}
        return {key: hint for key, hint in known.items() if key != "return"}


def require(owner: str, name: str, value: Any, kinds: tuple[Kind, ...]) -> None:
    """Raise unless one of the kinds takes the value; no kinds at all take everything."""
    faults = [kind.fault(value) for kind in kinds]
    if not kinds or None in faults:
        return
    error = ValueError if ValueError in faults else TypeError
    wanted = _either(kinds)
    raise error(f"{owner}: {name}={shown(value)} must be {wanted}{_end(value, kinds)}")


def _either(kinds: tuple[Kind, ...]) -> str:
    return " or ".join(sorted((kind.words for kind in kinds), key=lambda words: words == "None"))


def shown(value: Any) -> str:
    """A value as an error message shows it: arrays and objects by what they are, the rest by a short `repr`."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and (traced(value) or np.ndim(value) > 0):
        return f"an array of shape {tuple(value.shape)} and type {value.dtype}"
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    if isinstance(
        value, str | bytes | int | float | complex | bool | tuple | list | type(None) | os.PathLike | np.generic
    ):
        text = repr(value)
    else:
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def kinds_of(hint: Any) -> tuple[Kind, ...]:
    """The kinds of values that an annotation takes; an empty tuple where it takes any."""
    found: list[Kind] = []
    branches = _branches(hint)
    paths = [one for one in branches if _is_path(one)]
    for branch in [one for one in branches if one is not str] if paths else branches:
        kind = _kind(branch)
        if kind is None:
            return ()
        found.append(kind)
    # Numbers are annotated in several ways at once: one wording for all.
    return tuple({kind.words: kind for kind in found}.values())


def _branches(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        branches = [one for part in typing.get_args(hint) for one in _branches(part)]
        if complex in branches and np.ndarray in branches:  # jax.typing.ArrayLike
            from jax.typing import ArrayLike

            rest = [one for one in branches if one not in typing.get_args(ArrayLike)]
            return [*rest, _REAL]
        return branches
    return [hint]


_REAL = object()  # stands for ArrayLike


def _kind(hint: Any) -> Kind | None:
    """The kind of one annotation without alternatives, None where anything may be given."""
    import jax
    from jax.core import Tracer

    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return None
    if hint is _REAL:
        return Kind("a real number or an array of real numbers", _real)
    if hint in (jax.Array, np.ndarray):
        return Kind("an array of real numbers", _real_array)
    if hint is complex:
        return Kind("one complex number", lambda value: None if _some_number(value) else TypeError)
    if hint in (type(None), None):
        return Kind("None", lambda value: None if value is None else TypeError)
    if hint is bool:
        return Kind("True or False", lambda value: None if isinstance(value, bool | np.bool_) else TypeError)
    if hint is int:
        return Kind("an integer", _integer)
    if hint in (float, np.number):
        return Kind("one real number", _number)
    if hint is str:
        return Kind("a string", lambda value: None if isinstance(value, str) else TypeError)
    if origin is typing.Literal:
        return _literal(inner)
    if _is_path(hint):
        return Kind("a path", _path)
    if hasattr(hint, "dim_str"):
        return _array(hint)
    if hint is Callable or origin is collections.abc.Callable:
        return Kind("a function", lambda value: None if callable(value) and not inspect.isclass(value) else TypeError)
    if origin in (collections.abc.Mapping, dict):
        return Kind("a mapping", lambda value: None if isinstance(value, Mapping) else TypeError)
    if origin in (collections.abc.Sequence, tuple, list):
        return _sequence(origin, inner)
    if inspect.isclass(hint) and hint is not object and not issubclass(hint, Tracer) and hint.__module__ != "jaxtyping":
        return Kind(
            _NAMES.get(hint.__name__, _an(hint.__name__)), lambda value: None if isinstance(value, hint) else TypeError
        )
    return None


def _integer(value: Any) -> type[Exception] | None:
    if isinstance(value, bool | np.bool_):
        return TypeError
    if traced(value):
        return None if np.issubdtype(value.dtype, np.integer) and value.ndim == 0 else TypeError
    try:
        operator.index(value)
    except TypeError:
        return TypeError
    return None


def _number(value: Any) -> type[Exception] | None:
    return _real(value) or (None if np.ndim(value) == 0 else ValueError)


def _real(value: Any) -> type[Exception] | None:
    """Real numbers in any container; NaN is none where it stands alone."""
    if isinstance(value, bool | np.bool_ | str | bytes | complex | None):
        return TypeError
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        try:
            value = np.asarray(value)
        except (TypeError, ValueError):
            return TypeError
        dtype = value.dtype
    import jax.numpy as jnp

    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer) or dtype == np.bool_):
        return TypeError
    if np.ndim(value) == 0 and not traced(value) and math.isnan(float(value)):
        return ValueError
    return None


def _array(hint: Any) -> Kind | None:
    """An array by its jaxtyping annotation: its type and how many axes it has."""
    names = [str(dtype) for dtype in hint.dtypes] if isinstance(hint.dtypes, tuple | list) else []
    if any("key" in name for name in names) or (hint.dim_str in ("2", "4") and names == ["uint32"]):
        return Kind("a PRNG key (make one by jax.random.key(0))", _key)
    axes = hint.dim_str.split()
    open_ended = any(axis == "..." or axis.startswith("*") for axis in axes)
    least = sum(axis != "..." and not axis.startswith("*") for axis in axes)
    boolean = bool(names) and all("bool" in name for name in names)
    what = "booleans" if boolean else "integers" if names and all("int" in name for name in names) else "real numbers"
    shape = (
        f" of shape ({', '.join(axes)}{',' if len(axes) == 1 else ''})"
        if axes and not (open_ended and least == 0)
        else ""
    )
    words = f"one of {what}" if not axes else f"an array of {what}{shape}"
    words = {
        "one of real numbers": "one real number",
        "one of integers": "an integer",
        "one of booleans": "True or False",
    }.get(words, words)

    def fault(value: Any) -> type[Exception] | None:
        if boolean:
            dtype = getattr(value, "dtype", None)
            wrong = None if (dtype == np.bool_ or (dtype is None and _booleans(value))) else TypeError
        else:
            wrong = _real(value) if names and not any("complex" in name for name in names) else _some_array(value)
        if wrong is not None:
            return wrong
        rank = np.ndim(value)
        return None if (rank >= least if open_ended else rank == least) else ValueError

    return Kind(words, fault)


def _booleans(value: Any) -> bool:
    try:
        return np.asarray(value).dtype == bool
    except (TypeError, ValueError):
        return False


def _real_array(value: Any) -> type[Exception] | None:
    return _real(value) if hasattr(value, "shape") or isinstance(value, list | tuple) else TypeError


def _some_array(value: Any) -> type[Exception] | None:
    """An array of numbers, real or complex; a list of real numbers will do."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        import jax.numpy as jnp

        return None if jnp.issubdtype(value.dtype, jnp.number) or value.dtype == np.bool_ else TypeError
    return _real(value) if isinstance(value, list | tuple) else TypeError


def _some_number(value: Any) -> bool:
    return isinstance(value, int | float | complex | np.number) and not isinstance(value, bool)


def _key(value: Any) -> type[Exception] | None:
    import jax

    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return TypeError
    if jax.numpy.issubdtype(dtype, jax.dtypes.prng_key):
        return None if value.ndim == 0 else ValueError
    return None if dtype == np.uint32 and value.shape in ((2,), (4,)) else TypeError


def _path(value: Any) -> type[Exception] | None:
    if not isinstance(value, str | os.PathLike):
        return TypeError
    return None if os.fspath(value) else ValueError


def _is_path(hint: Any) -> bool:
    origin = typing.get_origin(hint) or hint
    return inspect.isclass(origin) and issubclass(origin, os.PathLike)  # pyright: ignore[reportGeneralTypeIssues]


def _literal(allowed: tuple[Any, ...]) -> Kind:
    def fault(value: Any) -> type[Exception] | None:
        if not any(type(value) is type(one) for one in allowed):
            return TypeError
        return None if value in allowed else ValueError

    return Kind(f"one of {', '.join(map(repr, allowed))}", fault)


def _sequence(origin: Any, inner: tuple[Any, ...]) -> Kind:
    each = kinds_of(inner[0]) if inner and (len(inner) == 1 or inner[-1] is Ellipsis) else ()
    exact = len(inner) if origin is tuple and inner and inner[-1] is not Ellipsis else None
    entries = f" of {len(inner)}" if exact else ""
    words = f"a sequence{entries}" + (f" (each entry {_either(each)})" if each else "")

    def fault(value: Any) -> type[Exception] | None:
        if isinstance(value, str | bytes | Mapping) or traced(value):
            return TypeError
        if hasattr(value, "shape"):
            return _real_array(value) or (None if np.ndim(value) == 1 else ValueError)
        if not isinstance(value, Sequence):
            return TypeError
        if exact is not None and len(value) != exact:
            return ValueError
        for one in value:
            wrong = [kind.fault(one) for kind in each]
            if wrong and None not in wrong:
                return ValueError if ValueError in wrong else TypeError
        return None

    return Kind(words, fault)


def _an(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOU' or name.startswith('RMS') else 'a'} {name}"


def _end(value: Any, kinds: tuple[Kind, ...]) -> str:
    """The end of the sentence: what to do where that is plain, or a full stop."""
    if inspect.isclass(value):
        return "; call the class to make one."
    if isinstance(value, float | np.floating) and math.isnan(value):
        return "; NaN is none."
    words = [
        word.strip("'") for kind in kinds if kind.words.startswith("one of '") for word in kind.words[7:].split(", ")
    ]
    close = difflib.get_close_matches(value, words, n=1) if isinstance(value, str) else []
    return f"; did you mean {close[0]!r}?" if close else "."


def _belongs(names: Sequence[str], hints: Mapping[str, Any]) -> str:
    """Where a configuration that the function takes has fields of these names: that they are given to that."""
    for key, hint in hints.items():
        for one in (hint, *typing.get_args(hint)):
            fields = getattr(one, "__dataclass_fields__", {}) if inspect.isclass(one) else {}
            if names and key != "return" and set(fields).issuperset(names):
                return (
                    f", and the {key} has {' and '.join(names)}: {one.__name__}({', '.join(f'{x}=…' for x in names)})"
                )
    return ""


def _parameters(signature: inspect.Signature) -> str:
    return ", ".join(_names_of(signature))


def _names_of(signature: inspect.Signature) -> list[str]:
    return [name for name in signature.parameters if name != "self"]
