"""Checks of arguments, with one wording for every refusal.

Every message reads `owner: name=value must be …; what to do.`, where `owner` is the function or class that the user called.
Values that JAX traces cannot be looked at and pass; concrete arrays are looked at through NumPy, which works inside a trace too.
"""

import contextlib
import difflib
import functools
import math
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


def traced(*values: object) -> bool:
    """Tell whether any of these values is traced by JAX, so that it cannot be looked at."""
    from jax.core import Tracer

    return any(isinstance(value, Tracer) for value in values)


def known(value: object) -> bool:
    """Tell whether this is a number or an array that can be looked at: between transformations a leaf may be anything."""
    import jax

    return isinstance(value, bool | int | float | np.ndarray | np.generic | jax.Array) and not traced(value)


def concretely(function: F) -> F:
    """Decorate a check: what it computes from known values stays known, also where jit, vmap or grad trace around it."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        with _known_stays_known():
            return function(*args, **kwargs)

    return run  # pyright: ignore[reportReturnType]


def traced_around() -> bool:
    """Tell whether jit or a loop is tracing what runs now, so that even a constant of JAX would be traced."""
    import jax.numpy as jnp

    return traced(jnp.zeros(()))


@contextlib.contextmanager
def spoken_by(owner: str, about: str = ""):
    """Let refusals by what is called inside begin with `owner`, the function that the user called, and what they are `about`."""
    try:
        yield
    except (TypeError, ValueError, FileNotFoundError) as error:
        # Those of JAX have classes of their own, which no text makes.
        if type(error) not in (TypeError, ValueError, FileNotFoundError):
            raise
        name, colon, said = str(error).partition(": ")
        text = said if colon and re.fullmatch(r"[A-Za-z_][\w.]*", name) else str(error)
        raise type(error)(f"{owner}: {about}{text}") from None


def at_top_level(function: F) -> F:
    """Decorate what times or repeats whole solves: inside jit it refuses in words, also where every value is known."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        if traced_around():
            raise TypeError(f"{function.__name__}: runs and times whole solves; call it outside of jit.")
        return function(*args, **kwargs)

    return run  # pyright: ignore[reportReturnType]


def _known_stays_known() -> Any:
    import jax

    # Only inside a trace: at the top level programs would be compiled a second time for it.
    return jax.ensure_compile_time_eval() if traced_around() else contextlib.nullcontext()


def on_numbers(function: F) -> F:
    """Decorate an analysis that works on known numbers, by NumPy or with decisions in Python.

    Inside a transformation it runs at once on values that are known there, such as those closed over, and refuses traced
    ones with a `TypeError` that names it.
    """
    text = f"{function.__name__}: works on numbers, not inside jit, vmap or grad; call it outside of them."

    @functools.wraps(function)
    def run(*args, **kwargs):
        import jax

        if traced(*jax.tree.leaves((args, kwargs))):
            raise TypeError(text)
        try:
            with _known_stays_known():
                return function(*args, **kwargs)
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
            # A function among the arguments has closed over a traced value.
            raise TypeError(text) from error

    return run  # pyright: ignore[reportReturnType]


def integer(owner: str, name: str, value: Any, least: int = 1, most: int | None = None, advice: str = "") -> int:
    """Return `value` as an int of at least `least` (and at most `most`). Booleans and floats are no integers.

    Raises `TypeError` for another type, `ValueError` outside the bounds.
    """
    bounds = f"an integer of at least {least}" if most is None else f"an integer in {least} … {most}"
    if isinstance(value, bool | np.bool_) or traced(value):
        raise TypeError(_text(owner, name, value, bounds, advice))
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(_text(owner, name, value, bounds, advice)) from None
    if number < least or (most is not None and number > most):
        raise ValueError(_text(owner, name, value, bounds, advice))
    return number


def number(
    owner: str,
    name: str,
    value: Any,
    *,
    least: float | int | None = None,
    most: float | int | None = None,
    above: float | int | None = None,
    below: float | int | None = None,
    advice: str = "",
) -> float:
    """Return `value` as a finite float with `least ≤ value ≤ most` and `above < value < below`.

    Raises `TypeError` for something that is no number, `ValueError` outside the bounds, for NaN and for infinity.
    """
    signs = ((">", above), ("≥", least), ("<", below), ("≤", most))
    bounds = " and ".join(["one finite number", *(f"{sign} {bound:g}" for sign, bound in signs if bound is not None)])
    bounds = bounds.replace(" and ", " ", 1)
    if isinstance(value, bool | str | np.bool_ | None) or np.ndim(value) != 0:
        raise TypeError(_text(owner, name, value, bounds, advice))
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise TypeError(_text(owner, name, value, bounds, advice)) from None
    inside = math.isfinite(found)
    inside &= (least is None or found >= least) and (most is None or found <= most)
    inside &= (above is None or found > above) and (below is None or found < below)
    if not inside:
        raise ValueError(_text(owner, name, value, bounds, advice))
    return found


def probability(owner: str, name: str, value: Any, advice: str = "") -> float:
    """Return `value` as a float strictly between 0 and 1, such as a level of confidence."""
    return number(owner, name, value, above=0, below=1, advice=advice)


def boolean(owner: str, name: str, value: Any) -> bool:
    """Return `value` if it is True or False; raise `TypeError` otherwise."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(_text(owner, name, value, "True or False", ""))
    return bool(value)


def choice(owner: str, name: str, value: Any, allowed: Iterable[Any], advice: str = "") -> Any:
    """Return `value` if it is one of `allowed`; raise `ValueError`, with the nearest one, otherwise."""
    allowed = tuple(allowed)
    if any(type(value) is type(one) and value == one for one in allowed):
        return value
    close = difflib.get_close_matches(str(value), [str(one) for one in allowed], n=1)
    advice = advice or (f"did you mean {close[0]!r}?" if close else "")
    raise ValueError(_text(owner, name, value, f"one of {', '.join(map(repr, allowed))}", advice))


def instance(owner: str, name: str, value: Any, kinds: type | tuple[type, ...], advice: str = "") -> Any:
    """Return `value` if it is an object of one of these classes; raise `TypeError` for a class or for anything else."""
    if isinstance(value, kinds):
        return value
    wanted = " or ".join(one.__name__ for one in (kinds if isinstance(kinds, tuple) else (kinds,)))
    found = f"is the class {value.__name__}" if isinstance(value, type) else f"has type {type(value).__name__}"
    raise TypeError(f"{owner}: {name} {found}; it must be an object of {wanted}{f'; {advice}' if advice else ''}.")


@concretely
def real_array(owner: str, name: str, value: Any, shape: str = "", dims: int | tuple[int, ...] | None = None) -> Any:
    """Return `value` as a non-empty array of real floating-point numbers with `dims` axes; `shape` says which in words.

    Raises `TypeError` for another type, `ValueError` for another number of axes or no entries.
    """
    import jax.numpy as jnp

    array = jnp.asarray(value)
    wanted = f"real floating-point numbers{f' of shape {shape}' if shape else ''}"
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{owner}: {name} has type {array.dtype}; it must be {wanted}.")
    allowed = (dims,) if isinstance(dims, int) else dims
    if array.size == 0 or (allowed is not None and array.ndim not in allowed):
        raise ValueError(f"{owner}: {name} has shape {array.shape}; it must be {wanted}, not empty.")
    return array


def finite(owner: str, name: str, array: Any, advice: str = "clean it first") -> None:
    """Raise `ValueError` if a concrete array has NaN or infinite entries."""
    if array is None or traced(array):
        return
    known = np.asarray(array)
    if not np.isfinite(known).all():
        bad = int(np.sum(~np.isfinite(known)))
        raise ValueError(f"{owner}: {name} has {bad} NaN or infinite entries of {known.size}; {advice}.")


@concretely
def token_mask(owner: str, mask: Any, tokens: int) -> Any:
    """Return `mask` as `(tokens,)` booleans, True at real tokens, or None for None.

    Raises `TypeError` for another type, `ValueError` for another shape or a mask that hides every token.
    """
    if mask is None:
        return None
    import jax.numpy as jnp

    known = None if traced(mask) else np.asarray(mask)
    found = jnp.asarray(mask)
    wanted = f"it must be {tokens} booleans, one per token (True = real)"
    if found.dtype != bool:
        raise TypeError(f"{owner}: mask has type {found.dtype}; {wanted}.")
    if found.shape != (tokens,):
        raise ValueError(f"{owner}: mask has shape {found.shape}; {wanted}.")
    if known is not None and not known.any():
        raise ValueError(f"{owner}: mask hides every token; at least one must be real.")
    return found


def _text(owner: str, name: str, value: Any, wanted: str, advice: str) -> str:
    text = f"{owner}: {name}={value!r} must be {wanted}{f'; {advice}' if advice else ''}"
    return text if text.endswith("?") else f"{text}."
