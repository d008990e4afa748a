"""When to leave a loop: criteria, what they cost for a given error, and how far beyond training the answer stays."""

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import ArrayLike, Float
from scipy.special import betaincinv

from pdejax._arguments import checked
from pdejax._bootstrap import over_seeds
from pdejax._check import integer, number, on_numbers, probability
from pdejax._figure import AbstractRecord, Figure

STEP, RELATIVE, COSINE, DIVERGENCE, RATE = (
    "step norm",
    "relative change",
    "cosine",
    "KL of outputs",
    "extrapolated error",
)
NO_ANSWER = -2  # where the output is not finite


@checked
@on_numbers
def exit_scores(
    states: ArrayLike, outputs: ArrayLike | None = None, *, mask: ArrayLike | None = None
) -> dict[str, Float[np.ndarray, " loops"]]:
    r"""Compute the criteria in use for leaving a loop after pass k = 1 … K, from its states `(K + 1, n, d)`; each falls as the
    loop comes to rest.

    With Δ_k = u_k − u_{k−1} over real tokens and N entries: **step norm** $\|\Delta_k\|/\sqrt N$; **relative change**
    ‖Δ_k‖/‖u_k‖; **cosine** 1 − cos(u_k, u_{k−1}); **KL of outputs** KL(p_{k−1} ‖ p_k), mean over tokens, of `outputs (K + 1, …,
    classes)`, logits; **extrapolated error** $\|\Delta_k\|\,r/(1-r)/\|u_k\|$ with r = ‖Δ_k‖/‖Δ_{k−1}‖: the distance to the
    limit if steps go on falling at this rate, infinite where they do not fall and after the first pass. All are infinite from
    or to a state that is not finite: what is no number is not at rest.
    """
    u = np.asarray(states, float)
    if u.ndim < 2 or len(u) < 2:
        raise ValueError(
            f"exit_scores: states has shape {u.shape}; it must be (loops + 1, n, d), of at least one pass."
        )
    if mask is not None:
        u = u[:, np.asarray(mask)]
    u = u.reshape(len(u), -1)
    with np.errstate(over="ignore", invalid="ignore"):
        delta, size = np.linalg.norm(np.diff(u, axis=0), axis=1), np.linalg.norm(u, axis=1)
        safe = np.where(size > 0, size, 1.0)
        cosine = np.sum(u[1:] * u[:-1], axis=1) / (safe[1:] * safe[:-1])
        ratio = np.concatenate([[np.inf], delta[1:] / np.where(delta[:-1] > 0, delta[:-1], np.inf)])
        falling = ratio < 1
        ahead = np.where(falling, ratio / np.where(falling, 1 - ratio, 1.0), np.inf)
        found = {
            STEP: delta / math.sqrt(u.shape[1]),
            RELATIVE: delta / safe[1:],
            COSINE: np.maximum(1 - cosine, 0.0),
            RATE: np.where(delta == 0, 0.0, delta * ahead) / safe[1:],
        }
        if outputs is not None:
            found[DIVERGENCE] = kl_between(np.asarray(outputs, float)[:-1], np.asarray(outputs, float)[1:], mask)
    lost = ~(np.isfinite(size[1:]) & np.isfinite(size[:-1]))
    return {name: np.where(lost | np.isnan(score), np.inf, score) for name, score in found.items()}


def kl_between(before: np.ndarray, after: np.ndarray, mask: Any = None) -> np.ndarray:
    """KL(softmax(before) ‖ softmax(after)) per pass, mean over real tokens, in nats."""
    from scipy.special import log_softmax

    p, q = log_softmax(before, axis=-1), log_softmax(after, axis=-1)
    found = np.maximum(np.sum(np.exp(p) * (p - q), axis=-1), 0.0)
    if found.ndim == 1:
        return found
    tokens = found if mask is None else found[:, np.asarray(mask)]
    return tokens.reshape(len(tokens), -1).mean(axis=1)


class ExitRule(AbstractRecord):
    """A criterion with its threshold: leave after the first pass whose score is at most `threshold`.

    - `loops`: mean number of passes with its interval over inputs, of which `"oracle"`, the fewest that reach the error, is the
      null.
    - `kept`: share of inputs whose error at the exit is at most the target, with exact binomial ends. Both on inputs that the
      threshold was not chosen on.
    - `error`: mean error at the exit, of all but the `lost` inputs whose error there is not finite; infinite if it is of none.
    - `exits (b,)`: the passes of each input; the last pass where it never left.
    """

    loops: Figure
    kept: Figure
    error: Figure
    exits: Any
    name: str = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    lost: int = eqx.field(static=True)


@checked
@on_numbers
def exit_rules(
    scores: Mapping[str, ArrayLike], errors: ArrayLike, *, target: float, kept: float = 0.95
) -> tuple[ExitRule, ...]:
    """Find what each criterion for leaving a loop costs for a given error, the cheapest first of those that keep it.

    - `scores`: by name, `(b, K)` of `exit_scores` for b inputs; `errors (b, K)`: the error after pass k = 1 … K, such as the
      relative distance to the fixed point, or a divergence from the output of the trained number of passes.
    - `target`: the error that is allowed, `kept`: the share of inputs that must keep to it.

    Thresholds are cross-fitted: the largest that keeps the error on one half of the inputs, every second one, serves the other.
    So no rule profits from having seen its inputs. Rules that fall short of `kept` come last, whatever they cost. Raises
    `ValueError` for shapes that differ, fewer than 4 inputs, or numbers out of range.
    """
    owner = "exit_rules"
    limit = number(owner, "target", target, above=0)
    share = probability(owner, "kept", kept, advice="such as 0.95")
    e = np.asarray(errors, float)
    if e.ndim != 2 or e.shape[0] < 4:
        raise ValueError(f"{owner}: errors has shape {e.shape}; it must be (inputs, loops) of at least 4 inputs.")
    best = _first_below(e, limit)
    found = []
    for name, values in scores.items():
        s = np.asarray(values, float)
        if s.shape != e.shape:
            raise ValueError(f"{owner}: scores[{name!r}] has shape {s.shape}; errors has {e.shape}.")
        s = np.where(np.isnan(s), np.inf, s)
        exits, thresholds = np.zeros(len(e), int), []
        for half in (0, 1):
            chosen, used = np.arange(half, len(e), 2), np.arange(1 - half, len(e), 2)
            thresholds.append(_threshold(s[chosen], e[chosen], limit, share))
            exits[used] = _first_below(s[used], thresholds[-1])
        there = e[np.arange(len(e)), exits - 1]
        loops = over_seeds(exits.astype(float)).beside({"oracle": over_seeds(best.astype(float))})
        right = share_of(there <= limit)
        known = there[np.isfinite(there)]
        error = over_seeds(known) if len(known) else Figure(np.inf)
        found.append(ExitRule(loops, right, error, exits, name, float(np.mean(thresholds)), len(there) - len(known)))
    return tuple(sorted(found, key=lambda rule: (float(rule.kept) < share, float(rule.loops))))


def _first_below(scores: np.ndarray, threshold: float) -> np.ndarray:
    """The first pass, from 1, whose score is at most the threshold; the last where none is."""
    below = scores <= threshold
    return np.where(below.any(axis=1), below.argmax(axis=1) + 1, scores.shape[1])


def _threshold(scores: np.ndarray, errors: np.ndarray, limit: float, share: float) -> float:
    """The largest threshold up to which a share of inputs leaves with an error within the limit."""
    tried = np.unique(scores[np.isfinite(scores)])
    if len(tried) > 400:
        tried = np.unique(np.quantile(tried, np.linspace(0, 1, 400)))
    chosen = -np.inf
    for threshold in tried:
        exits = _first_below(scores, threshold)
        if np.mean(errors[np.arange(len(errors)), exits - 1] <= limit) < share:
            break
        chosen = threshold
    return float(chosen)


class SafeRange(AbstractRecord):
    """How far a loop may go on before answers change.

    - `kept (K + 1,)`: share of inputs that answer as after the trained number of passes, after k = 0 … K, exact binomial ends.
    - `per_input (b,)`: the last pass up to which the answer stays from the trained number on, K where it stays throughout.
    - `loops`: the last k up to which, from the trained number on, at least the wanted share stays; `censored`: whether that is K,
      so that the range is at least that. `certain`: the same where the lower end of the interval must be above the share, and
      the trained number where there are too few inputs for that.
    - All three are one less than the trained number where there is no answer at that already.
    - `trained`: the number of passes it counts from.
    """

    kept: Figure
    per_input: Any
    loops: int = eqx.field(static=True)
    certain: int = eqx.field(static=True)
    trained: int = eqx.field(static=True)
    censored: bool = eqx.field(static=True)


@checked
@on_numbers
def safe_range(answers: ArrayLike, *, trained: int, share: float = 0.95, level: float = 0.95) -> SafeRange:
    r"""Find the safe range of loops: how far beyond training the answer stays.

    - `answers (b, K + 1)` or `(b, K + 1, n)`: what each input is answered after 0 … K passes; of several tokens all must stay.
      −2 is no answer, the output not finite: it is never kept.
    - `trained`: passes in training. `share` of inputs that must stay; `level` of the intervals (Clopper & Pearson 1934).

    For a range that is `certain` it takes inputs: if all b stay, the lower end is $((1-\text{level})/2)^{1/b}$, above a share
    of 0.95 from b = 72 on. An answer that comes back later is not safe: the range ends where it is first left. Raises
    `ValueError` for other shapes and `trained` beyond K.
    """
    owner = "safe_range"
    a = np.asarray(answers)
    if a.ndim < 2 or a.shape[1] < 2 or not a.size:
        raise ValueError(
            f"{owner}: answers has shape {a.shape}; it must be (inputs, loops + 1), or with tokens behind."
        )
    integer(owner, "trained", trained, 0, a.shape[1] - 1)
    wanted = probability(owner, "share", share, advice="such as 0.95")
    level = probability(owner, "level", level, advice="such as 0.95")
    same = (a == a[:, trained : trained + 1]) & (a != NO_ANSWER)
    same = same.reshape(*a.shape[:2], -1).all(axis=2)
    beyond = same[:, trained:]
    stays = np.cumprod(beyond, axis=1)
    per_input = trained + stays.sum(axis=1) - 1
    count = same.sum(axis=0)
    low, high = _binomial(count, len(a), level)
    remaining = stays.mean(axis=0)
    lows, _ = _binomial(stays.sum(axis=0), len(a), level)
    loops = trained + int(np.sum(np.cumprod(remaining >= wanted))) - 1
    certain = max(trained + int(np.sum(np.cumprod(lows >= wanted))) - 1, min(loops, trained))
    last = a.shape[1] - 1
    return SafeRange(
        Figure(count / len(a), low, high, level=level), per_input, loops, certain, trained, bool(loops == last)
    )


def share_of(true: Any, level: float = 0.95) -> Figure:
    """The share of these that are true, with its exact binomial interval."""
    count, total = int(np.sum(np.asarray(true))), int(np.size(true))
    low, high = _binomial(np.asarray(count), total, level)
    return Figure(count / total, float(low), float(high), level=level)


def _binomial(count: np.ndarray, total: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the exact interval of a share."""
    tail = (1 - level) / 2
    k = np.asarray(count, float)
    low = np.where(k > 0, betaincinv(np.maximum(k, 1), total - k + 1, tail), 0.0)
    high = np.where(k < total, betaincinv(k + 1, np.maximum(total - k, 1), 1 - tail), 1.0)
    return low, high
