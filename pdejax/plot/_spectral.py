"""Plots of spectra: amplitudes and cumulative energy, their likeness, low-pass filtering, eigenvalues of QK and OV."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from pdejax.analysis.spectra._amplitude import AmplitudeSpectrum, LowPass, SpectralSimilarity
from pdejax.analysis.spectra._weights import AttentionSpectra
from pdejax.plot._style import COLOURS, MARKERS, NULL, axes_of, by_layer, legend, panels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
