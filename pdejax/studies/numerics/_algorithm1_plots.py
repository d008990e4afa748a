"""The plot of the Algorithm 1 study."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pdejax.plot._style import COLOURS, MARKERS

PANELS = (
    ("parameter_norm", "‖θ‖"),
    ("information", "Ĩ(X; T), nats"),
    ("loss", "cross-entropy, nats"),
    ("accuracy", "accuracy"),
)


def training_plot(content: dict[str, Any]) -> Figure:
    """‖θ‖, Ĩ, loss and accuracy against training steps, one line per reading of the signs.

    Lines are the batches of training, averaged over neighbours; markers are held-out images.
    """
    config, results = content["config"], content["results"]
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True).ravel()
    warm = results["warmup"]
    begin = config["warmup"]
    for axis, (curve, label) in zip(axes, PANELS, strict=True):
        if warm is not None:
            axis.plot(*_smooth(warm["curves"][curve], 0), color="0.55", linewidth=1.3)
            axis.axvline(begin, color="0.4", linestyle=":", linewidth=1.0)
        for i, run in enumerate(results["runs"]):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            axis.plot(*_smooth(run["curves"][curve], begin), color=colour, linewidth=1.4, label=run["name"])
            held = run["held_out"][::2]
            places = [begin + h["step"] for h in held]
            values = [np.nan if h[curve] is None else h[curve] for h in held]
            axis.plot(places, values, color=colour, marker=marker, markersize=4, linestyle="none")
        axis.set_ylabel(label)
        axis.grid(True, which="major", color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[2:]:
        axis.set_xlabel("training step")
    axes[0].legend(fontsize=9, frameon=False)
    figure.suptitle(
        f"Algorithm 1 on digits: L = {config['layers']}, N = {config['tokens']}, d = {config['dim']}, "
        f"T = {config['time_steps']}, "
        f"η = {config['learning_rate']:g}, λ = {config['weight_decay']:g}, β = {config['beta']:g}, σ = {config['noise']:g}. "
        "Lines: training batches, running mean; markers: held-out images",
        fontsize=10,
    )
    return figure


def _smooth(values: list[float | None], begin: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps and running means over up to 9 steps."""
    y = np.asarray([np.nan if v is None else v for v in values], float)
    width = min(9, len(y))
    kernel = np.ones(width) / width
    smooth = np.convolve(y, kernel, mode="valid")
    return begin + width // 2 + 1 + np.arange(len(smooth)), smooth
