"""Plots of information draw the numbers of their records and say what they are."""

import jax.numpy as jnp
import numpy as np
import pytest

from pdejax import Figure
from pdejax.analysis.information._depth import InformationPlane, LayerEntropy, Processing
from pdejax.analysis.information._phases import information_phases
from pdejax.analysis.information.channels._channels import Calibration
from pdejax.plot import _information as plot


def interval(value, half=0.1, **nulls):
    value = jnp.asarray(value, float)
    return Figure(value, value - half, value + half, {name.replace("_", " "): null for name, null in nulls.items()})


def plane(several):
    value, told = np.array([3.0, 2.5, 2.0]), np.array([0.1, 0.3, 0.5])
    if several:
        value, told = value + np.arange(4.0)[:, None], told + 0.1 * np.arange(4.0)[:, None]
    no = jnp.zeros(value.shape, bool)
    return InformationPlane(
        interval(value), interval(told, y_permuted=interval(0.02 * value, 0.01)),
        jnp.asarray(value + 9), jnp.asarray(told + 1), no, no, jnp.asarray(0.5), "kde", 100,
    )  # fmt: skip


def processing(where="in the chain", change=(0.5, -0.5)):
    value = np.array([1.0, 1.5, 1.0])
    full = jnp.asarray([False, False, True])
    return Processing(
        interval(value, x_permuted=interval(np.zeros(3), 0.02)),
        interval(change),
        jnp.full(3, 4.0),
        full,
        None,
        where,
        "ksg",
        50,
    )


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_calibration():
    estimate = np.array([[[1.1], [2.0]], [[np.nan], [1.5]]])
    record = Calibration(estimate, estimate == 2.0, np.array([1.0, 1.75]), ("ksg", "club"), ("one", "two"), 30)
    ax = plot.calibration(record)
    np.testing.assert_allclose(ax.images[0].get_array().filled(np.nan), [[0.1, np.nan], [0.25, -0.25]])
    assert [t.get_text() for t in ax.texts] == ["+0.10", "+0.25*", "-0.25"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["one (1.00)", "two (1.75)"]
    assert "estimator" in ax.get_xlabel() and "nats" in ax.get_ylabel() and "30 pairs" in ax.get_title()


@pytest.mark.parametrize("several", [False, True])
def test_information_plane(several):
    record = plane(several)
    ax = plot.information_plane(record)
    assert ax.get_xlabel() == "I(X; T) (nats)" and ax.get_ylabel() == "I(T; Y) (nats)" and "σ = 0.5" in ax.get_title()
    drawn = lines(ax)
    np.testing.assert_allclose(
        drawn["Y permuted"].get_ydata(), np.sort(np.ravel(record.target.nulls["y permuted"].value)), rtol=1e-6
    )
    if several:
        np.testing.assert_allclose(drawn["layer 1"].get_xdata(), record.input.value[:, 1])
        np.testing.assert_allclose(drawn["layer 1"].get_ydata(), record.target.value[:, 1])
    else:
        points = np.concatenate([c.get_offsets() for c in ax.collections if len(c.get_offsets()) == 3])
        np.testing.assert_allclose(points, np.stack([record.input.value, record.target.value], 1))


def test_data_processing():
    record = processing()
    ax = plot.data_processing(record)
    drawn = lines(ax)
    np.testing.assert_allclose(drawn["I(X; T)"].get_ydata(), record.information.value)
    np.testing.assert_allclose(drawn["excluded by theory"].get_ydata(), [1.0, 1.5])
    np.testing.assert_allclose(drawn["saturated"].get_xdata(), [2])
    np.testing.assert_allclose(drawn["X permuted"].get_ydata(), 0)
    assert "layer" in ax.get_xlabel() and "nats" in ax.get_ylabel() and "noise in the chain" in ax.get_title()
    assert "excluded by theory" not in lines(plot.data_processing(processing("at read-out")))


def test_layer_entropy():
    no = jnp.zeros(3, bool)
    record = LayerEntropy(
        interval([1.0, 2.0, 3.0], features_shuffled=interval([2.0, 2.5, 3.5])),
        jnp.full(3, jnp.inf),
        no,
        None,
        "knn",
        40,
    )
    ax = plot.layer_entropy(record, ax=plot.axes_of(None))
    np.testing.assert_allclose(lines(ax)["representation"].get_ydata(), [1, 2, 3])
    np.testing.assert_allclose(lines(ax)["features shuffled apart"].get_ydata(), [2, 2.5, 3.5])
    assert "nats" in ax.get_ylabel() and "no noise added" in ax.get_title()


def test_information_phases():
    curve = np.where(np.arange(20) < 10, np.arange(20.0), 10.0) + 0.01 * np.sin(np.arange(20.0))
    record = information_phases(curve, resamples=0)
    axes = plot.information_phases(record)
    assert axes.shape == (2,) and all(ax.get_xlabel() and ax.get_ylabel() for ax in axes)
    drawn = axes[0].get_lines()
    np.testing.assert_allclose(drawn[0].get_ydata(), curve)
    pieces = int(record.pieces)
    fitted = np.concatenate([line.get_ydata() for line in drawn[1 : 1 + pieces]])
    np.testing.assert_allclose(fitted, record.fitted[:, 0])
    np.testing.assert_allclose([line.get_xdata()[0] for line in drawn[1 + pieces :]], record.breakpoints)
    np.testing.assert_allclose(axes[1].get_lines()[0].get_xdata(), float(record.gain))
