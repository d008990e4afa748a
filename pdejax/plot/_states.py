"""Pictures of states by layer: a figure, likeness of two systems, statistics, clustering, spectra."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from pdejax._check import choice
from pdejax._figure import Figure
from pdejax.analysis.residual._fidelity import DecayDifference, ResidualDecay
from pdejax.analysis.similarity._trajectory import LayerCorrelation, TrajectoryFidelity
from pdejax.analysis.spectra._amplitude import AmplitudeSpectrum, LowPass, SpectralSimilarity
from pdejax.analysis.spectra._weights import AttentionSpectra
from pdejax.analysis.tokens._clustering import TokenClustering
from pdejax.analysis.tokens._collapse import CollapseRate
from pdejax.analysis.tokens._representation import Representation
from pdejax.plot._style import (
    COLOURS,
    DEPTH,
    LAYER,
    MARKERS,
    NULL,
    SEQUENTIAL,
    against,
    axes_of,
    by_layer,
    legend,
    panels_of,
    whole_layers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def figure(record: Figure, label: str = "value", *, ax: "Axes | None" = None) -> "Axes":
    """A figure `(layers,)` with its interval, and its nulls with theirs.

    Raises `ValueError` for another number of axes: index it first, `figure[:, 0]`.
    """
    if record.ndim != 1:
        raise ValueError(
            f"figure: record has shape {record.shape}; it must be (layers,). Take a part of it, record[:, 0]."
        )
    ax = axes_of(ax)
    by_layer(ax, record, label)
    ax.set_ylabel(label)
    return ax


_LABELS = {
    "mse": "mean squared error (state²)",
    "relative_error": "relative error ‖a − b‖/‖b‖",
    "cosine": "cosine, token by token",
    "sequence_cosine": "cosine, sequence by sequence",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "cka": "linear CKA",
    "cka_debiased": "linear CKA, debiased",
    "procrustes": "Procrustes distance",
}


def trajectory_fidelity(record: TrajectoryFidelity, measure: str = "cosine", *, ax: "Axes | None" = None) -> "Axes":
    """One measure of a `TrajectoryFidelity` by layer with its interval, the nulls beside it as grey lines with theirs.

    Raises `ValueError` for a measure that the record does not have.
    """
    figure = _measure("trajectory_fidelity", record.layers, measure)
    ax = axes_of(ax)
    against(ax, np.arange(len(figure)), figure, "tested against reference")
    ax.set(xlabel=LAYER, ylabel=_LABELS[measure])
    whole_layers(ax)
    legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def layer_correlation(
    records: "LayerCorrelation | dict[str, LayerCorrelation]", measure: str = "pearson", *, ax: "Axes | None" = None
) -> "Axes":
    """Correlation by layer of one system, or of several by their names, each with its interval and, in grey, its
    nulls (tokens shuffled, untrained) with the markers of its system. The axis counts the later layer of each pair.

    Raises `ValueError` for a measure that the records do not have, or no record.
    """
    records = {"": records} if isinstance(records, LayerCorrelation) else dict(records)
    if not records:
        raise ValueError("layer_correlation: records is empty; give a LayerCorrelation or several by name.")
    ax = axes_of(ax)
    ends = {0}
    for index, (name, record) in enumerate(records.items()):
        x = np.array([pair[0] for pair in record.pairs])
        against(ax, x, _measure("layer_correlation", record, measure), name or _LABELS[measure], index=index)
        ends = {pair[1] for pair in record.pairs}
    paired = {i - j for record in records.values() for i, j in record.pairs}
    what = (
        "with the input"
        if ends == {0} and paired != {0}
        else "with the layer before"
        if paired == {1}
        else "of both systems"
    )
    ax.set(xlabel=LAYER, ylabel=f"{_LABELS[measure]} {what}")
    whole_layers(ax)
    legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def residual_decay(records: "ResidualDecay | dict[str, ResidualDecay]", *, ax: "Axes | None" = None) -> "Axes":
    """Fidelity to the input ρ(t) with its interval, of one system or of several by their names; beside it the null (the input's
    tokens shuffled, dashed), the sharp lower bound (solid, thin) and the claimed one of v2 (17) (dotted), where known.

    Raises `ValueError` for no record.
    """
    records = {"fidelity ρ(t)": records} if isinstance(records, ResidualDecay) else dict(records)
    if not records:
        raise ValueError("residual_decay: records is empty; give a ResidualDecay or several by name.")
    ax = axes_of(ax)
    for index, (name, record) in enumerate(records.items()):
        x = np.asarray(record.ts)
        against(ax, x, record.rho, name, index=index, names={"tokens shuffled": "input shuffled"})
        colour, first = COLOURS[index % len(COLOURS)], index == 0
        if record.sharp is not None and record.claimed is not None:
            ax.plot(x, record.sharp, color=colour, linewidth=0.9, label="sharp bound" if first else "_")
            ax.plot(
                x,
                np.asarray(record.claimed),
                color=colour,
                linewidth=1.2,
                linestyle=":",
                label="bound of v2 (17)" if first else "_",
            )
    ax.set(xlabel=DEPTH, ylabel="fidelity ρ(t), cosine with the input", ylim=(-1.05, 1.05))
    legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def decay_difference(record: DecayDifference, *, ax: "Axes | None" = None) -> "Axes":
    """Fidelity to the input of the same system without and with residual connections: two
    `residual_decay`."""
    return residual_decay({"without residual": record.bare, "with residual": record.residual}, ax=ax)


def _measure(owner: str, record, measure: str) -> Figure:
    figures = record if isinstance(record, dict) else vars(record)
    return figures[choice(owner, "measure", measure, [name for name in _LABELS if name in figures])]


def representation(record: Representation, *, ax: "Sequence[Axes] | None" = None) -> np.ndarray:
    """Participation ratio, effective rank, sparsity, magnitude, and both readings of diversity by layer, each beside its null.
    Takes and returns six Axes."""
    axes = panels_of("representation", ax, 6, 8.4, 2.6)
    panels = (
        (record.participation_ratio, "participation ratio / d"),
        (record.effective_rank, "effective rank"),
        (record.sparsity, f"share of |u| < {float(record.threshold):g}"),
        (record.magnitude, "mean |u| (units of u)"),
        (record.diversity, "variance of pooled u (units²)"),
        (record.diversity_cosine, "1 − cosine of pooled u"),
    )
    for panel, (figure, label) in zip(axes, panels, strict=True):
        by_layer(panel, figure, "hidden states", names={name: f"{name} null" for name in figure.nulls})
        panel.set_ylabel(label)
        if panel is not axes[0] and panel.get_legend() is not None:
            panel.get_legend().remove()
    return axes


def token_cosines(record: TokenClustering, *, ax: "Axes | None" = None) -> "Axes":
    """Distribution of the pairwise cosines of every layer, first layer dark, and the null's of the last layer."""
    from matplotlib import colormaps

    ax = axes_of(ax)
    edges = np.asarray(record.edges)
    width, number = edges[1] - edges[0], record.histogram.shape[0]
    [(null, shuffled)] = record.histogram.nulls.items()
    for i, shares in enumerate(np.asarray(record.histogram)):
        colour = colormaps[SEQUENTIAL](0.9 * i / max(number - 1, 1))
        ax.stairs(
            shares / width, edges, color=colour, label=f"layer {i}" if i in (0, number - 1) or number <= 7 else None
        )
    style = {"color": NULL["color"], "linestyle": NULL["linestyle"], "linewidth": NULL["linewidth"]}
    ax.stairs(np.asarray(shuffled)[-1] / width, edges, label=null, **style)
    ax.set(xlabel="cosine of two tokens", ylabel="density of token pairs", xlim=(-1, 1))
    legend(ax)
    return ax


def token_clustering(record: TokenClustering, *, ax: "Sequence[Axes] | None" = None) -> np.ndarray:
    """Mean cosine, clusters, effective rank and residual norm by layer, each beside its null. Takes and returns four Axes."""
    axes = panels_of("token_clustering", ax, 4, 7.2, 2.8)
    panels = (
        (record.cosine, "mean cosine of two tokens"),
        (record.clusters, f"clusters (cosine > {float(record.threshold):g})"),
        (record.effective_rank, "effective rank of tokens"),
        (record.residual, "‖u − 1μᵀ‖ / ‖u‖"),
    )
    for panel, (figure, name) in zip(axes, panels, strict=True):
        by_layer(panel, figure, "hidden states")
        panel.set_ylabel(name)
        if panel is not axes[0] and panel.get_legend() is not None:
            panel.get_legend().remove()
    return axes


def consensus_distance(record: TokenClustering, *, ax: "Axes | None" = None) -> "Axes":
    """Largest and mean distance of two tokens by layer, and their nulls, on a logarithmic scale."""
    ax = axes_of(ax)
    [null] = record.diameter.nulls
    by_layer(ax, record.diameter, "largest", names={null: f"largest, {null}"})
    by_layer(ax, record.distance, "mean", index=1, names={null: f"mean, {null}"})
    ax.set(ylabel="distance of two tokens (units of u)")
    # Where all tokens agree the distance is 0, which a logarithm cannot show.
    ax.set_yscale("log", nonpositive="mask")
    return ax


def collapse_rate(record: CollapseRate, *, ax: "Axes | None" = None) -> "Axes":
    """The gap over depth, the law fitted to it, and for a known rate the exact law through the first trajectory's last fitted
    depth (for a blow-up its first)."""
    ax = axes_of(ax)
    t, gap, used = np.asarray(record.ts), np.asarray(record.gap), np.asarray(record.used)
    for i in range(gap.shape[0]):
        colour = COLOURS[i % len(COLOURS)]
        ax.plot(t, gap[i], "o", markersize=3, color=colour, label="measured" if i == 0 else None)
        ax.plot(
            t, np.asarray(record.fitted)[i], color=colour, linewidth=1.5, label=_fit_label(record) if i == 0 else None
        )
    exact = float(record.exact)
    if np.isfinite(exact):
        ax.plot(t, _exact_law(record, t, gap[0], np.flatnonzero(used[0]), exact), label=f"exact, {exact:.4g}", **NULL)
    ax.set(xlabel="depth t (layers)", ylabel="variance of tokens" if record.law == "blowup" else "gap 1 − cosine")
    ax.set_yscale("log", nonpositive="mask")
    if record.law == "algebraic":
        ax.set_xscale("log")  # a depth of 0 is not shown
    legend(ax)
    return ax


def _fit_label(record: CollapseRate) -> str:
    name = {"exponential": "rate", "algebraic": "power", "blowup": "blow-up depth"}[record.law]
    value, low, high = (float(x) for x in (record.rate.value, record.rate.low, record.rate.high))
    shown = f"{record.law} fit, {name} {value:.4g}"
    return f"{shown} [{low:.4g}, {high:.4g}]" if np.isfinite(low) else shown


def _exact_law(record: CollapseRate, t: np.ndarray, gap: np.ndarray, used: np.ndarray, exact: float) -> np.ndarray:
    """The law with the exact figure through a fitted point, origin or power as fitted; NaN where it is not defined."""
    end = used[-1]
    if record.law == "exponential":
        return gap[end] * np.exp(-exact * (t - t[end]))
    if record.law == "algebraic":
        origin, power, through = float(record.origin[0]), exact, end
        away = t - origin
    else:
        power, through = float(record.power[0]), used[0]
        away = exact - t
    away = np.where(away > 0, away, np.nan)
    return gap[through] * (away / away[through]) ** -power


def amplitude_spectrum(
    *spectra: AmplitudeSpectrum,
    labels: Sequence[str] | None = None,
    layer: int = -1,
    ax: "Sequence[Axes] | None" = None,
) -> "np.ndarray":
    """Amplitudes and cumulative energy of one layer of one or several systems, with intervals; the null is the first
    system's with shuffled tokens or features. Takes and returns two Axes, amplitudes on the left.

    Raises `ValueError` for no spectrum, spectra along different axes, or labels that are not as many.
    """
    if not spectra or len({s.axis for s in spectra}) > 1:
        raise ValueError("amplitude_spectrum: give one or more spectra along the same axis.")
    names = [f"system {i + 1}" for i in range(len(spectra))] if labels is None else list(labels)
    if len(names) != len(spectra):
        raise ValueError(f"amplitude_spectrum: {len(names)} labels for {len(spectra)} spectra.")
    left, right = axes = panels_of("amplitude_spectrum", ax, 2, 7.6, 3.4)
    for i, (spectrum, name) in enumerate(zip(spectra, names, strict=True)):
        f = np.asarray(spectrum.frequencies)
        for panel, figure in ((left, spectrum.amplitude), (right, spectrum.cumulative)):
            here = figure[layer]
            colour, dash = COLOURS[i % len(COLOURS)], ("-", "-.", ":")[i % 3]
            panel.plot(f, here.value, color=colour, linestyle=dash, label=name)
            _shade(panel, f, here.low, here.high, colour)
            for null, values in here.nulls.items() if i == 0 else ():
                panel.plot(f, np.asarray(values), label=f"{name}, {null}", **NULL)
    unit = f"frequency (cycles per {spectra[0].axis})"
    left.set(xlabel=unit, ylabel="mean amplitude (units of u)", yscale="log")
    right.set(xlabel=unit, ylabel="cumulative share of energy", ylim=(0, 1.03))
    left.set_title(f"layer {layer % spectra[0].power.shape[0]}", fontsize=9)
    legend(left)
    return axes


def spectral_similarity(
    record: SpectralSimilarity, *, axis: Literal["token", "feature"] = "token", ax: "Axes | None" = None
) -> "Axes":
    """Cosine of amplitude spectra by layer, every null beside it, and the correlation of log spectra, which does not profit
    from amplitudes being positive. Raises `ValueError` where there is no spectrum along features."""
    found = record.token if axis == "token" else record.feature
    if found is None:
        raise ValueError("spectral_similarity: the systems differ in width, so nothing was compared along features.")
    ax = axes_of(ax)
    cosine, logarithms = found["cosine"], found["log_correlation"]
    by_layer(ax, cosine, "cosine", names={name: f"cosine, {name}" for name in cosine.nulls})
    by_layer(ax, logarithms, "correlation of logarithms", index=1, names={})
    ax.set(ylabel=f"likeness of spectra along {axis}s")
    ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    return ax


def low_pass_ratio(record: LowPass, *, ax: "Axes | None" = None) -> "Axes":
    """Non-constant share of the energy by layer, beside tokens in random directions."""
    ax = axes_of(ax)
    by_layer(ax, record.share, "hidden states")
    ax.set(ylabel="non-constant share of energy", ylim=(0, 1.05))
    return ax


def attention_spectra(
    record: AttentionSpectra, *, layer: int | None = None, ax: "Sequence[Axes] | None" = None
) -> "np.ndarray":
    """Eigenvalues of the QK and the OV circuit in the complex plane, in units of each head's null radius, so that heads share
    one circle; one layer (a colour per head) or all of them (a colour per layer). Takes and returns two Axes."""
    axes = panels_of("attention_spectra", ax, 2, 7.2, 3.6)
    parts = ((record.qk, record.qk_null, record.qk_radius, "QK"), (record.ov, record.ov_null, record.ov_radius, "OV"))
    for panel, (circuit, null, radius, name) in zip(axes, parts, strict=True):
        scale = np.where(np.asarray(radius) > 0, np.asarray(radius), 1)[..., None]
        values, drawn = np.asarray(circuit.eigenvalues) / scale, np.asarray(null.eigenvalues) / scale
        if layer is not None:
            values, drawn = values[layer][:, None], drawn[layer][:, None]
        panel.scatter(drawn.real, drawn.imag, s=8, color="0.7", label="Gaussian weights")
        number = values.shape[0]
        what = "layer" if layer is None else "head"
        for i in range(number):
            shown = what + f" {i}" if number <= len(COLOURS) else None
            panel.scatter(
                values[i].real,
                values[i].imag,
                s=12,
                marker=MARKERS[i % len(MARKERS)],
                facecolors="none",
                edgecolors=COLOURS[i % len(COLOURS)],
                linewidths=0.8,
                label=shown,
            )
        turn = np.linspace(0, 2 * np.pi, 201)
        panel.plot(np.cos(turn), np.sin(turn), **{**NULL, "linewidth": 1.0})
        reach = 1.08 * max(1.0, *(float(np.max(np.abs([x.real, x.imag]))) for x in (values, drawn)))
        panel.set(xlabel=f"Re λ({name}) / null radius", ylabel=f"Im λ({name}) / null radius", aspect="equal")
        panel.set(xlim=(-reach, reach), ylim=(-reach, reach))
    legend(axes[1], loc="center left", bbox_to_anchor=(1.0, 0.5))
    return axes


def _shade(ax: "Axes", x, low, high, colour) -> None:
    if np.all(np.isfinite(np.asarray(low))):
        ax.fill_between(x, np.asarray(low), np.asarray(high), color=colour, alpha=0.2, linewidth=0)
