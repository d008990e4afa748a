"""What an analysis finds: a value, its interval, and what null models give in its place."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from pdejax._arguments import checked
from pdejax._check import traced

# Shown of an array: this many entries at its start and at its end.
_ENDS = 4

# A number or an array, of JAX or of NumPy.
Values = Any


class Figure(eqx.Module):
    """Hold a figure with its interval and, by name, what null models give in its place: all arrays of one shape.

    - `value`; `low`, `high`: ends of its interval of confidence `level`, two-sided; NaN where there is none (one sequence).
      `ends`: both, or None without an interval. Of an interval that is given one end, the other is NaN.
    - `nulls`: figures of null models by name; an array given for one becomes a figure without interval.
    - `differences`: value − null by the null's name, where both were resampled as pairs; see `minus`.

    Arithmetic, comparison, `float(figure)`, `jnp.asarray(figure)` act on the value: `figure > 0.9` is `figure.value > 0.9`.
    `figure[i]` takes the entry i of the value, of its ends and of its nulls.

    Numbers and arrays of NumPy stay NumPy's, in double precision; scalars are repeated to the shape of the value. Raises
    `ValueError` for ends or nulls of another shape.
    """

    value: Shaped[Array | np.ndarray, "..."]
    # None without an interval: NaN is made only where an end is read, so that nothing inside a compiled program sets off
    # `jax_debug_nans`.
    ends: tuple[Array | np.ndarray, Array | np.ndarray] | None
    nulls: "dict[str, Figure]"
    differences: "dict[str, Figure]"
    level: float = eqx.field(static=True)

    @checked
    def __init__(
        self,
        value: Values,
        low: Values = None,
        high: Values = None,
        nulls: "Mapping[str, Figure | Values] | None" = None,
        level: float = 0.95,
        *,
        differences: "Mapping[str, Figure] | None" = None,
    ):
        self.value = _array(value)
        shape = self.value.shape
        given = {"low": low, "high": high}
        self.ends = None
        if low is not None or high is not None:
            one, other = (none_of(self.value) if x is None else _shaped(name, x, shape) for name, x in given.items())
            self.ends = one, other
        self.nulls = {
            name: _shaped(f"nulls[{name!r}]", null if isinstance(null, Figure) else Figure(null, level=level), shape)
            for name, null in (nulls or {}).items()
        }
        self.differences = dict(differences or {})
        self.level = level

    @property
    def low(self) -> Any:
        """Lower end of the interval, NaN where there is none."""
        return none_of(self.value) if self.ends is None else self.ends[0]

    @property
    def high(self) -> Any:
        """Upper end of the interval, NaN where there is none."""
        return none_of(self.value) if self.ends is None else self.ends[1]

    def beside(
        self, nulls: "Mapping[str, Figure | Values]", differences: "Mapping[str, Figure] | None" = None
    ) -> "Figure":
        """Return the value with its interval, or without one, beside these nulls and the differences from them."""
        low, high = (None, None) if self.ends is None else self.ends
        return Figure(self.value, low, high, nulls, self.level, differences=differences)

    def minus(self, null: str) -> "Figure":
        """Take the null of this name off the value: with an interval where both were resampled as pairs (the same sequences
        in both, which makes it narrower than their own suggest), else without. An interval that holds 0 is no evidence.

        Raises `KeyError` for a null that there is not."""
        if null in self.differences:
            return self.differences[null]
        if null not in self.nulls:
            raise KeyError(f"minus: null={null!r} is unknown; choose one of {sorted(self.nulls)}.")
        return Figure(self.value - self.nulls[null].value, level=self.level)

    def __getitem__(self, index) -> "Figure":
        return jax.tree.map(lambda x: x[index], self)

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def size(self) -> int:
        return self.value.size

    @property
    def dtype(self):
        return self.value.dtype

    # NumPy's arrays leave arithmetic with a figure to the figure.
    __array_priority__ = 1000.0

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        found = np.asarray(self.value, dtype=dtype)
        return found.copy() if copy else found

    def __jax_array__(self) -> Array:
        return jnp.asarray(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __neg__(self):
        return -self.value

    def __abs__(self):
        return abs(self.value)

    def __add__(self, other):
        return self.value + _value(other)

    def __radd__(self, other):
        return _value(other) + self.value

    def __sub__(self, other):
        return self.value - _value(other)

    def __rsub__(self, other):
        return _value(other) - self.value

    def __mul__(self, other):
        return self.value * _value(other)

    def __rmul__(self, other):
        return _value(other) * self.value

    def __truediv__(self, other):
        return self.value / _value(other)

    def __rtruediv__(self, other):
        return _value(other) / self.value

    def __pow__(self, other):
        return self.value ** _value(other)

    def __rpow__(self, other):
        return _value(other) ** self.value

    def __eq__(self, other):
        return self.value == _value(other)

    def __ne__(self, other):
        return self.value != _value(other)

    def __lt__(self, other):
        return self.value < _value(other)

    def __le__(self, other):
        return self.value <= _value(other)

    def __gt__(self, other):
        return self.value > _value(other)

    def __ge__(self, other):
        return self.value >= _value(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType] -- as of an array, since == compares entries

    def __repr__(self) -> str:
        if not _known(self.value):
            names = f", nulls {', '.join(self.nulls)}" if self.nulls else ""
            return f"Figure({jax.typeof(self.value) if isinstance(self.value, Array) else '?'}{names})"
        if self.value.ndim == 0:
            return f"Figure({self.summary()})"
        lines = [f"Figure {self.shape}:"]
        places = [i for i in np.ndindex(self.shape)]
        if len(places) > 2 * _ENDS + 1:
            places = [*places[:_ENDS], None, *places[-_ENDS:]]
        for place in places:
            if place is None:
                lines.append("  …")
            else:
                lines.append(f"  {', '.join(str(k) for k in place)}: {self[place].summary()}")
        return "\n".join(lines)

    def summary(self) -> str:
        """Write the figure in one line, `0.93 [0.91, 0.95], tokens 0.12 [0.1, 0.14]`; of an array the first and the last."""
        if not _known(self.value):
            return repr(self)
        if self.value.size == 0:
            return f"nothing, of shape {self.shape}"
        if self.value.ndim:
            first, last = self[(0,) * self.ndim], self[(-1,) * self.ndim]
            return first.summary() if self.size == 1 else f"{first._short()} … {last.summary()} {self.shape}"
        nulls = (f"{name} {null._short()}" for name, null in self.nulls.items())
        return ", ".join([self._short(), *nulls])

    def _short(self) -> str:
        ends = [np.asarray(x) for x in (self.low, self.high)]
        if not np.all(np.isfinite(np.asarray(ends, float))):
            return number(self.value)
        return f"{number(self.value)} [{number(self.low)}, {number(self.high)}]"


class AbstractRecord(eqx.Module):
    """What an analysis returns, as an equinox module whose `repr` is its numbers: a line for each field."""

    def __repr__(self) -> str:
        return "\n".join([f"{type(self).__name__}", *_lines(vars(self), "  ")])


def number(x: Any) -> str:
    """Write a number with three digits."""
    x = np.asarray(x).item()
    return f"{x + 0.0:.3g}" if isinstance(x, float) else str(x)


def _lines(fields: Mapping[Any, Any], indent: str) -> list[str]:
    found = []
    for name, value in fields.items():
        if value is None:
            continue
        if isinstance(value, AbstractRecord):
            found += [f"{indent}{name}", *_lines(vars(value), indent + "  ")]
        elif isinstance(value, dict):
            found += [f"{indent}{name}", *_lines(value, indent + "  ")]
        elif isinstance(value, Figure):
            found.append(f"{indent}{name}: {value.summary()}")
        elif hasattr(value, "dtype") and hasattr(value, "shape"):
            known = _known(value) and not jnp.issubdtype(value.dtype, jax.dtypes.extended)
            found.append(f"{indent}{name}: {_entries(np.asarray(value)) if known else f'{value.dtype} {value.shape}'}")
        else:
            found.append(f"{indent}{name}: {value!r}"[:120])
    return found


def _entries(x: np.ndarray) -> str:
    if x.ndim == 0:
        return number(x)
    if x.ndim > 1 or x.size > 2 * _ENDS:
        return f"{x.dtype} {x.shape}"
    return ", ".join(number(entry) for entry in x)


def _value(x):
    return x.value if isinstance(x, Figure) else x


def _array(x) -> Any:
    x = _value(x)
    return x if isinstance(x, jax.Array | np.ndarray) else np.asarray(x)


def none_of(like) -> Any:
    """NaN in the shape of a value, which says that there is none: nothing to stop a user who hunts his own."""
    if not isinstance(like, jax.Array):
        return np.full(like.shape, np.nan)
    dtype = like.dtype if jnp.issubdtype(like.dtype, jnp.floating) else jnp.result_type(float)
    with jax.debug_nans(False):
        return jnp.full(like.shape, np.nan, dtype)


def _shaped(name: str, x, shape: tuple[int, ...]) -> Any:
    """The end as an array of this shape, the null as a figure of it."""
    found = x if isinstance(x, Figure) else _array(x)
    if found.shape == shape:
        return found
    if found.shape == ():
        wide = jnp.broadcast_to if isinstance(_value(found), jax.Array) else np.broadcast_to
        return jax.tree.map(lambda y: wide(y, shape), found)
    raise ValueError(f"Figure: {name} has shape {found.shape}; it must be that of the value, {shape}, or a scalar.")


def _known(x) -> bool:
    # An entry of an array of NumPy is a scalar of its own type.
    return isinstance(x, jax.Array | np.ndarray | np.generic) and not traced(x)
