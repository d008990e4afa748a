"""Do states without residual connections lose their input? v2 §4.3.1, Thm 3.4, as a factorial study."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pdejax.plot._style import COLOURS, LAYER, MARKERS, axes_of, legend, whole_layers
from pdejax.runs._records import Picture, Row
from pdejax.studies.papers._components import PRESETS, cells, dataset, measure
from pdejax.studies.papers._experiment import Settings, experiment, row, stacked
from pdejax.studies.study import Evidence, Judgement

TRANSFORMER = (1.00, 0.99, 0.98, 0.98, 0.99, 0.98)
SIMULATOR = (1.00, 0.93, 0.91, 0.89, 0.87, 0.85)


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """The last layer's correlation with the input in every cell, layer by layer for the two that the paper has."""
    before, after, accuracy = (stacked(measured, name) for name in ("before", "after", "accuracy"))
    all_cells = cells(settings)
    rows: list[Row] = []
    for printed, residual, normalization, name in (
        (TRANSFORMER, "on", "pre", "Transformer (residual, pre-LN)"),
        (SIMULATOR, "off", "none", "bare simulator (neither)"),
    ):
        index = next(i for i, c in enumerate(all_cells) if (c.residual, c.normalization) == (residual, normalization))
        for layer in range(after.shape[-1]):
            paper = f"{printed[layer]:.2f}" if layer < len(printed) else None
            rows.append(
                row(
                    f"correlation with the input, layer {layer}, {name}",
                    after[:, index, layer],
                    paper=paper,
                    null=before[:, index, layer],
                    null_name="untrained",
                )
            )
    for i, cell in enumerate(all_cells):
        rows.append(
            row(
                f"last layer, residual {cell.residual}, normalization {cell.normalization}, {cell.step}",
                after[:, i, -1],
                null=before[:, i, -1],
                null_name="untrained",
                note=f"accuracy {np.nanmean(accuracy[:, i]):.3f}" if np.isfinite(accuracy[:, i]).any() else "diverged",
            )
        )
    on = np.asarray([c.residual == "on" for c in all_cells])
    coarse = np.asarray([c.per_layer == 1 for c in all_cells])

    def mean(values, chosen, layer):
        return float(np.nanmean(values[:, chosen, layer]))

    first = {name: mean(values, kind & coarse, 1) for name, values, kind in _crossed(before, after, on)}
    last = {name: mean(values, kind & coarse, -1) for name, values, kind in _crossed(before, after, on)}
    pre = next(i for i, c in enumerate(all_cells) if (c.residual, c.normalization) == ("on", "pre"))
    bare = next(i for i, c in enumerate(all_cells) if (c.residual, c.normalization) == ("off", "none"))
    network, probe = (after[:, [i]].mean(axis=(0, 1)) for i in (pre, bare))
    architectural = first["with, fresh"] - first["without, fresh"] > 0.2
    kept = first["with, trained"] - first["without, trained"] > 0.2
    fine = mean(after, ~on & ~coarse, 1) if (~coarse & ~on).any() else float("nan")
    verdict = (
        f"After one layer at h = 1 the correlation with the input is {first['with, fresh']:.2f} with residual connections and "
        f"{first['without, fresh']:.2f} without at initialization, {first['with, trained']:.2f} and "
        f"{first['without, trained']:.2f} after training (means over the normalizations; last layer {last['with, trained']:.2f} "
        f"and {last['without, trained']:.2f}): the loss is "
        f"{'a property of the architecture' if architectural else 'not there at initialization'}"
        f"{', kept by training' if kept else ', and training removes most of it'}. "
        f"The trained bare simulator has {probe[1]:.2f} after one layer and {probe[-1]:.2f} after the last (v2: "
        f"{SIMULATOR[1]:.2f} and {SIMULATOR[-1]:.2f}), the pre-LN network {network[1]:.2f} and {network[-1]:.2f} (v2: "
        f"{TRANSFORMER[1]:.2f} and {TRANSFORMER[-1]:.2f}). The leaky field at half the step, which is a residual network, has "
        f"{fine:.2f} after one layer."
    )
    data = dataset(settings, measured)
    caption = (
        "Correlation with the input by layer, means over seeds; dashed before training, solid after. Left: with residual "
        "connections; right: without (the leaky field at h = 1). Crosses are v2's figures."
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=data,
        pictures=[Picture("residual.png", caption, lambda: _plot(settings, data))],
    )


def _crossed(before: np.ndarray, after: np.ndarray, on: np.ndarray):
    """Both times and both kinds of network, by name."""
    for time, values in (("fresh", before), ("trained", after)):
        yield f"with, {time}", values, on
        yield f"without, {time}", values, ~on


def _plot(settings: Settings, data: xr.Dataset) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = dict(zip(("on", "off"), figure.subplots(1, 2, sharey=True), strict=True))
    found = cells(settings)
    first = found[0].step
    layers = np.arange(data.sizes["layer"])
    for residual, ax in panels.items():
        axes_of(ax)
        chosen = [(i, c) for i, c in enumerate(found) if c.residual == residual and c.step == first]
        for index, (i, cell) in enumerate(chosen):
            style = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 4}
            ax.plot(layers, np.nanmean(data["after"].values[:, i], axis=0), label=cell.normalization, **style)
            ax.plot(layers, np.nanmean(data["before"].values[:, i], axis=0), linestyle="--", alpha=0.7, **style)
        printed = TRANSFORMER if residual == "on" else SIMULATOR
        count = min(len(printed), len(layers))
        ax.plot(layers[:count], printed[:count], "x", color="black", label="v2")
        ax.set_title(f"residual {residual} ({first})", fontsize=10)
        ax.set_xlabel(LAYER)
        whole_layers(ax)
        legend(ax, title="normalization")
    panels["on"].set_ylabel("correlation with the input")
    return figure


RESIDUAL_STUDY = experiment(
    name="residual",
    title="Residual connections",
    question="Do states without residual connections lose their input?",
    source="v2 §4.3.1, Thm 3.4, Figure 4",
    presets=PRESETS,
    measure=measure,
    judge=judge,
    pairing="independent: every combination trained on the task from the same seeds",
)
