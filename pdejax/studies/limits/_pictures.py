"""Pictures of the study of limits, one per section."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pdejax.plot._style import COLOURS, MARKERS, axes_of, legend
from pdejax.studies.limits._config import NAMES

VERDICTS = {"ODE": 0, "averaged ODE": 2, "SDE": 1, "none": 3, "not decided": 7}


def check_picture(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Every check as a point: exponents of increments and of the parity, coloured by verdict; below, how often each was right."""
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    left, right = (axes_of(ax) for ax in figure.subplots(1, 2, width_ratios=(1, 1.1)))
    for verdict, index in VERDICTS.items():
        own = [r for r in records if r["verdict"] == verdict]
        x = [_value(r["exponents"]["increments"][0]) for r in own]
        y = [_value(r["exponents"]["parity"][0], -1.5) for r in own]
        left.plot(x, y, linestyle="none", marker=MARKERS[index], color=COLOURS[index], alpha=0.7, label=verdict)
    left.set_xlabel("exponent of L in the increments of a layer")
    left.set_ylabel("exponent of L in the distance of even and odd layers\n(−1.5: layers are equal)")
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower left", ncols=len(VERDICTS), frameon=False, fontsize=9
    )
    names = [name for name in NAMES if any(r["recipe"] == name for r in records)]
    for place, name in enumerate(names):
        own = [r for r in records if r["recipe"] == name]
        start = 0.0
        for verdict, index in VERDICTS.items():
            share = sum(r["verdict"] == verdict for r in own) / len(own)
            right.barh(place, share, left=start, color=COLOURS[index], height=0.7)
            start += share
        right.text(1.02, place, own[0]["truth"], va="center", fontsize=8)
    right.set_yticks(range(len(names)), names, fontsize=8)
    right.invert_yaxis()
    right.set_xlim(0, 1)
    right.set_xlabel("share of checks by verdict (right: the limit there is)")
    return figure


def closures_picture(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Gaps of tokens to their closures against their number, and the slope −½."""
    figure = Figure(figsize=(6.0, 4.4), layout="constrained")
    axes = axes_of(figure.subplots())
    for i, record in enumerate(records):
        size, gap = np.asarray(record["sizes"], float), np.asarray(record["gaps"], float)
        value, low, _ = record["exponent"]
        value, low = _value(value), _value(low)
        label = f"{record['closure']}, over {record['over']}: {value:.2f} ± {value - low:.2f}"
        axes.loglog(size, gap, color=COLOURS[i], marker=MARKERS[i], label=label)
        axes.loglog(size, gap[0] * (size / size[0]) ** -0.5, color=COLOURS[i], linestyle=":", linewidth=1)
    sizes = sorted({float(size) for record in records for size in record["sizes"]})
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.set_xlabel("tokens N, or dimensions d")
    axes.set_ylabel("root-mean-square gap to the closure over seeds")
    legend(axes, title="closure: slope (dotted: −½)")
    return figure


def metastability_picture(results: Mapping[str, Any]) -> Figure:
    """Waiting times over β with the slope 1 − cos ω₀, and the staircase of the energy over the logarithm of depth."""
    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    left, right = (axes_of(ax) for ax in figure.subplots(1, 2))
    for i, record in enumerate(results["waiting"]):
        beta, times = np.asarray(record["betas"], float), np.asarray(record["times"], float)
        label = f"ω₀ = {record['angle']:g}: d ln T/dβ → {_value(record['slope'][0]):.3f}"
        left.semilogy(beta, times, color=COLOURS[i], marker=MARKERS[i], linestyle="none", label=label)
        # Laplace's method: e^{cβ}/β, through the last point.
        c = record["expected"]
        line = times[-1] * np.exp(c * (beta - beta[-1])) * beta[-1] / beta
        left.semilogy(beta, line, color=COLOURS[i], linewidth=1)
    left.set_xlabel("inverse temperature β")
    left.set_ylabel("depth T at which two tokens merge")
    legend(left, title="lines: exp((1 − cos ω₀)β)/β")
    stairs = results["staircase"]
    right.semilogx(1 + np.asarray(stairs["ts"], float), stairs["energies"], color=COLOURS[0])
    for t, clusters in zip(stairs["merged"], stairs["clusters"], strict=True):
        right.axvline(1 + t, color="0.7", linestyle=":", linewidth=1)
        right.text(1.1 * (1 + t), 0.02, f"{clusters}", fontsize=9, transform=right.get_xaxis_transform())
    right.set_xlabel("1 + depth t (dotted: mergers, and how many clusters are left)")
    right.set_ylabel("energy, share of that of one cluster")
    return figure


def noise_picture(results: Mapping[str, Any]) -> Figure:
    """Weak errors over L; the critical line over d; the share of tokens that end opposite over β."""
    figure = Figure(figsize=(15.5, 4.4), layout="constrained")
    first, second, third = (axes_of(ax) for ax in figure.subplots(1, 3))
    for i, record in enumerate(results["orders"]):
        label = f"{record['system']},\n{record['moment']}: {_value(record['order']):.2f}"
        size, error = np.asarray(record["layers"], float), np.asarray(record["errors"], float)
        first.loglog(size, error / error[-1], color=COLOURS[i], marker=MARKERS[i], label=label)
        first.loglog(size, size[-1] / size, color=COLOURS[i], linestyle=":", linewidth=1)
    first.set_xlabel("layers L")
    first.set_ylabel("distance of a moment of networks from the SDE's,\nrelative to that at the most layers")
    first.set_ylim(top=100)
    legend(first, loc="upper right", title="dotted: slope −1")
    critical = results["critical"]
    d = np.linspace(3.0, max(r["d"] for r in critical) + 1, 200)
    second.plot(d, 0.5 * np.arccosh(d - 2), color="0.5", linewidth=1, label="½ arcosh(d − 2)")
    y, ci = ([_value(r[name]) for r in critical] for name in ("critical", "ci"))
    second.errorbar([r["d"] for r in critical], y, ci, fmt="o", color=COLOURS[0], capsize=3, label="networks")
    second.set_xlabel("dimension d")
    second.set_ylabel("β from which opposite tokens stay opposite")
    legend(second)
    shares = results["antipodal"]
    x = [r["beta"] for r in shares]
    third.errorbar(
        x,
        [_value(r["share"]) for r in shares],
        [_value(r["ci"]) for r in shares],
        fmt="o",
        color=COLOURS[0],
        capsize=3,
        label="networks",
    )
    third.plot(
        x, [_value(r["expected"]) for r in shares], color="0.5", marker="x", linewidth=1, label="by the scale function"
    )
    third.set_xlabel("inverse temperature β, d = 4")
    third.set_ylabel("share of pairs at right angles that end opposite")
    legend(third)
    return figure


def _value(x: float | None, otherwise: float = math.nan) -> float:
    return otherwise if x is None or not math.isfinite(x) else x


ALL = (
    ("check", "Every check by two of its exponents, and how often each recipe got which verdict.", check_picture),
    ("closures", "Gaps of tokens to their closures, and the slope −½.", closures_picture),
    (
        "metastability",
        "Waiting times over β, and the energy's staircase over the logarithm of depth.",
        metastability_picture,
    ),
    ("noise", "Weak orders, the critical line of two opposite tokens, and how often they end opposite.", noise_picture),
)
