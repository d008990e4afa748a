"""Does the picture carry over to other architectures? A Vision Transformer on patches and a GPT-style decoder on text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

from pdejax.analysis import layer_correlation, trajectory_fidelity
from pdejax.data import Dataset, load
from pdejax.models import observe
from pdejax.plot._style import COLOURS, LAYER, NULL, axes_of, legend, whole_layers
from pdejax.runs._records import Picture
from pdejax.studies.papers._experiment import (
    CORRELATION,
    IMAGES,
    IMAGES_PAPER,
    IMAGES_STANDARD,
    LISTOPS,
    NO_IMAGES,
    RESAMPLES,
    SHARE,
    STUDENT,
    TEXT,
    TEXT_PAPER,
    Models,
    Settings,
    experiment,
    over,
    row,
    shown,
    sign,
    spread,
    stacked,
    text_or,
)
from pdejax.studies.papers._pairs import bench, made_of, partner, seed_curves, untrained_partner
from pdejax.studies.study import Evidence, Judgement, low
from pdejax.training import TrainConfig, build_model


def architectures(settings: Settings) -> Mapping[str, Settings]:
    """The settings of each architecture, by its name."""
    return {
        name: dataclasses.replace(settings, train=train, options={})
        for name, train in settings.options["architectures"].items()
    }


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """Agreement of each network with the simulator fitted to it and with its own refinement, by layer; of its adjacent layers,
    beside the network that its training began with; its accuracy, beside that of guessing."""
    found: dict[str, Any] = {}
    named = architectures(settings)
    for train in (models.transformer_config, models.student_config):
        models.together([train(own, seed) for own in named.values()])
    for name, own in named.items():
        truth = bench(own, seed, models)
        key = jax.random.key(seed)
        theirs = truth.observed.states
        config = truth.trained.config
        train, test = (load(config.dataset, split, **_options(config)) for split in ("train", "test"))
        before = observe(build_model(config, train), truth.batch.inputs, truth.mask, maps=False).states
        adjacent = layer_correlation(
            theirs, "previous", truth.mask, untrained=before, key=key, resamples=RESAMPLES
        ).pearson
        found[f"{name}/adjacent"] = adjacent.value
        found[f"{name}/adjacent/null"] = adjacent.nulls["untrained"]
        found[f"{name}/adjacent/shuffled"] = adjacent.nulls["tokens shuffled"]
        for pairing in ("shared", "distilled"):
            model = partner(own, seed, models, pairing)
            ours = observe(model, truth.batch.inputs, truth.mask).states
            null = observe(untrained_partner(model, seed), truth.batch.inputs, truth.mask).states
            fidelity = trajectory_fidelity(
                ours[1:], theirs[1:], mask=truth.mask, reference_null=null[1:], key=key, resamples=RESAMPLES
            ).layers
            found[f"{name}/{pairing}"] = fidelity["cosine"].value
            found[f"{name}/{pairing}/null"] = fidelity["cosine"].nulls["untrained"]
        found[f"{name}/test"] = np.asarray(truth.trained.test.get("accuracy", float("nan")))
        found[f"{name}/test/guess"] = np.asarray(guessing(train, test))
    return found


def _options(config: TrainConfig) -> dict[str, Any]:
    return dict(config.data) | ({"task": "lm"} if config.task == "lm" else {})


def guessing(train: Dataset, test: Dataset) -> float:
    """Accuracy on `test` of the label most frequent in `train`: of the class, or of the next token at the places that count,
    which are those of the mask."""
    seen, asked = (data.labels if data.labels.ndim == 1 else data.labels[data.mask] for data in (train, test))
    return float(np.mean(asked == np.bincount(seen).argmax()))


REACHED = 0.97  # v2's cosine


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Cosines, adjacent correlations and accuracies of each architecture."""
    rows, fitted, refined, near, right = [], {}, {}, [], []
    for name, own in architectures(settings).items():
        made = made_of(own.train, "Transformer")
        for pairing, note in (("distilled", "fitted to its states"), ("shared", "its own field at h = 1/4")):
            value, null = (stacked(measured, f"{name}/{pairing}{end}") for end in ("", "/null"))
            label = f"cosine of tokens, {name}, {pairing}"
            rows.append(
                row(
                    label,
                    value.mean(axis=-1),
                    null=null.mean(axis=-1),
                    null_name="untrained field",
                    within=CORRELATION,
                    note=f"{note}; mean over layers; {made_of(own.train, pairing)}",
                )
            )
            (fitted if pairing == "distilled" else refined)[name] = over(value.mean(axis=-1), CORRELATION)
        adjacent = stacked(measured, f"{name}/adjacent")
        fresh, shuffled = (stacked(measured, f"{name}/adjacent/{null}").mean(axis=-1) for null in ("null", "shuffled"))
        rows.append(
            row(
                f"correlation of adjacent layers, {name}",
                adjacent.mean(axis=-1),
                null=fresh,
                null_name="before training",
                note=f"mean over layers; {shown(over(shuffled, CORRELATION))} with tokens shuffled; {made}",
                within=CORRELATION,
            )
        )
        accuracy, guess = (stacked(measured, f"{name}/test{end}") for end in ("", "/guess"))
        guessed = "most frequent token" if own.train.get("task") == "lm" else "most frequent class"
        rows.append(row(f"accuracy, {name}", accuracy, null=guess, null_name=guessed, note=made, within=SHARE))
        near.append(
            f"{name} {shown(over(adjacent.mean(axis=-1), CORRELATION))}, before training "
            f"{shown(over(fresh, CORRELATION))} ({_changed(adjacent.mean(axis=-1) - fresh)})"
        )
        right.append(f"{name} {shown(over(accuracy, SHARE), 3)}, the {guessed} {shown(over(guess, SHARE), 3)}")
    well = [name for name, value in fitted.items() if low(value) >= REACHED]
    verdict = (
        f"A simulator can be fitted to cosine {REACHED:g}, v2's, for {len(well)} of {len(fitted)} architectures ("
        + ", ".join(f"{name} {shown(value, 3)}" for name, value in fitted.items())
        + "); refining the step of their own fields leaves "
        + ", ".join(f"{name} {shown(value, 3)}" for name, value in refined.items())
        + f" ({spread(len(measured))}). Adjacent layers correlate at: {'; '.join(near)}. Accuracy: {'; '.join(right)}."
    )
    data = xr.Dataset(
        {
            key.replace("/", ", "): (
                ("seed", f"{key.partition('/')[0]} layer")[: 1 + np.ndim(value)],
                stacked(measured, key),
            )
            for key, value in measured[0].items()
        }
    )
    caption = (
        "Cosine of each simulator's tokens with the network's by layer; mean over seeds, thin the seeds; "
        "dashed in the same colour: an untrained field in its place."
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=data,
        pictures=[Picture("architectures.png", caption, lambda: _curves(settings, data))],
    )


def _changed(difference: np.ndarray) -> str:
    """Whether training brings adjacent layers nearer: the whole interval over seeds decides."""
    return {1: "surely higher", -1: "surely lower", 0: "not surely another"}[sign(difference)]


def _curves(settings: Settings, data: xr.Dataset) -> Any:
    ax = axes_of(None, width=8.0)
    count = len(architectures(settings))
    for i, name in enumerate(architectures(settings)):
        for place, pairing, label in ((i, "distilled", "distilled"), (i + count, "shared", "shared at h = 1/4")):
            values = data[f"{name}, {pairing}"].values
            layers = np.arange(1, values.shape[1] + 1)
            seed_curves(ax, layers, values, index=place, label=f"{name}, {label}")
            null = data[f"{name}, {pairing}, null"].values.mean(axis=0)
            ax.plot(layers, null, **NULL | {"color": COLOURS[place], "linewidth": 1.2})
    ax.set_xlabel(LAYER)
    ax.plot([], [], **NULL, label="untrained field in its place")
    ax.set_ylabel("cosine with the network's token")
    whole_layers(ax)
    legend(ax, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax.figure


def resolve(settings: Settings) -> Settings:
    """The decoder reads ListOps, to classify it, where the text is not there; the Vision Transformer digits without MNIST."""
    named = dict(settings.options["architectures"])
    elsewhere = settings.options["without_text"]
    found = {
        name: text_or(train, elsewhere if train["dataset"] == "newsgroups" else {**train, **NO_IMAGES})
        for name, train in named.items()
    }
    return dataclasses.replace(settings, options={**settings.options, "architectures": found})


_VIT = {**IMAGES, "layers": 4}
_MNIST = {**IMAGES_STANDARD, "layers": 4}
_GPT = {**TEXT, "task": "lm", "dim": 48, "data": {"length": 32, "vocabulary_size": 2_000}, "steps": 200}
_CAUSAL = {**LISTOPS, "layers": 4, "dim": 32, "ffn": 128, "steps": 200, "options": {"causal": True}}

ARCHITECTURES = experiment(
    name="architectures",
    title="Other architectures",
    question="Does a simulator follow a Vision Transformer and a GPT-style decoder as well?",
    source="v2 §5, follow-up: architectural generalization",
    presets={
        "quick": Settings(
            student_steps=500,
            student=STUDENT,
            examples=48,
            options={"architectures": {"Vision Transformer": _VIT, "causal decoder": _GPT}, "without_text": _CAUSAL},
            seeds=1,
        ),
        "standard": Settings(
            student_steps=500,
            student=STUDENT,
            examples=48,
            options={"architectures": {"Vision Transformer": _MNIST, "causal decoder": _GPT}, "without_text": _CAUSAL},
            seeds=5,
        ),
        "paper": Settings(
            student_steps=5000,
            examples=64,
            options={
                "architectures": {
                    "Vision Transformer": {
                        **IMAGES_PAPER,
                        "data": {"form": "patches", "patch": 4},
                        "layers": 6,
                        "dim": 128,
                    },
                    "causal decoder": {**TEXT_PAPER, "task": "lm", "layers": 6, "dim": 128},
                },
                "without_text": {**_CAUSAL, "dim": 128, "ffn": 512, "layers": 6},
            },
            seeds=5,
        ),
    },
    measure=measure,
    judge=judge,
    resolve=resolve,
    pairing="shared at h = 1/4, distilled",
)
