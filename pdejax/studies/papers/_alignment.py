"""Do the hidden states of a PDE simulator follow a Transformer's? v2 §4.2, for every protocol that pairs the two."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

from pdejax.analysis import spectral_similarity, trajectory_fidelity
from pdejax.models import observe
from pdejax.plot._style import LAYER, NULL, axes_of, legend, whole_layers
from pdejax.runs._records import Picture
from pdejax.studies.papers._experiment import (
    LISTOPS,
    LISTOPS_PAPER,
    STUDENT,
    Models,
    Settings,
    experiment,
    row,
    stacked,
)
from pdejax.studies.papers._pairs import (
    NAMES,
    PAIRINGS,
    bench,
    heatmaps,
    partner,
    seed_curves,
    untrained_partner,
)
from pdejax.studies.study import Evidence, Judgement

PAPER = {"mse": "0.031", "cosine": "0.970", "spectral": "0.967"}
QUANTITIES = {
    "mse": "MSE",
    "relative_error": "relative error",
    "cosine": "cosine of tokens",
    "spectral": "spectral similarity",
    "spectral_log": "correlation of log spectra",
    "cka": "linear CKA, debiased",
}
RESAMPLES = 20  # intervals are taken over seeds


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """Each quantity per pairing and layer (the embedding left out), of the pair and of an untrained simulator in its place."""
    truth = bench(settings, seed, models, ("distilled", "independent", "bare"))
    key = jax.random.key(seed)
    mask = truth.mask
    found = {name: [] for name in QUANTITIES}
    null = {name: [] for name in QUANTITIES}
    pictures = [np.asarray(truth.observed.states[:, 0])]
    for pairing in PAIRINGS:
        model = partner(settings, seed, models, pairing)
        ours = observe(model, truth.batch.inputs, truth.mask).states
        untrained = observe(untrained_partner(model, seed), truth.batch.inputs, truth.mask).states
        theirs = truth.observed.states
        fidelity = trajectory_fidelity(
            ours[1:], theirs[1:], mask=mask, reference_null=untrained[1:], key=key, resamples=RESAMPLES
        ).layers
        for name, measured in (
            ("mse", fidelity["mse"]),
            ("relative_error", fidelity["relative_error"]),
            ("cosine", fidelity["cosine"]),
            ("cka", fidelity["cka_debiased"]),
        ):
            found[name].append(measured.value)
            null[name].append(measured.nulls["untrained"])
        spectra = spectral_similarity(
            theirs[1:], ours[1:], mask=mask, untrained=untrained[1:], key=key, resamples=RESAMPLES
        ).token
        for name, measured in (("spectral", spectra["cosine"]), ("spectral_log", spectra["log_correlation"])):
            found[name].append(measured.value)
            null[name].append(measured.nulls["untrained"])
        pictures.append(np.asarray(ours[:, 0]))
    real = np.asarray(mask[0])
    return {
        **{name: np.stack(values) for name, values in found.items()},
        **{f"null_{name}": np.stack(values) for name, values in null.items()},
        "heatmap": np.stack(pictures)[:, :, real],
    }


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """The paper's three figures for every pairing, and whether they tell a fitted simulator from an untrained one."""
    rows = []
    overall = {}
    for i, pairing in enumerate(PAIRINGS):
        for name, label in QUANTITIES.items():
            ours = stacked(measured, name)[:, i].mean(axis=-1)
            null = stacked(measured, f"null_{name}")[:, i].mean(axis=-1)
            overall[pairing, name] = float(ours.mean()), float(null.mean())
            note = "mean over layers" if name != "mse" else "mean over layers; depends on the scale of u"
            rows.append(
                row(
                    f"{label}, {NAMES[pairing]}",
                    ours,
                    paper=PAPER.get(name),
                    null=null,
                    null_name="untrained field",
                    note=note,
                )
            )
    cosine = {pairing: overall[pairing, "cosine"][0] for pairing in PAIRINGS}
    reached = [NAMES[p] for p in PAIRINGS if cosine[p] >= 0.97]
    missed = [NAMES[p] for p in PAIRINGS if cosine[p] < 0.97]
    spectral = sorted(overall[pairing, "spectral"][1] for pairing in PAIRINGS)
    verdict = (
        f"A cosine of 0.97 is reached by {', '.join(reached) or 'none'}"
        + (f" and not by {', '.join(missed)}" if missed else "")
        + f" (distilled {cosine['distilled']:.3f}, independent {cosine['independent']:.3f}, bare {cosine['bare']:.3f}). Spectral "
        f"similarity is {spectral[0]:.3f} to {spectral[-1]:.3f} for untrained fields already, so that 0.967 is "
        f"{'no evidence of alignment' if spectral[-1] >= 0.967 else 'above what untrained fields have'}."
    )
    names = list(NAMES.values())
    data = xr.Dataset(
        {
            **{name: (("seed", "pairing", "layer"), stacked(measured, name)) for name in QUANTITIES},
            **{
                f"null_{name}": (("seed", "pairing", "layer"), stacked(measured, f"null_{name}")) for name in QUANTITIES
            },
        },
        coords={"pairing": names, "layer": np.arange(1, stacked(measured, "mse").shape[-1] + 1)},
    )

    def maps() -> Any:
        systems = ["Transformer", *(name.split(" (")[0] for name in names)]
        return heatmaps(list(measured[0]["heatmap"]), systems, "Hidden states of one held-out sequence")

    caption = "Hidden states of one sequence by layer: the Transformer above, the simulators below, one colour scale."
    curves = (
        "Cosine of tokens with the Transformer's by layer, mean over seeds, thin the seeds; dashed: untrained fields."
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=data,
        pictures=[Picture("states.png", caption, maps), Picture("cosine.png", curves, lambda: _curves(data))],
    )


def _curves(data: xr.Dataset) -> Any:
    ax = axes_of(None)
    layers = data.layer.values
    for i, name in enumerate(data.pairing.values):
        seed_curves(ax, layers, data["cosine"].values[:, i], index=i, label=str(name))
    for i in range(data.sizes["pairing"]):
        null = data["null_cosine"].values[:, i].mean(axis=0)
        ax.plot(layers, null, **NULL, label="untrained fields" if i == 0 else None)
    ax.set_xlabel(LAYER)
    ax.set_ylabel("cosine with the Transformer's token")
    ax.set_ylim(top=1.03)
    whole_layers(ax)
    legend(ax)
    return ax.figure


ALIGNMENT = experiment(
    name="alignment",
    title="Trajectory alignment",
    question="Do the hidden states of a PDE simulator follow a Transformer's?",
    source="v2 §4.2, Figures 2 and 3",
    presets={
        "quick": Settings(train=LISTOPS, student_steps=600, student=STUDENT, examples=64),
        "paper": Settings(train=LISTOPS_PAPER, student_steps=10_000, examples=64, seeds=5),
    },
    measure=measure,
    judge=judge,
    pairing="shared, distilled, independent, and bare (independent without residual and LayerNorm), as v2 does not say",
)
