"""Pictures of an audit, from its numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pdejax._bootstrap import over_seeds
from pdejax._figure import Figure
from pdejax.plot._style import COLOURS, MARKERS, NULL, axes_of, band, by_layer, legend, panels_of, whole_layers
from pdejax.runs._records import Picture
from pdejax.studies.audit._found import ONE, geometric

Evidence = Mapping[str, Any]
# Groups of operators, told apart from single ones.
SUMS: dict[str, dict[str, Any]] = {
    "the papers' operators": {"color": "black", "linewidth": 2},
    "own terms": {"color": "0.6", "linewidth": 2},
    "all": {"color": "black", "linewidth": 1.5, "linestyle": ":"},
}


def pictures(found: Evidence) -> list[Picture]:
    """The pictures there are numbers for."""
    drawn = [
        Picture(
            "refinement.png",
            "Moves of the last state as the step is refined, and of windows of layers",
            lambda: refinement(found),
        ),
        Picture(
            "surgery.png", "Layers skipped, exchanged, repeated, and what cheap scores foresee", lambda: surgery(found)
        ),
        Picture(
            "jacobians.png",
            "Singular values of the layers' Jacobians and exponents of the flow",
            lambda: jacobians(found),
        ),
        Picture("tokens.png", "Tokens by depth: mean cosine and effective rank", lambda: tokens(found)),
        Picture(
            "operators.png",
            "Held-out R² of operators by layer, and the rollout of the papers' operators",
            lambda: operators(found),
        ),
    ]
    if "correlation" in found["weights"]:
        drawn.insert(
            1,
            Picture(
                "weights.png",
                "Weights in depth: correlation of layers, and its fall with distance",
                lambda: weights(found),
            ),
        )
    return drawn


def mean(ax: Any, x: np.ndarray, values: np.ndarray, *, index: int = 0, label: str = "") -> None:
    """The mean over sequences of `values (points, sequences)` with its interval."""
    figure = over_seeds(np.asarray(values).T)
    band(ax, x, figure.value, figure.low, figure.high, index=index, label=label)


def refinement(found: Evidence) -> Any:
    """Moves by step of every scheme, and of every window beside its null."""
    left, right = panels_of("audit", None, 2, 9.5, 3.8)
    ours = found["refinement"]
    for i, name in enumerate(n for n in ("native", "euler", "heun", "rk4") if f"{n}/moves" in ours):
        h = 1 / np.asarray(ours[f"{name}/factors"], float)
        label = {"native": "own scheme", "euler": "Euler", "heun": "Heun", "rk4": "RK4"}[name]
        mean(left, h, ours[f"{name}/moves"], index=i, label=label)
    null = found.get("refinement untrained")
    if null is not None:
        left.plot(
            1 / np.asarray(null["euler/factors"], float),
            np.mean(null["euler/moves"], axis=1),
            label=f"Euler, {ONE}",
            **NULL,
        )
    if "draws" in found:
        theirs = found["draws"]["half"].mean(axis=1)
        label = f"{len(theirs)} untrained networks" if len(theirs) > 1 else "_"
        left.plot(
            np.full(len(theirs), 0.5), theirs, linestyle="none", marker="_", markersize=8, color="0.45", label=label
        )
    left.set_xscale("log", base=2)
    left.set_xlabel("step h (layers)")
    left.set_ylabel("move of the last state, relative")
    left.set_title("all layers refined", fontsize=10)
    left.set_ylim(top=1.35 * left.get_ylim()[1])
    legend(left, ncols=2, loc="upper left")
    moves = found["windows"]["moves"][:-3]
    spans = found["windows"]["spans"][:-3]
    middle = spans.mean(axis=1) - 0.5
    mean(right, middle, moves, label="network")
    if "windows untrained" in found:
        right.plot(middle, found["windows untrained"]["moves"][:-3].mean(axis=1), label=ONE, **NULL)
    right.set_ylim(bottom=0)
    right.set_xlabel("middle of the window (layer)")
    right.set_ylabel("move of the last state at h/2, relative")
    right.set_title(f"windows of {spans[0, 1] - spans[0, 0]} layers as Euler steps", fontsize=10)
    legend(right)
    return left.figure


def weights(found: Evidence) -> Any:
    """Correlation of all pairs of layers, and its fall with distance."""
    left, right = panels_of("audit", None, 2, 9.0, 3.8)
    c = found["weights"]["correlation"]
    mean = c.mean(axis=0)
    off = mean[~np.eye(len(mean), dtype=bool)]
    image = left.imshow(mean, cmap="RdBu_r", vmin=-np.max(np.abs(off)), vmax=np.max(np.abs(off)))
    left.figure.colorbar(image, ax=left, label="correlation of Gram matrices")
    left.set_xlabel("layer")
    left.set_ylabel("layer")
    lags = np.arange(1, len(mean))
    for i, name in enumerate(found["weights"]["names"].tolist()):
        y = [np.mean(np.diagonal(c[i], k)) for k in lags]
        right.plot(lags, y, color=COLOURS[i % 8], marker=MARKERS[i % 8], markersize=3, linewidth=1, label=name)
    right.axhline(0, **NULL)
    right.set_xlabel("distance (layers)")
    right.set_ylabel("correlation")
    left.set_title("mean over kinds of weights", fontsize=10)
    right.set_title("by kind", fontsize=10)
    whole_layers(right)
    legend(right)
    return left.figure


def surgery(found: Evidence) -> Any:
    """Moves by layer, and the move without a layer over its cheap scores."""
    left, right = panels_of("audit", None, 2, 9.0, 3.8)
    ours = found["surgery"]
    layers = np.arange(ours["moves"].shape[1])
    for i, name in enumerate(("skipped", "exchanged with the next", "repeated")):
        mean(left, layers, ours["moves"][i], index=i, label=name)
    left.set_xlabel("layer")
    left.set_ylabel("move of the last state, relative")
    left.set_ylim(bottom=0)
    left.set_title("what becomes of the network", fontsize=10)
    whole_layers(left)
    legend(left)
    skip = ours["moves"][0].mean(axis=1)
    for i, (name, score) in enumerate(
        (("1 − cosine", ours["cosines"]), ("first-order estimate", ours["estimates"][0]))
    ):
        right.plot(score.mean(axis=1), skip, color=COLOURS[i], marker=MARKERS[i], linestyle="none", label=name)
    ends = [0.0, float(skip.max())]
    right.plot(ends, ends, label="calibrated", **NULL)
    right.set_xlim(left=0)
    right.set_ylim(bottom=0)
    right.set_xlabel("score")
    right.set_ylabel("move without the layer, relative")
    right.set_title("cheap scores of the layers", fontsize=10)
    legend(right)
    return left.figure


def jacobians(found: Evidence) -> Any:
    """Extreme singular values by layer; exponents of the flow."""
    left, right = panels_of("audit", None, 2, 9.0, 3.8)
    ours, null = found["jacobians"], found.get("jacobians untrained")
    layers = np.arange(ours["largest"].shape[1])
    for i, name in enumerate(("largest", "smallest")):
        size = geometric(ours[name])
        band(left, layers, size.value, size.low, size.high, index=i, label=f"{name} found")
        if null is not None:
            left.plot(layers, geometric(null[name]).value, label=ONE if not i else "_", **NULL)
    left.set_yscale("log")
    left.set_xlabel("layer")
    left.set_ylabel("singular value")
    left.set_title("layers' Jacobians", fontsize=10)
    whole_layers(left)
    legend(left)
    count = np.arange(1, ours["exponents"].shape[1] + 1)
    mean(right, count, ours["exponents"].T, label="exponents")
    mean(right, count, (ours["exponents"] - ours["growth"][:, None]).T, index=1, label="of relative changes")
    if null is not None:
        right.plot(count, null["exponents"].mean(axis=0), label=ONE, **NULL)
    right.axhline(0, color="0.8", linewidth=0.8)
    right.set_xlabel("number")
    right.set_ylabel("Lyapunov exponent (1/layer)")
    right.set_title("all layers", fontsize=10)
    whole_layers(right)
    legend(right)
    return left.figure


def tokens(found: Evidence) -> Any:
    """Mean cosine and effective rank by depth."""
    axes = panels_of("audit", None, 2, 9.0, 3.6)
    null = found.get("tokens untrained")
    for ax, (name, words) in zip(
        axes, (("cosine", "mean cosine of two tokens"), ("effective_rank", "effective rank")), strict=True
    ):
        beside = {} if null is None else {ONE: Figure(*null[name])}
        by_layer(ax, Figure(*found["tokens"][name], nulls=beside), "network")
        ax.set_ylabel(words)
    return axes[0].figure


def operators(found: Evidence) -> Any:
    """R² by layer of every group, and errors of the rollout."""
    left, right = panels_of("audit", None, 2, 9.5, 3.8)
    ours = found["operators"]
    r2 = ours["r2"].mean(axis=2)
    layers = np.arange(r2.shape[1])
    for i, name in enumerate(ours["groups"].tolist()):
        look = SUMS.get(name) or {"color": COLOURS[i % 6], "marker": MARKERS[i % 6], "markersize": 3, "linewidth": 1}
        left.plot(layers, r2[i], label=name, **look)
    left.set_ylim(min(-0.05, max(float(r2.min()), -1.0)), 1.05)
    left.set_xlabel("layer")
    left.set_ylabel("held-out R²")
    left.set_title("increments of each layer", fontsize=10)
    whole_layers(left)
    left.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    depth = np.arange(ours["rollout"].shape[0])
    mean(right, depth, ours["rollout"], label="the papers' operators")
    right.plot(depth, ours["persistence"].mean(axis=1), label="the first state", **NULL)
    axes_of(right)
    right.set_xlabel("layer")
    right.set_ylabel("relative error of the state")
    right.set_title("rollout from the first state", fontsize=10)
    whole_layers(right)
    legend(right)
    return left.figure
