"""How large are the gradients of each layer over training? v1 Experiment 4, Figure 5."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pdejax.analysis import gradient_flow
from pdejax.plot._style import COLOURS, LAYER, MARKERS, NULL, axes_of, legend, whole_layers
from pdejax.runs._records import Picture
from pdejax.studies.papers._experiment import (
    TEXT,
    TEXT_PAPER,
    Models,
    Settings,
    experiment,
    presets,
    row,
    stacked,
    with_text,
)
from pdejax.studies.papers._pairs import bench
from pdejax.studies.study import Evidence, Judgement
from pdejax.training import read_metrics

SYSTEMS = ("Transformer", "PDE (bare simulator)")
RESAMPLES = 20


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """Norms of the parameters' gradients per layer at every training step, and of ∂loss/∂u_l at the end on held-out text."""
    truth = bench(settings, seed, models, ("bare",))
    parameters, states, null = [], [], []
    for run in (truth.trained, models.simulator(settings, seed, "bare")):
        metrics = read_metrics(run.folder / "metrics.csv")
        layers = run.config.layers
        parameters.append(np.stack([metrics[f"layer_gradient_norms_{i}"] for i in range(layers)]))
        flow = gradient_flow(
            run.model,
            jnp.asarray(truth.batch.inputs),
            jnp.asarray(truth.batch.labels),
            mask=truth.mask,
            key=jax.random.key(seed),
            resamples=RESAMPLES,
        )
        states.append(flow.median.value)
        null.append(jnp.asarray(flow.median.nulls.get("labels", jnp.full_like(flow.median.value, jnp.nan))))
    return {"parameters": np.stack(parameters), "states": np.stack(states), "null": np.stack(null)}


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Medians over training per layer beside v1's ranges, and the ratio of the two systems."""
    parameters, states, null = (stacked(measured, name) for name in ("parameters", "states", "null"))
    median = np.median(parameters, axis=-1)
    layers = median.shape[-1]
    printed = ("1e-4 … 1e-3", "1e-3 … 1e-2")
    rows = [
        row(
            f"gradient norm of the parameters, layer {layer + 1}, {system}",
            median[:, i, layer],
            paper=printed[i],
            note="median over training; v1 does not say which norm or mean",
        )
        for i, system in enumerate(SYSTEMS)
        for layer in range(layers)
    ]
    for i, system in enumerate(SYSTEMS):
        for depth in (0, states.shape[-1] - 1):
            rows.append(
                row(
                    f"‖∂loss/∂u‖ at layer {depth}, {system}",
                    states[:, i, depth],
                    null=null[:, i, depth],
                    null_name="labels exchanged",
                    note="median over held-out sequences, trained",
                )
            )
    ratio = np.exp(np.mean(np.log(median[:, 1] / median[:, 0]), axis=-1))
    spread = np.max(median, axis=-1) / np.min(median, axis=-1)
    rows.append(row("PDE / Transformer, geometric mean over layers", ratio, paper="about 10"))
    for i, system in enumerate(SYSTEMS):
        rows.append(row(f"largest / smallest layer, {system}", spread[:, i], paper="uniform" if i == 0 else "uneven"))
    larger = float(np.exp(np.mean(np.log(ratio))))
    uneven = spread[:, 1].mean() > spread[:, 0].mean()
    verdict = (
        f"The PDE model's gradients are {larger:.2g} times the Transformer's (v1: about ten times); they differ by a factor "
        f"{spread[:, 1].mean():.1f} between its layers and {spread[:, 0].mean():.1f} between the Transformer's: "
        f"{'uneven as in v1' if uneven else 'not more uneven, against v1'}."
    )
    data = xr.Dataset(
        {
            "parameters": (("seed", "system", "layer", "step"), parameters),
            "states": (("seed", "system", "depth"), states),
            "null": (("seed", "system", "depth"), null),
        },
        coords={"system": list(SYSTEMS), "layer": np.arange(1, layers + 1), "depth": np.arange(states.shape[-1])},
        attrs={"dataset": settings.train["dataset"]},
    )
    caption = (
        f"Left, middle: gradient norm of each layer's parameters over training ({settings.train['dataset']}; geometric mean over "
        "seeds, running median of nine steps). Right: norm of the loss's derivative by each layer's state after training; "
        "dashed: labels exchanged."
    )
    return Judgement(
        rows=rows, sentence=verdict, dataset=data, pictures=[Picture("gradients.png", caption, lambda: _plot(data))]
    )


def _plot(data: xr.Dataset) -> Figure:
    figure = Figure(figsize=(13, 4), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    second.sharey(first)
    for i, ax in enumerate((first, second)):
        axes_of(ax)
        for layer in range(data.sizes["layer"]):
            curve = np.exp(np.mean(np.log(data["parameters"].values[:, i, layer]), axis=0))
            windows = np.lib.stride_tricks.sliding_window_view(curve, min(9, len(curve)))
            ax.semilogy(
                np.arange(len(windows)) + 1,
                np.median(windows, axis=-1),
                color=COLOURS[layer % len(COLOURS)],
                linewidth=1.2,
                label=f"layer {layer + 1}",
            )
        ax.set_title(SYSTEMS[i], fontsize=10)
        ax.set_xlabel("training step")
        legend(ax)
    first.set_ylabel("gradient norm of a layer's parameters")
    axes_of(third)
    for i, system in enumerate(SYSTEMS):
        style = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4}
        third.semilogy(data.depth.values, data["states"].values[:, i].mean(axis=0), label=system, **style)
        if np.isfinite(data["null"].values[:, i]).all():
            own = NULL | {"color": COLOURS[i]}
            third.semilogy(data.depth.values, data["null"].values[:, i].mean(axis=0), **own)
    third.set_xlabel(LAYER)
    third.set_ylabel("‖∂loss/∂u‖")
    whole_layers(third)
    legend(third)
    return figure


GRADIENTS = experiment(
    name="gradients",
    title="Gradient flow",
    question="How large are the gradients of each layer, and how even?",
    source="v1 §3.4, Figure 5",
    presets=presets(TEXT, TEXT_PAPER, sizes=(64, 256)),
    measure=measure,
    judge=judge,
    resolve=with_text,
    pairing="independent: the PDE model is the bare simulator, trained on the task",
)
