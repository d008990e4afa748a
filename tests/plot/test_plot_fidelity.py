"""Plots of fidelity and attention draw the numbers of their records, with labels and nulls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from pdejax import Figure
from pdejax.analysis.attention import _fidelity as attention
from pdejax.analysis.residual._fidelity import ResidualDecay
from pdejax.analysis.similarity._layers import MEASURES
from pdejax.analysis.similarity._trajectory import LayerCorrelation, TrajectoryFidelity
from pdejax.plot import _attention as draw
from pdejax.plot import _states as fidelity

L = 4
NUMBERS = iter(np.random.default_rng(0).uniform(0.1, 0.9, 100_000))


def numbers(*shape):
    return jnp.asarray([next(NUMBERS) for _ in range(int(np.prod(shape)))]).reshape(shape)


def interval(*shape):
    value = numbers(*shape)
    return Figure(value, value - 0.05, value + 0.05)


def compared(*shape, nulls=("uniform",)):
    value = numbers(*shape)
    return Figure(value, value - 0.05, value + 0.05, {name: interval(*shape) for name in nulls})


def against(features):
    return compared(L, nulls=("tokens shuffled", *(("features shuffled",) if features else ()), "untrained"))


def curves(ax):
    return {line.get_label(): line.get_ydata() for line in ax.lines}


def labelled(ax):
    assert isinstance(ax, Axes) and ax.get_xlabel() and ax.get_ylabel()
    ax.figure.canvas.draw()  # nothing fails when it is drawn


def test_trajectory_fidelity():
    measures = {name: against(name not in ("cka", "procrustes")) for name in MEASURES if name != "mse"}
    record = TrajectoryFidelity(measures, measures, jnp.zeros(L, bool))
    for name, lines in (("cosine", 4), ("cka", 3)):
        ax = fidelity.trajectory_fidelity(record, name)
        labelled(ax)
        found = curves(ax)
        assert len(found) == lines
        assert np.array_equal(found["tested against reference"], measures[name].value)
        assert np.array_equal(found["tokens shuffled"], measures[name].nulls["tokens shuffled"].value)
        assert np.array_equal(found["untrained"], measures[name].nulls["untrained"].value)
        assert len(ax.collections) == lines  # a band for each
    with pytest.raises(ValueError, match="mse"):
        fidelity.trajectory_fidelity(record, "mse")


def test_layer_correlation_of_two_systems():
    def record(pairs):
        return LayerCorrelation(*(against(False) for _ in range(4)), jnp.zeros(L, bool), pairs)

    cases = (
        (tuple((i, 0) for i in range(L)), "with the input"),
        (tuple((i + 1, i) for i in range(L)), "with the layer before"),
        (tuple((i, i) for i in range(L)), "of both systems"),
    )
    for pairs, words in cases:
        records = {"simulator": record(pairs), "Transformer": record(pairs)}
        given = Canvas().subplots()
        ax = fidelity.layer_correlation(records, "spearman", ax=given)
        assert ax is given and words in ax.get_ylabel()
        labelled(ax)
        for name, r in records.items():
            assert np.array_equal(curves(ax)[name], r.spearman.value)
        assert np.array_equal(ax.lines[0].get_xdata(), [i for i, _ in pairs])
        assert sum(line.get_label() == "tokens shuffled" for line in ax.lines) == 1 and len(ax.lines) == 6
    with pytest.raises(ValueError, match="empty"):
        fidelity.layer_correlation({})


def test_residual_decay_with_both_bounds():
    scalars = [interval() for _ in range(4)]
    rho = compared(L, nulls=("tokens shuffled",))
    record = ResidualDecay(jnp.arange(1.0 * L), rho, numbers(L), numbers(L), *scalars, interval(3))
    ax = fidelity.residual_decay({"bare": record})
    labelled(ax)
    found = curves(ax)
    assert np.array_equal(found["bare"], record.rho.value)
    assert np.array_equal(found["input shuffled"], rho.nulls["tokens shuffled"].value)
    assert np.array_equal(found["sharp bound"], record.sharp)
    assert np.array_equal(found["bound of v2 (17)"], record.claimed)
    bare = ResidualDecay(jnp.arange(1.0 * L), interval(L), None, None, *scalars, interval(3))
    assert len(fidelity.residual_decay(bare).lines) == 1


def test_attention_figures_by_head():
    nulls = ("uniform", "tokens shuffled")
    cosine = compared(L, 2, nulls=(*nulls, "independent", "gaussian"))
    record = attention.AttentionFidelity(cosine, *(compared(L, 2, nulls=nulls) for _ in range(4)), numbers(L, 2), {})
    ax = draw.attention_fidelity(record)
    labelled(ax)
    found = curves(ax)
    assert len(found) == 5
    for h in range(2):
        assert np.array_equal(found[f"head {h}"], cosine.value[:, h])
    assert found["uniform attention"] == pytest.approx(np.mean(np.asarray(cosine.nulls["uniform"]), axis=1))
    assert found["rows shuffled"] == pytest.approx(np.mean(np.asarray(cosine.nulls["tokens shuffled"]), axis=1))
    assert found["independent, $e^{-s^2}$"] == pytest.approx(np.mean(np.asarray(cosine.nulls["gaussian"]), axis=1))
    kl = draw.attention_fidelity(record, "kl")
    labelled(kl)
    assert len(kl.lines) == 4 and "nats" in kl.get_ylabel()
    with pytest.raises(ValueError, match="figure='mse' must be one of"):
        draw.attention_fidelity(record, "mse")


def test_entropy_and_rollout():
    entropy = attention.AttentionEntropy(compared(L, 2), interval(L, 2))
    ax = draw.attention_entropy(entropy)
    labelled(ax)
    assert np.array_equal(curves(ax)["head 1"], entropy.entropy.value[:, 1])
    assert curves(ax)["uniform attention"] == pytest.approx(
        np.mean(np.asarray(entropy.entropy.nulls["uniform"]), axis=1)
    )
    rollout = attention.AttentionRollout(numbers(L, 3, 3), compared(L))
    ax = draw.attention_rollout(rollout)
    labelled(ax)
    assert np.array_equal(curves(ax)["attention rollout"], rollout.own.value)
    assert np.array_equal(curves(ax)["uniform attention"], rollout.own.nulls["uniform"].value)


def test_attention_maps_share_a_scale():
    p, q = (jax.nn.softmax(jax.random.normal(jax.random.key(i), (5, 5))) for i in range(2))
    ax = draw.attention_maps(p, q, names=("Transformer", "simulator"))
    images = [axis.images[0] for axis in ax]
    for image, values in zip(images, (p, q, q - p), strict=True):
        assert np.asarray(image.get_array()) == pytest.approx(np.asarray(values))
    assert images[0].get_clim() == images[1].get_clim() == (0, pytest.approx(float(max(p.max(), q.max()))))
    low, high = images[2].get_clim()
    assert low == -high and ax[2].get_title() == "simulator − Transformer"
    ax[0].figure.canvas.draw()
    given = Canvas().subplots(1, 3)
    assert draw.attention_maps(p, q, ax=given)[0] is given[0]
    with pytest.raises(ValueError, match="three"):
        draw.attention_maps(p, q, ax=Canvas().subplots(1, 2))
    with pytest.raises(ValueError, match="shapes"):
        draw.attention_maps(p, q[:4])
