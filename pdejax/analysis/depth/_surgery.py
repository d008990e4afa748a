"""Layer surgery: what a network does without a layer, with two exchanged, with one applied twice; and how well it is foreseen."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from pdejax._arguments import checked
from pdejax._figure import AbstractRecord
from pdejax.analysis.depth._layers import Batch, Layers, batch_of, layers_as_maps, run_one, states_of_run

OPERATIONS = ("skip", "swap", "repeat")
_TOGETHER = 4  # sequences whose logits are there at once


class LayerSurgery(AbstractRecord):
    r"""What surgery at each layer does to the last state and to the loss, by sequence. NaN where there is no such surgery.

    - `moves (3, layers, [b])`: $\|\tilde u_L - u_L\|/\|u_L\|$ after layer l is skipped, exchanged with the next, or repeated, in
      this order (`OPERATIONS`).
    - `losses (3, layers, [b])`: change of the loss, None without one. `loss ([b],)`: that of the network.
    - `cosines (layers, [b])`: 1 − cos(u_l, u_{l+1}), the cheapest score of a layer, from one run of the network.
    - `estimates (3, layers, [b])`, `loss_estimates`: the same changes to first order, from the derivative of the layers behind
      at the network's own state: one forward-mode product each, and one gradient of the loss. None for swaps (NaN).
    """

    moves: Float[Array, "..."]
    losses: Float[Array, "..."] | None
    loss: Float[Array, "..."] | None
    cosines: Float[Array, "..."]
    estimates: Float[Array, "..."]
    loss_estimates: Float[Array, "..."] | None


@checked
def layer_surgery(
    system: Any,
    u0: ArrayLike,
    *,
    loss: Callable[..., Array] | None = None,
    labels: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    report: Callable[[str], None] | None = None,
) -> LayerSurgery:
    r"""Skip, exchange and repeat every layer of a network, and foresee the outcome by cheap scores.

    With layer l skipped the layers behind begin at $u_l$ in the place of $u_{l+1}$; to first order the last state moves by
    $D\Phi_{l+1 \dots L}(u_{l+1})\,(u_l - u_{l+1})$. Repeated, they begin at $G_l(u_{l+1})$.

    - `loss(u, mask, label) -> scalar` of the last state `(n, d)` of one sequence, with `labels (b, …)`; an equinox module, or a
      function that is kept: each new function compiles anew. Without it only states are looked at.
    - Systems, states and masks are those of [`run_layers`][pdejax.analysis.depth.run_layers]. `report(text)` is told of
      progress.

    Cost: about 1.5 L runs of the network and L forward-mode products of the layers behind. Raises as `run_layers`, and
    `ValueError` for a loss without labels or labels that are not one per sequence.
    """
    owner = "layer_surgery"
    batch = batch_of(owner, u0, mask)
    layers = layers_as_maps(owner, system, batch.u[0], batch.mask[0], len(batch.u))
    answers = _labels(owner, loss, labels, batch)
    count = layers.count
    states = states_of_run(layers, batch, *_schedule(layers, 0))[: count + 1]
    end = states[-1]
    value = None if loss is None else _losses(loss, end, batch.mask, answers)
    slopes = None if loss is None else _slopes(loss, end, batch.mask, answers)
    shape = (len(OPERATIONS), count, batch.u.shape[0])
    moves, losses, estimates, loss_estimates = (np.full(shape, np.nan) for _ in range(4))
    for index in range(count):
        if report is not None:
            report(f"surgery at layer {index + 1} of {count}")
        begin = Batch(states[index], batch.mask, True)
        for place, operation in enumerate(OPERATIONS):
            if operation == "swap" and index == count - 1:
                continue
            changed = states_of_run(layers, begin, *_schedule(layers, index, operation))[-1]
            moves[place, index] = relative_move(changed, end, batch.mask)
            if value is not None:
                losses[place, index] = _losses(loss, changed, batch.mask, answers) - value
        again = states_of_run(layers, Batch(states[index + 1], batch.mask, True), *_schedule(layers, index, "again"))[
            -1
        ]
        others = jnp.stack([states[index], again])
        changes = _first_order(layers, states[index + 1], others, batch.mask, *_behind(layers, index))
        for place, change in zip((0, 2), changes, strict=True):
            estimates[place, index] = _lengths(change, batch.mask) / _lengths(end, batch.mask)
            if slopes is not None:
                loss_estimates[place, index] = jnp.sum(slopes * change, axis=(-2, -1))
    first = 1 - _cosines(states[:-1], states[1:], batch.mask)
    given = (jnp.asarray(x) for x in (moves, losses, estimates, loss_estimates))
    moved, lost, near, sloped = (batch.given(x, 2) for x in given)
    headed = loss is not None
    return LayerSurgery(
        moved,
        lost if headed else None,
        None if value is None else batch.given(value, 0),
        batch.given(first, 1),
        near,
        sloped if headed else None,
    )


@eqx.filter_jit
def relative_move(
    u: Float[Array, "b n d"], reference: Float[Array, "b n d"], mask: Bool[Array, "b n"]
) -> Float[Array, " b"]:
    """‖u − reference‖/‖reference‖ of every sequence, over real tokens."""
    return _lengths(u - reference, mask) / _lengths(reference, mask)


def _lengths(u: Array, mask: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.where(mask[..., None], u, jnp.zeros((), u.dtype)) ** 2, axis=(-2, -1)))


@eqx.filter_jit
def _cosines(a: Array, b: Array, mask: Array) -> Float[Array, "layers b"]:
    """Cosine of two states as vectors of n·d numbers, for every layer and sequence."""
    real = mask[None, ..., None]
    inner = jnp.sum(jnp.where(real, a * b, jnp.zeros((), a.dtype)), axis=(-2, -1))
    return inner / (_lengths(a, mask[None]) * _lengths(b, mask[None]))


def _schedule(layers: Layers, index: int, operation: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Order and steps, L + 1 entries so that all share a program, that begin at the state before layer `index`."""
    count = layers.count
    order, steps = np.arange(count), np.where(np.arange(count) >= index, layers.native, 0)
    if operation == "skip":
        steps[index] = 0
    elif operation == "swap":
        order[index], order[index + 1] = index + 1, index
    elif operation == "again":
        steps[:] = 0
        steps[index] = layers.native
    if operation == "repeat":
        return np.insert(order, index, index), np.insert(steps, index, layers.native)
    return np.append(order, 0), np.append(steps, 0)


def _behind(layers: Layers, index: int) -> tuple[Array, Array]:
    """The schedule of the layers behind `index`."""
    order, steps = _schedule(layers, index, "skip")
    return jnp.asarray(order, jnp.int32), jnp.asarray(steps, jnp.int32)


@eqx.filter_jit
def _first_order(
    layers: Layers,
    u: Float[Array, "b n d"],
    others: Float[Array, "k b n d"],
    mask: Bool[Array, "b n"],
    order: Int[Array, " m"],
    steps: Int[Array, " m"],
) -> Float[Array, "k b n d"]:
    """Derivatives of the last state along `others − u`; the state itself goes through the layers once for all of them."""

    def one(u, others, real):
        def end(v):
            return run_one(layers, v, real, order, steps)[-1]

        return jax.vmap(lambda other: jax.jvp(end, (u,), (other - u,))[1])(others)

    return jax.vmap(one, in_axes=(0, 1, 0), out_axes=1)(u, others, mask)


@eqx.filter_jit
def _slopes(
    loss: Any, u: Float[Array, "b n d"], mask: Bool[Array, "b n"], labels: Array | None
) -> Float[Array, "b n d"]:
    """Gradient of the loss by the last state: its product with a change of that state is the loss's to first order."""

    def one(x):
        u, real, label = x
        return jax.grad(lambda v: loss(v, real, label))(u)

    return jax.lax.map(one, (u, mask, labels), batch_size=_TOGETHER)


@eqx.filter_jit
def _losses(loss: Any, u: Float[Array, "b n d"], mask: Bool[Array, "b n"], labels: Array | None) -> Float[Array, " b"]:
    return jax.lax.map(lambda x: loss(*x), (u, mask, labels), batch_size=_TOGETHER)


def _labels(owner: str, loss: Any, labels: Any, batch: Batch) -> Array | None:
    if loss is None:
        return None
    if labels is None:
        raise ValueError(f"{owner}: a loss needs labels, one per sequence.")
    found = jnp.asarray(labels)
    found = found if batch.batched else found[None]
    if not found.ndim or found.shape[0] != batch.u.shape[0]:
        raise ValueError(
            f"{owner}: labels has shape {found.shape} for {batch.u.shape[0]} sequences; give one entry each."
        )
    return found
