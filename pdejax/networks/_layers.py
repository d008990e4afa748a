"""`network`: any list of JAX layer functions as a network, its layers taken as Euler steps of a field."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from pdejax._arguments import checked
from pdejax._depth import DepthVarying
from pdejax._discretization import Discretization
from pdejax._equation import FunctionField, stack
from pdejax._nnx import SplitModule, is_nnx, split
from pdejax.networks._network import Network
from pdejax.solvers._written import one_line

_OWNER = "network"


@checked
def network(
    layers: Sequence[Callable[..., Array]] | Callable[..., Array],
    *,
    embed: Callable[..., Any] | None = None,
    head: Callable[..., Any] | None = None,
) -> Network:
    r"""Make a network of layer functions $G_l$ of your own: flax, equinox or plain JAX.

    Each layer is one explicit Euler step, h = 1, of the field $f(t, u) = G_l(u) - u$ on $l \le t < l + 1$, so that
    `net.hidden_states` are $u_{l+1} = G_l(u_l)$ to rounding, and everything that takes a `Discretization` works on
    `net.discretization`: refinement, orders, stable steps, Jacobians, Lyapunov exponents.

    - `layers`: a list of functions `layer(u, args) -> u` or `layer(u) -> u` on `(n, d)`, with `args.mask` the padding mask or
      None; equinox modules and `flax.nnx` modules are such functions, of a linen module `functools.partial(block.apply, params)`.
      Modules of one structure are stacked and compiled once; functions that differ are compiled one by one. Or one equinox or
      nnx module whose arrays have a leading axis of layers, as `vmap` makes it.
    - `embed(tokens) -> (n, d)`; without it tokens are the field itself. `head(u, mask)`; without it the output is the last
      field.

    Weights in modules can be differentiated; what a plain function closes over is constant.

    Raises `ValueError` for an empty list, `TypeError` for a layer that is no function.
    """
    if isinstance(layers, Sequence):
        if not layers:
            raise ValueError(f"{_OWNER}: layers is empty; give at least one layer function.")
        for index, layer in enumerate(layers):
            if isinstance(layer, type) or not callable(layer):
                raise TypeError(
                    f"{_OWNER}: layers[{index}] is {layer!r}, not a function of the state; call a class to make one."
                )
        field, count = _of_list([_as_module(layer) for layer in layers]), len(layers)
    elif callable(layers) and not isinstance(layers, type):
        field, count = _of_stack(_as_module(layers))
    else:
        raise TypeError(
            f"{_OWNER}: layers is a {type(layers).__name__}; give a list of functions, or one stacked module."
        )
    d = Discretization(field, "euler", t1=float(count), steps=count)
    return Network(embed or _as_field, d, head or _last)


class _Step(eqx.Module):
    """`G(u) − u` of one layer."""

    layer: Any

    __repr__ = one_line

    def __call__(self, t: Any, u: Array, args: Any) -> Array:
        del t
        out = self.layer(u, args) if _takes_args(self.layer) else self.layer(u)
        found = getattr(out, "shape", type(out).__name__)
        if found != u.shape:
            raise ValueError(f"{_OWNER}: a layer gave {found} for a state of shape {u.shape}; it must keep the shape.")
        return out - u

    @property
    def __name__(self) -> str:
        name = getattr(self.layer, "__name__", None)  # between transformations it may be anything
        return name if isinstance(name, str) else type(self.layer).__name__


class _OneOf(eqx.Module):
    """Functions of different make, of which `index` chooses one."""

    index: Array
    functions: tuple[Callable[[Array, Any], Array], ...] = eqx.field(static=True)
    __name__: str = eqx.field(static=True)

    __repr__ = one_line

    def __call__(self, u: Array, args: Any) -> Array:
        return jax.lax.switch(self.index, [functools.partial(_swapped, f, args) for f in self.functions], u)


def _swapped(function: Callable[[Array, Any], Array], args: Any, u: Array) -> Array:
    return function(u, args)


def _closed(layer: Any) -> Callable[[Array, Any], Array]:
    """A layer as a plain function of state and arguments, what it holds closed over."""

    def call(u: Array, args: Any) -> Array:
        return layer(u, args) if _takes_args(layer) else layer(u)

    return call


def _as_module(layer: Any) -> Any:
    return split(layer, 2 if _takes_args(layer) else 1) if is_nnx(layer) else layer


def _of_list(layers: list[Any]) -> DepthVarying:
    count = float(len(layers))
    if all(isinstance(layer, eqx.Module) for layer in layers):
        try:
            return DepthVarying(FunctionField(_Step(stack(layers))), count)
        except ValueError:  # not of one structure, or without arrays
            pass
    names = {_Step(layer).__name__ for layer in layers}
    name = names.pop() if len(names) == 1 else "different functions"
    one = _OneOf(jnp.arange(len(layers)), tuple(_closed(layer) for layer in layers), name)
    return DepthVarying(FunctionField(_Step(one)), count)


def _of_stack(stacked: Any) -> tuple[DepthVarying, int]:
    if not isinstance(stacked, eqx.Module):
        raise TypeError(
            f"{_OWNER}: layers is one {type(stacked).__name__}; a stack is an equinox or nnx module whose arrays have a leading "
            "axis of layers. Of plain functions give a list."
        )
    try:
        field = DepthVarying(FunctionField(_Step(stacked)), 1.0)
    except ValueError as error:
        raise ValueError(
            f"{_OWNER}: the arrays of a stacked module must share a leading axis of layers: {error}"
        ) from None
    return DepthVarying(field.stacked, float(field.size)), field.size


def _takes_args(layer: Any) -> bool:
    """Whether a layer is `layer(u, args)`: a parameter called args, or a second one without a default."""
    if isinstance(layer, SplitModule | _OneOf):
        return True
    try:
        given = list(inspect.signature(layer).parameters.values())
    except (TypeError, ValueError):
        return False
    places = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(places) > 1 and (places[1].name == "args" or places[1].default is places[1].empty)


def _as_field(tokens: Any) -> Array:
    return jnp.asarray(tokens)


def _last(u: Array, mask: Any) -> Array:
    del mask
    return u
