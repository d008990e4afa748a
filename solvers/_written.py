"""How a module prints itself: one line of words and numbers, never the tree that it holds."""

import dataclasses
import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

# Characters of a line, and of what is held inside where the line has room for it: else the name of its class is there.
_LINE, _INSIDE = 130, 60


def one_line(self: Any, leave_out: tuple[str, ...] = ()) -> str:
    """Write `Name(array (4, 2), number=0.1, inside=Grid(n=5))`: arrays by their shape, what is inside in one line or by the name
    of its class. Fields that are None or False, or as the class makes them when nothing is said, are left out, and those of
    `leave_out`.
    """
    defaults = inspect.signature(type(self).__init__).parameters
    fields = []
    for name in (field.name for field in dataclasses.fields(self)):
        value, plain = getattr(self, name, None), (int, float, str)
        if value is None or value is False or name in leave_out or name.startswith("_"):
            continue
        # `type`: an axis or a switch of a transformation may be in the place of any field.
        usual = defaults[name].default if name in defaults else None
        if not (isinstance(value, plain) and type(value) is type(usual) and value == usual):
            fields.append((name, value))
    kind = type(self).__name__.lstrip("_")
    for inside in (_INSIDE, 0):
        text = f"{kind}({', '.join(name + _written(value, inside) for name, value in fields)})"
        if len(text) <= _LINE:
            break
    return text


def _written(value: Any, inside: int) -> str:
    """What follows the name of a field: a shape, or `=` and a number or words."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        known = isinstance(value, jax.Array | np.ndarray | np.generic) and not isinstance(value, jax.core.Tracer)
        one = known and value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.number)
        return f"={value.item():.4g}" if one else f" {tuple(value.shape)}"
    if isinstance(value, float):
        return f"={value:.4g}"
    if isinstance(value, bool | int | str):
        return f"={value!r}"
    if inspect.isroutine(value) or isinstance(value, type):
        return f"={value.__name__}"
    if isinstance(value, dict | list | tuple) and any(map(eqx.is_array, jax.tree.leaves(value))):
        return f" of {sum(x.size for x in jax.tree.leaves(value) if eqx.is_array(x)):,} numbers"
    text = repr(value)
    return (
        f"={text}" if len(text) <= inside and "\n" not in text and " at 0x" not in text else f"={type(value).__name__}"
    )
