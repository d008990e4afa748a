"""The stability maps: where Euler's runs were stable, and where the two bounds draw the line."""

import math

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pdejax.plot._style import COLOURS

# Light fills under dark lines, told apart by every kind of colour vision (Okabe & Ito), and in print by lightness.
FILL_LABELS = ("measured stable", "measured unstable", "the flow itself overflows")
FILLS = ("#CFE8F5", "#F2B48A", "#DDDDDD")
LABELS = {
    "spacing": "token spacing Δx",
    "strength": "strength α of attention and its leak",
    "weight": "size of the weights ‖W‖₂",
}
WEIGHTS = {
    "mean attention": "w of W_V = wI",
    "linear reaction": "rate w of R(u) = −wu",
    "softmax attention": "size ‖W_Q W_Kᵀ‖₂/√d_k",
    "rotation": "frequency w of R(u) = wuJ, leak 1",
}
V1 = {"colors": COLOURS[3], "linewidths": 2.0, "linestyles": "dashed"}
CORRECTED = {"colors": COLOURS[0], "linewidths": 2.0, "linestyles": "solid"}


def map_plot(runs: xr.Dataset) -> Figure:
    """One panel per family over its slice: status as fill, v1 (21) dashed, the corrected bound solid where G ≤ c (there is none
    elsewhere). Orange to the left of the dashed line is where v1 (21) promises stability wrongly; blue to the right of it where
    it warns wrongly."""
    names = list(runs.family.values)
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.3 * columns + 0.4, 3.5 * rows + 0.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    size = int(runs.attrs["resolution"])
    for axes, name in zip(panels, names, strict=False):
        cut = runs.sel(family=name).isel(run=slice(0, size**2))
        axis = str(cut.slice_axis.values)
        h, other, status, v1, corrected = (
            np.asarray(cut[key].values, float).reshape(size, size)
            for key in ("step", axis, "status", "v1_left", "corrected_left")
        )
        axes.pcolormesh(h, other, status, cmap=ListedColormap(FILLS), vmin=-0.5, vmax=2.5, shading="nearest")
        # Logarithms, in which both left sides are straight: the lines are then exact between the points.
        for left, style in ((corrected, CORRECTED), (v1, V1)):
            positive = np.where(np.isfinite(left), np.log(np.clip(left, 1e-300, 1e300)), np.nan)
            if np.any(positive < 0) and np.any(positive > 0):
                axes.contour(h, other, positive, levels=[0.0], **style)
        axes.set_xscale("log")
        if other.min() < 0:
            axes.set_yscale("symlog", linthresh=float(np.abs(other).min()))
        else:
            axes.set_yscale("log")
        axes.set_xlabel("step h")
        axes.set_ylabel(WEIGHTS.get(name, LABELS[axis]) if axis == "weight" else LABELS[axis])
        wrong = int(np.sum((v1 <= 1) & (status == 1)))
        alarm = int(np.sum((v1 > 1) & (status == 0)))
        axes.set_title(
            f"{name}\nv1 (21) wrong on {wrong + alarm} of {size**2}: {wrong} safe, {alarm} alarm", fontsize=10
        )
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    handles: list[Artist] = [Patch(facecolor=fill, label=text) for fill, text in zip(FILLS, FILL_LABELS, strict=True)]
    handles.append(Line2D([], [], color=V1["colors"], linestyle="dashed", label="v1 (21) = 1: safe to the left"))
    handles.append(Line2D([], [], color=CORRECTED["colors"], label="corrected bound, where G ≤ c: safe to the left"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=5 if columns == 3 else 2, fontsize=9, frameon=False
    )
    figure.suptitle("Forward Euler on the terms of the master equation", fontsize=12)
    return figure
