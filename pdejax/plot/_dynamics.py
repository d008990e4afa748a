"""Pictures of what Jacobians say: gradients, singular values, Lyapunov exponents, answers to perturbations."""

from typing import TYPE_CHECKING

import numpy as np

from pdejax.analysis.jacobian._gradient_flow import GradientFlow, GradientHistory
from pdejax.analysis.jacobian._lyapunov import FTLE, LyapunovExponents
from pdejax.analysis.jacobian._operator import SingularValues, marchenko_pastur_cdf
from pdejax.analysis.jacobian._perturbation import PerturbationSensitivity
from pdejax.plot._style import (
    COLOURS,
    DEPTH,
    DIVERGING,
    MARKERS,
    NULL,
    SEQUENTIAL,
    axes_of,
    band,
    legend,
    panels_of,
    whole_layers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def gradient_flow(record: GradientFlow, *, ax: "Axes | None" = None) -> "Axes":
    """Median ‖∂ℓ/∂u‖ by depth with its interval, every sequence as a thin line, the null beside; logarithmic."""
    ax = axes_of(ax)
    x, one = np.asarray(record.depths), record.median
    for line in np.asarray(record.states)[:20]:
        ax.plot(x, line, color=COLOURS[0], alpha=0.15, linewidth=0.7, label="_sequence")
    band(ax, x, np.asarray(one.value), one.low, one.high, label="median over sequences")
    for name, null in one.nulls.items():
        ax.plot(x, np.asarray(null), label=f"null: {name}", **NULL)
    if record.batch_parameters is not None and record.batch_parameters.shape[0] == x.shape[0] - 1:
        middle, norms = 0.5 * (x[1:] + x[:-1]), np.asarray(record.batch_parameters)
        ax.plot(
            middle,
            norms,
            color=COLOURS[3],
            marker=MARKERS[3],
            markersize=4,
            linestyle=":",
            label="parameters, mean loss",
        )
    ax.set_yscale("log")
    ax.set_xlabel(DEPTH)
    ax.set_ylabel("gradient norm (loss per unit of u or θ)")
    legend(ax)
    return ax


def gradient_history(record: GradientHistory, *, ax: "Axes | None" = None) -> "Axes":
    """Median ‖∂ℓ/∂u‖ over training, one line per layer from the input (dark) to the output; logarithmic. The null of the input
    is dashed."""
    from matplotlib import colormaps

    ax = axes_of(ax)
    steps, medians = np.asarray(record.steps), np.asarray(record.flow.median.value)
    layers = medians.shape[1]
    for layer in range(layers):
        shade = colormaps[SEQUENTIAL](0.9 * layer / max(layers - 1, 1))
        marker = MARKERS[layer % len(MARKERS)]
        named = f"layer {layer}" if layers <= 8 or layer in (0, layers - 1) else "_layer"
        ax.plot(steps, medians[:, layer], color=shade, marker=marker, markersize=4, linewidth=1.5, label=named)
    for name, null in record.flow.median.nulls.items():
        ax.plot(steps, np.asarray(null)[:, 0], label=f"null: {name}, layer 0", **NULL)
    ax.set_yscale("log")
    ax.set_xlabel("training step")
    ax.set_ylabel("median gradient norm (loss per unit of u)")
    legend(ax, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def singular_values(record: SingularValues, *, ax: "Axes | None" = None) -> "Axes":
    """Share of the singular values below σ, from the Ritz values and their weights, beside that of a Gaussian matrix of the same
    Frobenius norm, with its edge; circles at the ends where they have converged, crosses where not. One layer at a time."""
    values = np.asarray(record.values)
    if values.ndim != 1:
        raise ValueError(
            f"plot.singular_values: the record holds {values.shape[0]} layers; take one, jax.tree.map(lambda x: x[i], …)."
        )
    ax = axes_of(ax)
    order = np.argsort(values)
    share = np.cumsum(np.asarray(record.weights)[order])
    ax.step(values[order], share, where="post", color=COLOURS[0], linewidth=1.5, label="layer")
    edge = float(record.edge)
    grid = np.linspace(0, edge, 100)
    ax.plot(grid, np.asarray(marchenko_pastur_cdf(grid, edge)), label="null: Gaussian, same ‖J‖", **NULL)
    ax.axvline(edge, color="0.45", linewidth=1, linestyle=":", label=f"its edge {edge:.3g}")
    for end, y, done in zip((record.largest, record.smallest), (1, 0), np.asarray(record.converged), strict=True):
        ax.plot([float(end)], [y], color=COLOURS[3], marker="o" if done else "x", linestyle="none")
    ax.set_xlabel("singular value σ of ∂u$_{l+1}$/∂u$_l$")
    ax.set_ylabel("share of directions below σ")
    legend(ax)
    return ax


def lyapunov_exponents(record: LyapunovExponents, *, ax: "np.ndarray | None" = None) -> "np.ndarray":
    """Two panels: the exponents with intervals beside the null's, and how the estimates settle with depth. Takes and returns an
    array of two Axes."""
    left, right = axes = panels_of("lyapunov_exponents", ax, 2, 8.4, 3.6)
    value = np.asarray(record.exponents.value)
    rank = np.arange(1, value.shape[0] + 1)
    low, high = (np.asarray(x) for x in (record.exponents.low, record.exponents.high))
    spread = np.abs(np.stack([value - low, high - value])) if np.all(np.isfinite(low)) else None
    left.errorbar(
        rank,
        value,
        spread,
        color=COLOURS[0],
        marker=MARKERS[0],
        markersize=4,
        capsize=3,
        linestyle="none",
        label="system",
    )
    for name, null in record.exponents.nulls.items():
        label = "null" if name == "null" else f"null: {name}"
        left.plot(rank, np.asarray(null), marker="_", label=label, **NULL)
    left.axhline(0, color="0.7", linewidth=0.8, label="_zero")
    left.set_xlabel("rank of the exponent")
    left.set_ylabel("exponent λ (per unit depth)")
    whole_layers(left)
    legend(left)
    history = np.asarray(record.history)
    for index in range(history.shape[1]):
        right.plot(np.asarray(record.ts), history[:, index], color=COLOURS[index % len(COLOURS)], label=f"λ{index + 1}")
    right.axhline(0, color="0.7", linewidth=0.8, label="_zero")
    right.set_xlabel(DEPTH)
    right.set_ylabel("estimate of λ so far (per unit depth)")
    if history.shape[1] <= 8:
        legend(right, ncols=2)
    return axes


def ftle_map(record: FTLE, *, ax: "Axes | None" = None) -> "Axes":
    """Exponents by token: bars for one sequence `(n,)`, a map of sequences × tokens for a batch `(b, n)`; padding stays empty.
    A cross marks what has not converged."""
    from matplotlib.ticker import MaxNLocator

    ax = axes_of(ax)
    values, done = np.asarray(record.exponents), np.asarray(record.converged)
    if values.ndim == 1:
        ax.bar(
            np.arange(values.shape[0]), np.where(np.isfinite(values), values, np.nan), color=COLOURS[0], label="_tokens"
        )
        name = "not converged" if (~done).any() else "_none"
        ax.plot(np.flatnonzero(~done), values[~done], color=COLOURS[3], marker="x", linestyle="none", label=name)
        ax.axhline(0, color="0.7", linewidth=0.8, label="_zero")
        ax.set_xlim(-0.5, values.shape[0] - 0.5)
        ax.set_ylabel("finite-time exponent (per unit depth)")
        legend(ax)
    else:
        finite = np.ma.masked_invalid(values)
        size = float(np.abs(finite).max()) if finite.count() else 1.0
        image = ax.imshow(finite, cmap=DIVERGING, vmin=-size, vmax=size, aspect="auto", interpolation="nearest")
        rows, columns = np.nonzero(~done)
        ax.plot(columns, rows, color="0.2", marker="x", linestyle="none", label="_not converged")
        ax.figure.colorbar(image, ax=ax, label="finite-time exponent (per unit depth)")
        ax.set_ylabel("sequence")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("token")
    whole_layers(ax)
    return ax


def perturbation_response(record: PerturbationSensitivity, *, of: str = "state", ax: "Axes | None" = None) -> "Axes":
    """Median answer of the `"state"` or the `"loss"` (its absolute change) against ε, both axes logarithmic: random directions
    and adversarial ones with intervals, their linear predictions dashed, a vertical mark where the linear regime ends, and grey
    where rounding decides."""
    if of not in ("state", "loss"):
        raise ValueError(f"plot.perturbation_response: of={of!r} is unknown; choose 'state' or 'loss'.")
    if of == "loss" and record.base_loss is None:
        raise ValueError("plot.perturbation_response: the record has no loss; give the analysis a loss and labels.")
    ax = axes_of(ax)
    eps = np.asarray(record.epsilons)
    noisy = np.zeros(eps.shape, bool)
    for index, kind in enumerate(("random", "gradient", "singular")):
        answer = getattr(record, kind)
        if answer is None:
            continue
        median, limit = getattr(answer, f"{of}_median"), float(getattr(answer, f"{of}_limit_median").value)
        name = {"random": "random (null)", "gradient": "along the gradient", "singular": "most sensitive"}[kind]
        band(ax, eps, np.asarray(median.value), median.low, median.high, index=index, label=name)
        slope = np.median(np.abs(np.asarray(getattr(answer, f"{of}_slope"))))
        ax.plot(eps, slope * eps, color=COLOURS[index], linestyle="--", linewidth=1, label="_linear")
        if np.isfinite(limit):
            ax.axvline(limit, color=COLOURS[index], linestyle=":", linewidth=1, label=f"departs at ε = {limit:.2g}")
        noisy |= ~np.asarray(getattr(answer, f"{of}_resolved")).any(axis=(0, 1))
    if noisy.any():
        last = int(np.flatnonzero(noisy)[-1])
        # Halfway to the first size that is resolved: one noisy size alone has a width too.
        end = np.sqrt(eps[last] * eps[min(last + 1, len(eps) - 1)])
        ax.axvspan(eps[0], end, color="0.9", zorder=0, label="rounding")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("perturbation ε (share of ‖u‖, or per entry)")
    ax.set_ylabel("‖change of the last state‖" if of == "state" else "|change of the loss|")
    legend(ax)
    return ax
