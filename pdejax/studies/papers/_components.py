"""What residual connections and normalization do: every combination of the two, at two steps, before and after training.

Do states without residual connections lose their input (v2 §4.3.1, Thm 3.4)? Are gradients without normalization larger and spiky
(v2 §4.3.2, Thm 3.3, from every step of the factorial trainings)?
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from pdejax.analysis import layer_correlation
from pdejax.models import observe
from pdejax.plot._style import COLOURS, LAYER, MARKERS, axes_of, whole_layers
from pdejax.runs._records import Picture, Row
from pdejax.studies.papers._experiment import (
    CORRELATION,
    LISTOPS,
    LISTOPS_PAPER,
    RESAMPLES,
    Models,
    Settings,
    experiment,
    held_out,
    row,
    stacked,
)
from pdejax.studies.papers._pairs import legend_beside
from pdejax.studies.study import Evidence, Judgement
from pdejax.training import TrainConfig, build_model, read_metrics

RESIDUAL = ("on", "off")
NORMALIZATION = ("none", "pre", "post", "v2 (9)")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination: `residual` connection on or off (the leaky field), `normalization`, scheme and steps per layer."""

    residual: str
    normalization: str
    solver: str
    per_layer: int

    @property
    def step(self) -> str:
        """The step as it is shown."""
        return f"{self.solver}, h = {1 if self.per_layer == 1 else f'1/{self.per_layer}'}"

    def config(self, settings: Settings, seed: int) -> TrainConfig:
        """The simulator of this combination. Normalization: inside A and R (`"pre"`), LayerNorm itself after each substep
        (`"post"`), or the term S of v2 (9) with γ = 1 (`"v2 (9)"`)."""
        options: dict[str, Any] = {"leak": self.residual == "off"}
        norm = {"v2 (9)": "none"}.get(self.normalization, self.normalization)
        if self.normalization == "v2 (9)":
            options |= {"stabilization": "spatial", "gamma": 1.0}
        changes = {"model": "simulator", "norm": norm, "options": options, "seed": seed}
        return TrainConfig(
            **dict(settings.train) | changes | {"solver": self.solver, "steps_per_layer": self.per_layer}
        )


def cells(settings: Settings) -> list[Cell]:
    """All combinations, in a fixed order. LayerNorm after each substep needs a scheme with substeps."""
    found = []
    for solver, per_layer in settings.options["steps"]:
        for residual in RESIDUAL:
            for normalization in NORMALIZATION:
                if normalization != "post" or solver in ("lietrotter", "strang", "macaron"):
                    found.append(Cell(residual, normalization, solver, per_layer))
    return found


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """Correlation of every layer with the input before and after training; accuracy; gradient norms of all training steps.

    A training that fails (NaN) leaves NaN in its row and counts as diverged.
    """
    before, after, cosine, accuracy, gradient, diverged = [], [], [], [], [], []
    models.together([cell.config(settings, seed) for cell in cells(settings)])
    for cell in cells(settings):
        config = cell.config(settings, seed)
        test, batch = held_out(config, settings.examples)
        before.append(_correlations(build_model(config, test), batch, seed)[0])
        steps = np.full(config.steps, np.nan)
        try:
            trained = models.trained(config)
        except RuntimeError:
            after.append(np.full_like(before[-1], np.nan))
            cosine.append(np.full_like(before[-1], np.nan))
            accuracy.append(np.nan)
            diverged.append(True)
        else:
            pearson, cosines = _correlations(trained.model, batch, seed)
            after.append(pearson)
            cosine.append(cosines)
            accuracy.append(trained.test["accuracy"])
            recorded = read_metrics(trained.folder / "metrics.csv")["gradient_norm"]
            steps[: len(recorded)] = recorded[: len(steps)]
            diverged.append(False)
        gradient.append(steps)
    return {
        "before": np.stack(before),
        "after": np.stack(after),
        "after_cosine": np.stack(cosine),
        "accuracy": np.asarray(accuracy, float),
        "gradient": np.stack(gradient),
        "diverged": np.asarray(diverged),
    }


def _correlations(model: Any, batch, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pearson's correlation and the tokens' cosine of each layer with the input; NaN from the layer on where states are not
    finite."""
    states, mask = observe(model, batch.inputs, batch.mask).states, jnp.asarray(batch.mask)
    finite = np.asarray(jnp.all(jnp.isfinite(jnp.where(mask[None, :, :, None], states, 0)), axis=(1, 2, 3)))
    good = int(np.argmin(finite)) if not finite.all() else len(finite)
    found = np.full((2, len(finite)), np.nan)
    if good:
        result = _kept(states[:good], mask, jax.random.key(seed))
        found[:, :good] = np.asarray(result.pearson), np.asarray(result.cosine)
    return found[0], found[1]


# Compiled here, so that all cells share the program.
@eqx.filter_jit
def _kept(states: Array, mask: Array, key: Array) -> Any:
    return layer_correlation(states, mask=mask, key=key, resamples=RESAMPLES)


def dataset(settings: Settings, measured: Sequence[Evidence]) -> xr.Dataset:
    """All that was measured, by (seed, cell, …)."""
    found = cells(settings)
    return xr.Dataset(
        {
            "before": (("seed", "cell", "layer"), stacked(measured, "before")),
            "after": (("seed", "cell", "layer"), stacked(measured, "after")),
            "after_cosine": (("seed", "cell", "layer"), stacked(measured, "after_cosine")),
            "accuracy": (("seed", "cell"), stacked(measured, "accuracy")),
            "gradient": (("seed", "cell", "training_step"), stacked(measured, "gradient")),
            "diverged": (("seed", "cell"), stacked(measured, "diverged").astype(np.int8)),
        },
        coords={
            "residual": ("cell", [cell.residual for cell in found]),
            "normalization": ("cell", [cell.normalization for cell in found]),
            "step": ("cell", [cell.step for cell in found]),
        },
    )


_SMALL = {
    **{"dim": 32, "ffn": 128, "steps": 120, "warmup": 12, "clip": None, "eval_every": 120, "save_every": 120},
    "data": {**LISTOPS["data"], "sizes": (5_000, 500, 500)},
}
PRESETS = {
    "quick": Settings(
        train={**LISTOPS, **_SMALL}, examples=64, options={"steps": (("lietrotter", 1), ("lietrotter", 2))}
    ),
    "standard": Settings(
        train={**LISTOPS, **_SMALL}, examples=64, options={"steps": (("lietrotter", 1), ("lietrotter", 2))}, seeds=5
    ),
    "paper": Settings(
        train={**LISTOPS_PAPER, "clip": None},
        examples=64,
        options={"steps": (("lietrotter", 1), ("lietrotter", 4), ("rk4", 1))},
        seeds=5,
    ),
}


TRANSFORMER = (1.00, 0.99, 0.98, 0.98, 0.99, 0.98)
SIMULATOR = (1.00, 0.93, 0.91, 0.89, 0.87, 0.85)


def judge_residual(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """The last layer's correlation with the input in every cell, layer by layer for the two that the paper has."""
    before, after, accuracy = (stacked(measured, name) for name in ("before", "after", "accuracy"))
    all_cells = cells(settings)
    rows: list[Row] = []
    for printed, residual, normalization, name in (
        (TRANSFORMER, "on", "pre", "Transformer (residual, pre-LN)"),
        (SIMULATOR, "off", "none", "bare simulator (neither)"),
    ):
        index = next(i for i, c in enumerate(all_cells) if (c.residual, c.normalization) == (residual, normalization))
        for layer in range(after.shape[-1]):
            paper = f"{printed[layer]:.2f}" if layer < len(printed) else None
            rows.append(
                row(
                    f"correlation with the input, layer {layer}, {name}",
                    after[:, index, layer],
                    paper=paper,
                    null=before[:, index, layer],
                    null_name="untrained",
                    within=CORRELATION,
                )
            )
    for i, cell in enumerate(all_cells):
        rows.append(
            row(
                f"last layer, residual {cell.residual}, normalization {cell.normalization}, {cell.step}",
                after[:, i, -1],
                null=before[:, i, -1],
                null_name="untrained",
                within=CORRELATION,
                note=f"accuracy {np.nanmean(accuracy[:, i]):.3f}" if np.isfinite(accuracy[:, i]).any() else "diverged",
            )
        )
    on = np.asarray([c.residual == "on" for c in all_cells])
    coarse = np.asarray([c.per_layer == 1 for c in all_cells])

    def mean(values, chosen, layer):
        return float(np.nanmean(values[:, chosen, layer]))

    first = {name: mean(values, kind & coarse, 1) for name, values, kind in _crossed(before, after, on)}
    last = {name: mean(values, kind & coarse, -1) for name, values, kind in _crossed(before, after, on)}
    pre = next(i for i, c in enumerate(all_cells) if (c.residual, c.normalization) == ("on", "pre"))
    bare = next(i for i, c in enumerate(all_cells) if (c.residual, c.normalization) == ("off", "none"))
    network, probe = (after[:, [i]].mean(axis=(0, 1)) for i in (pre, bare))
    fresh, trained = (first[f"with, {time}"] - first[f"without, {time}"] for time in ("fresh", "trained"))
    architectural = _answer(fresh, "a property of the architecture", "not there at initialization")
    kept = _answer(trained, "kept by training", "and training removes most of it")
    fine = mean(after, ~on & ~coarse, 1) if (~coarse & ~on).any() else float("nan")
    with_, without = (
        {time: _number(first[f"{kind}, {time}"]) for time in ("fresh", "trained")} for kind in ("with", "without")
    )
    ends = " and ".join(_number(last[f"{kind}, trained"]) for kind in ("with", "without"))
    verdict = (
        f"After one layer at h = 1 the correlation with the input is {with_['fresh']} with residual connections and "
        f"{without['fresh']} without at initialization, {with_['trained']} and {without['trained']} after training (means over "
        f"the normalizations; last layer {ends}): the loss is {architectural}, {kept}. "
        f"The trained bare simulator has {_number(probe[1])} after one layer and {_number(probe[-1])} after the last (v2: "
        f"{SIMULATOR[1]:.2f} and {SIMULATOR[-1]:.2f}), the pre-LN network {_number(network[1])} and {_number(network[-1])} (v2: "
        f"{TRANSFORMER[1]:.2f} and {TRANSFORMER[-1]:.2f}). The leaky field at half the step, which is a residual network, has "
        f"{_number(fine)} after one layer."
    )
    data = dataset(settings, measured)
    caption = (
        "Correlation with the input by layer, means over seeds; dashed before training, solid after. Left: with residual "
        "connections; right: without (the leaky field at h = 1). Crosses are v2's figures."
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=data,
        pictures=[Picture("residual.png", caption, lambda: _correlation_curves(settings, data))],
    )


def _number(value: float, form: str = ".2f") -> str:
    return f"{value:{form}}" if np.isfinite(value) else "an unknown figure"


def _answer(difference: float, large: str, small: str) -> str:
    """What a difference of two correlations says; nothing where there is none, as when all trainings failed."""
    return "not measured" if not np.isfinite(difference) else large if difference > 0.2 else small


def _crossed(before: np.ndarray, after: np.ndarray, on: np.ndarray):
    """Both times and both kinds of network, by name."""
    for time, values in (("fresh", before), ("trained", after)):
        yield f"with, {time}", values, on
        yield f"without, {time}", values, ~on


def _correlation_curves(settings: Settings, data: xr.Dataset) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = dict(zip(("on", "off"), figure.subplots(1, 2, sharey=True), strict=True))
    found = cells(settings)
    first = found[0].step
    layers = np.arange(data.sizes["layer"])
    for residual, ax in panels.items():
        axes_of(ax)
        chosen = [(i, c) for i, c in enumerate(found) if c.residual == residual and c.step == first]
        for index, (i, cell) in enumerate(chosen):
            style = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 4}
            ax.plot(layers, np.nanmean(data["after"].values[:, i], axis=0), label=cell.normalization, **style)
            ax.plot(layers, np.nanmean(data["before"].values[:, i], axis=0), linestyle="--", alpha=0.7, **style)
        printed = TRANSFORMER if residual == "on" else SIMULATOR
        count = min(len(printed), len(layers))
        ax.plot(layers[:count], printed[:count], "x", color="black", label="v2")
        ax.set_title(f"residual {residual} ({first})", fontsize=10)
        ax.set_xlabel(LAYER)
        whole_layers(ax)
    legend_beside(figure, "normalization")
    panels["on"].set_ylabel("correlation with the input")
    return figure


RESIDUAL_STUDY = experiment(
    name="residual",
    headline="last layer, residual on, normalization pre, lietrotter, h = 1",
    title="Residual connections",
    question="Do states without residual connections lose their input?",
    source="v2 §4.3.1, Thm 3.4, Figure 4",
    presets=PRESETS,
    measure=measure,
    judge=judge_residual,
    failed="diverged",
    pairing="independent: every combination trained on the task from the same seeds",
)


def judge_layernorm(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
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
    if not np.all(np.isfinite(both)):
        answer = "is not measured where all trainings failed"
    on_ratio, off_ratio = (_number(value, ".2g") for value in both)
    off_spike, on_spike = (_number(value, ".1f") for value in spikes)
    verdict = (
        f"Without normalization the median gradient norm is {on_ratio} times that of pre-LN with residual connections and "
        f"{off_ratio} times without: v2's order of magnitude {answer}. The largest hundredth of the steps lies {off_spike} "
        f"(bare) and {on_spike} (residual) times above the median; {int(diverged[:, none].sum())} of "
        f"{diverged[:, none].size} trainings without normalization failed."
    )
    caption = "Gradient norm of the whole network over training, geometric mean over seeds; left with residual, right without."
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=dataset(settings, measured),
        pictures=[Picture("gradients.png", caption, lambda: _gradient_curves(settings, gradient))],
    )


def _quantile(values: np.ndarray, share: float) -> float:
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, share)) if len(finite) else float("nan")


def _gradient_curves(settings: Settings, gradient: np.ndarray) -> Figure:
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
    legend_beside(figure, "normalization")  # one colour for each normalization, the same on both sides
    panels[0].set_ylabel("gradient norm ‖∂loss/∂θ‖")
    return figure


LAYERNORM = experiment(
    name="layernorm",
    headline="gradient norm, residual on, normalization none, lietrotter, h = 1",
    title="Layer normalization",
    question="Are gradients without normalization larger and spiky?",
    source="v2 §4.3.2, Thm 3.3, Figure 5",
    presets=PRESETS,
    measure=measure,
    judge=judge_layernorm,
    failed="diverged",
    pairing="independent: every combination trained on the task from the same seeds",
)
