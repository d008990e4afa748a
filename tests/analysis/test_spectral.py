"""Spectra of hidden states: pure tones, Parseval, padding, diffusion, white noise and its closed form, low-pass maps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax import exact
from pdejax.analysis.spectra._amplitude import (
    amplitude_spectrum,
    low_pass_ratio,
    spectral_similarity,
    white_noise_similarity,
)

L, B, N, D = 2, 3, 12, 12
KEY = jax.random.key(0)
FEW = {"key": KEY, "resamples": 20}
FIGURES = ("cosine", "correlation", "log_correlation")
LENGTHS = (12, 9, 1)
MASK = np.arange(N)[None] < np.array(LENGTHS)[:, None]
MASK[0, 3] = MASK[1, 0] = False  # real tokens need not come first: 11, 8 and 1 of them


def states(seed=1, shape=(L, B, N, D)):
    return np.random.default_rng(seed).standard_normal(shape)


def test_pure_tone():
    """2 cos(2π·3 j/n + φ) with a phase per feature: all energy in one line, amplitude √n there, in both directions."""
    phase = np.arange(D) / 5
    tone = 2 * np.cos(2 * np.pi * 3 * np.arange(N)[:, None] / N + phase[None])
    found = amplitude_spectrum(np.broadcast_to(tone, (L, B, N, D)), **FEW)
    expected = np.zeros(N // 2 + 1)
    expected[3] = math.sqrt(N)
    np.testing.assert_allclose(found.frequencies, np.arange(7) / 12, rtol=1e-15)
    np.testing.assert_allclose(found.amplitude.value, np.broadcast_to(expected, (L, 7)), atol=1e-13)
    np.testing.assert_allclose(found.power[0], np.where(expected > 0, 2.0, 0), atol=1e-13)
    np.testing.assert_allclose(found.cumulative.value[0], np.arange(7) >= 3, atol=1e-13)
    # In a random order the same tokens have a flat spectrum beyond the constant line.
    assert float(np.max(found.cumulative.nulls["tokens shuffled"].value[0][:3])) > 0.05
    across = amplitude_spectrum(np.broadcast_to(tone.T, (L, B, N, D)), axis="feature", **FEW)
    np.testing.assert_allclose(across.amplitude.value[0], expected, atol=1e-13)


@pytest.mark.parametrize("axis", ["token", "feature"])
def test_against_numpy(axis):
    u = states()
    found = amplitude_spectrum(u, axis=axis, **FEW)
    place = 2 if axis == "token" else 3
    size = u.shape[place]
    lines = np.abs(np.fft.rfft(u, axis=place)) / math.sqrt(size)
    lines = lines if axis == "token" else np.swapaxes(lines, 2, 3)
    np.testing.assert_allclose(found.amplitude.value, lines.mean(axis=(1, 3)), rtol=1e-13)
    np.testing.assert_allclose(found.power.sum(axis=1), (u**2).mean(axis=(1, 2, 3)), rtol=1e-13)
    weight = np.where((np.arange(size // 2 + 1) == 0) | (2 * np.arange(size // 2 + 1) == size), 1, 2)
    energy = (lines**2).sum(axis=3) * weight
    share = np.cumsum(energy, axis=2) / energy.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(found.cumulative.value, share.mean(axis=1), rtol=1e-13)


def test_unequal_lengths_by_a_slow_twin():
    """Every line's energy spread over its cell and collected by the common cells: overlaps of all pairs, in NumPy."""
    u = np.where(MASK[None, :, :, None], states(2), np.nan)
    found = amplitude_spectrum(u, mask=MASK, **FEW)
    longest = 11
    power, amplitude = np.zeros((L, 6)), np.zeros((L, 6))
    common = np.clip((np.arange(7) - 0.5) / longest, 0, 0.5)
    for layer in range(L):
        for i in range(B):
            x = u[layer, i][MASK[i]]
            n = x.shape[0]
            k = np.arange(n // 2 + 1)
            lines = np.where((k == 0) | (2 * k == n), 1, 2)[:, None] * np.abs(np.fft.rfft(x, axis=0) / n) ** 2
            moved = np.zeros((6, D))
            moved[0] = lines[0]
            for j in range(1, n // 2 + 1):
                left, right = (j - 0.5) / n, min((j + 0.5) / n, 0.5)
                overlap = np.clip(np.minimum(right, common[1:]) - np.maximum(left, common[:-1]), 0, None)
                if j == 1:  # below the first cell there is nothing, and the constant line stays alone
                    overlap[0] = 0
                    overlap[1:] = np.clip(np.minimum(right, common[2:]) - np.maximum(left, common[1:-1]), 0, None)
                moved += overlap[:, None] / (right - left) * lines[j]
            np.testing.assert_allclose(moved.sum(axis=0), (x**2).mean(axis=0), rtol=1e-12)
            power[layer] += moved.mean(axis=1) / B
            amplitude[layer] += np.sqrt(moved * longest / np.array([1, 2, 2, 2, 2, 2])[:, None]).mean(axis=1) / B
    np.testing.assert_allclose(found.frequencies, np.arange(6) / longest, rtol=1e-15)
    np.testing.assert_allclose(found.power, power, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(found.amplitude.value, amplitude, rtol=1e-11, atol=1e-12)


def test_padding_never_enters():
    u = states(2)
    dirty = np.where(MASK[None, :, :, None], u, np.nan)
    wider = np.concatenate([dirty, np.full((L, B, 3, D), np.inf)], axis=2)
    mask = np.concatenate([MASK, np.zeros((B, 3), bool)], axis=1)
    clean = amplitude_spectrum(u, mask=MASK, **FEW)
    for other in (amplitude_spectrum(dirty, mask=MASK, **FEW), amplitude_spectrum(wider, mask=mask, **FEW)):
        assert clean.amplitude.value.shape == other.amplitude.value.shape
        for a, b in ((clean.amplitude, other.amplitude), (clean.cumulative, other.cumulative)):
            np.testing.assert_allclose(a, b, rtol=1e-12)
    a, b = (amplitude_spectrum(x, mask=MASK, axis="feature", window="hann", **FEW) for x in (u, dirty))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), a, b)
    a, b = (spectral_similarity(x, states(3), mask=MASK, **FEW) for x in (u, dirty))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13), a, b)
    a, b = (low_pass_ratio(x, mask=MASK, **FEW) for x in (u, dirty))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


def test_diffusion_of_modes():
    """Periodic diffusion multiplies line k by e^{λ_k t}, exactly, whatever the field."""
    u0 = jnp.asarray(states(4, (N, D)))
    depths = (0.0, 0.3)
    us = jnp.stack([exact.heat_solution(u0, 0.02, t, "periodic", 1.0) for t in depths])
    us = jnp.broadcast_to(us[:, None], (L, B, N, D))
    found = np.asarray(amplitude_spectrum(us, **FEW).amplitude.value)
    rates = [float(exact.heat_eigenvalues(N, "periodic", 0.02, 1 / N, k=k)) for k in range(N // 2 + 1)]
    np.testing.assert_allclose(found[1] / found[0], np.exp(0.3 * np.array(rates)), rtol=1e-9)


def test_white_noise_is_flat_and_alike():
    """Flat at √π/2; two independent noises have the closed-form cosine, π/4 for each channel, and uncorrelated spectra."""
    n, d, b = 256, 8, 16
    u, v = states(5, (1, b, n, d)), states(6, (1, b, n, d))
    found = amplitude_spectrum(u, **FEW)
    inner = np.asarray(found.amplitude.value)[0, 1:-1]
    scatter = math.sqrt((1 - math.pi / 4) / (b * d))
    assert abs(inner.mean() / (math.sqrt(math.pi) / 2) - 1) < 4 * scatter / math.sqrt(inner.size)
    assert np.abs(inner - inner.mean()).max() < 4.5 * scatter
    np.testing.assert_allclose(found.cumulative.value[0], np.arange(1, 130) / 129, atol=0.03)
    assert white_noise_similarity(8) == pytest.approx(0.967, abs=5e-4)
    assert white_noise_similarity(1) == pytest.approx(math.pi / 4, rel=1e-15)
    for pool, expected in ((True, white_noise_similarity(d)), (False, math.pi / 4)):
        noise = spectral_similarity(u, v, pool=pool, **FEW).token
        # The two real lines, k = 0 and n/2, lower it a little; b·129 lines of scatter.
        assert float(noise["cosine"].value[0]) == pytest.approx(expected, abs=3e-3)
        assert float(noise["cosine"].nulls["tokens shuffled"].value[0]) == pytest.approx(expected, abs=3e-3)
        assert abs(float(noise["correlation"].value[0])) < 4 / math.sqrt(b * 127)
        assert abs(float(noise["log_correlation"].value[0])) < 4 / math.sqrt(b * 127)


def test_similarity_against_numpy():
    u, v, w = states(7), states(8), states(9)
    found = spectral_similarity(u, v, untrained=w, **FEW)
    each = spectral_similarity(u, v, pool=False, **FEW)
    assert set(found.token["cosine"].nulls) == {"tokens shuffled", "features shuffled", "untrained"}

    def expected(a, b, layer, pooled, axis):
        values = []
        for i in range(B):
            x, y = (np.abs(np.fft.rfft(z[layer, i] if axis == "token" else z[layer, i].T, axis=0)) for z in (a, b))
            if pooled:
                x, y = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
            columns = []
            for p, q in zip(x.T, y.T, strict=True):
                lines = [p @ q / np.linalg.norm(p) / np.linalg.norm(q)]
                lines += [np.corrcoef(p[1:], q[1:])[0, 1], np.corrcoef(np.log(p[1:]), np.log(q[1:]))[0, 1]]
                columns.append(lines)
            values.append(np.mean(columns, axis=0))
        return np.mean(values, axis=0)

    for layer in range(L):
        for record, other, null, pooled in (
            (found, v, None, True),
            (each, v, None, False),
            (found, w, "untrained", True),
        ):

            def at(along, null=null, layer=layer):
                return [float((along[f].nulls[null] if null else along[f])[layer]) for f in FIGURES]

            got = at(record.token)
            np.testing.assert_allclose(got, expected(u, other, layer, pooled, "token"), rtol=1e-11, atol=1e-13)
            got = at(record.feature)
            np.testing.assert_allclose(got, expected(u, other, layer, pooled, "feature"), rtol=1e-11, atol=1e-13)
    # Pooled over features, the order of features cannot matter.
    np.testing.assert_allclose(found.token["cosine"].minus("features shuffled"), 0, atol=1e-14)
    assert float(np.max(np.abs(each.token["cosine"].minus("features shuffled")))) > 1e-3


def test_similarity_of_degenerate_states():
    u = states(7)
    same = spectral_similarity(u, 3 * u, **FEW).token
    for figure in same.values():
        np.testing.assert_allclose(figure, 1, rtol=1e-13)
    assert np.all(np.asarray(same["log_correlation"].minus("tokens shuffled")) > 0.1)
    for other in (np.zeros_like(u), np.ones_like(u)):
        found = spectral_similarity(u, other, **FEW).token
        assert np.all(np.asarray(found["correlation"]) == 0)
        assert np.all(np.asarray(found["log_correlation"]) == 0)
        assert np.all(np.isfinite(np.asarray(found["cosine"])))
    narrow = spectral_similarity(u, u[..., :3], **FEW)
    assert narrow.feature is None and narrow.token["cosine"].shape == (L,)
    silent = amplitude_spectrum(np.zeros_like(u), **FEW)
    assert np.all(np.asarray(silent.amplitude.value) == 0)
    assert np.all(np.asarray(silent.cumulative.value) == 1)


@pytest.mark.slow
def test_window_lowers_leakage():
    """A tone between two lines leaks everywhere; tapered, far lines hold orders of magnitude less, and the mean stays."""
    tone = np.cos(2 * np.pi * 2.5 * np.arange(N) / N)[:, None] + 4 + np.zeros((N, D))
    u = np.broadcast_to(tone, (L, B, N, D))
    plain, tapered = (np.asarray(amplitude_spectrum(u, window=w, **FEW).amplitude.value)[0] for w in (None, "hann"))
    assert tapered[6] < 0.2 * plain[6]
    assert tapered[0] == pytest.approx(plain[0], rel=0.05)


def test_the_window_keeps_the_energy_of_a_tone():
    """Hann's 1 − cos puts half the amplitude on either neighbour: ⅔, ⅙ and ⅙ of a tone's energy on lines 3, 2 and 4."""
    tone = 2 * np.cos(2 * np.pi * 3 * np.arange(N)[:, None] / N + np.arange(D)[None] / 5)
    found = amplitude_spectrum(np.broadcast_to(tone, (L, B, N, D)), window="hann", **FEW)
    np.testing.assert_allclose(found.power[0], 2.0 * np.asarray([0, 0, 1 / 6, 2 / 3, 1 / 6, 0, 0]), atol=1e-13)


def test_row_stochastic_maps_are_low_pass():
    rng = np.random.default_rng(10)
    average = rng.uniform(0.1, 1, (N, N))
    average /= average.sum(axis=1, keepdims=True)
    start = rng.standard_normal((B, N, D))
    us = np.stack([start, np.linalg.matrix_power(average, 5) @ start])
    found = low_pass_ratio(us, **FEW)
    mean = us.mean(axis=2, keepdims=True)
    high, low = ((us - mean) ** 2).sum(axis=(2, 3)), N * (mean**2).sum(axis=(2, 3))
    np.testing.assert_allclose(found.share.value, (high / (high + low)).mean(axis=1), rtol=1e-11)
    np.testing.assert_allclose(found.ratio, np.sqrt(high.sum(axis=1) / low.sum(axis=1)), rtol=1e-11)
    # Wang et al., Theorem 1, at the rate of the second eigenvalue; random directions keep 1 − 1/n.
    second = np.sort(np.abs(np.linalg.eigvals(average)))[-2]
    assert float(found.ratio[1]) < 3 * second**5 * float(found.ratio[0])
    np.testing.assert_allclose(found.share.nulls["random directions"], 1 - 1 / N, atol=0.06)
    edge = us - mean
    edge[1] = 0
    found = low_pass_ratio(edge, **FEW)
    np.testing.assert_allclose(found.share.value, [1, 0], rtol=1e-13)
    assert float(found.ratio[0]) > 1e13 and float(found.ratio[1]) == 0
    exactly = np.zeros((L, B, N, D))
    exactly[:, :, :2, 0] = [1.0, -1.0]
    assert np.all(np.asarray(low_pass_ratio(exactly, **FEW).ratio) == math.inf)


@pytest.mark.slow
def test_jit_and_vmap():
    u, mask = jnp.asarray(states(2)), jnp.asarray(MASK)
    eager = amplitude_spectrum(u, mask=mask, **FEW)
    traced = jax.jit(lambda x, m: amplitude_spectrum(x, mask=m, **FEW))(u, mask)
    assert traced.power.shape == (L, 7)
    np.testing.assert_allclose(traced.power[:, :6], eager.power, rtol=1e-12)
    assert np.all(np.asarray(traced.power)[:, 6] == 0)
    many = jax.vmap(lambda x: low_pass_ratio(x, **FEW))(jnp.stack([u, 2 * u]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1], y, rtol=1e-12), many, low_pass_ratio(u, **FEW))


@pytest.mark.slow
def test_float32():
    u = states(2)
    low = amplitude_spectrum(u.astype(np.float32), mask=MASK, **FEW)
    high = amplitude_spectrum(u, mask=MASK, **FEW)
    assert low.power.dtype == jnp.float32
    np.testing.assert_allclose(low.amplitude.value, high.amplitude.value, rtol=2e-5, atol=1e-6)


def test_bad_input():
    u = states()
    for options, error, words in (
        ({"axis": "depth"}, ValueError, "axis='depth'"),
        ({"window": "box"}, ValueError, "window='box'"),
        ({"resamples": 3}, ValueError, "resamples"),
        ({"mask": np.zeros(N, bool)}, ValueError, "no real token"),
    ):
        with pytest.raises(error, match=words):
            amplitude_spectrum(u, **{"key": KEY, **options})
    with pytest.raises(ValueError, match="must match"):
        spectral_similarity(u, u[:1], key=KEY)
    with pytest.raises(ValueError, match="pool=False"):
        spectral_similarity(u, u[..., :3], key=KEY, pool=False)
    with pytest.raises(TypeError, match="pool"):
        spectral_similarity(u, u, key=KEY, pool="yes")
    with pytest.raises(ValueError, match="not finite"):
        low_pass_ratio(np.where(u > 2, np.nan, u), key=KEY)
    with pytest.raises(ValueError, match="channels"):
        white_noise_similarity(0)
