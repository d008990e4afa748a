"""Are gradients without normalization larger and spiky (v2 §4.3.2, Thm 3.3, from every step of the factorial trainings)?"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pdejax.plot._style import COLOURS, axes_of
from pdejax.runs._records import Picture
from pdejax.studies.papers._components import NORMALIZATION, PRESETS, RESIDUAL, Cell, cells, dataset, made, measure
from pdejax.studies.papers._experiment import RATIO, Settings, experiment, over, row, spread, stacked, times
from pdejax.studies.papers._pairs import legend_beside
from pdejax.studies.study import Evidence, Judgement, high, low

ORDER = "nearly an order of magnitude"  # as v2 says of its pair


def judge_layernorm(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Median gradient norm, its spikes and trainings that failed, per cell. First v2's own pair, neither residual connection nor
    normalization against both; then what normalization alone does, the residual setting kept. Ratios are of one seed."""
    gradient, diverged = stacked(measured, "gradient"), stacked(measured, "diverged")
    found = cells(settings)
    # A run that failed has no median; the share of those is its own row.
    with np.errstate(all="ignore"):
        median = np.asarray([[_quantile(g, 0.5) for g in row_] for row_ in gradient])
        worst = np.asarray([[_quantile(g, 0.99) for g in row_] for row_ in gradient]) / median
    rows = []
    pairs = {cell.step: (i, _usual(found, cell)) for i, cell in enumerate(found) if _bare(cell)}
    larger = {step: median[:, i] / median[:, j] for step, (i, j) in pairs.items()}
    spikier = {step: worst[:, i] / worst[:, j] for step, (i, j) in pairs.items()}
    note = "v2's own pair: residual off, normalization none, by residual on, normalization pre"
    for step in pairs:
        rows += [
            row(
                f"gradient norm, bare / Transformer, {step}",
                larger[step],
                paper=f"about 10 ({ORDER})",
                note=note,
                within=RATIO,
            ),
            row(f"99th percentile / median, bare / Transformer, {step}", spikier[step], note=note, within=RATIO),
        ]
    ratios = {}
    for i, cell in enumerate(found):
        beside = found.index(dataclasses.replace(cell, normalization="pre"))
        paper = "up to 1e-1" if _bare(cell) else "about 1e-3" if i == _usual(found, cell) else None
        failures = f"{int(diverged[:, i].sum())} of {len(diverged)} trainings failed"
        rows.append(
            row(
                f"gradient norm, {cell.name}",
                median[:, i],
                paper=paper,
                null=median[:, beside],
                null_name="pre-LN, same residual setting and seed",
                note=f"median over training; {made(cell, measured, i)}; {failures}",
            )
        )
        spiky = "spiky" if _bare(cell) else None
        rows.append(row(f"99th percentile / median, {cell.name}", worst[:, i], paper=spiky, within=RATIO))
        ratios[cell] = over(median[:, i] / median[:, beside], RATIO)
    without = {cell: ratio for cell, ratio in ratios.items() if cell.normalization == "none"}
    none = [i for i, cell in enumerate(found) if cell in without]
    own = {step: over(values, RATIO) for step, values in larger.items()}
    spikes = ", ".join(f"{step} {times(over(values, RATIO))}" for step, values in spikier.items())
    verdict = (
        f"Of v2's own pair the bare simulator's median gradient norm is, in those of the pre-LN network with residual "
        f"connections, {', '.join(f'{step} {times(ratio)}' for step, ratio in own.items())} "
        f"({spread(len(measured))}; v2: {ORDER}): v2's order of magnitude {_larger(own.values())}. "
        f"The largest hundredth of its steps lies, by its median, higher than the network's by a factor {spikes}. "
        f"Without normalization alone, the residual setting kept, the norm is "
        f"{', '.join(f'residual {cell.residual} {cell.step} {times(ratio)}' for cell, ratio in without.items())} times that of "
        f"pre-LN: an order of magnitude {_larger(without.values())}. {int(diverged[:, none].sum())} of "
        f"{diverged[:, none].size} trainings without normalization failed."
    )
    caption = (
        "Gradient norm of the whole network over training, geometric mean over seeds, a row of panels for each step. Left: v2's "
        "own pair, thin its seeds, dotted what v2 prints. Then all normalizations with residual connections, and without."
        f"{_absent(found)}"
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=dataset(settings, measured),
        pictures=[Picture("gradients.png", caption, lambda: _gradient_curves(settings, gradient))],
    )


def _bare(cell: Cell) -> bool:
    """Whether it is v2's simulator, as we read it, but for the step."""
    return (cell.residual, cell.normalization) == ("off", "none")


def _usual(found: Sequence[Cell], cell: Cell) -> int:
    """The place of the network with residual connections and pre-LN at the step of a cell."""
    return found.index(dataclasses.replace(cell, residual="on", normalization="pre"))


def _absent(found: Sequence[Cell]) -> str:
    """Which steps have no LayerNorm after each substep."""
    lack = [c.step for c in found if _bare(c) and dataclasses.replace(c, normalization="post") not in found]
    return f" Post needs a scheme with substeps: not at {'; '.join(lack)}." if lack else ""


def _larger(ratios: Iterable[Any]) -> str:
    """Whether gradients without normalization are of another order, by half of one: whole intervals decide."""
    known = [ratio for ratio in ratios if np.isfinite(float(ratio))]
    above, below = sum(low(r) > 3 for r in known), sum(high(r) < 3 for r in known)
    if not known:
        return "is not measured where all trainings failed"
    if above:
        return "holds" if above == len(known) else f"holds for {above} of {len(known)}, surely not for {below}"
    return "does not hold" if below == len(known) else "is not decided"


def _quantile(values: np.ndarray, share: float) -> float:
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, share)) if len(finite) else float("nan")


def _gradient_curves(settings: Settings, gradient: np.ndarray) -> Figure:
    found = cells(settings)
    shown_steps = list(dict.fromkeys(cell.step for cell in found))
    figure = Figure(figsize=(13, 0.6 + 2.9 * len(shown_steps)), layout="constrained")
    panels = figure.subplots(len(shown_steps), 3, sharex=True, sharey=True, squeeze=False)
    steps = np.arange(1, gradient.shape[-1] + 1)
    for line, step in zip(panels, shown_steps, strict=True):
        for ax in line:
            axes_of(ax)
        for i, cell in enumerate(found):
            runs = gradient[:, i]
            kept = runs[np.isfinite(runs).any(axis=1)]
            if cell.step != step or not len(kept):
                continue
            with np.errstate(all="ignore"):
                middle = np.exp(np.nanmean(np.log(kept), axis=0))
            style = {"color": COLOURS[NORMALIZATION.index(cell.normalization)], "linewidth": 1.2}
            line[1 + RESIDUAL.index(cell.residual)].semilogy(steps, middle, label=cell.normalization, **style)
            if _bare(cell) or i == _usual(found, cell):
                name, printed = ("bare", 1e-1) if _bare(cell) else ("Transformer", 1e-3)
                for own in kept:
                    line[0].semilogy(steps, own, color=style["color"], linewidth=0.4, alpha=0.4)
                line[0].semilogy(steps, middle, **style)
                line[0].axhline(printed, color=style["color"], linestyle=":", linewidth=1.4)
                text = {"color": style["color"], "fontsize": 8, "ha": "right"}
                line[0].text(steps[-1], printed, f"v2, {name}", va="top" if _bare(cell) else "bottom", **text)
        line[0].set_title("v2's own pair: bare (none), Transformer (pre)", fontsize=10)
        for ax, residual in zip(line[1:], RESIDUAL, strict=True):
            ax.set_title(f"residual {residual} ({step})", fontsize=10)
        line[0].set_ylabel("gradient norm ‖∂loss/∂θ‖")
    for ax in panels[-1]:
        ax.set_xlabel("training step")
    legend_beside(figure, "normalization")  # one colour for each normalization, the same in all panels
    return figure


def _as_drawn(settings: Settings) -> Settings:
    """Settings without those that scale the embedding, of which v2 says nothing here."""
    steps = tuple(step for step in settings.options["steps"] if len(step) < 4)
    return dataclasses.replace(settings, options={**settings.options, "steps": steps})


LAYERNORM = experiment(
    name="layernorm",
    headline="gradient norm, residual on, normalization none, lietrotter, h = 1",
    title="Layer normalization",
    question="Are gradients without normalization larger and spiky?",
    source="v2 §4.3.2, Thm 3.3, Figure 5",
    presets={name: _as_drawn(settings) for name, settings in PRESETS.items()},
    measure=measure,
    judge=judge_layernorm,
    failed="diverged",
    pairing="independent: every combination trained on the task from the same seeds",
)
