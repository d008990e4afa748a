"""How fast does a state change along depth, and do both systems change it alike? v1 Experiment 1, Tables 2 and 3."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._simulate import simulate
from pdejax.analysis import layer_correlation
from pdejax.models import observe
from pdejax.plot._style import LAYER, NULL, axes_of, whole_layers
from pdejax.runs._records import Picture
from pdejax.solvers import Grid
from pdejax.studies.papers._experiment import (
    CORRELATION,
    IMAGES,
    IMAGES_PAPER,
    IMAGES_STANDARD,
    RESAMPLES,
    Models,
    Settings,
    experiment,
    first_of,
    over,
    presets,
    row,
    shown,
    sign,
    spread,
    stacked,
    with_images,
)
from pdejax.studies.papers._pairs import bench, heatmaps, legend_beside, partner, seed_curves, untrained_partner
from pdejax.studies.study import Evidence, Judgement, high, low
from pdejax.terms import Diffusion

TABLE_2 = {
    "Transformer": (0.9211, 0.9463, 0.9503, 0.9567, 0.9630, 0.9694, 0.9748, 0.9778, 0.9800),
    "PDE": (0.9840, 0.9862, 0.9898, 0.9931, 0.9955, 0.9971, 0.9980, 0.9986, 0.9990),
}
TABLE_3 = {
    "Pearson": (1.0, 0.9265, 0.7753, 0.5645, 0.3815, 0.2064, 0.0288, -0.0747, -0.1230, -0.1361),
    "Spearman": (1.0, 0.9210, 0.7516, 0.5569, 0.4160, 0.2357, 0.1182, 0.0485, -0.0140, -0.0614),
}
SYSTEMS = ("Transformer", "heat equation", "distilled simulator", "independent simulator")


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """Correlation of adjacent layers in each system, and of same layers of each system and the Transformer.

    The heat equation starts from the Transformer's embedding and has one diffusivity, D/Δx² per layer, for all features: v1's
    diffusion-type model. It knows nothing of the task or of attention.
    """
    truth = bench(settings, seed, models, ("distilled", "independent"))
    theirs, mask, key = truth.observed.states, truth.mask, jax.random.key(seed)
    layers = theirs.shape[0] - 1
    grid = Grid(theirs.shape[2], boundary="neumann")
    heat = MasterEquation(diffusion=Diffusion(grid, settings.options["rate"] * grid.spacing**2))

    def smoothed(u0):
        return simulate(
            Discretization(heat, "rk4", t1=float(layers), steps=10 * layers),
            u0,
            save=jnp.linspace(0.0, layers, layers + 1),
        ).us

    states = {"Transformer": theirs, "heat equation": jax.vmap(smoothed, out_axes=1)(theirs[0])}
    null: Any = None
    for pairing in ("distilled", "independent"):
        model = partner(settings, seed, models, pairing)
        states[f"{pairing} simulator"] = observe(model, truth.batch.inputs, truth.mask).states
        if pairing == "distilled":
            null = observe(untrained_partner(model, seed), truth.batch.inputs, truth.mask).states
    adjacent, pearson, spearman = [], [], []
    for name in SYSTEMS:
        adjacent.append(layer_correlation(states[name], "previous", mask, key=key, resamples=RESAMPLES).pearson.value)
        same = layer_correlation(states[name], theirs, mask, key=key, resamples=RESAMPLES)
        pearson.append(same.pearson.value)
        spearman.append(same.spearman.value)
    beside = layer_correlation(null, theirs, mask, key=key, resamples=RESAMPLES)
    return {
        "adjacent": np.stack(adjacent),
        "pearson": np.stack(pearson),
        "spearman": np.stack(spearman),
        "null_adjacent": layer_correlation(null, "previous", mask, key=key, resamples=RESAMPLES).pearson.value,
        "null_pearson": beside.pearson.value,
        "null_spearman": beside.spearman.value,
        "heatmap": np.stack([np.asarray(states[name][:, 0]) for name in SYSTEMS]),
    }


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Both tables, layer by layer, for each system that could be meant."""
    adjacent, pearson, spearman = (stacked(measured, name) for name in ("adjacent", "pearson", "spearman"))
    null = {name: stacked(measured, f"null_{name}") for name in ("adjacent", "pearson", "spearman")}
    layers = adjacent.shape[-1]
    rows = []
    beside_untrained: dict[str, Any] = {"null_name": "untrained field", "within": CORRELATION}
    for i, name in enumerate(SYSTEMS):
        printed = TABLE_2["Transformer" if i == 0 else "PDE"]
        for k in range(layers):
            paper = f"{printed[k]:.4f}" if k < len(printed) else None
            quantity = f"adjacent layers {k}–{k + 1}, {name}"
            rows.append(row(quantity, adjacent[:, i, k], paper=paper, null=null["adjacent"][:, k], **beside_untrained))
    for kind, values in (("Pearson", pearson), ("Spearman", spearman)):
        for i, name in enumerate(SYSTEMS[1:], start=1):
            for k in range(layers + 1):
                paper = f"{TABLE_3[kind][k]:.4f}" if k < len(TABLE_3[kind]) else None
                beside = null[kind.lower()][:, k]
                quantity = f"same layer {k}, {kind}, {name}"
                rows.append(row(quantity, values[:, i, k], paper=paper, null=beside, **beside_untrained))
    data = xr.Dataset(
        {
            "adjacent": (("seed", "system", "pair"), adjacent),
            "pearson": (("seed", "system", "layer"), pearson),
            "spearman": (("seed", "system", "layer"), spearman),
            **{f"null_{k}": (("seed", "pair" if k == "adjacent" else "layer"), v) for k, v in null.items()},
            **first_of(measured, "heatmap", ("picture", "depth", "token", "feature")),
        },
        coords={"system": list(SYSTEMS), "layer": np.arange(layers + 1), "pair": np.arange(1, layers + 1)},
    )
    steps = [sign(change) for change in np.diff(adjacent[:, 0], axis=-1).T]
    near = [over(adjacent[:, i].mean(axis=-1), CORRELATION) for i in (0, 1)]
    last = {name: over(pearson[:, i, -1], CORRELATION) for i, name in enumerate(SYSTEMS)}
    empty = over(null["pearson"][:, -1], CORRELATION)
    verdict = (
        f"On {settings.train['dataset']}, adjacent layers of the Transformer correlate at {shown(near[0], 3)}, from layer to "
        f"layer surely rising in {steps.count(1)} and falling in {steps.count(-1)} of {len(steps)} places; "
        f"those of the heat equation at {shown(near[1], 3)}. In the last layer the correlation with the Transformer is "
        f"{shown(last['heat equation'])} for the heat equation, {shown(empty)} for an untrained field, "
        f"{shown(last['independent simulator'])} for a simulator trained on its own and "
        f"{shown(last['distilled simulator'])} for a fitted one ({spread(len(measured))}). {_explained(last)}"
    )

    def maps() -> Any:
        systems = [name.replace(" ", "\n") for name in SYSTEMS]
        return heatmaps(list(measured[0]["heatmap"]), systems, "Hidden states of one held-out image")

    pictures = [
        Picture("states.png", "Hidden states of one image by layer, one colour scale for all systems.", maps),
        Picture(
            "correlation.png",
            "Left: adjacent layers (v1 Table 2). Right: same layers of each system and the Transformer (v1 Table 3). Black marks "
            "are v1's figures; dashed: an untrained field between the ends of the distilled simulator; thin the seeds.",
            lambda: _curves(data),
        ),
    ]
    return Judgement(rows=rows, sentence=verdict, dataset=data, pictures=pictures)


ABOUT_0 = 0.2  # of a correlation


def _explained(last: Mapping[str, Any]) -> str:
    """Which systems end where v1's does, and whether the lack of a fit is what separates them: whole intervals decide."""
    printed = TABLE_3["Pearson"][-1]
    met = [name for name in SYSTEMS[1:] if low(last[name]) <= printed <= high(last[name])]
    fitted, own = last["distilled simulator"], [last[name] for name in ("heat equation", "independent simulator")]
    end = f"v1's {printed:.2f} is met by {', '.join(met) or 'none'}".replace("-", "−")
    if all(high(fitted) - low(x) < 0.3 for x in own):
        return f"{end}: the fall is not explained by the lack of a fit."
    if all(low(fitted) - high(x) > 0.3 for x in own):
        there = all(max(abs(low(x)), abs(high(x))) < ABOUT_0 for x in own)
        return f"{end}: without a common fit the correlation falls{' to about 0' if there else ''}, with one it stays."
    return f"{end}: whether the lack of a fit explains the fall is not shown."


def _curves(data: xr.Dataset) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = (axes_of(ax) for ax in figure.subplots(1, 2))
    for ax, name, axis in ((left, "adjacent", "pair"), (right, "pearson", "layer")):
        for i, system in enumerate(SYSTEMS):
            if name == "pearson" and i == 0:
                continue
            seed_curves(ax, data[axis].values, data[name].values[:, i], index=i, label=system)
        ax.plot(
            data[axis].values,
            data[f"null_{name}"].values.mean(axis=0),
            **NULL,
            label="untrained field, for the distilled",
        )
        ax.set_xlabel(LAYER)
        whole_layers(ax)
    for system, marker in (("Transformer", "*"), ("PDE", "x")):
        count = min(len(TABLE_2[system]), data.sizes["pair"])
        left.plot(data.pair.values[:count], TABLE_2[system][:count], marker, color="black", label=f"v1, {system}")
    count = min(len(TABLE_3["Pearson"]), data.sizes["layer"])
    right.plot(data.layer.values[:count], TABLE_3["Pearson"][:count], "x", color="black", label="v1, PDE")
    left.set_ylabel("correlation with the layer before")
    right.set_ylabel("correlation with the Transformer's layer")
    legend_beside(figure)
    return figure


_OPTIONS = {"rate": 0.1}

INFORMATION_FLOW = experiment(
    name="information-flow",
    headline="same layer *, Pearson, heat equation",
    title="Information flow",
    question="How do states change from layer to layer, and do both systems change them alike?",
    source="v1 §3.1, Tables 2 and 3, Figures 1 and 2",
    presets=presets(
        IMAGES, IMAGES_STANDARD, IMAGES_PAPER, sizes=(64, 64, 64), students=(1300, 800, 3000), options=_OPTIONS
    ),
    resolve=with_images,
    measure=measure,
    judge=judge,
    pairing="heat equation from the same embedding (v1's model), distilled, independent",
)
