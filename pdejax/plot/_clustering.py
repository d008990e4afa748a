"""Plots of clustering: cosines of token pairs, figures of collapse by depth, a decay against its law."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pdejax.analysis.tokens._clustering import TokenClustering
from pdejax.analysis.tokens._collapse import CollapseRate
from pdejax.plot._style import COLOURS, NULL, SEQUENTIAL, axes_of, by_layer, legend, panels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def token_cosines(record: TokenClustering, *, ax: "Axes | None" = None) -> "Axes":
    """Distribution of the pairwise cosines of every layer, first layer dark, and the null's of the last layer."""
    from matplotlib import colormaps

    ax = axes_of(ax)
    edges = np.asarray(record.edges)
    width, number = edges[1] - edges[0], record.histogram.shape[0]
    [(null, shuffled)] = record.histogram.nulls.items()
    for i, shares in enumerate(np.asarray(record.histogram)):
        colour = colormaps[SEQUENTIAL](0.9 * i / max(number - 1, 1))
        ax.stairs(
            shares / width, edges, color=colour, label=f"layer {i}" if i in (0, number - 1) or number <= 7 else None
        )
    style = {"color": NULL["color"], "linestyle": NULL["linestyle"], "linewidth": NULL["linewidth"]}
    ax.stairs(np.asarray(shuffled)[-1] / width, edges, label=null, **style)
    ax.set(xlabel="cosine of two tokens", ylabel="density of token pairs", xlim=(-1, 1))
    legend(ax)
    return ax


def token_clustering(record: TokenClustering, *, ax: "Sequence[Axes] | None" = None) -> np.ndarray:
    """Mean cosine, clusters, effective rank and residual norm by layer, each beside its null. Takes and returns four Axes."""
    axes = panels_of("token_clustering", ax, 4, 7.2, 2.8)
    panels = (
        (record.cosine, "mean cosine of two tokens"),
        (record.clusters, f"clusters (cosine > {float(record.threshold):g})"),
        (record.effective_rank, "effective rank of tokens"),
        (record.residual, "‖u − 1μᵀ‖ / ‖u‖"),
    )
    for panel, (figure, name) in zip(axes, panels, strict=True):
        by_layer(panel, figure, "hidden states")
        panel.set_ylabel(name)
        if panel is not axes[0] and panel.get_legend() is not None:
            panel.get_legend().remove()
    return axes


def consensus_distance(record: TokenClustering, *, ax: "Axes | None" = None) -> "Axes":
    """Largest and mean distance of two tokens by layer, and their nulls, on a logarithmic scale."""
    ax = axes_of(ax)
    [null] = record.diameter.nulls
    by_layer(ax, record.diameter, "largest", names={null: f"largest, {null}"})
    by_layer(ax, record.distance, "mean", index=1, names={null: f"mean, {null}"})
    ax.set(ylabel="distance of two tokens (units of u)")
    # Where all tokens agree the distance is 0, which a logarithm cannot show.
    ax.set_yscale("log", nonpositive="mask")
    return ax


def collapse_rate(record: CollapseRate, *, ax: "Axes | None" = None) -> "Axes":
    """The gap over depth, the law fitted to it, and for a known rate the exact law through the first trajectory's last fitted
    depth (for a blow-up its first)."""
    ax = axes_of(ax)
    t, gap, used = np.asarray(record.ts), np.asarray(record.gap), np.asarray(record.used)
    for i in range(gap.shape[0]):
        colour = COLOURS[i % len(COLOURS)]
        ax.plot(t, gap[i], "o", markersize=3, color=colour, label="measured" if i == 0 else None)
        ax.plot(
            t, np.asarray(record.fitted)[i], color=colour, linewidth=1.5, label=_fit_label(record) if i == 0 else None
        )
    exact = float(record.exact)
    if np.isfinite(exact):
        ax.plot(t, _exact_law(record, t, gap[0], np.flatnonzero(used[0]), exact), label=f"exact, {exact:.4g}", **NULL)
    ax.set(xlabel="depth t (layers)", ylabel="variance of tokens" if record.law == "blowup" else "gap 1 − cosine")
    ax.set_yscale("log", nonpositive="mask")
    if record.law == "algebraic":
        ax.set_xscale("log")  # a depth of 0 is not shown
    legend(ax)
    return ax


def _fit_label(record: CollapseRate) -> str:
    name = {"exponential": "rate", "algebraic": "power", "blowup": "blow-up depth"}[record.law]
    value, low, high = (float(x) for x in (record.rate.value, record.rate.low, record.rate.high))
    shown = f"{record.law} fit, {name} {value:.4g}"
    return f"{shown} [{low:.4g}, {high:.4g}]" if np.isfinite(low) else shown


def _exact_law(record: CollapseRate, t: np.ndarray, gap: np.ndarray, used: np.ndarray, exact: float) -> np.ndarray:
    """The law with the exact figure through a fitted point, origin or power as fitted; NaN where it is not defined."""
    end = used[-1]
    if record.law == "exponential":
        return gap[end] * np.exp(-exact * (t - t[end]))
    if record.law == "algebraic":
        origin, power, through = float(record.origin[0]), exact, end
        away = t - origin
    else:
        power, through = float(record.power[0]), used[0]
        away = exact - t
    away = np.where(away > 0, away, np.nan)
    return gap[through] * (away / away[through]) ** -power
