"""Plots of gradients, singular values, perturbations and exponents draw the numbers of their records."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.axes import Axes

from pdejax._figure import Figure
from pdejax.analysis.jacobian._gradient_flow import GradientFlow, stack_gradient_flows
from pdejax.analysis.jacobian._lyapunov import FTLE, LyapunovExponents
from pdejax.analysis.jacobian._operator import SingularValues
from pdejax.analysis.jacobian._perturbation import PerturbationSensitivity, Response
from pdejax.plot._dynamics import (
    ftle_map,
    gradient_flow,
    gradient_history,
    lyapunov_exponents,
    perturbation_response,
    singular_values,
)


def interval(value):
    value = jnp.asarray(value, float)
    return Figure(value, 0.9 * value, 1.1 * value)


def lines(ax):
    return [np.stack(line.get_data()) for line in ax.get_lines()]


def drawn(ax, x, y):
    wanted = np.stack([np.asarray(x, float), np.asarray(y, float)])
    return any(line.shape == wanted.shape and np.allclose(np.asarray(line, float), wanted) for line in lines(ax))


@pytest.fixture
def flow():
    states = jnp.asarray([[1.0, 0.5, 0.2], [2.0, 0.7, 0.1]])
    median = jnp.median(states, axis=0)
    beside = Figure(median, 0.9 * median, 1.1 * median, {"labels": interval(2 * median)})
    return GradientFlow(
        jnp.arange(3.0), jnp.ones(2), states, states[:, 1:], states[0, 1:], beside, interval(jnp.ones(3))
    )


def test_gradients(flow):
    ax = gradient_flow(flow)
    assert isinstance(ax, Axes) and ax.get_yscale() == "log" and "depth" in ax.get_xlabel() and ax.get_ylabel()
    assert drawn(ax, flow.depths, flow.median.value) and drawn(ax, flow.depths, flow.median.nulls["labels"].value)
    assert drawn(ax, flow.depths, flow.states[1]) and drawn(ax, [0.5, 1.5], flow.batch_parameters)
    assert gradient_flow(flow, ax=ax) is ax
    history = stack_gradient_flows([flow, jax.tree.map(lambda x: 3 * x, flow)], [0, 50])
    ax = gradient_history(history)
    assert drawn(ax, [0, 50], [flow.median.value[2], 3 * flow.median.value[2]]) and "step" in ax.get_xlabel()


def test_singular_values():
    values, weights = jnp.asarray([3.0, 1.0, 0.5]), jnp.asarray([0.2, 0.5, 0.3])
    ends = jnp.asarray([True, False])
    zero = jnp.zeros(())
    record = SingularValues(
        values, weights, weights, values[0], values[2], ends, jnp.zeros((2, 3)), zero, zero, zero + 2.0
    )
    ax = singular_values(record)
    assert drawn(ax, [0.5, 1.0, 3.0], [0.3, 0.8, 1.0]) and drawn(ax, [3.0], [1]) and drawn(ax, [0.5], [0])
    assert "edge 2" in ax.get_legend().get_texts()[-1].get_text() and "σ" in ax.get_xlabel()
    with pytest.raises(ValueError, match="2 layers"):
        singular_values(jax.tree.map(lambda x: jnp.stack([x, x]), record))


# Which sizes are resolved, and how far the band of rounding reaches from the first: halfway to the first that is.
@pytest.mark.parametrize(
    ("resolved", "end"), [((False, True, True), 0.1**1.5), ((False, False, True), 0.1**0.5), ((False,) * 3, 1.0)]
)
def test_perturbations(resolved, end):
    eps = jnp.asarray([0.01, 0.1, 1.0])

    def response(gain):
        size = (gain * eps).reshape(1, 1, 3)
        seen = jnp.asarray([[resolved]])
        one, limit = jnp.full((1, 1), gain), jnp.full((1, 1), 0.3)
        half = (size, one, size, seen, limit, interval(size[0, 0]), interval(0.3))
        return Response(*half, -size, one, size, seen, limit, interval(size[0, 0]), interval(0.3))

    parts = response(1.0), response(4.0), response(5.0)
    rest = jnp.ones(1), jnp.ones(1), interval(jnp.full(3, 5.0)), interval(jnp.full(3, 4.0))
    record = PerturbationSensitivity(eps, jnp.ones(1), jnp.ones(1), *parts, *rest, 0, 0.1)
    for of in ("state", "loss"):
        ax = perturbation_response(record, of=of)
        assert ax.get_xscale() == ax.get_yscale() == "log" and of in ax.get_ylabel()
        assert all(drawn(ax, eps, gain * eps) for gain in (1.0, 4.0, 5.0))
        assert any(np.allclose(np.asarray(line[0], float), 0.3) for line in lines(ax))
        assert "rounding" in [text.get_text() for text in ax.get_legend().get_texts()]
        [band] = [patch for patch in ax.patches if patch.get_label() == "rounding"]
        assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((0.01, end))
    with pytest.raises(ValueError, match="of='x'"):
        perturbation_response(record, of="x")


def test_exponents():
    value, history = jnp.asarray([0.5, -1.0]), jnp.asarray([[0.7, -0.5], [0.5, -1.0]])
    lost = jnp.asarray(False)
    figure = Figure(value, value - 1, value + 1, {"null": value + 2})
    record = LyapunovExponents(figure, jnp.asarray([1.0, 2.0]), history, lost)
    axes = lyapunov_exponents(record)
    assert axes.shape == (2,) and all(isinstance(ax, Axes) and ax.get_xlabel() and ax.get_ylabel() for ax in axes)
    assert drawn(axes[0], [1, 2], value) and drawn(axes[0], [1, 2], value + 2)
    assert drawn(axes[1], record.ts, history[:, 1])
    assert np.all(lyapunov_exponents(record, ax=axes) == axes)


def test_finite_time_map():
    values = jnp.asarray([[0.5, jnp.nan, -0.2], [0.1, 0.2, 0.3]])
    done = jnp.asarray([[True, True, True], [False, True, True]])
    record = FTLE(values, values, done, jnp.zeros((2, 3, 1)), jnp.ones(2))
    ax = ftle_map(record)
    shown = ax.get_images()[0].get_array()
    np.testing.assert_allclose(shown.filled(9.0), np.where(np.isfinite(values), values, 9.0))
    assert drawn(ax, [0], [1]) and ax.get_xlabel() == "token" and ax.get_ylabel() == "sequence"
    ax = ftle_map(jax.tree.map(lambda x: x[0], record))
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], values[0])
