"""What a model computes on the way to its logits: hidden states and attention maps, layers first, of one sequence or a batch."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from pdejax._arguments import checked
from pdejax._check import traced
from pdejax.models._ends import check_range


class Observed(NamedTuple):
    """What a model computes: K layers (K + 1 states, the embedding first), H heads, n tokens, d features.

    `logits ([batch], …)`, `states (K + 1, [batch], n, d)` and `maps (K, [batch], H, n, n)`; None where they were not asked for.
    """

    logits: Any
    states: Any
    maps: Any

    def __repr__(self) -> str:
        parts = (
            f"{name} {'not asked for' if x is None else x.shape}" for name, x in zip(self._fields, self, strict=True)
        )
        return f"Observed({', '.join(parts)})"


@checked
def observe(
    model: Any,
    tokens: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    logits: bool = True,
    states: bool = True,
    maps: bool = True,
) -> Observed:
    """Compute the logits, hidden states and attention maps of a model on one sequence or a batch, in one pass.

    - `model`: a `Transformer`, a simulator, or anything with `model(tokens, mask)`, `hidden_states` and `attention_maps` of one
      sequence.
    - `tokens`: ids `(n,)` or `(batch, n)`, or values `(n, f)` or `(batch, n, f)`. `mask` `(n,)` or `(batch, n)`, True at real
      tokens.
    - `logits`, `states`, `maps`: which are wanted.

    Returns `logits ([batch], …)`, `states (layers + 1, [batch], n, d)`, 0 at padding, and `maps (layers, [batch], H, n, n)`.
    Compiled once for each architecture and shape.

    Raises `ValueError`/`TypeError` for tokens or a mask that do not fit.
    """
    if isinstance(model, type) or not callable(model):
        found = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(f"observe: model is {found}; give a Transformer, a simulator or a Network.")
    x = jnp.asarray(tokens)
    sizes = getattr(model, "architecture", None)
    batched = _is_batch(x, 1 if sizes is None else sizes.inputs)
    if sizes is not None and jnp.issubdtype(x.dtype, jnp.integer) and x.size:
        check_range("observe", sizes, x)
    real = None if mask is None else jnp.asarray(mask)
    if real is not None and batched:
        _check_masks(real, x)
    return _observed(model, x, real, (logits, states, maps), batched)


# Compiled here, so that models of one architecture share a program.
@eqx.filter_jit
def _observed(model: Any, x: Array, mask: Array | None, wanted: tuple[bool, bool, bool], batched: bool) -> Observed:
    def one(x: Array, mask: Array | None) -> tuple[Array | None, ...]:
        if sum(wanted) > 1 and hasattr(model, "observe"):
            found = tuple(model.observe(x, mask))
        else:
            calls = (model, getattr(model, "hidden_states", None), getattr(model, "attention_maps", None))
            found = tuple(call(x, mask) if want else None for call, want in zip(calls, wanted, strict=True))  # pyright: ignore[reportOptionalCall]
        logits, states, maps = (part if want else None for part, want in zip(found, wanted, strict=True))
        if states is not None and mask is not None:
            states = jnp.where(mask[None, :, None], states, 0)
        return logits, states, maps

    if not batched:
        return Observed(*one(x, mask))
    return Observed(*jax.vmap(one, in_axes=(0, None if mask is None else 0), out_axes=(0, 1, 1))(x, mask))


def _is_batch(x: Array, inputs: int | None) -> bool:
    """Ids have one axis, values two; values of one feature may come without an axis for it."""
    if jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == bool:
        axes = 1
    else:
        axes = 1 if inputs == 1 and (x.ndim == 1 or (x.ndim == 2 and x.shape[1] != 1)) else 2
    if x.ndim not in (axes, axes + 1):
        raise ValueError(
            f"observe: tokens has shape {x.shape}; ids are (n,) or (batch, n), values (n, features) or (batch, n, features)."
        )
    return x.ndim == axes + 1


def _check_masks(mask: Array, x: Array) -> None:
    if mask.dtype != bool:
        raise TypeError(f"observe: mask has type {mask.dtype}; it must be boolean, True at real tokens.")
    if mask.shape != x.shape[:2]:
        raise ValueError(f"observe: mask has shape {mask.shape}; it must be {x.shape[:2]}, one entry per token.")
    if not traced(mask) and not np.asarray(mask).any(axis=1).all():
        empty = int(np.argmin(np.asarray(mask).any(axis=1)))
        raise ValueError(f"observe: mask hides every token of sequence {empty}; at least one must be real.")
