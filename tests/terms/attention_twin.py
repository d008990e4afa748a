"""Attention one query, one key and one head at a time in NumPy, and terms to compare it with."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from pdejax.terms import Attention, FieldArgs, LayerNorm

N, D, H, T = 7, 8, 2, 0.3
WEIGHTS = jnp.array([0.2, 0.1, 0.05, 0.3, 0.15, 0.08, 0.12])
MASK = jnp.array([True, True, False, True, True, False, True])


def build(key, **options):
    """Attention with every array random, biases and scales of norms included."""
    term = Attention(D, **{"heads": H} | options, key=key)

    def where(module):
        parts = [module.bq, module.bk, module.bv, module.bo]
        for norm in (module.norm, module.norm_out, module.norm_q, module.norm_k):
            parts += [] if norm is None else [norm.scale, getattr(norm, "bias", None)]
        return [part for part in parts if part is not None]

    random = np.random.default_rng(7)
    return eqx.tree_at(where, term, [x + 0.5 * random.standard_normal(x.shape) for x in where(term)])


@eqx.filter_jit
def run(term, u, mask=None):
    """du and maps, as one program: call by call each operation is compiled alone."""
    return term(T, u, FieldArgs(mask)), term.weights(u, mask)


def field(n=N, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, D)))


def twin_norm(norm, x):
    centre = np.mean(x) if isinstance(norm, LayerNorm) else 0.0
    shift = np.asarray(norm.bias) if isinstance(norm, LayerNorm) else 0.0
    return np.asarray(norm.scale) * (x - centre) / np.sqrt(np.mean((x - centre) ** 2) + norm.eps) + shift


def twin_turn(x, position, rotary):
    """Features j and j + dim/2 as one complex number, turned by the angle position·f_j; the rest stays."""
    half = len(rotary.frequencies)
    z = rotary.gain * (x[:half] + 1j * x[half : 2 * half]) * np.exp(1j * position * np.array(rotary.frequencies))
    return np.concatenate([z.real, z.imag, x[2 * half :]])


def twin_norms(norm, rows):
    """Rows `(heads, dk)` of one token, each head or all of them at once."""
    if norm is None:
        return rows
    if norm.scale.size == rows.shape[1]:
        return np.stack([twin_norm(norm, row) for row in rows])
    return twin_norm(norm, rows.ravel()).reshape(rows.shape)


def twin(term, u, mask=None):
    """(du, maps) with one query, one key and one head at a time."""
    u = np.asarray(u, float)
    n = len(u)
    real = np.ones(n, bool) if mask is None else np.asarray(mask)
    weight = np.ones(n) if term.quadrature is None else np.asarray(term.quadrature)
    heads, dk = term.wq.shape[1:]
    each = heads // term.wk.shape[1]
    scale = 1 / np.sqrt(dk) if term.logit_scale is None else term.logit_scale
    window = n if term.window is None else int(term.window)
    slopes = np.zeros(heads) if term.alibi is None else np.asarray(term.alibi)
    x = [row if term.norm is None else twin_norm(term.norm, row) for row in u]
    maps, out = np.zeros((heads, n, n)), np.zeros_like(u)

    def project(name, row):
        bias, w = getattr(term, "b" + name), np.asarray(getattr(term, "w" + name))
        heads = np.stack([row @ w[:, h] for h in range(w.shape[1])]) + (0.0 if bias is None else np.asarray(bias))
        return twin_norms(getattr(term, "norm_" + name, None), heads)

    every = {name: [project(name, row) for row in x] for name in "qkv"}
    for h in range(heads):
        q, k, v = ([rows[h if name == "q" else h // each] for rows in every[name]] for name in "qkv")
        if term.rotary is not None:
            q, k = ([twin_turn(row, m, term.rotary) for m, row in enumerate(rows)] for rows in (q, k))
        for i in range(n):
            visible = [j for j in range(n) if real[j] and (j <= i or not term.causal) and abs(i - j) < window]
            for j in visible:
                z = scale * (q[i] @ k[j])
                if term.logit_cap is not None:
                    z = term.logit_cap * np.tanh(z / term.logit_cap)
                far = np.exp(-slopes[h] * abs(i - j))
                if term.kernel == "softmax":
                    maps[h, i, j] = weight[j] * far * np.exp(z)
                elif term.kernel == "l2":
                    maps[h, i, j] = weight[j] * far * np.exp(-np.sum((q[i] - k[j]) ** 2) * scale)
                elif term.kernel == "linear":
                    maps[h, i, j] = weight[j] / sum(weight[real]) * z
                else:
                    maps[h, i, j] = weight[j] / sum(weight[real])
            if term.kernel in ("softmax", "l2") and visible:
                maps[h, i] /= sum(maps[h, i])
            for j in visible:
                out[i] += maps[h, i, j] * v[j] @ np.asarray(term.wo)[h]
    if term.bo is not None:
        out = out + np.asarray(term.bo)
    if term.norm_out is not None:
        out = np.stack([twin_norm(term.norm_out, row) for row in out])
    return float(term.strength) * (out - u if term.leak else out), maps
