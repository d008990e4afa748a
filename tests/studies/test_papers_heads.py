"""Attention heads compared by index, matched and averaged: planted permutations, and a slow twin."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.studies.papers._attention import three_ways


@pytest.fixture(scope="module")
def maps():
    """Two layers, three sequences, three heads of five tokens, one of them padding in the last sequence."""
    rng = np.random.default_rng(0)
    mask = np.ones((3, 5), bool)
    mask[2, 4] = False
    logits = np.where(mask[None, :, None, None, :], 2 * rng.standard_normal((2, 3, 3, 5, 5)), -np.inf)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True), mask


def test_heads_in_another_order_are_the_same_heads(maps):
    """By index they are strangers; matched, and on average, they are the same."""
    p, mask = maps
    q = np.stack([p[0][:, [2, 0, 1]], p[1][:, [1, 0, 2]]])
    found = three_ways(jnp.asarray(p), jnp.asarray(q), jnp.asarray(mask))
    for way in ("matched", "averaged"):
        np.testing.assert_allclose(found[f"{way}_cosine"], 1, atol=1e-12)
        np.testing.assert_allclose(found[f"{way}_kl"], 0, atol=1e-12)
    assert np.all(found["cosine"] < 0.9) and np.all(found["kl"] > 0.1)


def test_the_three_ways_against_loops(maps):
    p, mask = maps
    q = np.roll(p, 1, axis=1)
    q = np.where(mask[None, :, None, None, :], q, 0) + 1e-3 * mask[None, :, None, None, :]
    q /= q.sum(axis=-1, keepdims=True)

    def mean(a, b, of):
        return np.mean([np.mean([of(a[s, i], b[s, i]) for i in range(5) if mask[s, i]]) for s in range(len(mask))])

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    def kl(a, b):
        return sum(x * np.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    found = three_ways(jnp.asarray(p), jnp.asarray(q), jnp.asarray(mask))
    for layer in range(2):
        tables = {
            name: np.asarray([[mean(p[layer][:, g], q[layer][:, h], of) for h in range(3)] for g in range(3)])
            for name, of in (("cosine", cosine), ("kl", kl))
        }
        best = max(itertools.permutations(range(3)), key=lambda o: sum(tables["cosine"][g, o[g]] for g in range(3)))
        for name, of in (("cosine", cosine), ("kl", kl)):
            table = tables[name]
            averaged = mean(p[layer].mean(axis=1), q[layer].mean(axis=1), of)
            expected = table.diagonal().mean(), np.mean([table[g, best[g]] for g in range(3)]), averaged
            ours = [found[f"{way}{name}"][layer] for way in ("", "matched_", "averaged_")]
            np.testing.assert_allclose(ours, expected, atol=1e-9)
