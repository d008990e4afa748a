"""The two plots of the convergence study, drawn from its JSON."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pdejax.plot._style import COLOURS, MARKERS

NORMS = {"pre": "pre-LN field", "peri": "peri-LN field", "none": "field without LN"}


def error_plot(content: dict[str, Any]) -> Figure:
    """Error against step size, one line per scheme, with the fitted slope and its confidence interval."""
    figure, axes = _axes(
        content,
        "step size h = T/steps (layers of depth)",
        "relative error at depth T, $\\|u_h - u\\|_\\Omega/\\|u\\|_\\Omega$",
    )
    for style, record in _styled(content):
        h, errors = np.asarray(record["step_sizes"]), _values(record["errors"])
        axes.loglog(h, errors, label=_slope_label(record), **style)
        used = np.isin(record["steps"], record["used"])
        if record["order"] is not None and used.sum() > 1:
            middle = np.exp(np.mean(np.log(errors[used]) - record["order"] * np.log(h[used])))
            axes.loglog(h[used], middle * h[used] ** record["order"], color=style["color"], linewidth=5, alpha=0.25)
    floor = content["results"]["reference"]["error"]
    if floor:
        axes.axhline(floor, color="0.4", linestyle=":", linewidth=1.2, label="reference's own error (estimate)")
    axes.invert_xaxis()
    axes.legend(title="scheme: fitted order ± 95 %", fontsize=9, loc="lower left", edgecolor="none", framealpha=0.9)
    return figure


def work_precision_plot(content: dict[str, Any]) -> Figure:
    """Error against field evaluations: what each scheme buys for its work."""
    figure, axes = _axes(
        content, "field evaluations (a splitting: whole-field equivalents)", "relative error at depth T"
    )
    for style, record in _styled(content):
        work = np.asarray(record["evaluations"], float)
        shown = np.where(work > 0, work, np.nan)
        axes.loglog(shown, _values(record["errors"]), label=record["solver"], **style)
    axes.legend(title="scheme", fontsize=9, loc="lower left", edgecolor="none", framealpha=0.9)
    return figure


def _axes(content: dict[str, Any], x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    axes = figure.add_subplot()
    config, results = content["config"], content["results"]
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    # A checkpoint brings its own norm and activation, whatever the configuration says.
    field = "" if config["weights"] == "checkpoint" else f", {NORMS[config['norm']]}, {config['activation']}"
    axes.set_title(
        f"{config['weights']} weights, {config['dataset']}: n = {results['tokens']} tokens, d = {results['features']}, "
        f"T = {results['depth']:g}{field}",
        fontsize=10,
    )
    axes.grid(True, which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _styled(content: dict[str, Any]):
    for i, record in enumerate(content["results"]["orders"]):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        yield {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.4}, record


def _values(errors) -> np.ndarray:
    return np.asarray([np.nan if e is None or e <= 0 else e for e in errors], float)


def _slope_label(record: dict[str, Any]) -> str:
    if record["order"] is None:
        return f"{record['solver']}: not measurable"
    interval = "" if record["ci"] is None else f" ± {record['ci']:.2f}"
    return f"{record['solver']}: {record['order']:.2f}{interval}"
