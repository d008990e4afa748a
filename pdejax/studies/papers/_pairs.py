"""A Transformer and its simulators on the same held-out sequences: what they compute there, layer by layer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax.data import Batch
from pdejax.models import Simulator, SimulatorConfig, observe, pair, untrained_field
from pdejax.models._observe import Observed
from pdejax.plot._style import COLOURS, DIVERGING, LAYER, NULL, axes_of, band, whole_layers
from pdejax.studies.papers._experiment import Models, Settings, Trained, held_out
from pdejax.training import TrainConfig

REFINED = 4  # steps per layer of the "shared" simulator: with one it is the network itself
PAIRINGS = ("shared", "distilled", "independent", "bare")
NAMES = {
    "shared": f"shared, h = 1/{REFINED}",
    "distilled": "distilled",
    "independent": "independent",
    "bare": "bare (our reading, h = 1)",
}


TEXT_SYSTEMS = ("Transformer", "PDE (bare simulator)")


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


OWN = ("stacked/", "common/")  # where a simulator has the parameters of its field


def field_parameters(model: Any) -> int:
    """How many numbers a simulator's field is fitted by: its ends are left out, which a distilled one has from its teacher."""
    return sum(int(value.size) for name, value in model.parameters().items() if name.startswith(OWN))


SIZES = ("dim", "heads", "layers", "ffn", "norm", "activation")


def parameters_of(train: Mapping[str, Any], pairing: str) -> int:
    """How many numbers the field of a pairing is fitted by, from fields of `TrainConfig` alone: nothing is drawn or read. The
    Transformer's own field has as many as a simulator of its form."""
    config = TrainConfig(**{**train, "model": "bare" if pairing == "bare" else "simulator"})
    options = {name: getattr(config, name) for name in SIZES} | dict(config.options)
    options |= {"vocab": 2, "head": "classification", "classes": 2}  # its ends, which do not count
    make = SimulatorConfig.bare if pairing == "bare" else SimulatorConfig.of
    shapes = eqx.filter_eval_shape(lambda: Simulator(make(**options), key=jax.random.key(0)).parameters())
    return sum(int(value.size) for name, value in shapes.items() if name.startswith(OWN))


def made_of(train: Mapping[str, Any], pairing: str) -> str:
    """What the field of a pairing is made of: its class of functions, its parameters. `"Transformer"`: the network itself."""
    form = "the network itself" if pairing == "Transformer" else FORMS[pairing]
    return f"{form}, {parameters_of(train, pairing):,} parameters in the field"


def made_of_systems(train: Mapping[str, Any]) -> tuple[str, str]:
    """What `TEXT_SYSTEMS` are made of."""
    return made_of(train, "Transformer"), made_of(train, "bare")


def untrained_partner(model: Any, seed: int) -> Any:
    """The null simulator: a fresh field between the same embedding and head."""
    return untrained_field(model, jax.random.key(10_000 + seed))


# What the simulators are made of.
FORMS = {
    "shared": f"Lie–Trotter, {REFINED} steps a layer",
    "distilled": "the Transformer's own form",
    "independent": "the Transformer's own form",
    "bare": "leaky field, no LayerNorm, Lie–Trotter, h = 1",
}


def beside(settings: Settings, seed: int, models: Models, truth: Bench) -> Iterator[tuple[Any, Observed, Observed]]:
    """Of each of `PAIRINGS` the simulator, what it computes on the bench, and what an untrained field does in its place."""
    for pairing in PAIRINGS:
        model = partner(settings, seed, models, pairing)
        ours = observe(model, truth.batch.inputs, truth.mask)
        yield model, ours, observe(untrained_partner(model, seed), truth.batch.inputs, truth.mask)


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


def pairing_curves(
    data: Any, panels: Sequence[tuple[str, str, str]], *, common: Mapping[str, str] | None = None
) -> Any:
    """Figures of each pairing by layer, thin the seeds, a panel for each of `panels` (variable, label, variable of its null). The
    null is that of each pairing, dashed in its colour. `common`: by variable, a null for all, crosses on top of all curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels) + 2.6, 4.2), layout="constrained")
    layers = data.layer.values
    for ax, (name, label, null) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True
    ):
        axes_of(ax)
        for i, pairing in enumerate(data.pairing.values):
            seed_curves(ax, layers, data[name].values[:, i], index=i, label=str(pairing))
        for i, pairing in enumerate(data.pairing.values):
            own = {"color": COLOURS[i], "linewidth": 1.2}
            ax.plot(layers, data[null].values[:, i].mean(axis=0), **NULL | own, label=f"untrained, {pairing}")
        if common is not None:
            style = {"color": "black", "linestyle": ":", "marker": "x", "markersize": 5, "linewidth": 1.2}
            values = data[common[name]].values[:, 0].mean(axis=0)
            ax.plot(layers, values, zorder=5, label="uniform attention", **style)
        ax.set_xlabel(LAYER)
        ax.set_ylabel(label)
        ax.set_ylim(top=1.03)
        whole_layers(ax)
    legend_beside(figure)
    return figure


def legend_beside(figure: Any, title: str | None = None) -> None:
    """The legend of a figure's panels, which share their labels, right of them: no curve runs beneath it."""
    found: dict[str, Any] = {}
    for ax in figure.axes:
        found = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True)) | found
    figure.legend(found.values(), found.keys(), loc="outside right center", frameon=False, fontsize=9, title=title)


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
    # Its pointed ends: what lies beyond has the last colour.
    figure.colorbar(picture, ax=panels, shrink=0.8, label="hidden state u (rows are tokens)", extend="both")
    return figure
