"""The work–precision plot of the cost study."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from pdejax.plot._style import COLOURS, MARKERS


def cost_plot(content: dict[str, Any]) -> Figure:
    """Error against field evaluations (above) and seconds (below), one column per diffusivity.

    Lines with filled markers are runs with doubling step counts; open markers are adaptive runs.
    """
    config, results = content["config"], content["results"]
    ds, names = list(config["diffusivities"]), list(config["solvers"])
    figure = Figure(figsize=(3.4 * len(ds) + 1.6, 6.4), layout="constrained")
    axes = figure.subplots(2, len(ds), sharey=True, sharex="row", squeeze=False)
    for column, d in enumerate(ds):
        for line, (key, label) in enumerate((("evaluations", "field evaluations"), ("seconds", "seconds"))):
            panel = axes[line][column]
            panel.set_xscale("log")
            panel.set_yscale("log")
            for i, name in enumerate(names):
                runs = [r for r in results["cost"] if r["solver"] == name and r["D"] == d]
                fixed = [r for r in runs if r["tolerance"] is None]
                colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
                style = {"color": colour, "marker": marker, "markersize": 5.5, "linewidth": 1.3}
                panel.plot([r[key] for r in fixed], [_error(r) for r in fixed], **style)
                adaptive = [r for r in runs if r["tolerance"] is not None]
                style |= {"markerfacecolor": "white", "linestyle": "--" if not fixed else "none", "linewidth": 0.9}
                panel.plot([r[key] for r in adaptive], [_error(r) for r in adaptive], **style)
                for r in adaptive:
                    if r["extrapolated"]:
                        place = {"textcoords": "offset points", "xytext": (0, 7), "ha": "center", "fontsize": 7}
                        panel.annotate("extrapolated", (r[key], _error(r)), **place)
            panel.axhline(results["target"], color="0.4", linestyle=":", linewidth=1.2)
            panel.set_xlabel(label)
            panel.grid(True, which="major", color="0.9")
            panel.spines[["top", "right"]].set_visible(False)
            panel.xaxis.set_minor_formatter(NullFormatter())
            if line == 0:
                radius = 4 * d * results["tokens"] ** 2 * results["depth"]
                panel.set_title(f"D = {d:g}   (spectral radius × T = {radius:.3g})", fontsize=10)
            if column == 0:
                panel.set_ylabel("relative error at depth T")
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], label=name)
        for i, name in enumerate(names)
    ]
    figure.legend(handles=handles, loc="outside right center", fontsize=9, title="solver", frameon=False)
    figure.suptitle(
        f"Cost to accuracy: attention, feed-forward and diffusion, N = {results['tokens']}, d = {results['features']}, "
        f"T = {results['depth']:g}.  Filled: equal steps, open: adaptive, dotted: the target",
        fontsize=10,
    )
    return figure


def _error(record: dict[str, Any]) -> float:
    """A diverged run has no error; rounding is where the reference ends."""
    return float("nan") if record["error"] is None else float(np.clip(record["error"], 1e-15, 10.0))
