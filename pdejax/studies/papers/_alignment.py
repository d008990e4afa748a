"""Do the hidden states of a PDE simulator follow a Transformer's? v2 §4.2, for every protocol that pairs the two."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

from pdejax.analysis import spectral_similarity, trajectory_fidelity
from pdejax.runs._records import Picture
from pdejax.studies.papers._experiment import (
    LISTOPS,
    LISTOPS_PAPER,
    Models,
    Settings,
    experiment,
    presets,
    row,
    stacked,
)
from pdejax.studies.papers._pairs import NAMES, PAIRINGS, bench, beside, heatmaps, pairing_curves
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
    theirs = truth.observed.states
    for _, simulated, fresh in beside(settings, seed, models, truth):
        ours, untrained = simulated.states, fresh.states
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
        pictures=[
            Picture("states.png", caption, maps),
            Picture(
                "cosine.png",
                curves,
                lambda: pairing_curves(
                    data,
                    "cosine",
                    "cosine with the Transformer's token",
                    "null_cosine",
                    nulls=range(len(names)),
                    null_label="untrained fields",
                ),
            ),
        ],
    )


ALIGNMENT = experiment(
    name="alignment",
    title="Trajectory alignment",
    question="Do the hidden states of a PDE simulator follow a Transformer's?",
    source="v2 §4.2, Figures 2 and 3",
    presets=presets(LISTOPS, LISTOPS_PAPER, sizes=(64, 64), students=(600, 10_000)),
    measure=measure,
    judge=judge,
    pairing="shared, distilled, independent, and bare (independent without residual and LayerNorm), as v2 does not say",
)
