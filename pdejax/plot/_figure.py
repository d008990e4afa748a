"""Picture of one figure by layer."""

from typing import TYPE_CHECKING

from pdejax._figure import Figure
from pdejax.plot._style import axes_of, by_layer

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def figure(record: Figure, label: str = "value", *, ax: "Axes | None" = None) -> "Axes":
    """A figure `(layers,)` with its interval, and its nulls with theirs.

    Raises `ValueError` for another number of axes: index it first, `figure[:, 0]`.
    """
    if record.ndim != 1:
        raise ValueError(
            f"figure: record has shape {record.shape}; it must be (layers,). Take a part of it, record[:, 0]."
        )
    ax = axes_of(ax)
    by_layer(ax, record, label)
    ax.set_ylabel(label)
    return ax
