"""Attention maps beside each other, their agreement by layer and head, their entropy, and rollout."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike

from pdejax._check import choice
from pdejax._figure import Figure
from pdejax.analysis.attention._fidelity import AttentionEntropy, AttentionFidelity, AttentionRollout
from pdejax.plot._style import DIVERGING, LAYER, NULL, SEQUENTIAL, against, axes_of, band, legend, whole_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS = {
    "cosine": "cosine of attention rows",
    "kl": "KL(p ‖ q) (nats)",
    "kl_reverse": "KL(q ‖ p) (nats)",
    "jensen_shannon": "Jensen–Shannon divergence (nats)",
    "total_variation": "total variation",
}


def attention_maps(
    p: ArrayLike, q: ArrayLike, *, names: tuple[str, str] = ("p", "q"), ax: "np.ndarray | None" = None
) -> np.ndarray:
    """Two attention maps `(n, n)` and their difference q − p, side by side: takes and returns an array of three Axes. Both maps
    share one scale, the difference has one of its own, symmetric about 0. Cut padding off before.

    Raises `ValueError` for maps that are not square or differ in shape, or other than three Axes.
    """
    p, q = np.asarray(p, float), np.asarray(q, float)
    if p.ndim != 2 or p.shape != q.shape or p.shape[0] != p.shape[1]:
        raise ValueError(
            f"attention_maps: p and q have shapes {p.shape} and {q.shape}; give one head's map each, (n, n), such as p[l, s, h]."
        )
    ax = _three(ax)
    top = max(p.max(), q.max())
    off = max(np.abs(q - p).max(), np.finfo(float).tiny)
    shown = (
        (p, names[0], {"cmap": SEQUENTIAL, "vmin": 0, "vmax": top}),
        (q, names[1], {"cmap": SEQUENTIAL, "vmin": 0, "vmax": top}),
        (q - p, f"{names[1]} − {names[0]}", {"cmap": DIVERGING, "vmin": -off, "vmax": off}),
    )
    for k, (axis, (values, title, options)) in enumerate(zip(ax, shown, strict=True)):
        image = axis.imshow(values, interpolation="nearest", **options)
        axis.set(title=title, xlabel="key j (token)", ylabel="query i (token)" if k == 0 else "")
        axis.tick_params(labelsize=9)
        if k:
            axis.figure.colorbar(image, ax=axis, shrink=0.75, label="difference of weights" if k == 2 else "weight")
    return ax


def attention_fidelity(record: AttentionFidelity, figure: str = "cosine", *, ax: "Axes | None" = None) -> "Axes":
    """One figure of an `AttentionFidelity` by layer, one line for each head, beside its nulls averaged over heads: uniform
    attention and shuffled rows, and for the cosine e^{−s²} too.

    Raises `ValueError` for an unknown figure.
    """
    choice("attention_fidelity", "figure", figure, _LABELS)
    ax = axes_of(ax)
    found: Figure = getattr(record, figure)
    _by_head(ax, found)
    names = {"uniform": "uniform attention", "tokens shuffled": "rows shuffled", "gaussian": "independent, $e^{-s^2}$"}
    for (name, label), dash in zip(names.items(), ("--", ":", "-."), strict=True):
        if name in found.nulls:
            null, style = np.asarray(found.nulls[name]).mean(axis=1), dict(NULL, linestyle=dash, marker=".")
            ax.plot(np.arange(len(null)), null, **style, label=label)
    ax.set(xlabel=LAYER, ylabel=_LABELS[figure])
    if figure != "cosine":
        ax.set_ylim(bottom=0)
    whole_layers(ax)
    legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def attention_entropy(record: AttentionEntropy, *, ax: "Axes | None" = None) -> "Axes":
    """Entropy of attention rows by layer, one line for each head, beside that of uniform attention."""
    ax = axes_of(ax)
    _by_head(ax, record.entropy)
    null = np.asarray(record.entropy.nulls["uniform"]).mean(axis=1)
    ax.plot(np.arange(len(null)), null, **dict(NULL, marker="."), label="uniform attention")
    ax.set(xlabel=LAYER, ylabel="entropy of attention rows (nats)")
    ax.set_ylim(bottom=0)
    whole_layers(ax)
    legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def attention_rollout(record: AttentionRollout, *, ax: "Axes | None" = None) -> "Axes":
    """Weight of a token's own input after each layer, with its interval, beside what uniform attention leaves."""
    ax = axes_of(ax)
    x = np.arange(1, len(record.own) + 1)
    against(ax, x, record.own, "attention rollout", names={"uniform": "uniform attention"})
    ax.set(xlabel=LAYER, ylabel="weight of a token's own input")
    ax.set_ylim(0, 1)
    whole_layers(ax)
    legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def _by_head(ax: "Axes", figure: Figure) -> None:
    value, low, high = (np.asarray(x) for x in (figure.value, figure.low, figure.high))
    for h in range(value.shape[1]):
        band(ax, np.arange(value.shape[0]), value[:, h], low[:, h], high[:, h], index=h, label=f"head {h}")


def _three(ax: "np.ndarray | None") -> np.ndarray:
    if ax is None:
        from matplotlib.figure import Figure as Canvas

        return Canvas(figsize=(10.5, 3.4), layout="constrained").subplots(1, 3)
    ax = np.ravel(ax)
    if ax.size != 3:
        raise ValueError(
            f"attention_maps: ax holds {ax.size} Axes; three are needed, for both maps and their difference."
        )
    return ax
