"""Fidelity by layer, correlation by layer, and fidelity to the input along depth."""

from typing import TYPE_CHECKING

import numpy as np

from pdejax._check import choice
from pdejax._figure import Figure
from pdejax.analysis.residual._fidelity import DecayDifference, ResidualDecay
from pdejax.analysis.similarity._trajectory import LayerCorrelation, TrajectoryFidelity
from pdejax.plot._style import COLOURS, DEPTH, LAYER, against, axes_of, legend, whole_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS = {
    "mse": "mean squared error (state²)",
    "relative_error": "relative error ‖a − b‖/‖b‖",
    "cosine": "cosine, token by token",
    "sequence_cosine": "cosine, sequence by sequence",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "cka": "linear CKA",
    "cka_debiased": "linear CKA, debiased",
    "procrustes": "Procrustes distance",
}


def trajectory_fidelity(record: TrajectoryFidelity, measure: str = "cosine", *, ax: "Axes | None" = None) -> "Axes":
    """One measure of a `TrajectoryFidelity` by layer with its interval, the nulls beside it as grey lines with theirs.

    Raises `ValueError` for a measure that the record does not have.
    """
    figure = _measure("trajectory_fidelity", record.layers, measure)
    ax = axes_of(ax)
    against(ax, np.arange(len(figure)), figure, "tested against reference")
    ax.set(xlabel=LAYER, ylabel=_LABELS[measure])
    whole_layers(ax)
    legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def layer_correlation(
    records: "LayerCorrelation | dict[str, LayerCorrelation]", measure: str = "pearson", *, ax: "Axes | None" = None
) -> "Axes":
    """Correlation by layer of one system, or of several by their names, each with its interval and, in grey, its
    nulls (tokens shuffled, untrained) with the markers of its system. The axis counts the later layer of each pair.

    Raises `ValueError` for a measure that the records do not have, or no record.
    """
    records = {"": records} if isinstance(records, LayerCorrelation) else dict(records)
    if not records:
        raise ValueError("layer_correlation: records is empty; give a LayerCorrelation or several by name.")
    ax = axes_of(ax)
    ends = {0}
    for index, (name, record) in enumerate(records.items()):
        x = np.array([pair[0] for pair in record.pairs])
        against(ax, x, _measure("layer_correlation", record, measure), name or _LABELS[measure], index=index)
        ends = {pair[1] for pair in record.pairs}
    paired = {i - j for record in records.values() for i, j in record.pairs}
    what = (
        "with the input"
        if ends == {0} and paired != {0}
        else "with the layer before"
        if paired == {1}
        else "of both systems"
    )
    ax.set(xlabel=LAYER, ylabel=f"{_LABELS[measure]} {what}")
    whole_layers(ax)
    legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def residual_decay(records: "ResidualDecay | dict[str, ResidualDecay]", *, ax: "Axes | None" = None) -> "Axes":
    """Fidelity to the input ρ(t) with its interval, of one system or of several by their names; beside it the null (the input's
    tokens shuffled, dashed), the sharp lower bound (solid, thin) and the claimed one of v2 (17) (dotted), where known.

    Raises `ValueError` for no record.
    """
    records = {"fidelity ρ(t)": records} if isinstance(records, ResidualDecay) else dict(records)
    if not records:
        raise ValueError("residual_decay: records is empty; give a ResidualDecay or several by name.")
    ax = axes_of(ax)
    for index, (name, record) in enumerate(records.items()):
        x = np.asarray(record.ts)
        against(ax, x, record.rho, name, index=index, names={"tokens shuffled": "input shuffled"})
        colour, first = COLOURS[index % len(COLOURS)], index == 0
        if record.sharp is not None and record.claimed is not None:
            ax.plot(x, record.sharp, color=colour, linewidth=0.9, label="sharp bound" if first else "_")
            ax.plot(
                x,
                np.asarray(record.claimed),
                color=colour,
                linewidth=1.2,
                linestyle=":",
                label="bound of v2 (17)" if first else "_",
            )
    ax.set(xlabel=DEPTH, ylabel="fidelity ρ(t), cosine with the input", ylim=(-1.05, 1.05))
    legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def decay_difference(record: DecayDifference, *, ax: "Axes | None" = None) -> "Axes":
    """Fidelity to the input of the same system without and with residual connections: two
    [`residual_decay`][pdejax.plot.residual_decay]."""
    return residual_decay({"without residual": record.bare, "with residual": record.residual}, ax=ax)


def _measure(owner: str, record, measure: str) -> Figure:
    figures = record if isinstance(record, dict) else vars(record)
    return figures[choice(owner, "measure", measure, [name for name in _LABELS if name in figures])]
