"""Do two systems have the same frequencies along the tokens? v2 App. A.1, Figure 8: amplitude spectra and cumulative energy."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pdejax.analysis import amplitude_spectrum, spectral_similarity
from pdejax.plot._style import COLOURS, NULL, axes_of, legend
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
from pdejax.studies.papers._pairs import NAMES, PAIRINGS, bench, beside
from pdejax.studies.study import Evidence, Judgement

RESAMPLES = 20


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
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


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Similarities and the largest gap between cumulative energies, per pairing."""
    rows = []
    cumulative = stacked(measured, "cumulative")
    gap = np.max(np.abs(cumulative[:, 1:] - cumulative[:, :1]), axis=(-2, -1))
    means = {}
    for name, label in (
        ("cosine", "similarity of amplitude spectra"),
        ("log_correlation", "correlation of log spectra"),
    ):
        value, null = stacked(measured, name).mean(axis=-1), stacked(measured, f"null_{name}").mean(axis=-1)
        means[name] = value.mean(axis=0), null.mean(axis=0)
        for i, pairing in enumerate(PAIRINGS):
            paper = "0.967" if name == "cosine" else None
            rows.append(
                row(
                    f"{label}, {NAMES[pairing]}", value[:, i], paper=paper, null=null[:, i], null_name="untrained field"
                )
            )
    for i, pairing in enumerate(PAIRINGS):
        rows.append(
            row(
                f"largest gap of cumulative energies, {NAMES[pairing]}",
                gap[:, i],
                paper="“coincide”",
                note="over layers",
            )
        )
    untrained, trained = float(means["cosine"][1].mean()), float(means["cosine"][0].mean())
    blind = untrained > 0.9
    logs = means["log_correlation"]
    gain = float(logs[0][1] - logs[1][1])
    verdict = (
        f"Amplitude spectra agree at {trained:.3f} on average over the pairings, and at {untrained:.3f} with an untrained field "
        f"in its place: the similarity {'does not tell' if blind else 'tells'} a matching system from any other. Correlations of "
        f"log spectra are {logs[0][1]:.2f} for the distilled simulator and {logs[1][1]:.2f} for its null"
        f"{', and tell them apart.' if gain > 0.1 else ', no better.'}"
    )
    systems = ["Transformer", *NAMES.values()]
    amplitude = stacked(measured, "amplitude")
    layers = amplitude.shape[-2]
    data = xr.Dataset(
        {
            "amplitude": (("seed", "system", "layer", "frequency"), amplitude),
            "cumulative": (("seed", "system", "layer", "frequency"), cumulative),
            **{
                name: (("seed", "pairing", "later"), stacked(measured, name))
                for name in ("cosine", "log_correlation", "null_cosine", "null_log_correlation")
            },
        },
        coords={
            "system": systems,
            "pairing": list(NAMES.values()),
            "layer": np.arange(layers),
            "later": np.arange(1, layers),
            "frequency": np.asarray(measured[0]["frequency"]),
        },
    )
    caption = (
        "Amplitude spectra along the tokens and cumulative energy in the last layer, means over sequences and seeds."
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=data,
        pictures=[Picture("spectra.png", caption, lambda: _curves(data, stacked(measured, "shuffled")))],
    )


def _curves(data: xr.Dataset, shuffled: np.ndarray) -> Any:
    amplitude, cumulative, systems = data["amplitude"].values, data["cumulative"].values, data.system.values
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    left, right = (axes_of(ax) for ax in figure.subplots(1, 2))
    frequency = data.frequency.values
    for i, name in enumerate(systems):
        style = {"color": COLOURS[i], "linewidth": 2.4 if i == 0 else 1.4, "label": name}
        left.semilogy(frequency, amplitude[:, i, -1].mean(axis=0), **style)
        right.plot(frequency, cumulative[:, i, -1].mean(axis=0), **style)
    left.semilogy(frequency, shuffled[:, -1].mean(axis=0), **NULL, label="Transformer, tokens shuffled")
    left.set_ylabel("amplitude in the last layer (units of u)")
    right.set_ylabel("share of the energy up to there")
    for ax in (left, right):
        ax.set_xlabel("frequency (cycles per token)")
    legend(left)
    legend(right)
    return figure


SPECTRAL = experiment(
    name="spectral",
    title="Spectra along the tokens",
    question="Do both systems have the same frequencies along the tokens?",
    source="v2 App. A.1, Figure 8; §4.2",
    presets=presets(LISTOPS, LISTOPS_PAPER, sizes=(64, 64), students=(600, 10_000)),
    measure=measure,
    judge=judge,
    pairing="shared, distilled, independent, bare",
)
