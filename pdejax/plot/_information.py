"""Plots of information: calibration, information plane, depth, phases."""

import itertools
from typing import TYPE_CHECKING

import numpy as np

from pdejax.analysis.information._depth import InformationPlane, LayerEntropy, Processing
from pdejax.analysis.information._phases import Phases
from pdejax.analysis.information.channels._channels import Calibration
from pdejax.plot._style import (
    COLOURS,
    DIVERGING,
    LAYER,
    MARKERS,
    NULL,
    SEQUENTIAL,
    against,
    axes_of,
    legend,
    panels_of,
    whole_layers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INPUT, _TARGET = "I(X; T) (nats)", "I(T; Y) (nats)"


def calibration(record: Calibration, *, ax: "Axes | None" = None) -> "Axes":
    """Median errors, estimator × channel, in nats: red too high, blue too low, colours end at ±1 nat; `*` saturated,
    empty cells are data that an estimator does not take. Zero error is the null."""
    rows, columns = len(record.channels), len(record.estimators)
    ax = axes_of(ax, max(4.5, 1.9 + 0.75 * columns), max(2.4, 0.9 + 0.3 * rows))
    errors = record.median.T
    top = min(1.0, max(float(np.nanmax(np.abs(errors), initial=0.0)), 1e-3))
    image = ax.imshow(errors, cmap=DIVERGING, vmin=-top, vmax=top, aspect="auto")
    marks = record.mostly_saturated.T
    for c in range(rows):
        for e in range(columns):
            value = errors[c, e]
            if np.isfinite(value):
                shown = f"{value:+.2f}" if abs(value) < 100 else f"{value:+.0e}"
                dark = abs(value) > 0.6 * top
                text = f"{shown}{'*' if marks[c, e] else ''}"
                ax.text(e, c, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    ax.set_xticks(range(columns), record.estimators, rotation=30, ha="right")
    ax.set_yticks(
        range(rows), [f"{name} ({exact:.2f})" for name, exact in zip(record.channels, record.exact, strict=True)]
    )
    ax.set_xlabel("estimator")
    ax.set_ylabel("channel (exact, nats)")
    ax.set_title(f"median error, {record.samples} pairs, {record.estimate.shape[2]} draws", fontsize=10)
    ax.figure.colorbar(image, ax=ax, label="error (nats)", extend="both", shrink=0.8)
    return ax


def information_plane(record: InformationPlane, *, ax: "Axes | None" = None) -> "Axes":
    """I(T_l; Y) against I(X; T_l). One set of states: a path through the layers, coloured by layer. Checkpoints: a path
    through training for each layer, with points coloured by epoch. The null (Y permuted) is the dashed line, with its
    range."""
    ax = axes_of(ax, 5.6)
    horizontal, vertical = np.asarray(record.input.value), np.asarray(record.target.value)
    several = horizontal.ndim == 2
    if several:
        for layer in range(horizontal.shape[1]):
            colour = COLOURS[layer % len(COLOURS)]
            marker = MARKERS[layer % len(MARKERS)]
            ax.plot(horizontal[:, layer], vertical[:, layer], color=colour, linewidth=1.2, label=f"layer {layer}")
            epochs = np.arange(horizontal.shape[0])
            dots = ax.scatter(
                horizontal[:, layer], vertical[:, layer], c=epochs, cmap=SEQUENTIAL, marker=marker, s=24, zorder=3
            )
        bar = "checkpoint"
    else:
        half_x, half_y = (_half_widths(found) for found in (record.input, record.target))
        ax.errorbar(horizontal, vertical, yerr=half_y, xerr=half_x, color="0.6", linewidth=1, elinewidth=0.8)
        dots = ax.scatter(horizontal, vertical, c=np.arange(horizontal.size), cmap=SEQUENTIAL, s=36, zorder=3)
        bar = LAYER
    order = np.argsort(horizontal.ravel())
    null = record.target.nulls.get("y permuted")
    if null is not None:
        low, middle, high = (np.asarray(x).ravel()[order] for x in (null.low, null.value, null.high))
        ax.plot(horizontal.ravel()[order], middle, label="Y permuted", **NULL)
        ax.fill_between(horizontal.ravel()[order], low, high, color="0.45", alpha=0.15, linewidth=0)
    from matplotlib.ticker import MaxNLocator

    ax.figure.colorbar(dots, ax=ax, label=bar, ticks=MaxNLocator(integer=True))
    ax.set_xlabel(_INPUT)
    ax.set_ylabel(_TARGET)
    ax.set_title(_title(record), fontsize=10)
    legend(ax)
    return ax


def data_processing(record: Processing, *, ax: "Axes | None" = None) -> "Axes":
    """I(X; T_l) by layer with its interval, the null (X permuted) dashed; changes that theory excludes are drawn in
    red, saturated layers as crosses."""
    ax = axes_of(ax)
    value = np.asarray(record.information.value)
    layers = np.arange(value.size)
    against(ax, layers, record.information, _INPUT.split(" (")[0], names={"x permuted": "X permuted"})
    for k, start in enumerate(np.flatnonzero(np.asarray(record.violations))):
        step = slice(start, start + 2)
        ax.plot(layers[step], value[step], color=COLOURS[3], linewidth=3, label="" if k else "excluded by theory")
    _saturated(ax, layers, value, record.saturated)
    ax.set_xlabel(LAYER)
    ax.set_ylabel(_INPUT)
    ax.set_title(_title(record, f"noise {record.where}" if record.where != "at read-out" else ""), fontsize=10)
    whole_layers(ax)
    legend(ax)
    return ax


def layer_entropy(record: LayerEntropy, *, ax: "Axes | None" = None) -> "Axes":
    """Entropy by layer with its interval; dashed: features made independent, the distance to it is the total
    correlation."""
    ax = axes_of(ax)
    value = np.asarray(record.entropy.value)
    layers = np.arange(value.size)
    against(ax, layers, record.entropy, "representation", names={"features shuffled": "features shuffled apart"})
    _saturated(ax, layers, value, record.saturated)
    ax.set_xlabel(LAYER)
    ax.set_ylabel("entropy H(T) (nats)")
    ax.set_title(_title(record), fontsize=10)
    whole_layers(ax)
    legend(ax)
    return ax


def information_phases(record: Phases, *, ax=None):
    """Two panels (an array of two Axes, taken and returned): the curves with fitted lines and breakpoints; the gain of
    the pieces over one line against that of surrogates without phases."""
    left, right = axes = panels_of("information_phases", ax, 2, 8.6, 3.4, width_ratios=(3, 2))
    depths, curves, fitted = (np.asarray(a) for a in (record.depths, record.curves, record.fitted))
    names = (_INPUT, _TARGET) if curves.shape[1] == 2 else [f"curve {k}" for k in range(curves.shape[1])]
    ends = [*np.asarray(record.starts)[: int(record.pieces)], depths.size]
    for k in range(curves.shape[1]):
        colour = COLOURS[k % len(COLOURS)]
        label = names[k].split(" (")[0] if curves.shape[1] > 1 else "curve"
        left.plot(depths, curves[:, k], linestyle="none", marker=MARKERS[k], markersize=4, color=colour, label=label)
        for first, end in itertools.pairwise(ends):
            left.plot(depths[first:end], fitted[first:end, k], color=colour, linewidth=1.8)
    for k, at in enumerate(record.breakpoints):
        left.axvline(at, color=COLOURS[6], linewidth=1, linestyle=":", label="" if k else "breakpoint")
    left.set_xlabel("depth or training step")
    left.set_ylabel("information (nats)")
    left.set_title(f"{int(record.pieces)} {'piece' if int(record.pieces) == 1 else 'pieces'}", fontsize=10)
    legend(left)
    surrogates = np.asarray(record.surrogates)
    if surrogates.size:
        right.hist(surrogates, bins=20, color="0.7", label="without phases")
    right.axvline(float(record.gain), color=COLOURS[3], linewidth=2, label=f"curve, p = {float(record.p_value):.3f}")
    right.set_xlabel("ln(residuals of one line / of pieces)")
    right.set_ylabel("surrogates (count)")
    legend(right)
    return axes


def _half_widths(found) -> np.ndarray | None:
    wide = np.asarray(found.high) - np.asarray(found.value)
    return wide if np.all(np.isfinite(wide)) else None


def _saturated(ax: "Axes", layers: np.ndarray, value: np.ndarray, saturated) -> None:
    full = np.asarray(saturated)
    if np.any(full):
        ax.plot(
            layers[full], value[full], linestyle="none", marker="x", color=COLOURS[6], markersize=8, label="saturated"
        )


def _title(record, noise: str = "") -> str:
    told = noise or ("no noise added" if record.noise is None else f"σ = {float(record.noise):g}")
    return f"{record.estimator}, {told}, {record.samples} samples"
