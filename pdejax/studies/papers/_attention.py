"""Do the simulators attend where the Transformer does? v1 Experiment 2 on images, v2 §4.3.3 on ListOps."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment

from pdejax.analysis import attention_fidelity
from pdejax.analysis.attention import attention_cosine, attention_divergence
from pdejax.plot._style import SEQUENTIAL
from pdejax.runs._records import Picture, Row
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
    first_of,
    over,
    presets,
    row,
    shown,
    spread,
    stacked,
    with_images,
)
from pdejax.studies.papers._pairs import NAMES, PAIRINGS, bench, beside, made_of, pairing_curves
from pdejax.studies.study import Evidence, Judgement, high, low

HEADS = {"": "by index", "matched_": "heads matched", "averaged_": "mean over heads"}


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """Cosine and KL per pairing and layer, heads compared in three ways, beside uniform, independent and untrained attention."""
    truth = bench(settings, seed, models, ("distilled", "independent", "bare"))
    key, mask, p = jax.random.key(seed), truth.mask, truth.observed.maps
    found: dict[str, list] = {}
    maps = [np.asarray(p[:, 0, 0])]
    real = mask.astype(p.dtype)
    uniform = real / jnp.sum(real, axis=1, keepdims=True)
    flat = three_ways(p, jnp.broadcast_to(uniform[None, :, None, None, :], p.shape), mask)
    for _, simulated, fresh in beside(settings, seed, models, truth):
        q = simulated.maps
        nulls = attention_fidelity(p, q, mask=mask, key=key, resamples=RESAMPLES).cosine.nulls
        for start, values in (
            ("", three_ways(p, q, mask)),
            ("untrained_", three_ways(p, fresh.maps, mask)),
            ("uniform_", flat),
        ):
            for name, value in values.items():
                found.setdefault(start + name, []).append(value)
        for name in ("independent", "gaussian"):
            found.setdefault(f"{name}_cosine", []).append(np.asarray(nulls[name]).mean(axis=-1))
        maps.append(np.asarray(q[:, 0, 0]))
    first = np.asarray(mask[0])
    cut = np.stack(maps)[:, :, first][..., first]
    return {**{name: np.stack(values) for name, values in found.items()}, "maps": cut}


def three_ways(p: Array, q: Array, mask: Array) -> dict[str, np.ndarray]:
    """Cosine and KL(p ‖ q) by layer: of heads with equal index, whose order is arbitrary; of heads matched one to one so that the
    cosine is largest (the Hungarian method); of the mean map over heads. Means over sequences and heads."""
    heads = p.shape[2]
    measures = {"cosine": attention_cosine, "kl": attention_divergence}
    found = {}
    for name, of in measures.items():
        # By layer, head of p and head of q: every head of p beside the one s places further in q.
        shifted = [np.asarray(of(p, jnp.roll(q, -s, axis=2), mask)).mean(axis=1) for s in range(heads)]
        table = np.empty((len(p), heads, heads))
        for s, values in enumerate(shifted):
            table[:, np.arange(heads), (np.arange(heads) + s) % heads] = values
        if name == "cosine":
            # Heads without a figure are matched last, and stay without.
            matched = [linear_sum_assignment(-np.nan_to_num(layer, nan=-1.0)) for layer in table]
        mean = of(jnp.mean(p, axis=2, keepdims=True), jnp.mean(q, axis=2, keepdims=True), mask)
        found |= {
            name: shifted[0].mean(axis=-1),
            f"matched_{name}": np.asarray([layer[pair].mean() for layer, pair in zip(table, matched, strict=True)]),
            f"averaged_{name}": np.asarray(mean).mean(axis=(1, 2)),
        }
    return found


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Both figures per pairing and way to compare heads beside their nulls, and whether the paper's lie above what unrelated
    systems reach."""
    values = {name: stacked(measured, name) for name in measured[0] if name != "maps"}
    ways = {way: words for way, words in HEADS.items() if f"{way}cosine" in values}
    printed = settings.options["printed"]
    rows = []
    means = {}
    made = {pairing: made_of(settings.train, pairing) for pairing in PAIRINGS}
    for i, pairing in enumerate(PAIRINGS):
        for (way, words), (name, label, unit) in itertools.product(
            ways.items(), (("cosine", "cosine", ""), ("kl", "KL(Transformer ‖ simulator)", "nats"))
        ):
            ours, null = (values[f"{start}{way}{name}"][:, i].mean(axis=-1) for start in ("", "untrained_"))
            means[pairing, way, name] = over(ours, CORRELATION if name == "cosine" else None), float(null.mean())
            rows.append(
                row(
                    f"{label}, {words}, {NAMES[pairing]}",
                    ours,
                    paper=printed[name],
                    null=null,
                    null_name="untrained field",
                    unit=unit,
                    note=f"mean over layers; {made[pairing]}",
                    within=CORRELATION if name == "cosine" else None,
                )
            )
        rows.append(_least_row(values, i, printed["least"], made[pairing]))
    rows += _null_rows(values, ways)
    flat = {way: float(values[f"uniform_{way}cosine"][:, 0].mean()) for way in ways}
    cosine, kl = (means["distilled", "", name][0] for name in ("cosine", "kl"))
    least, most = (float(printed[name].lstrip("<> ")) for name in ("cosine", "kl"))
    alone = [
        f"{shown(means['independent', way, 'cosine'][0])} {words} (untrained {means['independent', way, 'cosine'][1]:.2f}, "
        f"uniform {flat[way]:.2f})"
        for way, words in ways.items()
    ]
    verdict = (
        f"A distilled simulator attends as the Transformer does with cosine {float(cosine):.4f} and KL {float(kl):.4f} "
        f"({_as_close(cosine, kl, least, most)}). One trained on its own has cosine "
        f"{'; '.join(alone)} ({spread(len(measured))}). "
        f"Against uniform attention's {flat['']:.3f}, {least:g} is "
        f"{'what flat attention gives anyway' if flat[''] > 0.95 else 'far above it, so that it needs a fit'}."
    )
    names = list(NAMES.values())
    data = xr.Dataset(
        {
            **{name: (("seed", "pairing", "layer"), value) for name, value in values.items()},
            **first_of(measured, "maps", ("picture", "depth", "query", "key")),
        },
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
            "Cosine of attention rows by layer, heads compared in three ways, mean over seeds, thin the seeds; dashed in the "
            "same colour: an untrained field in each one's place; crosses: uniform attention.",
            lambda: pairing_curves(
                data,
                [
                    (f"{way}cosine", f"cosine of attention rows, {words}", f"untrained_{way}cosine")
                    for way, words in ways.items()
                ],
                common={f"{way}cosine": f"uniform_{way}cosine" for way in ways},
            ),
        ),
    ]
    return Judgement(rows=rows, sentence=verdict, dataset=data, pictures=pictures)


def _least_row(values: Mapping[str, np.ndarray], index: int, paper: str, made: str) -> Row:
    """The smallest cosine of a layer beside that of an untrained field."""
    least, fresh = (values[name][:, index].min(axis=-1) for name in ("cosine", "untrained_cosine"))
    return row(
        f"smallest cosine of a layer, {NAMES[PAIRINGS[index]]}",
        least,
        paper=paper,
        null=fresh,
        null_name="untrained field",
        note=f"by index; {made}",
        within=CORRELATION,
    )


def _as_close(cosine: Any, kl: Any, least: float, most: float) -> str:
    """Whether both figures are as good as the printed ones: their intervals decide, of one seed the figures."""
    if (low(cosine) >= least) and (high(kl) <= most):
        return "as close as printed"
    return (
        "not as close as printed"
        if high(cosine) < least or low(kl) > most
        else "whether as close as printed is not decided"
    )


def _null_rows(values: Mapping[str, np.ndarray], ways: Mapping[str, str]) -> list[Row]:
    """What attention that knows nothing of the simulators has."""
    rows = []
    for name, label in (
        *((f"uniform_{way}cosine", f"cosine of uniform attention, {words}") for way, words in ways.items()),
        ("independent_cosine", "cosine of independent rows as peaked as these"),
        ("gaussian_cosine", "e^{−s²}, s the standard deviation of log weights"),
        ("uniform_kl", "KL to uniform attention, by index"),
        *(("uniform_averaged_kl", "KL to uniform attention, mean over heads") for way in ways if way == "averaged_"),
    ):
        kind: dict[str, Any] = {"unit": "nats"} if "kl" in name else {"within": CORRELATION}
        rows.append(row(label, values[name][:, 0].mean(axis=-1), note="null models", **kind))
    return rows


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
    figure.colorbar(picture, ax=panels, shrink=0.8, label="weight (rows are queries)", extend="max")
    return figure


_V1 = {"printed": {"cosine": "0.9870", "kl": "0.0144", "least": "> 0.98"}}
_V2 = {"printed": {"cosine": "> 0.982", "kl": "< 0.018", "least": "> 0.982"}}
_PAIRING = "shared, distilled, independent, and bare (our reading: no residual, no LayerNorm, h = 1)"

ATTENTION_IMAGES = experiment(
    name="attention-images",
    headline="cosine, *, independent",
    title="Attention on images",
    question="Does a PDE model attend where a Transformer does, on images?",
    source="v1 §3.2, Figure 3",
    presets=presets(IMAGES, IMAGES_STANDARD, IMAGES_PAPER, sizes=(64, 64, 64), students=(1300, 800, 3000), options=_V1),
    resolve=with_images,
    measure=measure,
    judge=judge,
    pairing=_PAIRING,
)

ATTENTION = experiment(
    name="attention",
    headline="cosine, by index, distilled",
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
