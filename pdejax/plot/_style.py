"""One look for all plots: colours told apart by every kind of colour vision, plain axes, labels with units."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import ArrayLike

from pdejax._figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008), ordered so that neighbours differ in lightness too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
NULL: dict[str, Any] = {"color": "0.45", "linestyle": "--", "linewidth": 1.5}
DEPTH = "depth t (layers)"
LAYER = "layer"
# Nulls keep their dashes from picture to picture.
DASHES = {
    "tokens shuffled": "--",
    "features shuffled": ":",
    "untrained": "-.",
    "uniform": "--",
    "independent": "-.",
    "gaussian": "-.",
}
_OTHER_DASHES = ("--", ":", "-.")
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"


def axes_of(ax: "Axes | None", width: float = 5.2, height: float = 3.6) -> "Axes":
    """The axes given, or those of a new figure that no window holds."""
    if ax is None:
        from matplotlib.figure import Figure as Canvas

        ax = Canvas(figsize=(width, height), layout="constrained").subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)
    return ax


def band(ax: "Axes", x: ArrayLike, value: ArrayLike, low=None, high=None, *, index: int = 0, label: str = "") -> None:
    """A line with markers in the colour of this index, and its interval as a light band where it is known."""
    colour = COLOURS[index % len(COLOURS)]
    ax.plot(x, value, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=4, linewidth=1.5, label=label)
    if low is not None and np.all(np.isfinite(np.asarray(low))):
        ax.fill_between(x, np.asarray(low), np.asarray(high), color=colour, alpha=0.2, linewidth=0)


def against(
    ax: "Axes", x: ArrayLike, figure: Figure, label: str, *, index: int = 0, names: "Mapping[str, str] | None" = None
) -> None:
    """A figure with its interval, and in grey, with theirs, its nulls: those in `names` under these labels, by default all of
    them under their own. A null that several systems share has one label; markers tell the systems apart."""
    band(ax, x, figure.value, figure.low, figure.high, index=index, label=label)
    marker = ax.lines[-1].get_marker()
    for k, (name, null) in enumerate(figure.nulls.items()):
        if names is not None and name not in names:
            continue
        text = name if names is None else names[name]
        known = any(line.get_label() == text for line in ax.lines)
        style = NULL | {"linestyle": DASHES.get(name, _OTHER_DASHES[k % 3]), "marker": marker, "markersize": 3}
        ax.plot(x, np.asarray(null), **style, label="_" if known else text)
        if isinstance(null, Figure) and np.all(np.isfinite(np.asarray(null.low))):
            ax.fill_between(
                x, np.asarray(null.low), np.asarray(null.high), color=NULL["color"], alpha=0.15, linewidth=0
            )


def by_layer(
    ax: "Axes", figure: Figure, label: str, *, index: int = 0, names: "Mapping[str, str] | None" = None
) -> None:
    """`against` over the layers 0, 1, …, with a legend."""
    against(ax, np.arange(len(figure)), figure, label, index=index, names=names)
    ax.set_xlabel(LAYER)
    whole_layers(ax)
    legend(ax)


def panels_of(owner: str, ax, number: int, width: float, height: float, **grid) -> np.ndarray:
    """The Axes given, as many as needed, or those of a new figure, in a row or two."""
    if ax is None:
        from matplotlib.figure import Figure as Canvas

        rows = 1 if number <= 3 else 2
        canvas = Canvas(figsize=(width, height * rows), layout="constrained")
        ax = canvas.subplots(rows, -(-number // rows), **grid).ravel()
    found = np.asarray(ax, dtype=object).ravel()
    if found.size != number:
        raise ValueError(f"{owner}: ax holds {found.size} Axes; {number} are needed.")
    return np.array([axes_of(one) for one in found], dtype=object)


def legend(ax: "Axes", **options) -> None:
    """A legend without a frame, if anything has a label."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=9, **options)


def whole_layers(ax: "Axes") -> None:
    """Whole numbers on the axis of layers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
