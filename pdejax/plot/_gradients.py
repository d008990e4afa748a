"""Plots of gradients by depth and of a layer's singular values."""

from typing import TYPE_CHECKING

import numpy as np

from pdejax.analysis.jacobian._gradient_flow import GradientFlow, GradientHistory
from pdejax.analysis.jacobian._operator import SingularValues, marchenko_pastur_cdf
from pdejax.plot._style import COLOURS, DEPTH, MARKERS, NULL, SEQUENTIAL, axes_of, band, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def gradient_flow(record: GradientFlow, *, ax: "Axes | None" = None) -> "Axes":
    """Median ‖∂ℓ/∂u‖ by depth with its interval, every sequence as a thin line, the null beside; logarithmic."""
    ax = axes_of(ax)
    x, one = np.asarray(record.depths), record.median
    for line in np.asarray(record.states)[:20]:
        ax.plot(x, line, color=COLOURS[0], alpha=0.15, linewidth=0.7, label="_sequence")
    band(ax, x, np.asarray(one.value), one.low, one.high, label="median over sequences")
    for name, null in one.nulls.items():
        ax.plot(x, np.asarray(null), label=f"null: {name}", **NULL)
    if record.batch_parameters is not None and record.batch_parameters.shape[0] == x.shape[0] - 1:
        middle, norms = 0.5 * (x[1:] + x[:-1]), np.asarray(record.batch_parameters)
        ax.plot(
            middle,
            norms,
            color=COLOURS[3],
            marker=MARKERS[3],
            markersize=4,
            linestyle=":",
            label="parameters, mean loss",
        )
    ax.set_yscale("log")
    ax.set_xlabel(DEPTH)
    ax.set_ylabel("gradient norm (loss per unit of u or θ)")
    legend(ax)
    return ax


def gradient_history(record: GradientHistory, *, ax: "Axes | None" = None) -> "Axes":
    """Median ‖∂ℓ/∂u‖ over training, one line per layer from the input (dark) to the output; logarithmic. The null of the input
    is dashed."""
    from matplotlib import colormaps

    ax = axes_of(ax)
    steps, medians = np.asarray(record.steps), np.asarray(record.flow.median.value)
    layers = medians.shape[1]
    for layer in range(layers):
        shade = colormaps[SEQUENTIAL](0.9 * layer / max(layers - 1, 1))
        marker = MARKERS[layer % len(MARKERS)]
        named = f"layer {layer}" if layers <= 8 or layer in (0, layers - 1) else "_layer"
        ax.plot(steps, medians[:, layer], color=shade, marker=marker, markersize=4, linewidth=1.5, label=named)
    for name, null in record.flow.median.nulls.items():
        ax.plot(steps, np.asarray(null)[:, 0], label=f"null: {name}, layer 0", **NULL)
    ax.set_yscale("log")
    ax.set_xlabel("training step")
    ax.set_ylabel("median gradient norm (loss per unit of u)")
    legend(ax, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def singular_values(record: SingularValues, *, ax: "Axes | None" = None) -> "Axes":
    """Share of the singular values below σ, from the Ritz values and their weights, beside that of a Gaussian matrix of the same
    Frobenius norm, with its edge; circles at the ends where they have converged, crosses where not. One layer at a time."""
    values = np.asarray(record.values)
    if values.ndim != 1:
        raise ValueError(
            f"plot.singular_values: the record holds {values.shape[0]} layers; take one, jax.tree.map(lambda x: x[i], …)."
        )
    ax = axes_of(ax)
    order = np.argsort(values)
    share = np.cumsum(np.asarray(record.weights)[order])
    ax.step(values[order], share, where="post", color=COLOURS[0], linewidth=1.5, label="layer")
    edge = float(record.edge)
    grid = np.linspace(0, edge, 100)
    ax.plot(grid, np.asarray(marchenko_pastur_cdf(grid, edge)), label="null: Gaussian, same ‖J‖", **NULL)
    ax.axvline(edge, color="0.45", linewidth=1, linestyle=":", label=f"its edge {edge:.3g}")
    for end, y, done in zip((record.largest, record.smallest), (1, 0), np.asarray(record.converged), strict=True):
        ax.plot([float(end)], [y], color=COLOURS[3], marker="o" if done else "x", linestyle="none")
    ax.set_xlabel("singular value σ of ∂u$_{l+1}$/∂u$_l$")
    ax.set_ylabel("share of directions below σ")
    legend(ax)
    return ax
