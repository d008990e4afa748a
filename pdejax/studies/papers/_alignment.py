"""Do a PDE simulator's states follow a Transformer's (v2 §4.2, for every protocol that pairs the two), and have both the same
frequencies along the tokens (v2 App. A.1, Figure 8: amplitude spectra and cumulative energy)?
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pdejax.analysis import amplitude_spectrum, spectral_similarity, trajectory_fidelity
from pdejax.plot._style import COLOURS, LAYER, NULL, axes_of, whole_layers
from pdejax.runs._records import Picture
from pdejax.studies.papers._experiment import (
    CORRELATION,
    LISTOPS,
    LISTOPS_PAPER,
    LISTOPS_STANDARD,
    RESAMPLES,
    SHARE,
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
)
from pdejax.studies.papers._pairs import (
    FORMS,
    NAMES,
    PAIRINGS,
    bench,
    beside,
    field_parameters,
    heatmaps,
    legend_beside,
    made_of,
    pairing_curves,
    seed_curves,
)
from pdejax.studies.study import Evidence, Judgement, high, low

PAPER = {"mse": "0.031", "cosine": "0.970", "spectral": "0.967"}
QUANTITIES = {
    "mse": "MSE",
    "relative_error": "relative error",
    "cosine": "cosine of tokens",
    "spectral": "spectral similarity",
    "spectral_log": "correlation of log spectra",
    "cka": "linear CKA, debiased",
}
# Debiased CKA, too: the cosine of two double-centred matrices without their diagonals.
BOUNDED = ("cosine", "spectral", "spectral_log", "cka")


def measure_alignment(settings: Settings, seed: int, models: Models) -> Evidence:
    """Each quantity per pairing and layer (the embedding left out), of the pair and of an untrained simulator in its place."""
    truth = bench(settings, seed, models, ("distilled", "independent", "bare"))
    key = jax.random.key(seed)
    mask = truth.mask
    found = {name: [] for name in QUANTITIES}
    null = {name: [] for name in QUANTITIES}
    pictures = [np.asarray(truth.observed.states[:, 0])]
    theirs = truth.observed.states
    counts = []
    for model, simulated, fresh in beside(settings, seed, models, truth):
        ours, untrained = simulated.states, fresh.states
        counts.append(field_parameters(model))
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
        "parameters": np.asarray(counts),
    }


def judge_alignment(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """The paper's three figures for every pairing, and whether they tell a fitted simulator from an untrained one."""
    rows = []
    overall = {}
    counts = measured[0].get("parameters")
    cka = []
    for i, pairing in enumerate(PAIRINGS):
        for name, label in QUANTITIES.items():
            ours = stacked(measured, name)[:, i].mean(axis=-1)
            null = stacked(measured, f"null_{name}")[:, i].mean(axis=-1)
            overall[pairing, name] = over(ours, CORRELATION if name in BOUNDED else None), float(null.mean())
            if name == "cka":
                cka.append(
                    f"{NAMES[pairing].split(' (')[0]} {shown(overall[pairing, name][0])} ({null.mean():.2f} untrained)"
                )
            made = FORMS[pairing] + ("" if counts is None else f", {int(counts[i]):,} parameters")
            note = f"{made}; mean over layers{'; depends on the scale of u' if name == 'mse' else ''}"
            rows.append(
                row(
                    f"{label}, {NAMES[pairing]}",
                    ours,
                    paper=PAPER.get(name),
                    null=null,
                    null_name="untrained field",
                    note=note,
                    within=CORRELATION if name in BOUNDED else None,
                )
            )
    cosine = {pairing: overall[pairing, "cosine"][0] for pairing in PAIRINGS}
    reached = [NAMES[p] for p in PAIRINGS if low(cosine[p]) >= 0.97]
    missed = [NAMES[p] for p in PAIRINGS if NAMES[p] not in reached]
    untrained = [f"{overall[pairing, 'cosine'][1]:.3f}" for pairing in PAIRINGS[1:]]
    spectral = sorted(overall[pairing, "spectral"][1] for pairing in PAIRINGS)
    verdict = (
        f"A cosine of 0.97 is reached by {', '.join(reached) or 'none'}"
        + (f" and not, or not surely, by {', '.join(missed)}" if missed else "")
        + f" ({', '.join(f'{p} {shown(cosine[p], 3)}' for p in PAIRINGS[1:])}; "
        f"their untrained fields {', '.join(untrained)}). Debiased CKA, which no "
        f"basis decides ({spread(len(measured))}): {', '.join(cka)}. Spectral similarity is {spectral[0]:.3f} to "
        f"{spectral[-1]:.3f} for untrained fields already, so that 0.967 is "
        f"{'no evidence of alignment' if spectral[-1] >= 0.967 else 'above what untrained fields have'}."
    )
    names = list(NAMES.values())
    data = xr.Dataset(
        {
            **{
                name: (("seed", "pairing", "layer"), stacked(measured, name))
                for name in (*QUANTITIES, *(f"null_{name}" for name in QUANTITIES))
            },
            **({} if counts is None else {"parameters": (("pairing",), counts)}),
            **first_of(measured, "heatmap", ("picture", "depth", "token", "feature")),
        },
        coords={"pairing": names, "layer": np.arange(1, stacked(measured, "mse").shape[-1] + 1)},
    )

    caption = "Hidden states of one sequence by layer: the Transformer above, the simulators below, one colour scale."
    curves = (
        "Cosine of tokens with the Transformer's and debiased CKA by layer, mean over seeds, thin the seeds; dashed in the same "
        "colour: an untrained field in each one's place."
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=data,
        pictures=[
            Picture("states.png", caption, lambda: _maps(measured[0]["heatmap"])),
            Picture(
                "cosine.png",
                curves,
                lambda: pairing_curves(
                    data,
                    [
                        ("cosine", "cosine with the Transformer's token", "null_cosine"),
                        ("cka", "linear CKA, debiased", "null_cka"),
                    ],
                ),
            ),
        ],
    )


ALIGNMENT = experiment(
    name="alignment",
    headline="linear CKA, debiased, independent",
    title="Trajectory alignment",
    question="Do the hidden states of a PDE simulator follow a Transformer's?",
    source="v2 §4.2, Figures 2 and 3",
    presets=presets(LISTOPS, LISTOPS_STANDARD, LISTOPS_PAPER, sizes=(64, 64, 64), students=(600, 600, 10_000)),
    measure=measure_alignment,
    judge=judge_alignment,
    pairing="shared, distilled, independent, and bare (our reading: no residual, no LayerNorm, h = 1), as v2 does not say",
)


def measure_spectra(settings: Settings, seed: int, models: Models) -> Evidence:
    """Amplitudes and cumulative energies along tokens per system and layer; similarities beside those of an untrained field."""
    truth = bench(settings, seed, models, ("distilled", "independent", "bare"))
    key, mask = jax.random.key(seed), truth.mask
    theirs = truth.observed.states

    def spectrum(states):
        return amplitude_spectrum(states, key=key, mask=mask, resamples=RESAMPLES)

    first = spectrum(theirs)
    amplitude, cumulative = [first.amplitude.value], [first.cumulative.value]
    figures = {name: [] for name in ("cosine", "log_correlation", "null_cosine", "null_log_correlation")}
    for _, simulated, fresh in beside(settings, seed, models, truth):
        ours, null = simulated.states, fresh.states
        found = spectrum(ours)
        amplitude.append(found.amplitude.value)
        cumulative.append(found.cumulative.value)
        likeness = spectral_similarity(
            theirs[1:], ours[1:], key=key, mask=mask, untrained=null[1:], resamples=RESAMPLES
        ).token
        for name in ("cosine", "log_correlation"):
            figures[name].append(likeness[name].value)
            figures[f"null_{name}"].append(likeness[name].nulls["untrained"])
    return {
        "frequency": first.frequencies,
        "amplitude": np.stack(amplitude),
        "shuffled": np.asarray(first.amplitude.nulls["tokens shuffled"]),
        "cumulative": np.stack(cumulative),
        **{name: np.stack(values) for name, values in figures.items()},
    }


def judge_spectra(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Similarities and the largest gap between cumulative energies, per pairing."""
    rows = []
    made = {pairing: made_of(settings.train, pairing) for pairing in PAIRINGS}
    cumulative = stacked(measured, "cumulative")
    gap = np.max(np.abs(cumulative[:, 1:] - cumulative[:, :1]), axis=(-2, -1))
    means = {}
    for name, label in (
        ("cosine", "similarity of amplitude spectra"),
        ("log_correlation", "correlation of log spectra"),
    ):
        value, null = stacked(measured, name).mean(axis=-1), stacked(measured, f"null_{name}").mean(axis=-1)
        means[name] = value, null
        for i, pairing in enumerate(PAIRINGS):
            rows.append(
                row(
                    f"{label}, {NAMES[pairing]}",
                    value[:, i],
                    paper="0.967" if name == "cosine" else None,
                    null=null[:, i],
                    null_name="untrained field",
                    note=f"mean over layers; {made[pairing]}",
                    within=CORRELATION,
                )
            )
    for i, pairing in enumerate(PAIRINGS):
        rows.append(
            row(
                f"largest gap of cumulative energies, {NAMES[pairing]}",
                gap[:, i],
                paper="“coincide”",
                null=_apart(cumulative[:, 0]),
                null_name="Transformer of another seed",
                note=f"over layers; {made[pairing]}",
                within=SHARE,
            )
        )
    trained, untrained = (over(values.mean(axis=-1), CORRELATION) for values in means["cosine"])
    blind = "does not tell" if low(untrained) > 0.9 else "tells" if high(untrained) < 0.9 else "may not tell"
    fitted, null = (values[:, PAIRINGS.index("distilled")] for values in means["log_correlation"])
    gain = over(fitted - null)
    apart = (
        ", and tell them apart" if low(gain) > 0.1 else ", no better" if high(gain) < 0.1 else ": which is not decided"
    )
    verdict = (
        f"Amplitude spectra agree at {shown(trained, 3)} on average over the pairings, and at {shown(untrained, 3)} with an "
        f"untrained field in its place ({spread(len(measured))}): the similarity {blind} a matching system from any other. "
        f"Correlations of log spectra are {shown(over(fitted, CORRELATION))} for the distilled simulator and "
        f"{shown(over(null, CORRELATION))} for its null{apart}."
    )
    amplitude = stacked(measured, "amplitude")
    layers, drawn = amplitude.shape[-2], "shuffled" in measured[0]
    data = xr.Dataset(
        {
            "amplitude": (("seed", "system", "layer", "frequency"), amplitude),
            "cumulative": (("seed", "system", "layer", "frequency"), cumulative),
            **({"shuffled": (("seed", "layer", "frequency"), stacked(measured, "shuffled"))} if drawn else {}),
            **{
                name: (("seed", "pairing", "later"), stacked(measured, name))
                for name in ("cosine", "log_correlation", "null_cosine", "null_log_correlation")
            },
        },
        coords={
            "system": ["Transformer", *NAMES.values()],
            "pairing": list(NAMES.values()),
            "layer": np.arange(layers),
            "later": np.arange(1, layers),
            "frequency": np.asarray(measured[0]["frequency"]),
        },
    )
    caption = (
        "Amplitude spectra along the tokens and cumulative energy in the last layer; correlations of log spectra by layer, "
        "dashed with an untrained field in each one's place. Means over sequences and seeds, thin the seeds."
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=data,
        pictures=[Picture("spectra.png", caption, lambda: _spectra(data, stacked(measured, "shuffled")))],
    )


def _maps(states: np.ndarray) -> Any:
    systems = ["Transformer", *(name.split(" (")[0] for name in NAMES.values())]
    return heatmaps(list(states), systems, "Hidden states of one held-out sequence")


def _apart(cumulative: np.ndarray) -> np.ndarray | None:
    """How far two Transformers are apart, each seed's and the next one's: nothing if there is one."""
    gaps = np.max(np.abs(cumulative - np.roll(cumulative, 1, axis=0)), axis=(-2, -1))
    return gaps if len(cumulative) > 1 else None


LEAST = 0.03  # of the largest amplitude: below, a curve is marked at the edge


def _spectra(data: xr.Dataset, shuffled: np.ndarray) -> Any:
    amplitude, cumulative, systems = data["amplitude"].values, data["cumulative"].values, data.system.values
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    left, middle, right = (axes_of(ax) for ax in figure.subplots(1, 3))
    frequency = data.frequency.values
    bottom = LEAST * amplitude[:, 0, -1].mean(axis=0).max()
    for i, name in enumerate(systems):
        style: Any = {"color": COLOURS[i], "linewidth": 2.4 if i == 0 else 1.4}
        mean = amplitude[:, i, -1].mean(axis=0)
        left.semilogy(frequency, mean, label=name, **style)
        if np.any(below := mean < bottom):
            edge = frequency[below], np.full(np.sum(below), 1.15 * bottom)
            left.plot(
                *edge,
                linestyle="",
                marker="v",
                color=COLOURS[i],
                label=f"{name}: below the axis, {mean[below].mean():.0e}",
            )
        middle.plot(frequency, cumulative[:, i, -1].mean(axis=0), **style)
        for k in range(len(amplitude)):
            left.semilogy(frequency, amplitude[k, i, -1], color=COLOURS[i], linewidth=0.5, alpha=0.4)
            middle.plot(frequency, cumulative[k, i, -1], color=COLOURS[i], linewidth=0.5, alpha=0.4)
    left.semilogy(frequency, shuffled[:, -1].mean(axis=0), **NULL, label="Transformer, tokens shuffled")
    left.set_ylim(bottom=bottom)
    thin: dict[str, Any] = NULL | {"linewidth": 1.2}
    for i in range(len(PAIRINGS)):
        seed_curves(right, data.later.values, data["log_correlation"].values[:, i], index=i + 1, label="_")
        null = data["null_log_correlation"].values[:, i].mean(axis=0)
        [line] = right.plot(data.later.values, null, **thin)
        line.set_color(COLOURS[i + 1])
    left.plot([], [], **thin, label="untrained field in each one's place (right)")
    left.set_ylabel("amplitude in the last layer (units of u)")
    middle.set_ylabel("share of the energy up to there")
    for ax in (left, middle):
        ax.set_xlabel("frequency (cycles per token)")
    right.set_xlabel(LAYER)
    right.set_ylabel("correlation of log spectra with the Transformer's")
    whole_layers(right)
    legend_beside(figure)
    return figure


SPECTRAL = experiment(
    name="spectral",
    headline="similarity of amplitude spectra, independent",
    title="Spectra along the tokens",
    question="Do both systems have the same frequencies along the tokens?",
    source="v2 App. A.1, Figure 8; §4.2",
    presets=presets(LISTOPS, LISTOPS_STANDARD, LISTOPS_PAPER, sizes=(64, 64, 64), students=(600, 600, 10_000)),
    measure=measure_spectra,
    judge=judge_spectra,
    pairing="shared, distilled, independent, and bare (our reading: no residual, no LayerNorm, h = 1)",
)
