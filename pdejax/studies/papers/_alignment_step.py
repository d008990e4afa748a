"""Do a simulator's states follow a Transformer's where a layer is a step of v2's 0.2, and where the embedding is multiplied by
√d (v2 §4.2, which states neither for its figures)?
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pdejax.analysis import trajectory_fidelity
from pdejax.models import observe, pair
from pdejax.plot._style import COLOURS, LAYER, NULL, axes_of, whole_layers
from pdejax.runs._records import Picture
from pdejax.studies.papers._experiment import (
    CORRELATION,
    LISTOPS,
    LISTOPS_PAPER,
    LISTOPS_STANDARD,
    RESAMPLES,
    Models,
    Settings,
    experiment,
    over,
    presets,
    row,
    shown,
    spread,
    stacked,
)
from pdejax.studies.papers._pairs import bench, legend_beside, parameters_of, seed_curves, untrained_partner
from pdejax.studies.study import Evidence, Judgement, high, low
from pdejax.training import TrainConfig

STEP = 0.2
SCALES = ("1", "√d")
SYSTEMS = ("distilled", "independent")
OWN = "untrained field of the Transformer's own form, h = 1"
QUANTITIES = {"cosine": "cosine of tokens", "cka_debiased": "linear CKA, debiased", "mse": "MSE"}
PAPER = {"cosine": "0.970", "mse": "0.031"}
REACHED = 0.97  # v2's cosine


def scaled(settings: Settings, scale: str) -> Settings:
    """The settings with the embedding of the Transformer, and so of what is fitted to it, times 1 or √d."""
    if scale == "1":
        return settings
    options = {**settings.train.get("options", {}), "embedding_scale": TrainConfig(**settings.train).dim ** 0.5}
    return dataclasses.replace(settings, train={**settings.train, "options": options})


def simulators(settings: Settings, seed: int, models: Models) -> Mapping[str, TrainConfig]:
    """The leaky field without LayerNorm, an Euler step of 0.2 a layer: fitted to the Transformer's states, and trained on the
    task from a seed of its own."""
    options = {**settings.train.get("options", {}), "t1": STEP * TrainConfig(**settings.train).layers}
    field: dict[str, Any] = {"model": "bare", "solver": "euler", "options": options}
    return {
        "distilled": dataclasses.replace(models.student_config(settings, seed), **field),
        "independent": dataclasses.replace(models.transformer_config(settings, seed + 1000), **field),
    }


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """Agreement of each simulator with the Transformer `(scales, systems, layers)`, and of an untrained field in its place; that
    of an untrained field of the Transformer's own form between the Transformer's own ends `(scales, layers)`."""
    names = [*QUANTITIES, *(f"null_{name}" for name in QUANTITIES), *(f"own_{name}" for name in QUANTITIES)]
    found: dict[str, list[Any]] = {name: [] for name in names}
    by_scale = [scaled(settings, scale) for scale in SCALES]
    models.together([models.transformer_config(own, seed) for own in by_scale])
    models.together([c for own in by_scale for c in _after(own, seed, models).values()])
    for own in by_scale:
        truth = bench(own, seed, models)

        def states(model, truth=truth) -> Any:
            return observe(model, truth.batch.inputs, truth.mask, maps=False).states[1:]

        def agreement(model, null=None, *, truth=truth, states=states):
            return trajectory_fidelity(
                states(model),
                states(truth.trained.model),
                mask=truth.mask,
                reference_null=None if null is None else states(null),
                key=jax.random.key(seed),
                resamples=RESAMPLES,
            ).layers

        every = []
        for config in simulators(own, seed, models).values():
            model = models.trained(config).model
            every.append(agreement(model, untrained_partner(model, seed)))
        alone = agreement(pair(truth.trained.model, "distilled", key=jax.random.key(10_000 + seed)))
        for name in QUANTITIES:
            found[name].append(np.stack([one[name].value for one in every]))
            found[f"null_{name}"].append(np.stack([one[name].nulls["untrained"] for one in every]))
            found[f"own_{name}"].append(np.asarray(alone[name].value))
    return {name: np.stack(values) for name, values in found.items()}


def _after(settings: Settings, seed: int, models: Models) -> Mapping[str, TrainConfig]:
    """What is trained once the Transformer is there."""
    models.transformer(settings, seed)
    return simulators(settings, seed, models)


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Means over layers at each scale of the embedding; which reach the paper's cosine, and whether a fit is needed for it."""
    rows, fitted, fresh = [], {}, {}
    count = parameters_of(settings.train, "bare")
    for j, scale in enumerate(SCALES):
        end = "" if scale == "1" else f", embedding × {scale}"
        for i, system in enumerate(SYSTEMS):
            for name, label in QUANTITIES.items():
                within = None if name == "mse" else CORRELATION
                ours, null = (stacked(measured, f"{k}{name}")[:, j, i].mean(axis=-1) for k in ("", "null_"))
                rows.append(
                    row(
                        f"{label}, {system}, h = {STEP:g}{end}",
                        ours,
                        paper=PAPER.get(name),
                        null=null,
                        null_name="untrained field",
                        note=f"leaky field, no LayerNorm, Euler, {count:,} parameters; mean over layers",
                        within=within,
                    )
                )
                if name == "cosine":
                    fitted[f"{system}{end}"] = over(ours, within)
                    fresh[f"one in place of {system}{end}"] = over(null, within)
        for name, label in QUANTITIES.items():
            within = None if name == "mse" else CORRELATION
            own = stacked(measured, f"own_{name}")[:, j].mean(axis=-1)
            note = "between the embedding and the head of the trained Transformer; mean over layers"
            rows.append(row(f"{label}, {OWN}{end}", own, note=note, within=within))
            if name == "cosine":
                fresh[f"one of the Transformer's own form at h = 1{end}"] = over(own, within)
    verdict = (
        f"With an Euler step of v2's {STEP:g} a layer, {_reached(fitted)}. Untrained fields: {_reached(fresh)} "
        f"({spread(len(measured))}): {_needed(fresh)}."
    )
    data = xr.Dataset(
        {
            **{
                name: (("seed", "scale", "system", "layer"), stacked(measured, name))
                for name in (*QUANTITIES, *(f"null_{name}" for name in QUANTITIES))
            },
            **{f"own_{n}": (("seed", "scale", "layer"), stacked(measured, f"own_{n}")) for n in QUANTITIES},
        },
        coords={
            **{"scale": list(SCALES), "system": list(SYSTEMS), "step": [STEP]},
            "layer": np.arange(1, stacked(measured, "cosine").shape[-1] + 1),
        },
    )
    caption = (
        f"Cosine of tokens with the Transformer's by layer, simulators at h = {STEP:g}, means over seeds, thin the seeds; dashed "
        "in the same colour: an untrained field in each one's place; dotted: an untrained field of the Transformer's own form at "
        "h = 1. Left: the embedding as drawn; right: times √d."
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=data,
        pictures=[Picture("cosine.png", caption, lambda: _curves(data))],
    )


def _reached(figures: Mapping[str, Any]) -> str:
    """Which surely have v2's cosine, and all figures."""
    names = [name for name, figure in figures.items() if low(figure) >= REACHED]
    each = "; ".join(f"{name} {shown(figure, 3)}" for name, figure in figures.items())
    return f"a cosine of {REACHED:g} is surely reached by {'; '.join(names) or 'none'} ({each})"


def _needed(fresh: Mapping[str, Any]) -> str:
    """Whether v2's cosine says that something was fitted: whole intervals decide."""
    if any(low(figure) >= REACHED for figure in fresh.values()):
        return "a cosine as high does not need a fit"
    return (
        "none of them has it without a fit"
        if all(high(figure) < REACHED for figure in fresh.values())
        else "whether it needs a fit is not decided"
    )


def _curves(data: xr.Dataset) -> Any:
    figure = Figure(figsize=(11.5, 4.2), layout="constrained")
    layers = data.layer.values
    for j, (ax, scale) in enumerate(zip(figure.subplots(1, 2, sharey=True), data.scale.values, strict=True)):
        axes_of(ax)
        for i, system in enumerate(data.system.values):
            seed_curves(ax, layers, data["cosine"].values[:, j, i], index=i, label=str(system))
            null = data["null_cosine"].values[:, j, i].mean(axis=0)
            own = {"color": COLOURS[i], "linewidth": 1.2}
            ax.plot(layers, null, **NULL | own, label=f"untrained, in place of {system}")
        style = {"color": "black", "linestyle": ":", "linewidth": 1.6}
        ax.plot(layers, data["own_cosine"].values[:, j].mean(axis=0), **style, label="untrained, own form, h = 1")
        ax.axhline(REACHED, color="0.5", linewidth=0.8, label=f"v2, {REACHED:g}")
        ax.set_title("embedding as drawn" if scale == "1" else f"embedding × {scale}", fontsize=10)
        ax.set_xlabel(LAYER)
        whole_layers(ax)
    figure.axes[0].set_ylabel("cosine with the Transformer's token")
    legend_beside(figure)
    return figure


ALIGNMENT_STEP = experiment(
    name="alignment-step",
    title="Trajectory alignment at v2's step",
    question="Do the states follow a Transformer's at 0.2 a layer, and with the embedding times √d?",
    source="v2 §4.2, Figures 2 and 3, which state neither",
    presets=presets(LISTOPS, LISTOPS_STANDARD, LISTOPS_PAPER, sizes=(64, 64, 64), students=(600, 600, 10_000)),
    measure=measure,
    judge=judge,
    pairing="distilled and independent: the leaky field without LayerNorm, an Euler step of 0.2 a layer",
)
