"""Jacobian transports: one matrix per layer that carries a change of a token's state to the last layer, on average."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from pdejax._arguments import checked
from pdejax._check import integer, on_numbers, real_array, token_mask
from pdejax._step_maps import AbstractMaps, in_batches, without_padding
from pdejax.analysis.jacobian._systems import model_maps


@checked
@on_numbers
def jacobian_transports(
    system: Any, u0: ArrayLike, *, mask: ArrayLike | None = None, skip: int = 0, batch_size: int = 32
) -> Float[Array, "states d d"]:
    r"""Average the derivative of the last state by every earlier one over tokens and sequences:

    $$J_l = \Big\langle\sum_{j}\frac{\partial u_{L,j}}{\partial u_{l,i}}\Big\rangle_i,\qquad l = 0 \dots L,$$

    over real tokens i of all sequences, j all real tokens that i can reach; $J_L = 1$. $J_l\,u_l$ read by the network's head is
    the "Jacobian lens" of layer l. Source: the estimator that is documented at
    https://github.com/anthropics/jacobian-lens (summed over targets, averaged over sources and prompts).

    - `system`: a `Network`, a `Transformer`, a `Simulator` or a `Discretization` with a number of steps, each of which is a
      layer; `u0 (n, d)` or `(b, n, d)`, such as `net.embed(tokens)`; `mask (n,)` or `(b, n)`.
    - `skip`: tokens at the beginning that count neither as i nor as j; causal networks treat the first ones in ways of their
      own. `batch_size`: how many rows of the matrices are found at once.

    Entry (l, a, b) is the change of feature a by feature b, of the state before layer l (l = 0 the embedding). Cost: d reverse
    passes through all layers per sequence. **Not jit-compatible**. `pdejax.networks.save_transports` writes them.

    Raises `ValueError`/`TypeError` for what does not fit, and for sequences of which `skip` leaves nothing.
    """
    owner = "jacobian_transports"
    integer(owner, "skip", skip, 0)
    integer(owner, "batch_size", batch_size)
    u = real_array(owner, "u0", u0, "(n, d) or (b, n, d)")
    if u.ndim not in (2, 3) or 0 in u.shape:
        raise ValueError(f"{owner}: u0 has shape {u.shape}; it must be (n, d) or (b, n, d), with no axis of 0.")
    u = u if u.ndim == 3 else u[None]
    given = jnp.ones(u.shape[:2], bool) if mask is None else jnp.atleast_2d(jnp.asarray(mask))
    if given.shape[0] != u.shape[0]:
        raise ValueError(f"{owner}: mask has {given.shape[0]} rows for {u.shape[0]} sequences.")
    total, count = jnp.zeros((), u.dtype), 0
    for one, real in zip(u, given, strict=True):
        real = token_mask(owner, real, u.shape[1])
        seen = real & (jnp.arange(u.shape[1]) >= skip)
        if not bool(jnp.any(seen)):
            raise ValueError(f"{owner}: skip={skip} leaves no token of a sequence of {int(jnp.sum(real))}.")
        maps, state, real = model_maps(owner, system, one, real)
        total, count = total + _summed(maps, state, real, seen, batch_size), count + int(jnp.sum(seen))
    return total / count


@eqx.filter_jit
def _summed(maps: AbstractMaps, u: Array, mask: Any, seen: Bool[Array, " n"], batch: int) -> Float[Array, "states d d"]:
    """Sums over the tokens i of one sequence."""
    maps, d = maps.ready(u), u.shape[1]
    places = jnp.arange(maps.count)
    weight = seen.astype(u.dtype)

    def layer(k, u):
        return without_padding(maps(k, u), mask)

    _, states = jax.lax.scan(lambda v, k: (layer(k, v), v), u, places)

    def row(a):
        """Row a of every matrix: the gradient of feature a, summed over tokens j, by every state."""

        def back(g, x):
            k, state = x
            [g] = jax.vjp(lambda v: layer(k, v), state)[1](g)
            return g, weight @ g

        last = jnp.zeros_like(u).at[:, a].set(weight)
        return jax.lax.scan(back, last, (places, states), reverse=True)[1]

    rows = in_batches(row, jnp.arange(d), batch)
    here = jnp.sum(weight) * jnp.eye(d, dtype=u.dtype)
    return jnp.concatenate([jnp.moveaxis(rows, 0, 1), here[None]])
