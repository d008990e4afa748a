"""One look for all plots: colours told apart by every kind of colour vision, plain axes, labels with units."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008), ordered so that neighbours differ in lightness too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
NULL = {"color": "0.45", "linestyle": "--", "linewidth": 1.5}
DEPTH = "depth t (layers)"
LAYER = "layer"
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"


def axes_of(ax: "Axes | None", width: float = 5.2, height: float = 3.6) -> "Axes":
    """The axes given, or those of a new figure that no window holds."""
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(width, height), layout="constrained").subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)
    return ax


def band(ax: "Axes", x: ArrayLike, value: ArrayLike, low=None, high=None, *, index: int = 0, label: str = "") -> None:
    """A line with markers in the colour of this index, and its interval as a light band where it is known."""
    colour = COLOURS[index % len(COLOURS)]
    ax.plot(x, value, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=4, linewidth=1.5, label=label)
    if low is not None and np.all(np.isfinite(np.asarray(low))):
        ax.fill_between(x, np.asarray(low), np.asarray(high), color=colour, alpha=0.2, linewidth=0)


def legend(ax: "Axes", **options) -> None:
    """A legend without a frame, if anything has a label."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=9, **options)


def whole_layers(ax: "Axes") -> None:
    """Whole numbers on the axis of layers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
