"""A Transformer and its simulators on the same held-out sequences: what they compute there, layer by layer."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax.data import Batch
from pdejax.models import observe, pair, untrained_field
from pdejax.models._observe import Observed
from pdejax.plot._style import COLOURS, DIVERGING, LAYER, NULL, axes_of, band, legend, whole_layers
from pdejax.studies.papers._experiment import Models, Settings, Trained, held_out

REFINED = 4  # steps per layer of the "shared" simulator: with one it is the network itself
PAIRINGS = ("shared", "distilled", "independent", "bare")
NAMES = {
    "shared": f"shared, h = 1/{REFINED}",
    "distilled": "distilled",
    "independent": "independent",
    "bare": "bare (v2's simulator)",
}


class Bench(NamedTuple):
    """A Transformer on held-out sequences: its `observed` states and maps, the `batch` and its `mask (b, n)`."""

    trained: Trained
    batch: Batch
    mask: Array
    observed: Observed


def bench(settings: Settings, seed: int, models: Models, pairings: Sequence[str] = ()) -> Bench:
    """The Transformer of a seed on the first held-out sequences; the simulators of `pairings` are trained beside it."""
    models.prepare(settings, seed, pairings)
    trained = models.transformer(settings, seed)
    _, batch = held_out(trained.config, settings.examples)
    mask = jnp.asarray(batch.mask)
    return Bench(trained, batch, mask, observe(trained.model, batch.inputs, mask))


def partner(settings: Settings, seed: int, models: Models, pairing: str) -> Any:
    """The simulator of a pairing: see `Models.simulator`; `"shared"` has the Transformer's
    own weights at a step of 1/4 layer."""
    if pairing == "shared":
        transformer = models.transformer(settings, seed).model
        return pair(transformer, "shared", steps=REFINED * transformer.architecture.depth)
    return models.simulator(settings, seed, pairing).model


def untrained_partner(model: Any, seed: int) -> Any:
    """The null simulator: a fresh field between the same embedding and head."""
    return untrained_field(model, jax.random.key(10_000 + seed))


def beside(settings: Settings, seed: int, models: Models, truth: Bench) -> Iterator[tuple[str, Observed, Observed]]:
    """Each of `PAIRINGS`: its name, what its simulator computes on the bench, and what an untrained field does in its place."""
    for pairing in PAIRINGS:
        model = partner(settings, seed, models, pairing)
        ours = observe(model, truth.batch.inputs, truth.mask)
        yield pairing, ours, observe(untrained_partner(model, seed), truth.batch.inputs, truth.mask)


def pooled(states: Array, mask: Array) -> Array:
    """The mean real token `(b, d)` of one layer `(b, n, d)` with zeros at padding."""
    return jnp.sum(states, axis=1) / jnp.sum(mask, axis=1).astype(states.dtype)[:, None]


def seed_curves(ax: Any, x: Any, values: np.ndarray, *, index: int, label: str) -> None:
    """The mean over seeds of `values (seeds, points)`, and each seed as a thin line: of two or three, an interval that rests
    on a normal law is wider than a correlation can be."""
    if len(values) > 1:
        for own in values:
            ax.plot(x, own, color=COLOURS[index % len(COLOURS)], linewidth=0.7, alpha=0.45)
    band(ax, x, values.mean(axis=0), index=index, label=label)


def pairing_curves(data: Any, name: str, label: str, null: str, *, nulls: Sequence[int], null_label: str) -> Any:
    """The cosine `name` of each pairing by layer, thin the seeds, and the mean of `null` for the pairings `nulls`, dashed."""
    ax = axes_of(None)
    layers = data.layer.values
    for i, pairing in enumerate(data.pairing.values):
        seed_curves(ax, layers, data[name].values[:, i], index=i, label=str(pairing))
    for k, i in enumerate(nulls):
        ax.plot(layers, data[null].values[:, i].mean(axis=0), **NULL, label=None if k else null_label)
    ax.set_xlabel(LAYER)
    ax.set_ylabel(label)
    ax.set_ylim(top=1.03)
    whole_layers(ax)
    legend(ax)
    return ax.figure


def heatmaps(states: Sequence[np.ndarray], names: Sequence[str], title: str) -> Any:
    """Hidden states of one sequence as pictures: a row per system, a column per layer, one scale for all (the 99th percentile
    of |u|)."""
    from matplotlib.figure import Figure

    layers = len(states[0])
    figure = Figure(figsize=(1.35 * layers + 1.6, 1.55 * len(states) + 0.7), layout="constrained")
    panels = figure.subplots(len(states), layers, squeeze=False)
    top = float(np.percentile(np.abs(np.concatenate([np.ravel(u) for u in states])), 99))
    picture: Any = None
    for line, (u, name) in enumerate(zip(states, names, strict=True)):
        for layer in range(layers):
            ax = panels[line, layer]
            picture = ax.imshow(u[layer], cmap=DIVERGING, vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            if line == 0:
                ax.set_title(f"layer {layer}" if layer else "embedding", fontsize=9)
            if layer == 0:
                ax.set_ylabel(name, fontsize=9)
    figure.supxlabel("feature", fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.colorbar(picture, ax=panels, shrink=0.8, label="hidden state u (rows are tokens)")
    return figure
