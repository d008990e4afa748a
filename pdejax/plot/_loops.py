"""Pictures of loops: steps by pass, eigenvalues in the complex plane, answers that stay."""

from typing import TYPE_CHECKING

import numpy as np

from pdejax.analysis.loops._exits import SafeRange
from pdejax.analysis.loops._kinds import LoopBehaviour
from pdejax.analysis.loops._points import LoopSpectrum
from pdejax.plot._style import COLOURS, NULL, axes_of, band, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def loop_behaviour(record: LoopBehaviour, *, ax: "Axes | None" = None) -> "Axes":
    """The relative step ‖u_{k+1} − u_k‖/‖u_k‖ against the pass, both logarithmic; at a point, its own rate beside."""
    ax = axes_of(ax)
    k = np.arange(1, len(record.steps) + 1)
    size = record.norms[:-1]
    share = np.where((size > 0) & (record.steps > 0), record.steps / np.where(size > 0, size, 1), np.nan)
    ax.plot(k, share, color=COLOURS[0], linewidth=1.5, label=record.kind)
    if np.isfinite(record.rate) and np.isfinite(share).any():
        here = int(np.flatnonzero(np.isfinite(share))[len(share[np.isfinite(share)]) // 4])
        line = share[here] * record.rate ** (k - k[here])
        ax.plot(k, np.where(line > 1e-17, line, np.nan), **NULL, label=f"rate {record.rate:.3g}")
    ax.set(xscale="log", yscale="log", xlabel="pass", ylabel="relative step")
    legend(ax)
    return ax


def loop_spectrum(record: LoopSpectrum, *, ax: "Axes | None" = None) -> "Axes":
    """Dominant eigenvalues in the complex plane, beside the unit circle."""
    ax = axes_of(ax, 4.2, 4.0)
    angle = np.linspace(0, 2 * np.pi, 400)
    ax.plot(np.cos(angle), np.sin(angle), **NULL, label="unit circle")
    ax.plot(np.real(record.values), np.imag(record.values), "o", color=COLOURS[0], markersize=5, label="eigenvalues")
    ax.set(xlabel="Re λ", ylabel="Im λ")
    ax.set_aspect("equal", adjustable="datalim")
    legend(ax)
    return ax


def safe_range(record: SafeRange, *, ax: "Axes | None" = None) -> "Axes":
    """Share of inputs that keep the answer of the trained passes, with its interval; where training was, and the range."""
    ax = axes_of(ax)
    kept = record.kept
    band(ax, np.arange(len(kept)), np.asarray(kept.value), kept.low, kept.high, label="answer kept")
    ax.axvline(record.trained, color="0.3", linewidth=1, linestyle="--", label="trained")
    ax.axvline(record.loops, color=COLOURS[3], linestyle=":", label="safe range")
    ax.set(xlabel="pass", ylabel="share of inputs", ylim=(-0.03, 1.03))
    legend(ax)
    return ax
