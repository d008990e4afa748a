"""Eigenvalues of attention's circuits: closed forms, NumPy's dense matrices, the Gaussian null and its radius."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdejax import Architecture, DepthVarying, FeedForward, MasterEquation, Transformer, lift
from pdejax.analysis.spectra._weights import attention_spectra
from pdejax.studies.numerics._verify_cases import with_weights
from pdejax.terms import Attention, RMSNorm

KEY = jax.random.key(0)


def dense(w: np.ndarray) -> dict[str, np.ndarray]:
    """Everything from the d × d matrix itself."""
    s, a = 0.5 * (w + w.T), 0.5 * (w - w.T)
    return {
        "values": np.linalg.eigvals(w),
        "symmetric": np.linalg.eigvalsh(s),
        "rotation": np.sort(np.linalg.eigvals(a).imag),
        "share": np.sum(s**2) / np.sum(w**2),
    }


def same_set(found, expected, tolerance):
    """Two multisets of complex numbers, matched one by one."""
    left = list(np.asarray(expected))
    for value in np.asarray(found):
        nearest = int(np.argmin(np.abs(np.array(left) - value)))
        assert abs(left.pop(nearest) - value) < tolerance


def test_transformer_against_dense_matrices():
    config = Architecture(
        vocab=4, dim=12, heads=3, layers=2, ffn=8, residual_scale=0.5, dtype="float64", param_dtype="float64"
    )
    model = Transformer(config, rngs=nnx.Rngs(0))
    names = model.parameters()
    rng = np.random.default_rng(0)
    names["layers/norm1/scale"] = jnp.asarray(rng.uniform(0.5, 2, names["layers/norm1/scale"].shape))
    model = Transformer.from_parameters(config, names)
    found, w = attention_spectra(model, key=KEY), model.layer_weights()
    for layer in range(2):
        g = np.asarray(w["norm1"]["scale"])[layer][:, None]
        for head in range(3):
            q, k, v = (g * np.asarray(w[name])[layer, :, head] for name in ("wq", "wk", "wv"))
            for circuit, matrix in (
                (found.qk, q @ k.T / 2.0),
                (found.ov, 0.5 * v @ np.asarray(w["wo"])[layer, head]),
            ):
                expected = dense(matrix)
                values = np.asarray(circuit.eigenvalues)[layer, head]
                assert values.shape == (4,) and np.all(np.diff(np.abs(values)) <= 1e-12)
                same_set(np.concatenate([values, np.zeros(8)]), expected["values"], 1e-7)
                np.testing.assert_allclose(circuit.symmetric[layer, head], expected["symmetric"], atol=1e-12)
                np.testing.assert_allclose(circuit.rotation[layer, head], expected["rotation"], atol=1e-7)
                assert float(circuit.symmetric_share[layer, head]) == pytest.approx(expected["share"], rel=1e-12)
                assert float(circuit.norm[layer, head]) == pytest.approx(np.linalg.norm(matrix), rel=1e-12)
                assert float(circuit.radius[layer, head]) == pytest.approx(np.abs(values).max(), rel=1e-12)
                assert float(circuit.positive[layer, head]) == np.mean(values.real > 0)
    again = attention_spectra(lift(model).field, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, found, again)


def test_grouped_heads_with_norms_of_queries_and_keys():
    """Each head with the keys and values of its group, the scales folded in, the logits' own scale."""
    term = Attention(6, 4, kv_heads=2, head_dim=3, norm_q=RMSNorm(3), norm_k=RMSNorm(6), logit_scale=0.4, key=KEY)
    rng = np.random.default_rng(0)
    gq, gk = rng.uniform(0.5, 2, 3), rng.uniform(0.5, 2, 6)
    term = eqx.tree_at(lambda a: (a.norm_q.scale, a.norm_k.scale), term, (jnp.asarray(gq), jnp.asarray(gk)))
    found = attention_spectra(term, key=KEY)
    wq, wk, wv, wo = (np.asarray(w) for w in (term.wq, term.wk, term.wv, term.wo))
    for h in range(4):
        k = wk[:, h // 2] * gk[3 * (h // 2) : 3 * (h // 2) + 3]
        expected = dense(0.4 * (wq[:, h] * gq) @ k.T)
        np.testing.assert_allclose(found.qk.symmetric[0, h], expected["symmetric"], atol=1e-12)
        np.testing.assert_allclose(found.ov.symmetric[0, h], dense(wv[:, h // 2] @ wo[h])["symmetric"], atol=1e-12)


def test_symmetric_and_rotating_circuits():
    """W_Q = W_K is symmetric and positive, V O a rotation by 90°: eigenvalues ±i."""
    term = Attention(2, 1, key=KEY)
    turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    term = with_weights(term, wk=term.wq, wv=jnp.eye(2)[:, None], wo=turn[None])
    found = attention_spectra(MasterEquation(interaction=term), key=KEY)
    assert float(found.qk.symmetric_share[0, 0]) == pytest.approx(1, rel=1e-14)
    assert float(found.qk.positive[0, 0]) == 1 and np.allclose(np.asarray(found.qk.rotation), 0)
    assert float(found.ov.symmetric_share[0, 0]) == 0 and float(found.ov.positive[0, 0]) == 0
    same_set(found.ov.eigenvalues[0, 0], [1j, -1j], 1e-14)
    np.testing.assert_allclose(found.ov.rotation[0, 0], [-1, 1], rtol=1e-14)
    silent = attention_spectra(with_weights(term, wo=jnp.zeros((1, 2, 2))), key=KEY)
    assert float(silent.ov.symmetric_share[0, 0]) == 0.5 and float(silent.ov.radius[0, 0]) == 0
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(silent))


def test_gaussian_weights_fill_the_circle():
    """The null's radius by random-matrix theory, for d_k below d and for a head as wide as the field."""
    for heads, size in ((4, None), (1, 96), (1, 160)):
        term = Attention(96, heads, key=KEY, head_dim=size, norm=RMSNorm(96))
        found = attention_spectra(term, key=jax.random.key(1))
        for circuit, radius in (
            (found.qk, found.qk_radius),
            (found.ov, found.ov_radius),
            (found.qk_null, found.qk_radius),
            (found.ov_null, found.ov_radius),
        ):
            assert circuit.eigenvalues.shape[-1] == min(96, term.wq.shape[-1])
            ratio = np.asarray(circuit.radius / radius)
            assert np.all((ratio > 0.8) & (ratio < 1.35)), ratio
            np.testing.assert_allclose(circuit.symmetric_share, 0.5, atol=0.06)
            np.testing.assert_allclose(circuit.positive, 0.5, atol=0.25)
    # Fresh weights are Gaussian, so nothing may stand out; a planted direction does.
    planted = eqx.tree_at(lambda a: a.wv, term, term.wv.at[:, 0].add(jnp.swapaxes(term.wo, 1, 2)[0]))
    assert float(attention_spectra(planted, key=KEY).ov.positive[0, 0]) > 0.9


def test_bad_input():
    term = Attention(4, 2, key=KEY)
    with pytest.raises(TypeError, match="FeedForward"):
        attention_spectra(FeedForward(4, 8, key=KEY), key=KEY)
    with pytest.raises(TypeError, match="NoneType"):
        attention_spectra(MasterEquation(reaction=FeedForward(4, 8, key=KEY)), key=KEY)
    with pytest.raises(TypeError, match="jit"):
        eqx.filter_jit(lambda a: attention_spectra(a, key=KEY).qk.norm)(term)
    with pytest.raises(ValueError, match="finite"):
        attention_spectra(with_weights(term, wq=term.wq * jnp.nan), key=KEY)
    layered = DepthVarying.from_layers([MasterEquation(interaction=term)] * 3, 1.0)
    assert attention_spectra(layered, key=KEY).qk.norm.shape == (3, 2)
