"""What do the layers of a four-layer Transformer keep? v2 §4.4, App. A.1, Figures 9 and 10, with the noise stated."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from pdejax.analysis import representation
from pdejax.analysis.information import information_plane, layer_entropy, unit_spread
from pdejax.models import observe
from pdejax.plot._style import COLOURS, LAYER, MARKERS, NULL, axes_of, legend, whole_layers
from pdejax.runs._records import Picture
from pdejax.studies.papers._experiment import (
    LISTOPS,
    LISTOPS_PAPER,
    LISTOPS_STANDARD,
    RESAMPLES,
    SHARE,
    Models,
    Settings,
    experiment,
    over,
    presets,
    row,
    shown,
    signed,
    spread,
    stacked,
)
from pdejax.studies.papers._pairs import bench, made_of, partner, pooled, seed_curves
from pdejax.studies.study import Evidence, Judgement

SYSTEMS = ("Transformer", "independent", "bare")
# As printed, by layer: v2 Figures 9 and 10.
PAPER = {
    "entropy": ("3.722", "3.723", "3.722", "3.659"),
    "dimension": ("0.39",) * 4,
    "input": ("0.048",) * 4,
    "target": ("0.00163", "0.00172", None, "0.00158"),
    "sparsity": ("0.0099", None, None, "0.0059"),
    "magnitude": ("0.631", None, None, "0.856"),
    "diversity": ("0.000115", "0.000114", None, "0.000134"),
}
LABELS = {
    "entropy": ("entropy of the pooled state", "nats"),
    "dimension": ("effective-dimension ratio", ""),
    "input": ("I(X; T)", "nats"),
    "target": ("I(T; Y)", "nats"),
    "sparsity": ("activation sparsity", ""),
    "magnitude": ("magnitude", "units of u"),
    "diversity": ("diversity over sequences", "units of u²"),
}
# What stands beside each figure: I(X; T) has no null, since T is a function of X.
NULLS = {
    "entropy": "features shuffled over sequences",
    **dict.fromkeys(
        ("dimension", "sparsity", "magnitude", "diversity"), "independent Gaussian entries, same variances"
    ),
    "target": "labels permuted",
}


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """All statistics per system and layer, each with its null: Gaussian states of the same variances, permuted samples."""
    truth = bench(settings, seed, models, ("independent", "bare"))
    mask, labels, key = truth.mask, jnp.asarray(truth.batch.labels), jax.random.key(seed)
    noise = settings.options["noise"]
    found = {name: [] for name in LABELS}
    null = {name: [] for name in LABELS}
    for system in SYSTEMS:
        states = (
            truth.observed.states
            if system == "Transformer"
            else observe(partner(settings, seed, models, system), truth.batch.inputs, truth.mask).states
        )[1:]
        scaled = unit_spread(states, mask=mask)
        statistics = representation(states, key=key, mask=mask, resamples=RESAMPLES)
        entropy = layer_entropy(scaled, noise=noise, mask=mask, key=key, resamples=RESAMPLES)
        x = pooled(truth.observed.states[0], mask)
        plane = information_plane(
            scaled, x, labels, noise=noise, mask=mask, key=key, resamples=RESAMPLES, permutations=RESAMPLES
        )
        for name, figure in (
            ("entropy", entropy.entropy),
            ("dimension", statistics.participation_ratio),
            ("input", plane.input),
            ("target", plane.target),
            ("sparsity", statistics.sparsity),
            ("magnitude", statistics.magnitude),
            ("diversity", statistics.diversity),
        ):
            found[name].append(figure.value)
            # The estimate of I(X; T) has none: it takes it that T is a function of X.
            [beside] = figure.nulls.values() or [np.full(figure.shape, np.nan)]
            null[name].append(np.asarray(beside))
    return {
        **{name: np.stack(values) for name, values in found.items()},
        **{f"null_{name}": np.stack(values) for name, values in null.items()},
        "limit": np.asarray(np.log(len(labels))),
    }


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Layer by layer beside the paper, and whether anything is compressed, or "delayed", beyond the seeds' scatter."""
    rows = []
    values = {name: stacked(measured, name) for name in LABELS}
    nulls = {name: stacked(measured, f"null_{name}") for name in LABELS}
    layers = values["entropy"].shape[-1]
    noise = settings.options["noise"]
    made = made_of(settings.train, "Transformer")
    for name, (label, unit) in LABELS.items():
        for layer in range(layers):
            paper = PAPER[name][layer] if layer < len(PAPER[name]) else None
            beside = nulls[name][:, 0, layer]
            note = f"noise σ = {noise:g} of the layer's spread" if name in ("entropy", "input", "target") else ""
            note += f"{'; ' if note else ''}{made}"
            note += "" if name in NULLS else "; without a null: T is a function of X"
            has_null = bool(np.isfinite(beside).all())
            rows.append(
                row(
                    f"{label}, layer {layer + 1}",
                    values[name][:, 0, layer],
                    paper=paper,
                    null=beside if has_null else None,
                    null_name=NULLS.get(name) if has_null else None,
                    unit=unit,
                    note=note,
                    within=SHARE if name in ("dimension", "sparsity") else None,
                )
            )
    change = over(values["input"][:, 0, -1] - values["input"][:, 0, 0])
    drop = over(values["input"][:, 2, -1] - values["input"][:, 2, 0])
    target = over(values["target"][:, 0, -1] - nulls["target"][:, 0, -1])
    verdict = (
        f"From the first to the last layer of the Transformer the estimate of I(X; T) changes by {signed(change)} nats, that of "
        f"the bare simulator by {signed(drop)} (with the {spread(len(measured))}). "
        f"I(T; Y) of the last is {shown(target)} nats above permuted labels (v2's whole figure: 0.0016). Without noise "
        f"I(X; T) could not change at all (claim C10); with σ = {noise:g} it says how large differences are, not what is known."
    )
    data = xr.Dataset(
        {
            **{name: (("seed", "system", "layer"), values[name]) for name in LABELS},
            **{f"null_{name}": (("seed", "system", "layer"), nulls[name]) for name in LABELS},
        },
        coords={"system": list(SYSTEMS), "layer": np.arange(1, layers + 1)},
        attrs={"noise": float(noise)},
    )
    caption = (
        "Statistics by layer, means over seeds, thin the seeds; dashed in the colour of each system: its own null, named above. "
        "Of the entropy, which differs from its null by little, the difference is drawn."
    )
    plane = (
        "Information plane: each line a system, each marker a layer, the first one large; dashed: its labels permuted. KDE "
        "estimates, noise stated."
    )
    pictures = [
        Picture("layers.png", caption, lambda: _layers(data)),
        Picture("plane.png", plane, lambda: _plane(data)),
    ]
    return Judgement(rows=rows, sentence=verdict, dataset=data, pictures=pictures)


def _layers(data: xr.Dataset) -> Figure:
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    panels = figure.subplots(2, 4).ravel()
    layers = data.layer.values
    for ax, (name, (label, unit)) in zip(panels, LABELS.items(), strict=False):
        axes_of(ax)
        for i, system in enumerate(data.system.values):
            values, null = data[name].values[:, i], data[f"null_{name}"].values[:, i]
            if name == "entropy":
                values, null, label = values - null, 0 * null, "entropy less its null's"
            seed_curves(ax, layers, values, index=i, label=str(system))
            if np.isfinite(null).all():
                ax.plot(layers, null.mean(axis=0), **NULL | {"color": COLOURS[i], "linewidth": 1.1})
        ax.set_title(f"null: {NULLS[name]}" if name in NULLS else "without a null: T is a function of X", fontsize=8)
        ax.set_xlabel(LAYER)
        ax.set_ylabel(f"{label} ({unit})" if unit else label, fontsize=9)
        whole_layers(ax)
    panels[-1].set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    panels[-1].legend(
        [*handles, Line2D([], [], **NULL)], [*labels, "null of each system"], frameon=False, loc="center", fontsize=9
    )
    return figure


def _plane(data: xr.Dataset) -> Figure | SubFigure:
    ax = axes_of(None)
    for i, system in enumerate(data.system.values):
        x, y = (data[name].values[:, i].mean(axis=0) for name in ("input", "target"))
        ax.plot(x, y, color=COLOURS[i], linewidth=1.2, label=str(system))
        ax.scatter(x, y, s=[70, *[25] * (len(x) - 1)], color=COLOURS[i], marker=MARKERS[i])
        null = data["null_target"].values[:, i].mean(axis=0)
        ax.plot(x, null, **NULL | {"color": COLOURS[i], "linewidth": 1.1})
    ax.plot([], [], **NULL, label="labels permuted, of each system")
    ax.set_xlabel(f"I(X; T + σξ) (nats), σ = {data.attrs['noise']:g} of the spread")
    ax.set_ylabel("I(T + σξ; Y) (nats)")
    legend(ax, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax.figure


_OPTIONS = {"noise": 0.7}

INFORMATION = experiment(
    name="information",
    headline="I(T; Y), layer *",
    title="Information by layer",
    question="What do the layers of a four-layer network keep of input and answer?",
    source="v2 §4.4, App. A.1, Figures 6, 9 and 10",
    presets=presets(
        {**LISTOPS, "layers": 4, "steps": 300},
        {**LISTOPS_STANDARD, "layers": 4, "steps": 300},
        {**LISTOPS_PAPER, "layers": 4},
        sizes=(400, 400, 2000),
        options=_OPTIONS,
    ),
    measure=measure,
    judge=judge,
    lacking=("null_input",),
    pairing="independent, bare",
)
