"""Do the simulators attend where the Transformer does? v1 Experiment 2 on images, v2 §4.3.3 on ListOps."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pdejax.analysis import attention_fidelity
from pdejax.plot._style import SEQUENTIAL
from pdejax.runs._records import Picture
from pdejax.studies.papers._experiment import (
    CORRELATION,
    IMAGES,
    IMAGES_PAPER,
    IMAGES_STANDARD,
    LISTOPS,
    LISTOPS_PAPER,
    LISTOPS_STANDARD,
    RESAMPLES,
    Models,
    Settings,
    experiment,
    presets,
    row,
    stacked,
    with_images,
)
from pdejax.studies.papers._pairs import NAMES, PAIRINGS, bench, beside, pairing_curves
from pdejax.studies.study import Evidence, Judgement


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """Cosine and KL per pairing and layer, means over heads, beside uniform, independent and untrained attention."""
    truth = bench(settings, seed, models, ("distilled", "independent", "bare"))
    key, mask, p = jax.random.key(seed), truth.mask, truth.observed.maps
    found: dict[str, list] = {}
    maps = [np.asarray(p[:, 0, 0])]

    def figures(q):
        return attention_fidelity(p, q, mask=mask, key=key, resamples=RESAMPLES)

    for _, simulated, fresh in beside(settings, seed, models, truth):
        q = simulated.maps
        result, untrained = figures(q), figures(fresh.maps)
        for name, value in (
            ("cosine", result.cosine),
            ("kl", result.kl),
            ("uniform_cosine", result.cosine.nulls["uniform"]),
            ("uniform_kl", result.kl.nulls["uniform"]),
            ("independent_cosine", result.cosine.nulls["independent"]),
            ("gaussian_cosine", result.cosine.nulls["gaussian"]),
            ("untrained_cosine", untrained.cosine),
            ("untrained_kl", untrained.kl),
        ):
            found.setdefault(name, []).append(np.asarray(value).mean(axis=-1))
        maps.append(np.asarray(q[:, 0, 0]))
    real = np.asarray(mask[0])
    shown = np.stack(maps)[:, :, real][..., real]
    return {**{name: np.stack(values) for name, values in found.items()}, "maps": shown}


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Both figures per pairing beside their nulls, and whether the paper's lie above what unrelated systems reach."""
    values = {name: stacked(measured, name) for name in measured[0] if name != "maps"}
    printed = settings.options["printed"]
    rows = []
    means = {}
    for i, pairing in enumerate(PAIRINGS):
        for name, label, unit in (("cosine", "cosine", ""), ("kl", "KL(Transformer ‖ simulator)", "nats")):
            ours = values[name][:, i].mean(axis=-1)
            null = values[f"untrained_{name}"][:, i].mean(axis=-1)
            means[pairing, name] = float(ours.mean()), float(null.mean())
            rows.append(
                row(
                    f"{label}, {NAMES[pairing]}",
                    ours,
                    paper=printed[name],
                    null=null,
                    null_name="untrained field",
                    unit=unit,
                    note="mean over layers and heads",
                    within=CORRELATION if name == "cosine" else None,
                )
            )
        least = values["cosine"][:, i].min(axis=-1)
        rows.append(
            row(f"smallest cosine of a layer, {NAMES[pairing]}", least, paper=printed["least"], within=CORRELATION)
        )
    for name, label in (
        ("uniform_cosine", "cosine of uniform attention"),
        ("independent_cosine", "cosine of independent rows as peaked as these"),
        ("gaussian_cosine", "e^{−s²}, s the standard deviation of log weights"),
        ("uniform_kl", "KL to uniform attention"),
    ):
        kind: dict[str, Any] = {"unit": "nats"} if "kl" in name else {"within": CORRELATION}
        rows.append(row(label, values[name][:, 0].mean(axis=-1), note="null models", **kind))
    flat = float(values["uniform_cosine"][:, 0].mean())
    cosine, kl = means["distilled", "cosine"][0], means["distilled", "kl"][0]
    good = cosine >= 0.98 and kl <= 0.0144
    alone = means["independent", "cosine"][0], means["independent", "kl"][0]
    verdict = (
        f"A distilled simulator attends as the Transformer does with cosine {cosine:.4f} and KL {kl:.4f} "
        f"({'as close as printed' if good else 'not as close as printed'}); one trained on its own with {alone[0]:.3f} and "
        f"{alone[1]:.3f}. Uniform attention has cosine {flat:.3f}: 0.98 is "
        f"{'what flat attention gives anyway' if flat > 0.95 else 'far above it, so that it needs a fit'}."
    )
    names = list(NAMES.values())
    data = xr.Dataset(
        {name: (("seed", "pairing", "layer"), value) for name, value in values.items()},
        coords={"pairing": names, "layer": np.arange(1, values["cosine"].shape[-1] + 1)},
    )
    pictures = [
        Picture(
            "maps.png",
            "Attention of the first head on one held-out sequence, by layer: the Transformer above, the simulators below.",
            lambda: _maps(measured[0]["maps"], ["Transformer", *names]),
        ),
        Picture(
            "cosine.png",
            "Cosine of attention rows by layer, mean over heads and seeds, thin the seeds; dashed: uniform attention.",
            lambda: pairing_curves(
                data, "cosine", "cosine of attention rows", "uniform_cosine", nulls=(0,), null_label="uniform attention"
            ),
        ),
    ]
    return Judgement(rows=rows, sentence=verdict, dataset=data, pictures=pictures)


def _maps(maps: np.ndarray, names: Sequence[str]) -> Figure:
    layers = maps.shape[1]
    figure = Figure(figsize=(1.5 * layers + 1.4, 1.6 * len(names) + 0.4), layout="constrained")
    panels = figure.subplots(len(names), layers, squeeze=False)
    picture: Any = None
    for i, name in enumerate(names):
        for layer in range(layers):
            ax = panels[i, layer]
            picture = ax.imshow(maps[i, layer], cmap=SEQUENTIAL, vmin=0, vmax=float(np.percentile(maps[0], 99.5)))
            ax.set_xticks([])
            ax.set_yticks([])
            if i == 0:
                ax.set_title(f"layer {layer + 1}", fontsize=9)
            if layer == 0:
                ax.set_ylabel(name.split(" (")[0].replace(", ", ",\n"), fontsize=9)
    figure.supxlabel("key", fontsize=9)
    figure.colorbar(picture, ax=panels, shrink=0.8, label="weight (rows are queries)")
    return figure


_V1 = {"printed": {"cosine": "0.9870", "kl": "0.0144", "least": "> 0.98"}}
_V2 = {"printed": {"cosine": "> 0.982", "kl": "< 0.018", "least": "> 0.982"}}
_PAIRING = "shared, distilled, independent, and bare (independent without residual and LayerNorm)"

ATTENTION_IMAGES = experiment(
    name="attention-images",
    headline="cosine, independent",
    title="Attention on images",
    question="Does a PDE model attend where a Transformer does, on images?",
    source="v1 §3.2, Figure 3",
    presets=presets(
        IMAGES, IMAGES_STANDARD, IMAGES_PAPER, sizes=(64, 64, 64), students=(1300, 800, 3000), options=_V1
    ),
    resolve=with_images,
    measure=measure,
    judge=judge,
    pairing=_PAIRING,
)

ATTENTION = experiment(
    name="attention",
    headline="cosine, distilled",
    title="Attention on ListOps",
    question="Does a PDE simulator attend where a Transformer does, on ListOps?",
    source="v2 §4.3.3, App. A.1",
    presets=presets(
        LISTOPS, LISTOPS_STANDARD, LISTOPS_PAPER, sizes=(64, 64, 64), students=(600, 600, 10_000), options=_V2
    ),
    measure=measure,
    judge=judge,
    pairing=_PAIRING,
)
