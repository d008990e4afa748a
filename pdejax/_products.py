"""Matrix products whose derivatives are laid out for a CPU.

XLA multiplies fastest on a CPU where the left factor lies in memory by rows and the right one too; what reverse mode makes of
a product has one factor the other way round, and takes up to three times as long. A product of this module is a primitive of
its own, so that its transposes can say which factor is copied in the other order, the smaller one. All else is as with
`jax.lax.dot_general`: values, both modes of differentiation, their compositions, `jax.vmap`, `jax.shard_map`, export; on a mesh
of explicit axes it is JAX's product itself.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType
from jaxtyping import Array

from pdejax._axes import same_axes

# A copy of a factor in the other order pays where it has so many times fewer columns than the cotangent; one of the cotangent,
# which spares the product a larger factor by columns, as soon as it is smaller (measured on 1000 rows of 32 to 1000 columns).
_MUCH_SMALLER = 8


def product(x: Array, w: Array, over: int = 1, kind: Any = None) -> Array:
    """`jnp.tensordot(x, w, over)`: the last `over` axes of x with the first of w, both of one type; accumulated in `kind`."""
    # Of arrays with a sharding of their own, on a mesh of explicit axes, JAX's rules say how cotangents are sharded.
    explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    if explicit or platform_now() != "cpu" or x.dtype not in (jnp.float32, jnp.float64):
        return jnp.tensordot(x, w, over, preferred_element_type=kind)
    x, w = same_axes(x, w), same_axes(w, x)
    return _product.bind(x, w, batch=0, free=x.ndim - over, shared=over)


def dot_general(x: Array, w: Array, dimension_numbers: Any, precision: Any = None, **options: Any) -> Array:
    """`jax.lax.dot_general`, for Flax's layers: a `product` where they multiply by a kernel."""
    (over_x, over_w), common = dimension_numbers
    count = len(over_x)
    plain = tuple(over_x) == tuple(range(x.ndim - count, x.ndim)) and tuple(over_w) == tuple(range(count))
    kind = options.get("preferred_element_type")
    others = [name for name, value in options.items() if value is not None and name != "preferred_element_type"]
    if precision is None and plain and not others and not any(map(len, common)) and x.dtype == w.dtype:
        return product(x, w, count, kind)
    return jax.lax.dot_general(x, w, dimension_numbers, precision=precision, **options)


def keep_products(primitive: Any, /, *_: Any, **__: Any) -> bool:
    """`jax.checkpoint_policies.dots_saveable`, which knows no primitive but JAX's own."""
    return primitive in (_product, jax.lax.dot_general_p)


def platform_now() -> str:
    """The platform that a computation traced now is meant for: `jax.default_device` first, then the backend.

    Read when tracing rather than through `jax.lax.platform_dependent`, which traces every branch on every
    platform: cuDNN's cannot be traced where cuDNN is missing, and would deny the others forward mode.
    """
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]  (made at run time)
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def _dot(x: Array, w: Array, *, batch: int, free: int, shared: int) -> Array:
    common = tuple(range(batch))
    contracted = tuple(range(batch + free, batch + free + shared)), tuple(range(batch, batch + shared))
    return jax.lax.dot_general(x, w, (contracted, (common, common)))


def _abstract(x: Any, w: Any, **sizes: int) -> tuple[Any, Any]:
    closed = jax.make_jaxpr(lambda a, b: _dot(a, b, **sizes))(x, w)
    return closed.out_avals[0], closed.effects


def _swapped(x: Array, batch: int, first: int) -> Array:
    """`x` with its `first` axes after the common ones moved to the end, as a copy of its own in memory."""
    order = (*range(batch), *range(batch + first, x.ndim), *range(batch, batch + first))
    # Without the barrier XLA folds the transpose into the product that follows.
    return jax.lax.optimization_barrier(jnp.transpose(x, order))


def _transpose_left(ct: Any, x: Any, w: Array, *, batch: int, free: int, shared: int) -> Any:
    del x
    if _MUCH_SMALLER * math.prod(w.shape[batch : batch + shared]) <= math.prod(w.shape[batch + shared :]):
        other = w.ndim - batch - shared
        return _product.bind(ct, _swapped(w, batch, shared), batch=batch, free=free, shared=other)
    common = tuple(range(batch))
    columns = tuple(range(batch + free, ct.ndim)), tuple(range(batch + shared, w.ndim))
    return jax.lax.dot_general(ct, w, (columns, (common, common)))


def _transpose_right(ct: Any, x: Array, w: Any, *, batch: int, free: int, shared: int) -> Any:
    del w
    other = ct.ndim - batch - free
    inward, outward = math.prod(x.shape[batch + free :]), math.prod(ct.shape[batch + free :])
    if _MUCH_SMALLER * inward <= outward:
        return _product.bind(_swapped(x, batch, free), ct, batch=batch, free=shared, shared=free)
    if outward < inward:
        out = _product.bind(_swapped(ct, batch, free), x, batch=batch, free=other, shared=free)
        return jnp.transpose(out, (*range(batch), *range(batch + other, out.ndim), *range(batch, batch + other)))
    common, rows = tuple(range(batch)), tuple(range(batch, batch + free))
    return jax.lax.dot_general(x, ct, ((rows, rows), (common, common)))


def _batched(operands: Any, axes: Any, *, batch: int, free: int, shared: int) -> tuple[Array, int]:
    (x, w), (at_x, at_w) = operands, axes
    if at_x is None:
        w = jnp.moveaxis(w, at_w, batch + shared)
        return _product.bind(x, w, batch=batch, free=free, shared=shared), batch + free
    if at_w is None:
        return _product.bind(jnp.moveaxis(x, at_x, batch), w, batch=batch, free=free + 1, shared=shared), batch
    x, w = jnp.moveaxis(x, at_x, 0), jnp.moveaxis(w, at_w, 0)
    return _product.bind(x, w, batch=batch + 1, free=free, shared=shared), 0


_product = Primitive("pdejax_product")
_product.def_impl(jax.jit(_dot, static_argnames=("batch", "free", "shared")))
_product.def_effectful_abstract_eval(_abstract)
ad.defbilinear(_product, _transpose_left, _transpose_right)
batching.primitive_batchers[_product] = _batched
mlir.register_lowering(_product, mlir.lower_fun(_dot, multiple_results=False))
