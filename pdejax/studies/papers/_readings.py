"""Which reading of v2's residual experiment gives its printed figures? The paper states neither the step of its simulator nor the
scale of its embedding: untrained networks with and without residual connections and LayerNorm, at steps from 0.05 to 1, with
embeddings as drawn, times √d (Vaswani et al. 2017, §3.4, who multiply the table alone) and times √d with their positions
(v2 §4.3.1, Figure 4).
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from pdejax import as_network
from pdejax._depth import DepthVarying, scale_strength
from pdejax._simulate import simulate
from pdejax.analysis import layer_correlation
from pdejax.plot._style import COLOURS, LAYER, MARKERS, SEQUENTIAL, axes_of, legend, whole_layers
from pdejax.runs._records import Picture, Row
from pdejax.studies.papers._components import MET, SIMULATOR, TRANSFORMER, Cell
from pdejax.studies.papers._experiment import (
    CORRELATION,
    LISTOPS_PAPER,
    LISTOPS_STANDARD,
    RATIO,
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
from pdejax.studies.study import Evidence, Judgement, high, low
from pdejax.training import build_model

SYSTEMS = tuple(itertools.product(("on", "off"), ("pre", "none"), ("euler", "lietrotter")))
STEPS = (0.05, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.5, 0.7, 1.0)
SCALES = ("1", "√d", "√d, positions too")


@dataclasses.dataclass(frozen=True)
class Printed:
    """A curve that v2 prints: of what, its figures by layer, and which of our systems are of its kind."""

    name: str
    figures: tuple[float, ...]
    residual: str
    normalization: str


PRINTED = (
    Printed("Transformer", TRANSFORMER, "on", "pre"),
    Printed("PDE simulator", SIMULATOR, "off", "none"),
)
LAYERS = len(TRANSFORMER)


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """Pearson's correlation of each layer with the input, of every system, scale and step `(systems, scales, steps, layers)`."""
    found = []
    for system in SYSTEMS:
        d, starts, mask = begun(Cell(*system, per_layer=1), settings, seed)
        found.append(np.asarray(correlations(d, starts, mask, jnp.asarray(STEPS, starts.dtype))))
    return {"correlation": np.stack(found)}


def begun(cell: Cell, settings: Settings, seed: int) -> tuple[Any, Array, Array]:
    """The discretization of an untrained `cell`, held-out tokens as each of `SCALES` embeds them `(scales, batch, n, d)`, and
    their mask."""
    config = cell.config(settings, seed)
    test, batch = held_out(config, settings.examples)
    tokens = jnp.asarray(batch.inputs)
    drawn = as_network(build_model(config, test))
    scaled = as_network(build_model(dataclasses.replace(cell, scale="√d").config(settings, seed), test))
    u0 = jax.vmap(drawn.embed)(tokens)
    starts = jnp.stack([u0, jax.vmap(scaled.embed)(tokens), config.dim**0.5 * u0])
    return drawn.discretization, starts, jnp.asarray(batch.mask)


@eqx.filter_jit
def correlations(d: Any, starts: Array, mask: Array, steps: Array) -> Array:
    """By start and step; a step of size h is one of size 1 of the field with strengths times h."""

    def curve(u0, h):
        field = DepthVarying(scale_strength(d.field.stacked, h), d.field.t1, d.field.kind)
        network = d.replace(field=field)

        def states(u, kept):
            return simulate(network, u, mask=kept, save="layers").us[:LAYERS]

        us = jnp.moveaxis(jax.vmap(states)(u0, mask), 0, 1)
        return layer_correlation(us, mask=mask, key=jax.random.key(0), resamples=20).pearson.value

    return jax.lax.map(lambda u0: jax.lax.map(lambda h: curve(u0, h), steps), starts)


def distances(correlation: np.ndarray, printed: Printed) -> np.ndarray:
    """The largest distance over layers from a printed curve, in front of the last axis; infinite where states are no numbers."""
    apart = np.max(np.abs(correlation - np.asarray(printed.figures)), axis=-1)
    return np.where(np.isfinite(apart), apart, np.inf)


def _counted(apart: np.ndarray) -> tuple[int, int, int]:
    """Of settings `(seeds, …)` at these distances: how many are surely within `MET`, of how many it is open, how many."""
    each = [over(x, RATIO) for x in apart.reshape(len(apart), -1).T if np.all(np.isfinite(x))]
    met = sum(high(x) <= MET for x in each)
    return met, sum(low(x) <= MET for x in each) - met, apart[0].size


def setting(index: Sequence[int]) -> str:
    """Write a setting in words."""
    residual, normalization, solver = SYSTEMS[index[0]]
    scale = SCALES[index[1]]
    return f"residual {residual}, normalization {normalization}, {solver}, h = {STEPS[index[2]]:g}, embedding × {scale}"


def kind(printed: Printed) -> np.ndarray:
    """Which systems are of the kind that the paper says it measured."""
    return np.asarray([(r, n) == (printed.residual, printed.normalization) for r, n, _ in SYSTEMS])


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """The setting nearest to each printed curve, of its own kind and of all; how many are within `MET`."""
    correlation = stacked(measured, "correlation")
    rows: list[Row] = []
    said = []
    nearest: dict[str, tuple[int, ...]] = {}
    for printed in PRINTED:
        middle = distances(correlation.mean(axis=0), printed)  # (systems, scales, steps)
        own = np.where(kind(printed)[:, None, None], middle, np.inf)
        best = tuple(int(i) for i in np.unravel_index(np.argmin(own), own.shape))
        nearest[printed.name] = best
        apart = distances(correlation, printed)
        met, open_, of = _counted(apart[:, kind(printed)])
        for layer, figure in enumerate(printed.figures):
            name = f"{printed.name}, layer {layer}, nearest setting of its kind"
            rows.append(
                row(
                    name,
                    correlation[(slice(None), *best, layer)],
                    paper=f"{figure:.2f}",
                    note=setting(best),
                    within=CORRELATION,
                )
            )
        any_best = tuple(int(i) for i in np.unravel_index(np.argmin(middle), middle.shape))
        for name, index in (("nearest of its kind", best), ("nearest of all", any_best)):
            coarse_step = apart[:, index[0], index[1], STEPS.index(1.0)]
            rows.append(
                row(
                    f"{printed.name}, largest distance, {name}",
                    apart[(slice(None), *index)],
                    null=coarse_step,
                    null_name="the same at h = 1",
                    note=setting(index),
                    within=RATIO,
                )
            )
        at_1 = own[..., STEPS.index(1.0)]
        coarse = *(int(i) for i in np.unravel_index(np.argmin(at_1), at_1.shape)), STEPS.index(1.0)
        result = f"met by {met or 'none'} of {of} settings of its kind to {MET:g}" + (
            f", perhaps by {open_} more" if open_ else ""
        )
        said.append(
            f"v2's curve of the {printed.name} ({printed.figures[0]:.2f} … {printed.figures[-1]:.2f}) is {result}; "
            f"nearest: {setting(best)}, {shown(over(apart[(slice(None), *best)], RATIO), 3)} away; at h = 1 the nearest is "
            f"{shown(over(apart[(slice(None), *coarse)], RATIO), 3)} away"
        )
    data = xr.Dataset(
        {"correlation": (("seed", "system", "scale", "step", "layer"), correlation)},
        coords={
            "system": [f"residual {r}, normalization {n}, {s}" for r, n, s in SYSTEMS],
            "scale": list(SCALES),
            "step": list(STEPS),
        },
    )
    caption = (
        "Correlation with the input of untrained networks, means over seeds. Crosses are v2's figures; dashed the setting of the "
        "same kind nearest to them, on lines for all steps, by colour, at its scheme and scale of the embedding."
    )
    return Judgement(
        rows=rows,
        sentence=f"Untrained, step and scale of the embedding being free (the whole {spread(len(measured))} decides): "
        + ". ".join(said)
        + ".",
        dataset=data,
        pictures=[Picture("readings.png", caption, lambda: _picture(correlation.mean(axis=0), nearest))],
    )


def _picture(middle: np.ndarray, nearest: dict[str, tuple[int, ...]]) -> Figure:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    layers, colours = np.arange(LAYERS), matplotlib.colormaps[SEQUENTIAL].resampled(len(STEPS))
    panels = figure.subplots(1, 2)
    for ax, printed in zip(panels, PRINTED, strict=True):
        axes_of(ax)
        best = nearest[printed.name]
        for i in range(len(STEPS)):
            ax.plot(layers, middle[best[0], best[1], i], color=colours(i), linewidth=1.2)
        label = f"h = {STEPS[best[2]]:g}, nearest"
        style = {"color": COLOURS[3], "marker": MARKERS[0], "linewidth": 2, "linestyle": "--"}
        ax.plot(layers, middle[best], label=label, **style)
        ax.plot(layers, printed.figures, "x", color="black", label=f"v2, {printed.name}")
        residual, normalization, solver = SYSTEMS[best[0]]
        title = f"residual {residual}, normalization {normalization}, {solver}, embedding × {SCALES[best[1]]}"
        ax.set_title(title, fontsize=9)
        ax.set_xlabel(LAYER)
        ax.set_ylabel("correlation with the input")
        whole_layers(ax)
        legend(ax, loc="best")
    edges = BoundaryNorm(np.arange(len(STEPS) + 1) - 0.5, len(STEPS))
    bar = figure.colorbar(ScalarMappable(edges, colours), ax=panels, label="step h")
    bar.set_ticks([float(i) for i in range(len(STEPS))], labels=[f"{h:g}" for h in STEPS])
    return figure


READINGS = experiment(
    name="readings",
    title="Step and embedding of the residual experiment",
    question="Which step and which scale of the embedding give v2's printed correlations with the input?",
    source="v2 §4.3.1, Figure 4, which states neither",
    presets={
        "quick": Settings(train=LISTOPS_STANDARD, examples=32, seeds=5),
        "standard": Settings(train=LISTOPS_STANDARD, examples=32, seeds=5),
        "paper": Settings(train=LISTOPS_PAPER, examples=16, seeds=5),
    },
    measure=measure,
    judge=judge,
    lacking=("correlation",),
    headline="PDE simulator, largest distance, nearest of its kind",
    pairing="untrained: every combination drawn from the same seeds",
)
