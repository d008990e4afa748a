"""Plots of answers to perturbations."""

from typing import TYPE_CHECKING

import numpy as np

from pdejax.analysis.jacobian._perturbation import PerturbationSensitivity
from pdejax.plot._style import COLOURS, axes_of, band, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def perturbation_response(record: PerturbationSensitivity, *, of: str = "state", ax: "Axes | None" = None) -> "Axes":
    """Median answer of the `"state"` or the `"loss"` (its absolute change) against ε, both axes logarithmic: random directions
    and adversarial ones with intervals, their linear predictions dashed, a vertical mark where the linear regime ends, and grey
    where rounding decides."""
    if of not in ("state", "loss"):
        raise ValueError(f"plot.perturbation_response: of={of!r} is unknown; choose 'state' or 'loss'.")
    if of == "loss" and record.base_loss is None:
        raise ValueError("plot.perturbation_response: the record has no loss; give the analysis a loss and labels.")
    ax = axes_of(ax)
    eps = np.asarray(record.epsilons)
    noisy = np.zeros(eps.shape, bool)
    for index, kind in enumerate(("random", "gradient", "singular")):
        answer = getattr(record, kind)
        if answer is None:
            continue
        median, limit = getattr(answer, f"{of}_median"), float(getattr(answer, f"{of}_limit_median").value)
        name = {"random": "random (null)", "gradient": "along the gradient", "singular": "most sensitive"}[kind]
        band(ax, eps, np.asarray(median.value), median.low, median.high, index=index, label=name)
        slope = np.median(np.abs(np.asarray(getattr(answer, f"{of}_slope"))))
        ax.plot(eps, slope * eps, color=COLOURS[index], linestyle="--", linewidth=1, label="_linear")
        if np.isfinite(limit):
            ax.axvline(limit, color=COLOURS[index], linestyle=":", linewidth=1, label=f"departs at ε = {limit:.2g}")
        noisy |= ~np.asarray(getattr(answer, f"{of}_resolved")).any(axis=(0, 1))
    if noisy.any():
        ax.axvspan(eps[0], eps[noisy].max(), color="0.9", zorder=0, label="rounding")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("perturbation ε (share of ‖u‖, or per entry)")
    ax.set_ylabel("‖change of the last state‖" if of == "state" else "|change of the loss|")
    legend(ax)
    return ax
