"""Speed cases of linear CKA and attention fidelity at N = 2000 against NumPy, for `benchmarks/analysis.py`.

Each case is (name, ours, reference, tolerance): two functions without arguments that return the same figures as NumPy arrays,
and how far they may differ. Ours are called once before the clock runs, so that compilation is not counted.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pdejax.analysis.attention._fidelity import attention_fidelity
from pdejax.analysis.similarity._measures import linear_cka

N = 2000


def cases(
    samples: int = N, dim: int = 128, layers: int = 1, heads: int = 4
) -> list[tuple[str, Callable[[], np.ndarray], Callable[[], np.ndarray], float]]:
    """Linear CKA, plain and debiased, of float32 samples; agreement of maps of as many tokens with its null of uniform
    attention and its row-shuffled null."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(samples, dim)).astype(np.float32)
    b = (a @ rng.normal(size=(dim, dim)) / dim**0.5 + rng.normal(size=(samples, dim))).astype(np.float32)
    logits = rng.normal(size=(layers, heads, samples, samples)).astype(np.float32)
    p = _softmax(logits)
    q = _softmax(logits + 0.5 * rng.normal(size=logits.shape).astype(np.float32))
    ours = [jnp.asarray(x) for x in (a, b, p, q)]
    found: list = []
    for debiased in (False, True):

        def cka(debiased=debiased):
            return np.asarray(linear_cka(ours[0], ours[1], debiased=debiased).value)

        def gram(debiased=debiased):
            return np.asarray(_cka(a, b, debiased))

        found.append((f"linear_cka{' debiased' if debiased else ''}", cka, gram, 1e-4))

    def maps():
        record = attention_fidelity(ours[2], ours[3], resamples=20)
        figures = [record.cosine, record.kl, record.kl_reverse, record.total_variation]
        return np.stack([np.asarray(x) for x in [*figures, *(x.nulls["uniform"] for x in figures)]])

    def slow_maps():
        uniform = np.full_like(p, 1 / samples)
        order = rng.permutation(samples)
        _figures(p, q[:, :, order])  # the shuffled null, which both compute
        return np.concatenate([_figures(p, q), _figures(p, uniform)])

    return [*found, ("attention_fidelity", maps, slow_maps, 1e-4)]


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _cka(a: np.ndarray, b: np.ndarray, debiased: bool) -> float:
    """Kornblith et al. (2019) and Nguyen et al. (2020) on Gram matrices, as they are written."""
    k, l = ((x - x.mean(0)) @ (x - x.mean(0)).T for x in (a, b))
    n = len(k)
    if debiased:
        np.fill_diagonal(k, 0)
        np.fill_diagonal(l, 0)

    def hsic(k, l):
        if not debiased:
            return np.sum(k * l)
        cross = np.sum(k * l) + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * np.dot(k.sum(0), l.sum(0))
        return cross / (n * (n - 3))

    return float(hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l)))


def _figures(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Cosine, both KL and total variation `(4, layers, heads)`; Jensen–Shannon is computed too, as ours does."""

    def kl(x, y):
        return np.sum(np.where(x > 0, x * (np.log(np.maximum(x, 1e-30)) - np.log(np.maximum(y, 1e-30))), 0), axis=-1)

    cosine = np.sum(p * q, axis=-1) / (np.linalg.norm(p, axis=-1) * np.linalg.norm(q, axis=-1))
    middle = 0.5 * (p + q)
    _ = 0.5 * (kl(p, middle) + kl(q, middle))
    return np.stack([x.mean(axis=-1) for x in (cosine, kl(p, q), kl(q, p), 0.5 * np.abs(p - q).sum(-1))])


if __name__ == "__main__":
    import time

    jax.config.update("jax_numpy_rank_promotion", "raise")
    for name, ours, reference, tolerance in cases():
        first = ours()
        times = {}
        for label, function in (("ours", ours), ("reference", reference)):
            start = time.perf_counter()
            result = function()
            times[label] = time.perf_counter() - start
            assert np.allclose(result, first, atol=tolerance), (name, label, result, first)
        gain = times["reference"] / times["ours"]
        print(f"{name}: ours {times['ours']:.4f} s, NumPy {times['reference']:.4f} s, ratio {gain:.1f}")
