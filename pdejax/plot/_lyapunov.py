"""Plots of Lyapunov exponents, of the whole state and token by token."""

from typing import TYPE_CHECKING

import numpy as np

from pdejax.analysis.jacobian._lyapunov import FTLE, LyapunovExponents
from pdejax.plot._style import COLOURS, DEPTH, DIVERGING, MARKERS, NULL, axes_of, legend, whole_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def lyapunov_exponents(record: LyapunovExponents, *, ax: "np.ndarray | None" = None) -> "np.ndarray":
    """Two panels: the exponents with intervals beside the null's, and how the estimates settle with depth. Takes and returns an
    array of two Axes."""
    if ax is None:
        from matplotlib.figure import Figure as Canvas

        ax = Canvas(figsize=(8.4, 3.6), layout="constrained").subplots(1, 2)
    left, right = (axes_of(a) for a in np.ravel(np.asarray(ax)))
    value = np.asarray(record.exponents.value)
    rank = np.arange(1, value.shape[0] + 1)
    low, high = (np.asarray(x) for x in (record.exponents.low, record.exponents.high))
    spread = np.abs(np.stack([value - low, high - value])) if np.all(np.isfinite(low)) else None
    left.errorbar(
        rank,
        value,
        spread,
        color=COLOURS[0],
        marker=MARKERS[0],
        markersize=4,
        capsize=3,
        linestyle="none",
        label="system",
    )
    for name, null in record.exponents.nulls.items():
        label = "null" if name == "null" else f"null: {name}"
        left.plot(rank, np.asarray(null), marker="_", label=label, **NULL)
    left.axhline(0, color="0.7", linewidth=0.8, label="_zero")
    left.set_xlabel("rank of the exponent")
    left.set_ylabel("exponent λ (per unit depth)")
    whole_layers(left)
    legend(left)
    history = np.asarray(record.history)
    for index in range(history.shape[1]):
        right.plot(np.asarray(record.ts), history[:, index], color=COLOURS[index % len(COLOURS)], label=f"λ{index + 1}")
    right.axhline(0, color="0.7", linewidth=0.8, label="_zero")
    right.set_xlabel(DEPTH)
    right.set_ylabel("estimate of λ so far (per unit depth)")
    if history.shape[1] <= 8:
        legend(right, ncols=2)
    return np.array([left, right])


def ftle_map(record: FTLE, *, ax: "Axes | None" = None) -> "Axes":
    """Exponents by token: bars for one sequence `(n,)`, a map of sequences × tokens for a batch `(b, n)`; padding stays empty.
    A cross marks what has not converged."""
    from matplotlib.ticker import MaxNLocator

    ax = axes_of(ax)
    values, done = np.asarray(record.exponents), np.asarray(record.converged)
    if values.ndim == 1:
        ax.bar(
            np.arange(values.shape[0]), np.where(np.isfinite(values), values, np.nan), color=COLOURS[0], label="_tokens"
        )
        name = "not converged" if (~done).any() else "_none"
        ax.plot(np.flatnonzero(~done), values[~done], color=COLOURS[3], marker="x", linestyle="none", label=name)
        ax.axhline(0, color="0.7", linewidth=0.8, label="_zero")
        ax.set_xlim(-0.5, values.shape[0] - 0.5)
        ax.set_ylabel("finite-time exponent (per unit depth)")
        legend(ax)
    else:
        finite = np.ma.masked_invalid(values)
        size = float(np.abs(finite).max()) if finite.count() else 1.0
        image = ax.imshow(finite, cmap=DIVERGING, vmin=-size, vmax=size, aspect="auto", interpolation="nearest")
        rows, columns = np.nonzero(~done)
        ax.plot(columns, rows, color="0.2", marker="x", linestyle="none", label="_not converged")
        ax.figure.colorbar(image, ax=ax, label="finite-time exponent (per unit depth)")
        ax.set_ylabel("sequence")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("token")
    whole_layers(ax)
    return ax
