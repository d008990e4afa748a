"""Plots of spectra, clustering and representations draw the numbers of their records, with labels and nulls."""

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from pdejax.analysis.spectra._amplitude import amplitude_spectrum, low_pass_ratio, spectral_similarity
from pdejax.analysis.spectra._weights import attention_spectra
from pdejax.analysis.tokens._clustering import token_clustering
from pdejax.analysis.tokens._collapse import collapse_rate
from pdejax.analysis.tokens._representation import representation
from pdejax.plot import _states
from pdejax.terms import Attention

KEY = jax.random.key(0)
FEW = {"key": KEY, "resamples": 20}


def states(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape)


def lines(ax) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_ydata(), float) for line in ax.get_lines()}


def labelled(*axes):
    for ax in axes:
        assert ax.get_xlabel() and ax.get_ylabel()
        assert isinstance(ax.figure, matplotlib.figure.Figure)
    axes[0].figure.canvas.draw()


def test_amplitude_spectrum():
    a, b = (amplitude_spectrum(states(2, 3, 12, 12, seed=i), **FEW) for i in (1, 2))
    left, right = _states.amplitude_spectrum(a, b, labels=("A", "B"), layer=1)
    labelled(left, right)
    assert "cycles per token" in left.get_xlabel() and "units of u" in left.get_ylabel()
    drawn = lines(left)
    np.testing.assert_array_equal(drawn["A"], a.amplitude.value[1])
    np.testing.assert_array_equal(drawn["B"], b.amplitude.value[1])
    np.testing.assert_array_equal(drawn["A, tokens shuffled"], a.amplitude.nulls["tokens shuffled"].value[1])
    np.testing.assert_array_equal(lines(right)["B"], b.cumulative.value[1])
    again = _states.amplitude_spectrum(a, ax=[left, right])
    assert again[0] is left
    with pytest.raises(ValueError, match="labels"):
        _states.amplitude_spectrum(a, b, labels=("A",))
    with pytest.raises(ValueError, match="Axes"):
        _states.amplitude_spectrum(a, ax=[left])
    with pytest.raises(ValueError, match="same axis"):
        _states.amplitude_spectrum()


def test_similarity_and_low_pass():
    u, v = states(2, 3, 12, 12), states(2, 3, 12, 12, seed=2)
    record = spectral_similarity(u, v, **FEW)
    ax = _states.spectral_similarity(record)
    labelled(ax)
    np.testing.assert_array_equal(lines(ax)["cosine"], record.token["cosine"].value)
    np.testing.assert_array_equal(lines(ax)["correlation of logarithms"], record.token["log_correlation"].value)
    np.testing.assert_array_equal(
        lines(ax)["cosine, tokens shuffled"], record.token["cosine"].nulls["tokens shuffled"].value
    )
    assert "features" in _states.spectral_similarity(record, axis="feature").get_ylabel()
    narrow = spectral_similarity(u, v[..., :3], **FEW)
    with pytest.raises(ValueError, match="width"):
        _states.spectral_similarity(narrow, axis="feature")
    record = low_pass_ratio(u, **FEW)
    ax = _states.low_pass_ratio(record)
    labelled(ax)
    np.testing.assert_array_equal(lines(ax)["hidden states"], record.share.value)
    np.testing.assert_array_equal(lines(ax)["random directions"], record.share.nulls["random directions"].value)


def test_attention_spectra():
    record = attention_spectra(Attention(8, 2, key=KEY), key=KEY)
    for layer in (None, 0):
        axes = _states.attention_spectra(record, layer=layer)
        labelled(*axes)
        for ax, circuit, radius in ((axes[0], record.qk, record.qk_radius), (axes[1], record.ov, record.ov_radius)):
            dots = np.concatenate([c.get_offsets() for c in ax.collections[1:]])
            expected = (np.asarray(circuit.eigenvalues) / np.asarray(radius)[..., None]).ravel()
            np.testing.assert_allclose(np.sort(dots[:, 0]), np.sort(expected.real), rtol=1e-12)
            np.testing.assert_allclose(np.sort(dots[:, 1]), np.sort(expected.imag), rtol=1e-12, atol=1e-15)
            circle = ax.get_lines()[0]
            np.testing.assert_allclose(np.hypot(*circle.get_data()), 1, rtol=1e-12)


def test_clustering():
    record = token_clustering(states(2, 3, 10, 6), **FEW)
    axes = _states.token_clustering(record)
    labelled(*axes)
    for ax, figure in zip(axes, (record.cosine, record.clusters, record.effective_rank, record.residual), strict=True):
        np.testing.assert_array_equal(lines(ax)["hidden states"], figure.value)
        np.testing.assert_array_equal(lines(ax)["random directions"], figure.nulls["random directions"].value)
    ax = _states.consensus_distance(record)
    labelled(ax)
    assert ax.get_yscale() == "log"
    np.testing.assert_array_equal(lines(ax)["mean"], record.distance.value)
    np.testing.assert_array_equal(
        lines(ax)["largest, random directions"], record.diameter.nulls["random directions"].value
    )
    ax = _states.token_cosines(record)
    labelled(ax)
    steps = ax.patches
    width = 2 / record.histogram.shape[1]
    assert len(steps) == 3
    np.testing.assert_allclose(steps[1].get_data().values * width, record.histogram[1], rtol=1e-12)
    np.testing.assert_allclose(
        steps[2].get_data().values * width, record.histogram.nulls["random directions"][-1], rtol=1e-12
    )


def test_collapse_rate():
    t = 4 * np.linspace(0, 1, 121)
    for law, gap, exact in (
        ("exponential", np.exp(-2 * t), 2.0),
        ("algebraic", (t + 0.7) ** -2.0, 2.0),
        ("blowup", 1 / (4.5 - t), 4.5),
    ):
        record = collapse_rate(t, gap, law=law, exact=exact)
        ax = _states.collapse_rate(record)
        labelled(ax)
        drawn = lines(ax)
        np.testing.assert_array_equal(drawn["measured"], gap)
        fit = next(values for name, values in drawn.items() if f"{law} fit" in name)
        np.testing.assert_array_equal(fit, record.fitted[0])
        # The exact law is that of these data.
        np.testing.assert_allclose(drawn[f"exact, {exact:.4g}"], gap, rtol=1e-6)
    assert not any("exact" in name for name in lines(_states.collapse_rate(collapse_rate(t, np.exp(-t)))))


def test_representation():
    record = representation(jnp.asarray(states(2, 4, 12, 5)), **FEW)
    axes = _states.representation(record)
    labelled(*axes)
    figures = (
        record.participation_ratio,
        record.effective_rank,
        record.sparsity,
        record.magnitude,
        record.diversity,
        record.diversity_cosine,
    )
    for ax, figure in zip(axes, figures, strict=True):
        np.testing.assert_array_equal(lines(ax)["hidden states"], figure.value)
        np.testing.assert_array_equal(lines(ax)["gaussian null"], figure.nulls["gaussian"].value)
