"""What the bounds of attention are made of, head by head: derivations stand in `Attention.lipschitz`."""

import dataclasses
import math
from typing import Any

import numpy as np

from pdejax.terms._constants import in_float64, operator_norm
from pdejax.terms._normalization import Norm


@dataclasses.dataclass(frozen=True)
class Head:
    """Weights of one head in float64: `wq, wk, wv (d, dk)`, `wo (dk, d)`, biases `(dk,)`; keys and values those of its group."""

    wq: np.ndarray
    wk: np.ndarray
    wv: np.ndarray
    wo: np.ndarray
    bq: np.ndarray
    bk: np.ndarray
    bv: np.ndarray


@dataclasses.dataclass(frozen=True)
class Side:
    """Queries or keys on a ball of tokens: how fast they change, and a ball that holds them, its centre by its length."""

    slope: float
    centre: float
    reach: float

    @property
    def longest(self) -> float:
        return self.centre + self.reach


def heads_in_float64(attention: Any) -> list[Head]:
    """The heads of an `Attention`, on tokens as they are after its norm."""
    wq, wk, wv, wo = (in_float64(w) for w in (attention.wq, attention.wk, attention.wv, attention.wo))
    each = wq.shape[1] // wk.shape[1]

    def bias(b: Any, w: np.ndarray) -> np.ndarray:
        return np.zeros(w.shape[1:]) if b is None else in_float64(b)

    bq, bk, bv = bias(attention.bq, wq), bias(attention.bk, wk), bias(attention.bv, wv)
    return [
        Head(wq[:, h], wk[:, h // each], wv[:, h // each], wo[h], bq[h], bk[h // each], bv[h // each])
        for h in range(wq.shape[1])
    ]


def output_gain(heads: list[Head], constants: list[tuple[float, float]]) -> float:
    r"""A bound of $\|\sum_h x_h W_O^h\|$ over heads, from (a_h, b_h) per head: $\|x_hW_O^h\| \le a_h\|W_V^hW_O^h\|$ and
    $\|x_h\| \le b_h\|W_V^h\|$: the sum over heads, or $\|W_O\|(\sum_h b_h^2\|W_V^h\|^2)^{1/2}$, whichever is smaller."""
    apart = sum(a * operator_norm(head.wv @ head.wo) for head, (a, _) in zip(heads, constants, strict=True))
    sizes = [b * operator_norm(head.wv) for head, (_, b) in zip(heads, constants, strict=True)]
    return min(apart, operator_norm(np.concatenate([head.wo for head in heads])) * math.hypot(*sizes))


def attention_lipschitz(attention: Any, n: int, radius: float, norm: str) -> float:
    """The constant of `Attention.lipschitz` on normalized tokens, without strength, norms and leak."""
    heads = heads_in_float64(attention)
    for shift in (attention.alibi, attention.quadrature):
        # No size of them changes the bound; NaN would.
        in_float64(0.0 if shift is None else shift)
    if attention.norm is not None:
        # The ball about the norm's bias becomes one about 0, with that bias inside those of the projections.
        centre, radius = attention.norm.ball(radius)
        heads = [
            dataclasses.replace(
                head, bq=head.bq + centre @ head.wq, bk=head.bk + centre @ head.wk, bv=head.bv + centre @ head.wv
            )
            for head in heads
        ]
    mixed = math.sqrt(n) if norm == "frobenius" else 1.0
    if attention.kernel in ("softmax", "l2"):
        slopes = [_logit_slopes(attention, heads, h, radius) for h in range(len(heads))]
        constants = [mixed * (1 + b * radius) + a * radius for a, b in slopes]
        return output_gain(heads, [(c, c) for c in constants])
    w = np.full(n, 1 / n) if attention.quadrature is None else in_float64(attention.quadrature)
    average = mixed * float(np.linalg.norm(w / w.sum())) if norm == "frobenius" else 1.0
    if attention.kernel == "uniform":
        return output_gain(heads, [(average, average)] * len(heads))
    return _linear_kernel(attention, heads, radius, average)


def _linear_kernel(attention: Any, heads: list[Head], radius: float, average: float) -> float:
    """Without a softmax nothing centres the values: query side, key side and value side add up."""
    apart, sizes = 0.0, []
    for h, head in enumerate(heads):
        q, k, scale = _sides(attention, heads, h, radius)

        def constant(gain: float, offset: float, q=q, k=k, scale=scale) -> float:
            value = gain * radius + offset
            keys = k.slope * value + k.longest * gain
            return scale * (q.slope * k.longest * value + average * q.longest * keys)

        apart += constant(operator_norm(head.wv @ head.wo), float(np.linalg.norm(head.bv @ head.wo)))
        sizes.append(constant(operator_norm(head.wv), float(np.linalg.norm(head.bv))))
    return min(apart, operator_norm(np.concatenate([head.wo for head in heads])) * math.hypot(*sizes))


def _logit_slopes(attention: Any, heads: list[Head], h: int, radius: float) -> tuple[float, float]:
    """(a, b) of the derivation in `Attention.lipschitz` for the logits of a softmax kernel."""
    head = heads[h]
    q, k, scale = _sides(attention, heads, h, radius)
    # A rotation between query and key keeps norms, not products of matrices; and it turns every key's bias by another
    # angle, so that biases no longer drop out of the softmax. A cap weighs every key's logit by another slope: the same.
    rotary, capped = attention.rotary is not None, attention.logit_cap is not None
    if rotary or attention.norm_q is not None or attention.norm_k is not None:
        a = scale * q.slope * (k.longest if rotary or capped else k.reach)
        b = scale * k.slope * q.longest
        cross, offset = b, k.longest
    else:
        product = operator_norm(head.wq @ head.wk.T) * radius
        a = scale * (product + (float(np.linalg.norm(head.bk @ head.wq.T)) if capped else 0.0))
        b = scale * (product + float(np.linalg.norm(head.bq @ head.wk.T)))
        cross = scale * product
        offset = k.reach + float(np.linalg.norm(head.bq - head.bk))
    return (a, b) if attention.kernel != "l2" else (2 * a, 2 * (cross + scale * k.slope * offset))


def _sides(attention: Any, heads: list[Head], h: int, radius: float) -> tuple[Side, Side, float]:
    """Queries and keys of a head before they are turned, and the scale of logits with what turning adds to it."""
    each = len(heads) // attention.wk.shape[1]
    queries = [(head.wq, head.bq) for head in heads]
    keys = [(head.wk, head.bk) for head in heads[::each]]
    scale = heads[h].wq.shape[1] ** -0.5 if attention.logit_scale is None else attention.logit_scale
    if attention.rotary is not None:
        scale *= attention.rotary.stretch(heads[h].wq.shape[1]) ** 2
    return _side(attention.norm_q, queries, h, radius), _side(attention.norm_k, keys, h // each, radius), scale


def _side(norm: Norm | None, projections: list[tuple[np.ndarray, np.ndarray]], h: int, radius: float) -> Side:
    w, b = projections[h]
    dk = len(b)
    if norm is not None and norm.scale.shape[-1] != dk:
        w, b = (np.concatenate([part[i] for part in projections], axis=-1) for i in (0, 1))
    slope = operator_norm(w)
    if norm is None:
        return Side(slope, float(np.linalg.norm(b)), slope * radius)
    centre, reach = norm.ball(slope * radius + float(np.linalg.norm(b)))
    part = centre if len(centre) == dk else centre[h * dk : (h + 1) * dk]
    return Side(norm.lipschitz() * slope, float(np.linalg.norm(part)), reach)
