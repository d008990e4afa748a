"""Which fields can be fitted to a Transformer's hidden states? v2 §4.2 does not say what its simulator is: the Transformer's own
form, other schemes and steps, weights shared or smooth in depth, the leaky and the bare field, diffusion and stabilization.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pdejax.analysis import trajectory_fidelity
from pdejax.models import observe
from pdejax.plot._style import COLOURS, NULL, axes_of, legend
from pdejax.runs._records import Picture
from pdejax.studies.papers._experiment import (
    CORRELATION,
    KINDS,
    LISTOPS_PAPER,
    LISTOPS_STANDARD,
    NATIVE,
    RESAMPLES,
    Models,
    Settings,
    experiment,
    over,
    presets,
    row,
    shown,
    sign,
    signed,
    spread,
    stacked,
    surely,
)
from pdejax.studies.papers._pairs import bench, field_parameters, untrained_partner
from pdejax.studies.study import Evidence, Judgement, low

QUANTITIES = {"cosine": "cosine of tokens", "cka_debiased": "linear CKA, debiased", "mse": "MSE"}
PAPER = {"cosine": "0.970", "mse": "0.031"}
REACHED = 0.97  # v2's cosine


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """Each quantity per kind of field and layer (the embedding left out), of the fitted field and of an untrained one of the same
    kind; the parameters of each field, and of the Transformer's."""
    truth = bench(settings, seed, models)
    models.together([models.student_config(settings, seed, kind) for kind in KINDS])
    found: dict[str, list[np.ndarray]] = {}
    counts = []
    theirs = truth.observed.states[1:]
    for kind in KINDS:
        model = models.trained(models.student_config(settings, seed, kind)).model
        ours, fresh = (
            observe(m, truth.batch.inputs, truth.mask).states[1:] for m in (model, untrained_partner(model, seed))
        )
        layers = trajectory_fidelity(
            ours, theirs, mask=truth.mask, reference_null=fresh, key=jax.random.key(seed), resamples=RESAMPLES
        ).layers
        for name in QUANTITIES:
            found.setdefault(name, []).append(np.asarray(layers[name].value))
            found.setdefault(f"null_{name}", []).append(np.asarray(layers[name].nulls["untrained"]))
        counts.append(field_parameters(model))
    return {**{name: np.stack(values) for name, values in found.items()}, "parameters": np.asarray(counts)}


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Means over layers per kind beside those of its own untrained field; which kinds reach the paper's cosine, and whether any
    fits better than the Transformer's own form."""
    names = list(KINDS)
    counts = np.asarray(measured[0]["parameters"])
    values = {name: stacked(measured, name).mean(axis=-1) for name in measured[0] if name != "parameters"}
    rows = []
    for i, kind in enumerate(names):
        for name, label in QUANTITIES.items():
            rows.append(
                row(
                    f"{label}, {kind}",
                    values[name][:, i],
                    paper=PAPER.get(name),
                    null=values[f"null_{name}"][:, i],
                    null_name="untrained field of the same kind",
                    note=f"{int(counts[i]):,} parameters in the field; mean over layers",
                    within=CORRELATION if name == "cosine" else None,
                )
            )
    cosine = {kind: over(values["cosine"][:, i], CORRELATION) for i, kind in enumerate(names)}
    reached = [kind for kind in names if low(cosine[kind]) >= REACHED]
    missed = [f"{kind} {shown(cosine[kind], 3)}" for kind in names if kind not in reached]
    gaps = {kind: values["cosine"][:, i] - values["cosine"][:, 0] for i, kind in enumerate(names) if i}
    better, worse = ([kind for kind, gap in gaps.items() if sign(gap) == side] for side in (1, -1))
    least = min(gaps, key=lambda kind: gaps[kind].mean())
    verdict = (
        f"Fitted to a Transformer's states, {len(reached)} of {len(names)} kinds of field reach v2's cosine of {REACHED:g}"
        + (f"; not, or not surely, {', '.join(missed)}" if missed else "")
        + f". Than the Transformer's own form ({shown(cosine[NATIVE], 3)}) {len(better)} are surely nearer and {len(worse)} "
        f"surely farther ({surely(len(measured))}), the farthest {least} by {signed(over(gaps[least]))} "
        f"({spread(len(measured))}): "
        + (
            "a high cosine after a fit does not tell which equation was fitted."
            if len(reached) == len(names)
            else "what the field is made of decides whether it can follow."
            if worse
            else "whether the form of the field decides is not shown."
        )
    )
    data = xr.Dataset(
        {
            **{
                name: (("seed", "kind", "layer"), stacked(measured, name))
                for name in measured[0]
                if name != "parameters"
            },
            "parameters": (("kind",), counts),
        },
        coords={"kind": names, "layer": np.arange(1, stacked(measured, "mse").shape[-1] + 1)},
    )
    caption = (
        "Cosine of tokens and debiased CKA with the Transformer's states, means over layers, a point for each seed; bars: means; "
        "grey: untrained fields of the same kind."
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=data,
        pictures=[Picture("kinds.png", caption, lambda: _points(names, counts, values))],
    )


def _points(names: Sequence[str], counts: np.ndarray, values: dict[str, np.ndarray]) -> Any:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = [axes_of(ax) for ax in figure.subplots(1, 2, sharey=True)]
    places = np.arange(len(names))[::-1]
    for ax, name in zip(panels, ("cosine", "cka_debiased"), strict=True):
        for points, colour, label in (
            (values[f"null_{name}"], NULL["color"], "untrained"),
            (values[name], COLOURS[0], "fitted"),
        ):
            for k, own in enumerate(points):
                ax.plot(own, places, "o", color=colour, markersize=3, alpha=0.6, label="_" if k else label)
            ax.plot(points.mean(axis=0), places, "|", color=colour, markersize=14, markeredgewidth=2)
        ax.set_xlabel(QUANTITIES[name])
        ax.grid(axis="y", linewidth=0.4, alpha=0.5)
    panels[0].set_yticks(places, [f"{name}\n{int(n):,} parameters" for name, n in zip(names, counts, strict=True)])
    legend(panels[1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


DISTILLATION = experiment(
    name="distillation",
    title="What is distilled",
    question="Which fields can be fitted to a Transformer's hidden states?",
    source="v2 §4.2, which does not say what its simulator is",
    presets=presets(LISTOPS_STANDARD, LISTOPS_STANDARD, LISTOPS_PAPER, sizes=(48, 48, 64), students=(200, 250, 10_000)),
    measure=measure,
    judge=judge,
    pairing="distilled: eight kinds of field, each fitted to the states of the same Transformer",
)
