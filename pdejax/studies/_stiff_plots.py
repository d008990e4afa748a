"""The work–precision plot of the cost study."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pdejax.studies._convergence_plots import COLOURS, MARKERS


def cost_plot(content: dict[str, Any]) -> Figure:
    """Error against field evaluations (above) and seconds (below), one column per diffusivity; open: extrapolated."""
    config, results = content["config"], content["results"]
    ds, names = list(config["diffusivities"]), list(config["solvers"])
    figure = Figure(figsize=(3.4 * len(ds) + 1.6, 6.4), layout="constrained")
    axes = figure.subplots(2, len(ds), sharey=True, squeeze=False)
    for column, d in enumerate(ds):
        for line, (key, label) in enumerate((("evaluations", "field evaluations"), ("seconds", "seconds"))):
            panel = axes[line][column]
            for i, name in enumerate(names):
                runs = [r for r in results["cost"] if r["solver"] == name and r["D"] == d]
                x = np.asarray([r[key] for r in runs], float)
                y = np.asarray([np.nan if r["error"] is None else min(r["error"], 10.0) for r in runs], float)
                hollow = any(r["extrapolated"] for r in runs)
                panel.loglog(
                    x,
                    y,
                    color=COLOURS[i % len(COLOURS)],
                    marker=MARKERS[i % len(MARKERS)],
                    markersize=5,
                    linewidth=1.3,
                    markerfacecolor="white" if hollow else COLOURS[i % len(COLOURS)],
                    label=name,
                )
            panel.axhline(results["target"], color="0.4", linestyle=":", linewidth=1.2)
            panel.set_xlabel(label)
            panel.grid(True, which="major", color="0.9")
            panel.spines[["top", "right"]].set_visible(False)
            panel.set_ylim(1e-11, 20)
            if line == 0:
                radius = 4 * d * results["tokens"] ** 2 * results["depth"]
                panel.set_title(f"D = {d:g}   (spectral radius × T = {radius:.3g})", fontsize=10)
            if column == 0:
                panel.set_ylabel("relative error at depth T")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9, title="solver", frameon=False)
    figure.suptitle(
        f"Cost to accuracy: attention, feed-forward and diffusion, N = {results['tokens']}, d = {results['features']}, "
        f"T = {results['depth']:g}; dotted: the target; open markers: extrapolated in depth",
        fontsize=10,
    )
    return figure
