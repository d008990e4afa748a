"""Pictures of a loop, from its numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pdejax.analysis.loops import safe_range
from pdejax.analysis.loops._kinds import KINDS
from pdejax.plot._style import COLOURS, NULL, axes_of, legend, panels_of
from pdejax.runs._records import Picture

Evidence = Mapping[str, Any]


def pictures(found: Evidence, share: float) -> list[Picture]:
    """The pictures there are numbers for; `share` of inputs must keep their answers."""
    drawn = [
        Picture("steps.png", "Length of each pass's step, input by input, by what the loop does", lambda: steps(found)),
        Picture("spectrum.png", "Dominant eigenvalues of one pass, in the complex plane", lambda: spectrum(found)),
    ]
    if found["subject"]["answers"]:
        drawn.insert(
            1, Picture("range.png", "Answers that stay, and those foreseen to change", lambda: reach(found, share))
        )
    return drawn


def steps(found: Evidence) -> Any:
    """‖u_{k+1} − u_k‖/‖u_k‖ against k, colours by kind, the trained number of passes marked."""
    ax = axes_of(None, 6.4, 3.8)
    shown = set()
    for x in found["inputs"]:
        kind = KINDS[int(x["kind"])]
        size = np.asarray(x["norms"])[:-1]
        with np.errstate(all="ignore"):
            share = np.asarray(x["steps"]) / size
        share = np.where(np.isfinite(share) & (share > 1e-17), share, np.nan)
        colour = COLOURS[KINDS.index(kind) % len(COLOURS)]
        label = "_" if kind in shown else kind
        ax.plot(np.arange(1, len(share) + 1), share, color=colour, alpha=0.6, linewidth=1, label=label)
        shown.add(kind)
    _trained(ax, found)
    ax.set(xscale="log", yscale="log", xlabel="pass k", ylabel="relative step ‖Δu‖/‖u‖")
    legend(ax)
    return ax.figure


def reach(found: Evidence, share: float) -> Any:
    """Share of answers kept and right against the pass; the pass of the change, foreseen against measured."""
    left, right = panels_of("loops", None, 2, 9.6, 3.8)
    inputs, trained = found["inputs"], found["subject"]["trained"]
    answers = np.stack([x["answers"] for x in inputs])
    range_ = safe_range(answers, trained=trained, share=share)
    k = np.arange(1, answers.shape[1])
    kept = range_.kept
    left.plot(k, np.asarray(kept.value)[1:], color=COLOURS[0], label="answer of training kept")
    left.fill_between(k, np.asarray(kept.low)[1:], np.asarray(kept.high)[1:], color=COLOURS[0], alpha=0.2, linewidth=0)
    left.axvline(range_.loops, color=COLOURS[3], linestyle=":", label="safe range")
    _trained(left, found)
    left.set(xscale="log", ylim=(-0.03, 1.03), xlabel="pass k", ylabel="share of inputs")
    legend(left)
    own = [x for x in inputs if "foreseen" in x]
    ahead, true = (np.asarray([int(x[name]) for x in own], float) for name in ("foreseen", "changed"))
    most = max(ahead.max(initial=2), true.max(initial=2))
    rng = np.random.default_rng(0)
    jitter = np.exp(0.04 * rng.standard_normal((2, len(own))))
    right.plot([1, most], [1, most], **NULL)
    right.scatter(true * jitter[0], ahead * jitter[1], s=16, color=COLOURS[0], alpha=0.7)
    right.set(
        xscale="log",
        yscale="log",
        xlabel="further passes to the change, measured",
        ylabel="foreseen from the spectrum",
        title=f"at the right and upper edge: no change in {int(most) - 1}",
    )
    return left.figure


def spectrum(found: Evidence) -> Any:
    """Eigenvalues after the trained passes, and at the points where there are, beside the unit circle; those of a real map
    come in pairs, of which the search may have ended between the two: both are drawn."""
    ax = axes_of(None, 4.8, 4.6)
    angle = np.linspace(0, 2 * np.pi, 400)
    ax.plot(np.cos(angle), np.sin(angle), **NULL, label="unit circle")
    for index, (name, label) in enumerate(
        (("trained", "after the trained passes"), ("point", "at the point or cycle"))
    ):
        own = [x for x in found["inputs"] if f"{name} real" in x]
        if own:
            real, imaginary = (np.concatenate([x[f"{name} {part}"] for x in own]) for part in ("real", "imaginary"))
            if np.isfinite(real).any():
                pairs = np.unique(np.stack([np.r_[real, real], np.r_[imaginary, -imaginary]], axis=1), axis=0)
                ax.scatter(*pairs.T, s=10, color=COLOURS[index], alpha=0.6, label=label)
    ax.set(xlabel="Re λ", ylabel="Im λ")
    ax.set_aspect("equal", adjustable="datalim")
    legend(ax, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax.figure


def _trained(ax: Any, found: Evidence) -> None:
    ax.axvline(found["subject"]["trained"], color="0.3", linewidth=1, linestyle="--", label="trained")
