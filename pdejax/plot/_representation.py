"""Plot of the statistics of representations by layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pdejax.analysis.tokens._representation import Representation
from pdejax.plot._style import by_layer, panels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def representation(record: Representation, *, ax: "Sequence[Axes] | None" = None) -> np.ndarray:
    """Participation ratio, effective rank, sparsity, magnitude, and both readings of diversity by layer, each beside its null.
    Takes and returns six Axes."""
    axes = panels_of("representation", ax, 6, 8.4, 2.6)
    panels = (
        (record.participation_ratio, "participation ratio / d"),
        (record.effective_rank, "effective rank"),
        (record.sparsity, f"share of |u| < {float(record.threshold):g}"),
        (record.magnitude, "mean |u| (units of u)"),
        (record.diversity, "variance of pooled u (units²)"),
        (record.diversity_cosine, "1 − cosine of pooled u"),
    )
    for panel, (figure, label) in zip(axes, panels, strict=True):
        by_layer(panel, figure, "hidden states", names={name: f"{name} null" for name in figure.nulls})
        panel.set_ylabel(label)
        if panel is not axes[0] and panel.get_legend() is not None:
            panel.get_legend().remove()
    return axes
