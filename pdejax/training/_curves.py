"""The curves of a training run as a picture."""

import io
from collections.abc import Mapping

import numpy as np

from pdejax.training._fit import FitResult

# Okabe and Ito's palette, told apart by colour-blind readers.
TRAIN, VALIDATION, BASELINES = "#56B4E9", "#0072B2", ("0.35", "#D55E00", "#009E73")


def curves(fit: FitResult, baselines: Mapping[str, float], title: str) -> bytes:
    """Loss, accuracy and the gradient norm of each layer against steps, as a PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    history, found = fit.history, fit.evaluations
    steps = history["step"]
    figure = Figure(figsize=(12.5, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for panel, name, label in ((axes[0], "loss", "loss (nats)"), (axes[1], "accuracy", "accuracy")):
        if name in history:
            smooth = _smoothed(history[name])
            panel.plot(
                steps[len(steps) - len(smooth) :], smooth, color=TRAIN, linewidth=1.2, label="training, running mean"
            )
        points = [(row["step"], row[name]) for row in found if name in row]
        if points:
            panel.plot(
                *zip(*points, strict=True), "o-", color=VALIDATION, markersize=3.5, linewidth=1.2, label="validation"
            )
        panel.set(xlabel="step", ylabel=label)
    for colour, (name, value) in zip(BASELINES, baselines.items(), strict=False):
        axes[1].axhline(value, color=colour, linestyle=":", linewidth=1.4, label=f"{name} (test split)")
    layers = sorted(
        (n for n in history if n.startswith("layer_gradient_norms_")), key=lambda n: int(n.rsplit("_", 1)[1])
    )
    colours = colormaps["viridis"](np.linspace(0, 0.9, max(len(layers), 1)))
    for colour, name in zip(colours, layers, strict=False):
        smooth = _smoothed(history[name])
        axes[2].plot(
            steps[len(steps) - len(smooth) :], smooth, color=colour, label=f"layer {int(name.rsplit('_', 1)[1]) + 1}"
        )
    if not layers and "gradient_norm" in history:
        smooth = _smoothed(history["gradient_norm"])
        axes[2].plot(steps[len(steps) - len(smooth) :], smooth, color=TRAIN, label="all parameters")
    axes[2].set(xlabel="step", ylabel="gradient norm", yscale="log")
    for panel in axes:
        panel.grid(True, color="0.92")
        panel.spines[["top", "right"]].set_visible(False)
        if panel.get_legend_handles_labels()[0]:
            # Beside the last panel, whose curves may go anywhere.
            place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if panel is axes[2] else {}
            panel.legend(fontsize=7.5, framealpha=0.9, edgecolor="none", **place)
    figure.suptitle(title, fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    return content.getvalue()


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Means over the last fiftieth of the run, at least one step."""
    width = max(1, len(values) // 50)
    total = np.cumsum(np.insert(np.nan_to_num(values), 0, 0.0))
    return (total[width:] - total[:-width]) / width
