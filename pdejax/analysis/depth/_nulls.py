"""Null models of depth: random weights whose layers move the state as far, and layers in another order."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._depth import DepthVarying
from pdejax._discretization import Discretization
from pdejax.analysis.depth._layers import Branch, batch_of, check_inputs, layer_field
from pdejax.analysis.jacobian._systems import draw_keys, draw_layer, drawn_weights
from pdejax.terms import FieldArgs


@checked
def branch_sizes(system: Any, u0: ArrayLike, *, mask: ArrayLike | None = None) -> Float[Array, "..."]:
    r"""Measure the size of every layer's branch, $\|G_l(u_l) - u_l\|/\|u_l\|$, `(layers, [b])`, Frobenius norms over real
    tokens: how far the layer moves the state, in units of the state.

    Systems, states and masks are those of [`run_layers`][pdejax.analysis.depth.run_layers], and so is what is raised.
    """
    batch = batch_of("branch_sizes", u0, mask)
    field = layer_field(system, length=batch.u.shape[1])
    check_inputs("branch_sizes", field, len(batch.u))
    moved, size = _walk(_branch(field), batch.u, batch.mask)
    return batch.given(jnp.sqrt(moved / size), 1)


@checked
def matched_null(
    system: Any, u0: ArrayLike, *, mask: ArrayLike | None = None, key: PRNGKeyArray | None = None
) -> Discretization:
    r"""Make the null model of depth: untrained, of matched branch size.

    Every weight matrix is drawn anew, a Gaussian one scaled to the mean square of the trained one, layer by layer: in every
    direction alike. Copies of one stored layer, those of a tied or a looped network, have one draw. Vectors (biases, scales)
    stay. Layer l is then $v + g_l\,(G'_l(v) - v)$ with the gain $g_l$ for which

    $$\frac{\|v_{l+1} - v_l\|}{\|v_l\|} = \frac{\|u_{l+1} - u_l\|}{\|u_l\|},$$

    norms taken over all real tokens of the batch `u0 ([b,] n, d)`, both runs from `u0`. So the null moves the state as far in
    every layer, without what was learned. It is one draw: a network differs from untrained ones if it lies outside many draws,
    with keys of their own, which share a compiled program.

    Returns the `layer_field` of the null: Euler with one step per layer runs it, `replace` and `refine` change its scheme.
    `key` defaults to `jax.random.key(0)`. Memory: one more copy of the weights. Raises as `run_layers`, and `TypeError` for a
    system without weight matrices, such as plain functions.
    """
    key = jax.random.key(0) if key is None else key
    batch = batch_of("matched_null", u0, mask)
    field = layer_field(system, length=batch.u.shape[1])
    check_inputs("matched_null", field, len(batch.u))
    ratios = branch_ratios(field, batch.u, batch.mask)
    null = drawn_weights(field, key=key)
    return eqx.tree_at(lambda d: _branch(d).gain, null, _gains(_branch(null), ratios, batch.u, batch.mask))


def branch_ratios(field: Discretization, u: Array, mask: Array) -> Float[Array, " layers"]:
    """The size of every layer's branch over a batch, in units of the state, which a null's layers are brought to."""
    moved, size = _walk(_branch(field), _real(u, mask), mask)
    return jnp.sqrt(jnp.sum(moved, axis=1) / jnp.sum(size, axis=1))


def _real(u: Array, mask: Array) -> Array:
    """Zeros at padding, whose values would count as a part of the state."""
    return jnp.where(mask[..., None], u, jnp.zeros((), u.dtype))


@eqx.filter_jit
def drawn_ends(
    field: Discretization, ratios: Float[Array, " layers"], u: Float[Array, "b n d"], mask: Bool[Array, "b n"], key: Any
) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"]]:
    """Last states of one `matched_null` of a `layer_field`, at its own step and at half of it.

    Each layer is drawn once, when both states come to it: three evaluations, and no copy of the weights.
    """
    leaves, structure = jax.tree.flatten(field.field)
    assert isinstance(field.field, DepthVarying)
    keys = draw_keys(field.field, key)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if eqx.is_array(leaf)}
    half, u = jnp.asarray(0.5, u.dtype), _real(u, mask)

    def layer(states, x):
        arrays, keys, ratio = x
        drawn = {i: draw_layer(k, arrays[i]) for i, k in keys.items()}
        own = [drawn.get(i, arrays.get(i, leaf)) for i, leaf in enumerate(leaves)]
        branch = jax.tree.unflatten(structure, own).stacked.function
        u, v = states
        change = _moves(branch, u, mask)
        gain = _gain(change, u, ratio)
        for _ in range(2):
            v = v + half * gain * _moves(branch, v, mask)
        return (u + gain * change, v), None

    return jax.lax.scan(layer, (u, u), (arrays, keys, ratios.astype(u.dtype)))[0]


@checked
def shuffle_layers(system: Any, *, key: PRNGKeyArray | None = None, length: int | None = None) -> Discretization:
    """Make a null model: the same layers in a random order that is not their own, as a
    [`layer_field`][pdejax.analysis.depth.layer_field]. What one layer does is kept, that it follows another is lost.

    `key` defaults to `jax.random.key(0)`; `length`: tokens, for a simulator with diffusion. Memory: one more copy of the
    weights. Raises as `layer_field`, and `ValueError` for fewer than two layers.
    """
    key = jax.random.key(0) if key is None else key
    field = layer_field(system, length=length)
    count = field.field.size
    if count < 2:
        raise ValueError(f"shuffle_layers: the system has {count} layer, which has no other order.")
    order = jax.random.permutation(key, count)
    order = jnp.where(jnp.all(order == jnp.arange(count)), jnp.roll(order, 1), order)
    return eqx.tree_at(
        lambda d: d.field.stacked,
        field,
        jax.tree.map(lambda x: x[order] if eqx.is_array(x) else x, field.field.stacked),
    )


def _branch(d: Any) -> Branch:
    return d.field.stacked.function


def _moves(branch: Branch, u: Array, mask: Array) -> Array:
    """What one layer adds to every sequence, zero at padding."""
    found = jax.vmap(lambda v, real: branch(branch.start, v, FieldArgs(real)))(u, mask)
    return jnp.where(mask[..., None], branch.span * found, jnp.zeros((), u.dtype))


def _gain(change: Array, u: Array, ratio: Array) -> Array:
    """What makes a move `ratio` times as long as the state, both over the batch."""
    size = jnp.sqrt(jnp.sum(_squares(change)))
    return ratio * jnp.sqrt(jnp.sum(_squares(u))) / jnp.where(size > 0, size, 1)


def _squares(x: Array) -> Array:
    return jnp.sum(x**2, axis=(1, 2))


@eqx.filter_jit
def _walk(
    branches: Branch, u: Float[Array, "b n d"], mask: Bool[Array, "b n"]
) -> tuple[Float[Array, "layers b"], Float[Array, "layers b"]]:
    """Squared lengths of every layer's move and of the state before it."""
    arrays, static = eqx.partition(branches, eqx.is_array)

    def layer(u, arrays):
        change = _moves(eqx.combine(arrays, static), u, mask)
        return u + change, (_squares(change), _squares(u))

    return jax.lax.scan(layer, u, arrays)[1]


@eqx.filter_jit
def _gains(
    branches: Branch, ratios: Float[Array, " layers"], u: Float[Array, "b n d"], mask: Bool[Array, "b n"]
) -> Float[Array, " layers"]:
    """The gain of every layer with which it moves the state by `ratios` of its size."""
    arrays, static = eqx.partition(branches, eqx.is_array)

    def layer(u, x):
        arrays, ratio = x
        change = _moves(eqx.combine(arrays, static), u, mask)
        gain = _gain(change, u, ratio)
        return u + gain * change, gain

    return jax.lax.scan(layer, u, (arrays, ratios.astype(u.dtype)))[1]
