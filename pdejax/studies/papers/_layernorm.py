"""Are gradients without normalization larger and spiky? v2 §4.3.2, Thm 3.3, from every step of the factorial trainings."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from pdejax.plot._style import COLOURS, axes_of, legend
from pdejax.runs._records import Picture
from pdejax.studies.papers._components import NORMALIZATION, PRESETS, cells, dataset, measure
from pdejax.studies.papers._experiment import Settings, experiment, row, stacked
from pdejax.studies.study import Evidence, Judgement

SPIKE = 10.0  # times the median of the run


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Median gradient norm, its spikes and trainings that failed, per cell; the ratio to the pre-LN one of the same seed."""
    gradient, diverged = stacked(measured, "gradient"), stacked(measured, "diverged")
    found = cells(settings)
    # A run that failed has no median; the share of those is its own row.
    with np.errstate(all="ignore"):
        median = np.asarray([[_quantile(g, 0.5) for g in row_] for row_ in gradient])
        worst = np.asarray([[_quantile(g, 0.99) for g in row_] for row_ in gradient]) / median
    rows = []
    ratios = {}
    for i, cell in enumerate(found):
        beside = next(
            j
            for j, other in enumerate(found)
            if (other.residual, other.step, other.normalization) == (cell.residual, cell.step, "pre")
        )
        name = f"residual {cell.residual}, normalization {cell.normalization}, {cell.step}"
        bare = cell.residual == "off" and cell.normalization == "none"
        usual = cell.residual == "on" and cell.normalization == "pre"
        paper = "up to 1e-1" if bare else "about 1e-3" if usual else None
        rows.append(
            row(
                f"gradient norm, {name}",
                median[:, i],
                paper=paper,
                null=median[:, beside],
                null_name="pre-LN, same seed",
                note=f"median over training; {int(diverged[:, i].sum())} of {len(diverged)} trainings failed",
            )
        )
        rows.append(row(f"99th percentile / median, {name}", worst[:, i], paper="spiky" if bare else None))
        ratios[i] = median[:, i] / median[:, beside]
    none = [i for i, c in enumerate(found) if c.normalization == "none" and c.per_layer == 1]
    on = next((i for i in none if found[i].residual == "on"), none[0])
    off = next((i for i in none if found[i].residual == "off"), none[0])
    both = float(np.nanmean(ratios[on])), float(np.nanmean(ratios[off]))
    spikes = float(np.nanmean(worst[:, off])), float(np.nanmean(worst[:, on]))
    larger = [value > 3 for value in both]
    answer = "holds" if all(larger) else "holds for one of them" if any(larger) else "does not hold"
    verdict = (
        f"Without normalization the median gradient norm is {both[0]:.2g} times that of pre-LN with residual connections and "
        f"{both[1]:.2g} times without: v2's order of magnitude {answer}. The largest hundredth of the steps lies {spikes[0]:.1f} "
        f"(bare) and {spikes[1]:.1f} (residual) times above the median; {int(diverged[:, none].sum())} of "
        f"{diverged[:, none].size} trainings without normalization failed."
    )
    caption = "Gradient norm of the whole network over training, geometric mean over seeds; left with residual, right without."
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=dataset(settings, measured),
        pictures=[Picture("gradients.png", caption, lambda: _plot(settings, gradient))],
    )


def _quantile(values: np.ndarray, share: float) -> float:
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, share)) if len(finite) else float("nan")


def _plot(settings: Settings, gradient: np.ndarray) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    found = cells(settings)
    first = found[0].step
    steps = np.arange(1, gradient.shape[-1] + 1)
    for ax, residual in zip(panels, ("on", "off"), strict=True):
        axes_of(ax)
        for i, cell in enumerate(found):
            if cell.residual != residual or cell.step != first:
                continue
            runs = gradient[:, i]
            kept = runs[np.isfinite(runs).any(axis=1)]
            if len(kept):
                with np.errstate(all="ignore"):
                    middle = np.exp(np.nanmean(np.log(kept), axis=0))
                colour = COLOURS[NORMALIZATION.index(cell.normalization)]
                ax.semilogy(steps, middle, color=colour, linewidth=1.2, label=cell.normalization)
        ax.set_xlabel("training step")
        ax.set_title(f"residual {residual} ({first})", fontsize=10)
    legend(ax, title="normalization")  # one colour for each, the same on both sides
    panels[0].set_ylabel("gradient norm ‖∂loss/∂θ‖")
    return figure


LAYERNORM = experiment(
    name="layernorm",
    title="Layer normalization",
    question="Are gradients without normalization larger and spiky?",
    source="v2 §4.3.2, Thm 3.3, Figure 5",
    presets=PRESETS,
    measure=measure,
    judge=judge,
    pairing="independent: every combination trained on the task from the same seeds",
)
