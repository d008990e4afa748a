"""Does information about the answer fall in training, from the first weights into overfitting? v1 §3.3, Figure 4, on text: a
Transformer beside the bare simulator, at two sizes of the noise without which nothing could fall (claim C10).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pdejax.analysis.information import information_plane, unit_spread
from pdejax.models import observe
from pdejax.plot._style import COLOURS, MARKERS, NULL, axes_of
from pdejax.runs._records import Picture, Row
from pdejax.studies.papers._experiment import (
    RESAMPLES,
    TEXT,
    TEXT_PAPER,
    TEXT_STANDARD,
    Models,
    Settings,
    Trained,
    experiment,
    held_out,
    over,
    presets,
    row,
    sign,
    signed,
    signed_range,
    spread,
    stacked,
    surely,
    with_text,
)
from pdejax.studies.papers._pairs import TEXT_SYSTEMS as SYSTEMS
from pdejax.studies.papers._pairs import bench, legend_beside, made_of_systems, pooled
from pdejax.studies.study import Evidence, Judgement
from pdejax.training import build_model, read_metrics


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """I(T_l + σξ; Y) of every layer at the first weights and at every checkpoint, for both systems and every noise σ, beside
    permuted labels; and I(X; T_l + σξ). σ is in units of each layer's spread over sequences. Losses: of the validation split at
    each checkpoint, and of the training steps since the checkpoint before."""
    truth = bench(settings, seed, models, ("bare",))
    labels, x = jnp.asarray(truth.batch.labels), pooled(truth.observed.states[0], truth.mask)
    found: dict[str, list[np.ndarray]] = {"target": [], "input": [], "null": [], "validation": [], "training": []}
    steps: list[int] = []
    for run in (truth.trained, models.simulator(settings, seed, "bare")):
        test, _ = held_out(run.config, settings.examples)
        history = [(0, build_model(run.config, test)), *models.history(run)]
        steps = [step for step, _ in history]
        scaled = [
            unit_spread(observe(model, truth.batch.inputs, truth.mask).states[1:], mask=truth.mask)
            for _, model in history
        ]
        planes = [
            information_plane(
                scaled,
                x,
                labels,
                noise=noise,
                mask=truth.mask,
                key=jax.random.key(seed),
                resamples=RESAMPLES,
                permutations=RESAMPLES,
            )
            for noise in settings.options["noises"]
        ]
        found["target"].append(np.stack([plane.target.value for plane in planes]))
        found["input"].append(np.stack([plane.input.value for plane in planes]))
        found["null"].append(np.stack([np.asarray(plane.target.nulls["y permuted"]) for plane in planes]))
        for name, values in zip(("validation", "training"), _losses(run, steps), strict=True):
            found[name].append(values)
    return {**{name: np.stack(values) for name, values in found.items()}, "step": np.asarray(steps)}


def _losses(run: Trained, steps: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Of the validation split at these steps but the first, and the mean of the training steps between them."""
    measured, trained = (read_metrics(run.folder / f"{name}.csv") for name in ("evaluations", "metrics"))
    evaluated = dict(zip(np.asarray(measured["step"]).astype(int).tolist(), measured["loss"], strict=True))
    loss, at = np.asarray(trained["loss"], float), np.asarray(trained["step"], float)
    between = [loss[(at > low) & (at <= high)].mean() for low, high in itertools.pairwise(steps)]
    return np.asarray([evaluated.get(step, np.nan) for step in steps[1:]], float), np.asarray(between)


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """The change over training of every layer at every noise, whether v1's three statements hold, and what overfitting does."""
    target, inputs, null = (stacked(measured, name) for name in ("target", "input", "null"))
    validation, training = (stacked(measured, name) for name in ("validation", "training"))
    steps = np.asarray(measured[0]["step"])
    noises, layers = settings.options["noises"], target.shape[-1]
    # The estimate for labels without meaning moves too, as the states spread: what counts is what lies above it.
    above = target - null  # (seeds, systems, noises, steps, layers)
    change = above[..., -1, :] - above[..., 0, :]
    # The checkpoint of the least validation loss, the same for all seeds, and what comes after it.
    best = [1 + int(np.argmin(np.nan_to_num(validation[:, i].mean(axis=0), nan=np.inf))) for i in range(len(SYSTEMS))]
    later = np.stack([above[:, i, :, -1] - above[:, i, :, best[i]] for i in range(len(SYSTEMS))], axis=1)
    risen = [over(validation[:, i, -1] - validation[:, i, best[i] - 1]) for i in range(len(SYSTEMS))]
    made = made_of_systems(settings.train)
    rows = _rows(noises, steps, best, made, {"change": change, "later": later, "target": target, "null": null})
    for i, system in enumerate(SYSTEMS):
        for name, values in (("training", training), ("validation", validation)):
            rows.append(row(f"{name} loss at the end, {system}", values[:, i, -1], unit="nats", note=made[i]))
        note = f"from step {steps[best[i]]}"
        rows.append(
            row(
                f"rise of the validation loss, {system}",
                validation[:, i, -1] - validation[:, i, best[i] - 1],
                unit="nats",
                note=note,
            )
        )
    falls, rises, of = _counted(change)
    falls_later, rises_later, _ = _counted(later)
    lower, higher, places = _counted(above[:, 1, :, -1] - above[:, 0, :, -1])
    steepest, *_ = _counted(change[:, 1, :, 0] - np.min(change[:, 1, :, 1:], axis=-1))
    batch, size = settings.train["batch_size"], settings.train["dataset"]
    verdict = (
        f"From the first weights to step {steps[-1]} (batches of {batch}, {size}) information about the answer changes by "
        f"{signed_range(change.mean(axis=0))} nats over layers and noises and surely falls in {falls}, rises in {rises} of {of} "
        f"({surely(len(measured))}; v1: it falls in all). After the least validation loss (steps {steps[best[0]]} and "
        f"{steps[best[1]]}; it rises by {signed(risen[0])} and {signed(risen[1])} nats, {spread(len(measured))}, then) it surely "
        f"falls in {falls_later}, rises in {rises_later}. At the end it is surely lower in the PDE model in {lower}, higher in "
        f"{higher} of {places} layers and noises (v1: lower), and the PDE's first layer surely changes most downwards at "
        f"{steepest} of {len(noises)} noises (v1: it does). " + _seen((falls, rises, of), (falls_later, rises_later))
    )
    variables = (("target", target), ("input", inputs), ("null", null))
    data = xr.Dataset(
        {
            **{name: (("seed", "system", "noise", "step", "layer"), values) for name, values in variables},
            "validation": (("seed", "system", "later"), validation),
            "training": (("seed", "system", "later"), training),
        },
        coords={
            "system": list(SYSTEMS),
            "noise": list(noises),
            "step": steps,
            "later": steps[1:],
            "layer": np.arange(1, layers + 1),
        },
        attrs={"dataset": settings.train["dataset"]},
    )
    caption = (
        f"Information of each layer about the answer from the first weights into overfitting ({settings.train['dataset']}), "
        "means over seeds; rows: sizes of the noise; dotted: the least validation loss; below: losses."
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=data,
        pictures=[Picture("information.png", caption, lambda: _curves(data, steps[best]))],
    )


def _seen(whole: tuple[int, int, int], later: tuple[int, int]) -> str:
    """What follows from how many layers and noises surely fall, surely rise: over training, and after the least loss."""
    falls, rises, of = whole
    if falls == of:
        return "The fall is seen."
    if falls or not rises:
        return "Whether it falls is not decided."
    again = (
        f"; after the least validation loss it falls in {later[0]} of {of} and rises in {later[1]}" if later[0] else ""
    )
    return (
        f"A network that learns to answer gains information about the answer: a fall over training is not seen{again}."
    )


def _counted(change: np.ndarray) -> tuple[int, int, int]:
    """In how many of the cases `(seeds, …)` a change is surely down, surely up, and how many there are."""
    cases = change.reshape(len(change), -1)
    signs = [sign(cases[:, k]) for k in range(cases.shape[1])]
    return signs.count(-1), signs.count(1), len(signs)


def _rows(
    noises: Sequence[float], steps: np.ndarray, best: Sequence[int], made: Sequence[str], values: dict[str, np.ndarray]
) -> list[Row]:
    rows = []
    for n, noise in enumerate(noises):
        for i, system in enumerate(SYSTEMS):
            for layer in range(values["change"].shape[-1]):
                place = f"layer {layer + 1}, σ = {noise:g}, {system}"
                rows.append(
                    row(
                        f"change of I(T; Y) in training, {place}",
                        values["change"][:, i, n, layer],
                        paper="falls" if i == 0 or layer else "falls most",
                        unit="nats",
                        note=f"above permuted labels, from step {steps[0]} to {steps[-1]}",
                    )
                )
                rows.append(
                    row(
                        f"change of I(T; Y) in overfitting, {place}",
                        values["later"][:, i, n, layer],
                        paper="falls",
                        unit="nats",
                        note=f"above permuted labels, from step {steps[best[i]]} to {steps[-1]}",
                    )
                )
                rows.append(
                    row(
                        f"I(T; Y) after training, {place}",
                        values["target"][:, i, n, -1, layer],
                        paper=None if i == 0 else "below the Transformer's",
                        null=values["null"][:, i, n, -1, layer],
                        null_name="labels permuted",
                        unit="nats",
                        note=made[i],
                    )
                )
    return rows


def _curves(data: xr.Dataset, best: np.ndarray) -> Any:
    target, null = data["target"].values, data["null"].values
    steps, layers, noises = data.step.values, data.sizes["layer"], data.noise.values
    figure = Figure(figsize=(10.5, 2.9 * (len(noises) + 1)), layout="constrained")
    panels = figure.subplots(len(noises) + 1, 2, sharex=True, sharey="row")
    for i, system in enumerate(SYSTEMS):
        for n, noise in enumerate(noises):
            ax = axes_of(panels[n, i])
            for layer in range(layers):
                style: Any = {"color": COLOURS[layer % len(COLOURS)], "marker": MARKERS[layer % len(MARKERS)]}
                ax.plot(
                    steps, target[:, i, n, :, layer].mean(axis=0), label=f"layer {layer + 1}", markersize=4, **style
                )
            ax.plot(steps, null[:, i, n].mean(axis=(0, -1)), **NULL, label="labels permuted")
            if i == 0:
                ax.set_ylabel(f"I(T + σξ; Y) (nats)\nσ = {noise:g} of the spread")
        axes_of(panels[-1, i])
        for name, line in (("training", "-"), ("validation", "-.")):
            mean = data[name].values[:, i].mean(axis=0)
            panels[-1, i].plot(data.later.values, mean, color="black", linestyle=line, label=f"{name} loss")
        panels[-1, i].set_xlabel("training step")
        panels[0, i].set_title(system, fontsize=10)
        for ax in panels[:, i]:
            ax.axvline(best[i], color="0.6", linestyle=":", linewidth=1, label="least validation loss")
    panels[-1, 0].set_ylabel("loss (nats)")
    legend_beside(figure)
    return figure


_NOISES = {"noises": (0.5, 1.0)}

BOTTLENECK = experiment(
    name="information-bottleneck",  # a folder called bottleneck is a package to pandas, where Python is started beside it
    headline="I(T; Y) after training, layer *, σ = 1, Transformer",
    title="Information bottleneck",
    question="Does information about the answer fall in training, and more so in a PDE model?",
    source="v1 §3.3, Figure 4",
    presets=presets(TEXT, TEXT_STANDARD, TEXT_PAPER, sizes=(400, 400, 2000), options=_NOISES),
    measure=measure,
    judge=judge,
    lacking=("validation",),
    resolve=with_text,
    pairing="independent: the PDE model is the bare simulator (our reading, h = 1), trained on the task",
)
