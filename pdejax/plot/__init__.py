"""Pictures of analyses: `plot(record)` draws what an analysis returned by its own picture.

`plot(record, ax=ax)` draws into `ax` (or a new figure) and returns the Axes; `ax.figure.savefig("plot.png")` saves one. Colours
are told apart by every kind of colour vision, axes carry units, and the null model is drawn beside the figure it belongs to.
"""

from typing import TYPE_CHECKING

from pdejax._lazy import attach

if TYPE_CHECKING:
    from pdejax.plot._plot import plot as plot
else:
    __getattr__, __dir__ = attach(__name__)
