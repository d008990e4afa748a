"""Pictures of the phase diagram."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pdejax.plot._style import SEQUENTIAL

_TITLES = {
    "sphere": "on the sphere",
    "pre-norm": "pre-norm",
    "none": "no normalization",
}
FINE = 60
_LABELS = {"cosine": "mean cosine of two tokens", "clusters": "clusters of tokens"}


def map_plot(found: Mapping[str, Any], name: str, exact: Callable[..., Any]) -> Figure:
    """Draw one panel per normalization (rows) and number of tokens (columns): colour by depth and β, the border at cosine ½ as a
    line, and that of equiangular tokens dashed where a closed form is known."""
    values, depth, beta = (np.asarray(found[key], float) for key in (name, "depth", "beta"))
    cosine = np.asarray(found["cosine"], float)
    rows, columns = found["normalization"], found["tokens"]
    figure = Figure(figsize=(3.1 * len(columns) + 1.4, 2.5 * len(rows) + 1.0), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    scale = Normalize(0, 1) if name == "cosine" else LogNorm(1, max(columns))
    mesh: Any = None
    for k, normalization in enumerate(rows):
        for j, tokens in enumerate(columns):
            axes = panels[k, j]
            shown = np.clip(values[:, j, k], 0 if name == "cosine" else 1, None)
            mesh = axes.pcolormesh(depth, beta, shown, cmap=SEQUENTIAL, norm=scale, shading="nearest", rasterized=True)
            _line(axes, depth, beta, cosine[:, j, k])
            fine = np.geomspace(beta[0], beta[-1], FINE)
            border = exact(fine, int(tokens), normalization)
            if border is not None:
                axes.plot(border, fine, color="white", linewidth=3.0)
                axes.plot(border, fine, color="black", linewidth=1.5, linestyle="dashed")
            _logarithmic(axes.xaxis, depth)
            _logarithmic(axes.yaxis, beta)
            axes.set(xlim=(depth[0], depth[-1]), ylim=(beta[0], beta[-1]))
            axes.set_title(f"{_TITLES.get(normalization, normalization)}, {tokens} tokens", fontsize=10)
            axes.tick_params(labelsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("depth t")
    for axes in panels[:, 0]:
        axes.set_ylabel("inverse temperature β")
    # Where cosines are negative the lowest colour stands for them, which the end of the bar says.
    below = name == "cosine" and bool((values < 0).any())
    figure.colorbar(mesh, ax=panels, label=_LABELS[name], shrink=0.8, extend="min" if below else "neither")
    handles = [
        Line2D([], [], color="black", label="mean cosine ½: aligned to the right"),
        Line2D([], [], color="black", linestyle="dashed", label="the same, equiangular tokens (closed form)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def _logarithmic(axis: Any, values: np.ndarray) -> None:
    """A logarithmic axis marked at powers of two, as plain numbers."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    powers = np.arange(np.ceil(np.log2(values[0]) - 1e-9), np.floor(np.log2(values[-1]) + 1e-9) + 1)
    axis.set_major_locator(FixedLocator(list(2.0 ** powers[:: max(1, len(powers) // 6)])))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _line(axes: Any, depth: np.ndarray, beta: np.ndarray, cosine: np.ndarray) -> None:
    finite = cosine[np.isfinite(cosine)]
    if finite.size and finite.min() < 0.5 < finite.max():
        # White under black, so that it is seen on light and on dark.
        axes.contour(depth, beta, cosine, levels=[0.5], colors="white", linewidths=3.0)
        axes.contour(depth, beta, cosine, levels=[0.5], colors="black", linewidths=1.5)
