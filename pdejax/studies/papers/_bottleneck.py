"""Does information about the answer fall in training, and more so in a PDE model? v1 Experiment 3, Figure 4."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pdejax._bootstrap import over_seeds
from pdejax.analysis.information import information_plane, unit_spread
from pdejax.models import observe
from pdejax.plot._style import COLOURS, MARKERS, NULL, axes_of, legend
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
from pdejax.studies.papers._pairs import bench, pooled
from pdejax.studies.study import Evidence, Judgement

SYSTEMS = ("Transformer", "PDE (bare simulator)")
RESAMPLES = 20


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """I(T_l + σξ; Y) of every layer at every checkpoint, for both systems, beside permuted labels; and I(X; T_l + σξ). σ is in
    units of each layer's spread over sequences."""
    truth = bench(settings, seed, models, ("bare",))
    runs = (truth.trained, models.simulator(settings, seed, "bare"))
    labels, noise = jnp.asarray(truth.batch.labels), settings.options["noise"]
    found: dict[str, list[np.ndarray]] = {"target": [], "input": [], "null": []}
    steps: list[int] = []
    for run in runs:
        history = models.history(run)
        steps = [step for step, _ in history]
        scaled = []
        for _, model in history:
            scaled.append(unit_spread(observe(model, truth.batch.inputs, truth.mask).states[1:], mask=truth.mask))
        x = pooled(truth.observed.states[0], truth.mask)
        plane = information_plane(
            scaled,
            x,
            labels,
            noise=noise,
            mask=truth.mask,
            key=jax.random.key(seed),
            resamples=RESAMPLES,
            permutations=RESAMPLES,
        )
        found["target"].append(np.asarray(plane.target.value))
        found["input"].append(np.asarray(plane.input.value))
        found["null"].append(np.asarray(plane.target.nulls["y permuted"]))
    return {**{name: np.stack(values) for name, values in found.items()}, "step": np.asarray(steps)}


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """The change over training of every layer, and whether v1's three statements hold."""
    target, inputs, null = (stacked(measured, name) for name in ("target", "input", "null"))
    steps = np.asarray(measured[0]["step"])
    layers = target.shape[-1]
    # The estimate for labels without meaning moves too, as the states spread: what counts is what lies above it.
    above = target - null
    change = above[:, :, -1] - above[:, :, 0]
    rows = []
    for i, system in enumerate(SYSTEMS):
        for layer in range(layers):
            rows.append(
                row(
                    f"change of I(T; Y) in training, layer {layer + 1}, {system}",
                    change[:, i, layer],
                    paper="falls" if i == 0 or layer else "falls most",
                    unit="nats",
                    note=f"above permuted labels, from step {steps[0]} to {steps[-1]}",
                )
            )
            rows.append(
                row(
                    f"I(T; Y) after training, layer {layer + 1}, {system}",
                    target[:, i, -1, layer],
                    paper=None if i == 0 else "below the Transformer's",
                    null=null[:, i, -1, layer],
                    null_name="labels permuted",
                    unit="nats",
                )
            )
    falls = int(sum(over_seeds(change[:, i, layer]) < 0 for i in range(2) for layer in range(layers)))
    lower = float(np.mean(above[:, 1, -1] < above[:, 0, -1]))
    steepest = [int(np.argmin(change[k, 1])) == 0 for k in range(len(measured))]
    verdict = (
        f"Information about the answer falls in training in {falls} of {2 * layers} layers (v1: in all). After training it is "
        f"lower in the PDE model in {lower:.0%} of the layers and seeds (v1: lower), and the PDE's first layer changes most "
        f"downwards in {sum(steepest)} of {len(steepest)} seeds (v1: it does). "
        + (
            "A network that learns to answer gains information about the answer: a fall over training is not seen."
            if falls < layers
            else "The fall is seen."
        )
    )
    data = xr.Dataset(
        {
            "target": (("seed", "system", "step", "layer"), target),
            "input": (("seed", "system", "step", "layer"), inputs),
            "null": (("seed", "system", "step", "layer"), null),
        },
        coords={"system": list(SYSTEMS), "step": steps, "layer": np.arange(1, layers + 1)},
        attrs={"noise": float(settings.options["noise"]), "dataset": settings.train["dataset"]},
    )
    caption = (
        f"Information of each layer about the answer over training ({settings.train['dataset']}), means over seeds."
    )
    return Judgement(
        rows=rows, sentence=verdict, dataset=data, pictures=[Picture("information.png", caption, lambda: _curves(data))]
    )


def _curves(data: xr.Dataset) -> Any:
    target, null = data["target"].values, data["null"].values
    steps, layers = data.step.values, data.sizes["layer"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    for ax, i in zip(figure.subplots(1, 2, sharey=True), range(2), strict=True):
        axes_of(ax)
        for layer in range(layers):
            style = {"color": COLOURS[layer % len(COLOURS)], "marker": MARKERS[layer % len(MARKERS)], "markersize": 4}
            ax.plot(steps, target[:, i, :, layer].mean(axis=0), label=f"layer {layer + 1}", **style)
        ax.plot(steps, null[:, i].mean(axis=(0, -1)), **NULL, label="labels permuted")
        ax.set_title(SYSTEMS[i], fontsize=10)
        ax.set_xlabel("training step")
        legend(ax)
        if i == 0:
            ax.set_ylabel(f"I(T + σξ; Y) (nats), σ = {data.attrs['noise']:g} of the spread")
    return figure


_OPTIONS = {"noise": 0.7}

BOTTLENECK = experiment(
    name="bottleneck",
    title="Information bottleneck",
    question="Does information about the answer fall in training, and more so in a PDE model?",
    source="v1 §3.3, Figure 4",
    presets=presets(TEXT, TEXT_PAPER, sizes=(400, 2000), options=_OPTIONS),
    measure=measure,
    judge=judge,
    resolve=with_text,
    pairing="independent: the PDE model is the bare simulator, trained on the task",
)
