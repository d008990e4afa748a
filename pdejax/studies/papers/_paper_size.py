"""The residual and the alignment experiment at v2's size, untrained: ListOps of 500 to 1000 tokens, six layers, d = 128.
Training at this size is a GPU's work; the first weights are not, and they show which similarities are there already.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pdejax.analysis import trajectory_fidelity
from pdejax.models import observe, pair
from pdejax.plot._style import COLOURS, LAYER, MARKERS, axes_of, whole_layers
from pdejax.runs._records import Picture
from pdejax.studies.papers._components import SIMULATOR, TRANSFORMER, Cell
from pdejax.studies.papers._experiment import (
    CORRELATION,
    LISTOPS_PAPER,
    RESAMPLES,
    Models,
    Settings,
    experiment,
    held_out,
    over,
    row,
    shown,
    spread,
    stacked,
)
from pdejax.studies.papers._pairs import REFINED
from pdejax.studies.papers._readings import SCALES, begun, correlations
from pdejax.studies.study import Evidence, Judgement
from pdejax.training import TrainConfig, build_model

SYSTEMS = (("on", "pre", "lietrotter"), ("off", "none", "euler"), ("off", "none", "lietrotter"))
STEPS = (0.1, 0.2, 1.0)
PAIRS = (f"its own field, h = 1/{REFINED}", "another seed", "bare, another seed")
QUANTITIES = {"cosine": "cosine of tokens", "cka_debiased": "linear CKA, debiased", "mse": "MSE"}


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """Correlations with the input `(systems, scales, steps, layers)`, and agreement of an untrained Transformer with its own
    field at a finer step and with untrained simulators of another seed `(pairs, layers)`."""
    found: dict[str, list[np.ndarray]] = {"correlation": []}
    for system in SYSTEMS:
        d, starts, mask = begun(Cell(*system, per_layer=1), settings, seed)
        found["correlation"].append(np.asarray(correlations(d, starts, mask, jnp.asarray(STEPS, starts.dtype))))
    config = models.transformer_config(settings, seed)
    test, batch = held_out(config, settings.examples)
    transformer: Any = build_model(config, test)
    mask = jnp.asarray(batch.mask)
    others = [
        pair(transformer, "shared", steps=REFINED * config.layers),
        *(
            build_model(TrainConfig(**{**settings.train, "model": model, "seed": seed + 1000}), test)
            for model in ("simulator", "bare")
        ),
    ]
    theirs = observe(transformer, batch.inputs, mask, maps=False).states[1:]
    for other in others:
        ours = observe(other, batch.inputs, mask, maps=False).states[1:]
        layers = trajectory_fidelity(ours, theirs, mask=mask, key=jax.random.key(seed), resamples=RESAMPLES).layers
        for name in QUANTITIES:
            found.setdefault(name, []).append(np.asarray(layers[name].value))
    return {name: np.stack(values) for name, values in found.items()}


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Each printed correlation beside the nearest setting, and the printed agreement beside that of untrained networks."""
    curves = stacked(measured, "correlation")
    rows, said = [], []
    best: dict[str, tuple[int, int, int]] = {}
    for name, printed, systems in (("Transformer", TRANSFORMER, (0,)), ("PDE simulator", SIMULATOR, (1, 2))):
        count = min(len(printed), curves.shape[-1])
        apart = np.max(np.abs(curves.mean(axis=0)[..., :count] - np.asarray(printed[:count])), axis=-1)
        apart = np.where(np.isfinite(apart), apart, np.inf)
        own = np.where(np.isin(np.arange(len(SYSTEMS)), systems)[:, None, None], apart, np.inf)
        place: Any = tuple(int(i) for i in np.unravel_index(np.argmin(own), own.shape))
        best[name] = place
        for layer in range(count):
            rows.append(
                row(
                    f"correlation with the input, layer {layer}, {name}",
                    curves[(slice(None), *place, layer)],
                    paper=f"{printed[layer]:.2f}",
                    note=_words(place),
                    within=CORRELATION,
                )
            )
        coarse = own[..., STEPS.index(1.0)].min()
        said.append(f"{name} {own[place]:.3f} away ({_words(place)}; at h = 1 {coarse:.2f})")
    values = {name: stacked(measured, name).mean(axis=-1) for name in QUANTITIES}
    for i, kind in enumerate(PAIRS):
        for name, label in QUANTITIES.items():
            rows.append(
                row(
                    f"{label}, untrained Transformer and {kind}",
                    values[name][:, i],
                    note="mean over layers; v2's figures are of trained networks",
                    within=None if name == "mse" else CORRELATION,
                )
            )
    cosines = ", ".join(f"{kind} {shown(over(values['cosine'][:, i], CORRELATION))}" for i, kind in enumerate(PAIRS))
    ckas = ", ".join(f"{kind} {shown(over(values['cka_debiased'][:, i], CORRELATION))}" for i, kind in enumerate(PAIRS))
    config = TrainConfig(**settings.train)
    size = f"{config.data.get('lengths', '')}, {config.layers} layers, d = {config.dim}"
    verdict = (
        f"Untrained at {config.dataset} {size}, the settings nearest to v2's correlations with the input are: "
        f"{'; '.join(said)}. With the Transformer's states (v2, trained: cosine 0.97) cosines are {cosines}, debiased CKA {ckas} "
        f"({spread(len(measured))})."
    )
    data = xr.Dataset(
        {
            "correlation": (("seed", "kind", "scale", "width", "depth"), curves),
            **{name: (("seed", "pair", "layer"), stacked(measured, name)) for name in QUANTITIES},
        },
        coords={
            "kind": [f"residual {r}, normalization {n}, {s}" for r, n, s in SYSTEMS],
            "scale": list(SCALES),
            "width": list(STEPS),
            "pair": list(PAIRS),
        },
    )
    caption = "Correlation with the input of untrained networks at v2's size, at the nearest setting and at h = 1; crosses: v2."
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=data,
        pictures=[Picture("correlation.png", caption, lambda: _picture(curves.mean(axis=0), best))],
    )


def _words(place: Sequence[int]) -> str:
    residual, normalization, solver = SYSTEMS[place[0]]
    network = f"residual {residual}, normalization {normalization}, {solver}"
    return f"{network}, h = {STEPS[place[2]]:g}, embedding × {SCALES[place[1]]}"


def _picture(middle: np.ndarray, best: dict[str, tuple[int, int, int]]) -> Any:
    figure = Figure(figsize=(10, 5.0), layout="constrained")
    near, coarse = (axes_of(ax) for ax in figure.subplots(1, 2))
    layers = np.arange(middle.shape[-1])
    for i, ((name, place), printed) in enumerate(zip(best.items(), (TRANSFORMER, SIMULATOR), strict=True)):
        style = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4}
        near.plot(layers, middle[place], label=f"{name}: {_words(place)}", **style)
        at_1 = middle[place[0], place[1], STEPS.index(1.0)]
        coarse.plot(layers, at_1, linestyle="--", label=f"{name}: the same at h = 1 (right)", **style)
        count = min(len(printed), len(layers))
        for ax in (near, coarse):
            ax.plot(layers[:count], printed[:count], "+x"[i], color="black", markersize=8, label=f"v2, {name}")
    for ax, title in ((near, "the nearest step"), (coarse, "h = 1")):
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(LAYER)
        whole_layers(ax)
    near.set_ylabel("correlation with the input")
    found = dict(zip(*reversed(near.get_legend_handles_labels()), strict=True))
    found |= dict(zip(*reversed(coarse.get_legend_handles_labels()), strict=True))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


_TRAIN = {**LISTOPS_PAPER, "data": {**LISTOPS_PAPER["data"], "sizes": (16, 8, 16)}}

PAPER_SIZE = experiment(
    name="paper-size",
    title="At the paper's size",
    question="Which of v2's figures do untrained networks of its size have already?",
    source="v2 §4.1, §4.2, §4.3.1",
    presets={
        "quick": Settings(train=_TRAIN, examples=2, seeds=1),
        "standard": Settings(train=_TRAIN, examples=2, seeds=5),
        "paper": Settings(train=_TRAIN, examples=16, seeds=5),
    },
    measure=measure,
    judge=judge,
    lacking=("correlation",),
    pairing="untrained: its own field at a finer step, and simulators of another seed",
)
