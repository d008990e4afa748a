"""What says that there is no value: NaN, with a derivative that says so too."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree


def marked(lost: Bool[Array, "..."], values: PyTree[Array]) -> PyTree[Array]:
    """`values`, each with the axes of `lost` in front, without those that are lost: NaN, or for types that have none the
    smallest integer, or False.

    Derivatives of what is lost are not finite, unless what multiplies them is 0: a loss that leaves a lane out stays usable.
    """
    return jax.tree.map(lambda x: _marked(jnp.broadcast_to(_wide(lost, x), x.shape), x), values)


def _wide(lost: Array, x: Array) -> Array:
    return lost.reshape(lost.shape + (1,) * (x.ndim - lost.ndim))


def _marked(lost: Array, x: Array) -> Array:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return _nan_where(lost, x)
    none = False if x.dtype == bool else jnp.iinfo(x.dtype).min
    return jnp.where(lost, jnp.asarray(none, x.dtype), x)


@jax.custom_jvp
def _nan_where(lost: Array, x: Array) -> Array:
    return jnp.where(lost, jnp.asarray(jnp.nan, x.dtype), x)


@_nan_where.defjvp
def _nan_where_jvp(primals, tangents):
    lost, x = primals
    # Twice the largest number makes ∞ of everything but 0. A factor of NaN would make NaN of 0 too.
    factor = jnp.where(lost, jnp.finfo(x.dtype).max, 1.0).astype(x.dtype)
    return _nan_where(lost, x), tangents[1] * factor * factor
