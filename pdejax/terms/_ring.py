r"""Attention over tokens that lie on several devices: keys and values go round, queries stay.

Forward, one pass with the softmax on line (Liu et al., arXiv 2310.01889; Rabe and Staats, arXiv 2112.05682). Derivatives have a
rule of their own: with the shift $m_i$ fixed, $o_i = N_i/D_i$ and both sums are linear in what every device adds, so that

$$\dot o_i = (\dot N_i - o_i\dot D_i)/D_i,$$

and reverse mode keeps nothing of a round: it asks for keys and values again. Memory per device grows as N/R in both directions.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pdejax._axes import same_axes
from pdejax._products import platform_now, product
from pdejax.terms._kernels import _BLOCK_BYTES, _MIN_ROWS, Rule, accumulator_of, logits_of, operands_of
from pdejax.terms._token_axis import TokenAxis

# Parts of the queries, at most, that under a causal mask on stripes see a prefix of the keys each: (p + 1)/2p of all pairs.
PIECES = 4


class Ring(NamedTuple):
    """What ring attention acts on, this device's part of it: q (n, H, dk), k (n, G, dk), v (n, G, dv), bias (n,) or (H, n) of the
    keys; slopes (H,) and window as `attend` has them."""

    q: Array
    k: Array
    v: Array
    bias: Array | None
    alibi: Array | None
    window: Array | None

    def turned(self, tokens: TokenAxis, by: int) -> "Ring":
        """With the keys and values of the device `by` places before."""
        moved = tokens.turned((self.k, self.v, self.bias), by)
        return self._replace(k=moved[0], v=moved[1], bias=moved[2])


class Sums(NamedTuple):
    """Of every query (H, n, …): shift m, normalizer D and numerator N of its softmax."""

    shift: Array
    normalizer: Array
    numerator: Array


def ring_attend(
    tokens: TokenAxis,
    *,
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None,
    alibi: Array | None,
    causal: bool,
    window: Any,
    logit_scale: float | None,
    logit_cap: float | None,
) -> Array:
    """`attend` of all tokens for the queries of this device, `(n, H, dv)`; positions are those in the whole sequence.

    Under a causal mask on stripes pairs that no query sees are left out, up to the size of a piece. Forward mode, reverse mode
    and their compositions work.
    """
    rule = Rule(causal, logit_cap)
    scale = q.shape[-1] ** -0.5 if logit_scale is None else logit_scale
    x = Ring(q, k, v, bias, alibi, None if window is None else jnp.asarray(window))
    out = _ring(tokens, rule, scale, x)
    return out.swapaxes(0, 1).astype(v.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _ring(tokens: TokenAxis, rule: Rule, scale: float, x: Ring) -> Array:
    return _divided(_online(tokens, rule, scale, x))


@_ring.defjvp
def _ring_jvp(tokens: TokenAxis, rule: Rule, scale: float, primals, tangents):
    [x], [dx] = primals, tangents
    sums = _online(tokens, rule, scale, x)
    out = _divided(sums)
    add = functools.partial(_fixed, tokens, rule, scale, jax.lax.stop_gradient(sums.shift))
    _, (numerator, normalizer) = jax.jvp(add, (x,), (dx,))
    seen = jnp.where(sums.normalizer > 0, sums.normalizer, 1.0)
    return out, (numerator - out * normalizer) / seen


def _divided(sums: Sums) -> Array:
    return sums.numerator / jnp.where(sums.normalizer > 0, sums.normalizer, 1.0)


def _online(tokens: TokenAxis, rule: Rule, scale: float, x: Ring) -> Sums:
    """All sums in one pass, the largest logit so far as shift."""
    heads, kind = x.q.shape[1], accumulator_of(x.q.dtype)
    n, width = x.q.shape[0], x.v.shape[-1]
    start = Sums(
        jnp.full((heads, n, 1), -jnp.inf, kind), jnp.zeros((heads, n, 1), kind), jnp.zeros((heads, n, width), kind)
    )

    def tile(q, at, m, d, o, one, v, keys, window):
        z = logits_of(one._replace(q=q), at, window, rule=rule, keys=keys)
        top = jax.lax.stop_gradient(jnp.maximum(m, z.max(axis=1, keepdims=True)))
        safe = jnp.where(top > -jnp.inf, top, 0.0)
        e, kept = jnp.exp(z - safe), jnp.exp(m - safe)
        return top, d * kept + e.sum(axis=1, keepdims=True), o * kept + _times(e, v)

    def turn(carry, round_):
        sums, moving = carry
        there = (jax.lax.axis_index(tokens.name) - round_) % tokens.devices
        sums = Sums(*_by_pieces(tile, tokens, rule, scale, moving, there, tuple(sums)))
        return (sums, moving.turned(tokens, 1)), None

    carry = same_axes((start, x), (x, jax.lax.axis_index(tokens.name)))
    (sums, _), _ = jax.lax.scan(turn, carry, jnp.arange(tokens.devices, dtype=jnp.int32))
    return sums


def _fixed(tokens: TokenAxis, rule: Rule, scale: float, shift: Array, x: Ring) -> tuple[Array, Array]:
    """Numerator and normalizer with the shift given: sums of what every device adds, each computed again in reverse mode."""

    def tile(q, at, m, one, v, keys, window):
        z = logits_of(one._replace(q=q), at, window, rule=rule, keys=keys)
        e = jnp.exp(z - jnp.where(m > -jnp.inf, m, 0.0))
        return _times(e, v), e.sum(axis=1, keepdims=True)

    # Of the queries of a tile nothing is kept either.
    light = jax.checkpoint(tile, prevent_cse=False)

    def added(x, round_):
        # From the device so many places before, not on from the last round: reverse mode keeps this device's own keys alone.
        ways = [functools.partial(x.turned, tokens, by) for by in range(tokens.devices)]
        moving = jax.lax.switch(round_, ways)
        there = (jax.lax.axis_index(tokens.name) - round_) % tokens.devices
        return _by_pieces(light, tokens, rule, scale, moving, there, (shift,))

    def turn(total, round_):
        part = jax.checkpoint(added, prevent_cse=False)(x, round_)
        return jax.tree.map(jnp.add, total, part), None

    start = jnp.zeros((*shift.shape[:2], x.v.shape[-1]), shift.dtype), jnp.zeros_like(shift)
    start = same_axes(start, (x, shift, jax.lax.axis_index(tokens.name)))
    return jax.lax.scan(turn, start, jnp.arange(tokens.devices, dtype=jnp.int32))[0]


def _by_pieces(
    tile: Callable[..., Any],
    tokens: TokenAxis,
    rule: Rule,
    scale: float,
    x: Ring,
    there: Array,
    rows: tuple[Array, ...],
) -> tuple[Array, ...]:
    """`tile` over all heads and blocks of queries, with the keys that each piece of the queries may see; results (H, n, …)."""
    n = x.q.shape[0]
    # On stripes query i of any device sees keys up to i of every other: known while tracing, whoever the other is.
    ahead = rule.causal and tokens.layout == "striped"
    pieces = max(min(PIECES, n // _MIN_ROWS), 1) if ahead else 1
    edges = [round(n * k / pieces) for k in range(pieces + 1)]
    heads = operands_of(x.q, x.k, x.bias, x.alibi, scale)
    values = x.v.swapaxes(0, 1)
    values = jnp.repeat(values, x.q.shape[1] // values.shape[0], axis=0) if values.shape[0] != x.q.shape[1] else values
    by_position = rule.by_position(x.alibi, x.window)
    at = tokens.positions()
    keys = tokens.positions(there) if by_position else None
    found = []
    for first, last in itertools.pairwise(edges):
        seen = last if ahead else n
        size = _BLOCK_BYTES["cpu" if platform_now() == "cpu" else "other"] // (seen * heads.q.shape[0] * 4)
        block = max(min(size, last - first), min(_MIN_ROWS, last - first))

        def head(one, v, *rows, first=first, last=last, seen=seen, block=block):
            prefix = one._replace(k=one.k[:, :seen], bias=None if one.bias is None else one.bias[:seen])
            known = keys[:seen] if keys is not None else None
            queries = (one.q[first:last], at[first:last], *(row[first:last] for row in rows))
            return _by_blocks(
                lambda q, p, *r: tile(q, p if by_position else None, *r, prefix, v[:seen], known, x.window),
                block,
                queries,
            )

        found.append(jax.vmap(head)(heads, values, *rows))
    return tuple(jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))


def _by_blocks(function: Callable[..., Any], block: int, rows: Sequence[Array]) -> Any:
    """A function of queries (leading axis), so many at a time, one block after the other."""
    n = int(rows[0].shape[0])
    count = -(-n // block)
    if count == 1:
        return function(*rows)
    size = -(-n // count)

    def cut(x):
        return jnp.pad(x, [(0, count * size - n), *((0, 0),) * (x.ndim - 1)]).reshape(count, size, *x.shape[1:])

    found = jax.lax.map(lambda parts: function(*parts), [cut(row) for row in rows])
    return jax.tree.map(lambda x: x.reshape(count * size, *x.shape[2:])[:n], found)


def _times(e: Array, v: Array) -> Array:
    return product(e.astype(v.dtype), v, kind=accumulator_of(v.dtype))
