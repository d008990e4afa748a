"""Searches for a violation of a Lipschitz certificate: Jacobians at states of a ball, and pairs of fields in it."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.analysis.stability import field_lipschitz
from pdejax.analysis.stability._lipschitz_sampled import random_states

N, D = 5, 4
NORMS = ("token_max", "frobenius")


def jacobian_norms(jacobian):
    """Bounds of the norms of a Jacobian (n, d, n, d): the token-max norm from below by its largest block, so that a
    certificate below it is wrong, and the 2-norm exactly."""
    n, d = jacobian.shape[:2]
    blocks = np.linalg.norm(np.moveaxis(jacobian, 2, 1), 2, axis=(-2, -1))
    # Unit tokens that maximize one output token, by its leading left singular vector: attained, so a lower bound.
    attained = 0.0
    for i in range(n):
        left = np.linalg.svd(jacobian[i].reshape(d, -1))[0][:, 0]
        rows = np.einsum("k,kjl->jl", left, jacobian[i])
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
        attained = max(attained, float(np.linalg.norm(np.einsum("kjl,jl->k", jacobian[i], unit))))
    matrix = jacobian.reshape(n * d, n * d)
    return {"token_max": max(attained, float(blocks.max())), "frobenius": float(np.linalg.norm(matrix, 2))}


@eqx.filter_jit
def measure(field, us, vs, args):
    """Values at both states and Jacobians at the first; weights are arguments, so that other weights compile nothing."""
    evaluate = jax.vmap(lambda u: field(0.0, u, args))
    return evaluate(us), evaluate(vs), jax.vmap(jax.jacfwd(lambda u: field(0.0, u, args)))(us)


def worst(field, us, vs=None, args=None):
    """Largest Jacobian norms at the states `us` and largest ‖F(u) − F(v)‖/‖u − v‖ over the pairs."""
    fu, fv, jacobians = (np.asarray(x) for x in measure(field, us, us if vs is None else vs, args))
    local = [jacobian_norms(j) for j in jacobians]
    found = {name: max(x[name] for x in local) for name in NORMS}
    if vs is None:
        return found, None
    out, into = fu - fv, np.asarray(us - vs)
    pairs = {
        "frobenius": float(np.max(np.linalg.norm(out, axis=(1, 2)) / np.linalg.norm(into, axis=(1, 2)))),
        "token_max": float(np.max(np.linalg.norm(out, axis=2).max(1) / np.linalg.norm(into, axis=2).max(1))),
    }
    return found, pairs


@functools.cache
def states(radius, spread=0.0, count=32):
    """Fields of the domain, and partners for pairs: half of them other fields, half close by."""
    us = np.asarray(random_states(jax.random.key(7), 2 * count, N, D, radius, spread))
    us, others = us[:count], us[count:]
    if spread:
        return us, others
    near = us + 1e-3 * np.random.default_rng(8).standard_normal(us.shape)
    near = near * np.minimum(1, radius / np.linalg.norm(near, axis=-1, keepdims=True))
    return us, np.where(np.arange(count)[:, None, None] % 2 == 0, others, near)


def randomized(term, key):
    """The term with random biases and scales, so that none of them is at its harmless start."""
    arrays, rest = eqx.partition(term, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    moved = [
        jnp.asarray(np.asarray(leaf) + 0.4 * rng.standard_normal(leaf.shape)) if leaf.ndim else leaf for leaf in leaves
    ]
    return eqx.combine(jax.tree.unflatten(structure, moved), rest)


def check_never_violated(term, radius, spread=0.0):
    local, pairs = worst(term, *states(radius, spread))
    for norm in NORMS:
        found = field_lipschitz(term, N, radius, norm=norm, spread=spread)
        assert found.bound == pytest.approx(sum(found.parts.values()))
        assert 0 < local[norm] <= found.bound * (1 + 1e-12)
        assert 0 < pairs[norm] <= found.bound * (1 + 1e-12)
