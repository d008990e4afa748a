"""What residual connections and normalization do: every combination of the two, at several steps and with an embedding as drawn
and times √d, before and after training. Do states without residual connections lose their input (v2 §4.3.1, Thm 3.4)?
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
from matplotlib.lines import Line2D

from pdejax.analysis import layer_correlation
from pdejax.models import observe
from pdejax.plot._style import COLOURS, LAYER, MARKERS, axes_of, whole_layers
from pdejax.runs._records import Picture, Row
from pdejax.studies.papers._experiment import (
    CORRELATION,
    LISTOPS,
    LISTOPS_PAPER,
    RATIO,
    RESAMPLES,
    Models,
    Settings,
    experiment,
    held_out,
    over,
    row,
    shown,
    spread,
    stacked,
)
from pdejax.studies.papers._pairs import field_parameters
from pdejax.studies.study import Evidence, Judgement, high, low
from pdejax.training import TrainConfig, build_model, read_metrics

RESIDUAL = ("on", "off")
NORMALIZATION = ("none", "pre", "post", "v2 (9)")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination: `residual` connection on or off (the leaky field), `normalization`, scheme, steps per layer, the depth
    that a layer is long, and the factor of the embedding, `"1"` or `"√d"`."""

    residual: str
    normalization: str
    solver: str
    per_layer: int
    length: float = 1.0
    scale: str = "1"

    @property
    def step(self) -> str:
        """The step as it is shown."""
        n = self.per_layer
        one = f"{self.solver}, h = {self.length:g}"
        return one if n == 1 else f"{self.solver}, {n} steps of {self.length:g}/{n} a layer"

    @property
    def setting(self) -> str:
        """Step and embedding as they are shown: an embedding as drawn is not named."""
        return self.step if self.scale == "1" else f"{self.step}, embedding × {self.scale}"

    @property
    def name(self) -> str:
        """The combination as it is shown."""
        return f"residual {self.residual}, normalization {self.normalization}, {self.setting}"

    @property
    def form(self) -> str:
        """The field as a formula: what class of functions the combination is."""
        inside = "LN u" if self.normalization == "pre" else "u"
        leak = " − 2u" if self.residual == "off" else ""
        more = {"post": ", LayerNorm after each substep", "v2 (9)": " + S(u)"}.get(self.normalization, "")
        return f"u' = A({inside}) + R({inside}){leak}{more}"

    def config(self, settings: Settings, seed: int) -> TrainConfig:
        """The simulator of this combination. Normalization: inside A and R (`"pre"`), LayerNorm itself after each substep
        (`"post"`), or the term S of v2 (9) with γ = 1 (`"v2 (9)"`)."""
        options: dict[str, Any] = {"leak": self.residual == "off"}
        norm = {"v2 (9)": "none"}.get(self.normalization, self.normalization)
        if self.normalization == "v2 (9)":
            options |= {"stabilization": "spatial", "gamma": 1.0}
        if self.scale == "√d":
            options["embedding_scale"] = settings.train.get("dim", TrainConfig.dim) ** 0.5
        if self.length != 1:
            options["t1"] = self.length * settings.train["layers"]
        changes = {"model": "simulator", "norm": norm, "options": options, "seed": seed}
        return TrainConfig(
            **dict(settings.train) | changes | {"solver": self.solver, "steps_per_layer": self.per_layer}
        )


def cells(settings: Settings) -> list[Cell]:
    """All combinations, in a fixed order. LayerNorm after each substep needs a scheme with substeps."""
    found = []
    for solver, *step in settings.options["steps"]:
        for residual in RESIDUAL:
            for normalization in NORMALIZATION:
                if normalization != "post" or solver in ("lietrotter", "strang", "macaron"):
                    found.append(Cell(residual, normalization, solver, *step))
    return found


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """Correlation of every layer with the input before and after training; accuracy; gradient norms of all training steps;
    parameters of the field.

    A training that fails (NaN) leaves NaN in its row and counts as diverged.
    """
    before, after, cosine, accuracy, gradient, diverged, counts = [], [], [], [], [], [], []
    models.together([cell.config(settings, seed) for cell in cells(settings)])
    for cell in cells(settings):
        config = cell.config(settings, seed)
        test, batch = held_out(config, settings.examples)
        fresh = build_model(config, test)
        counts.append(field_parameters(fresh))
        before.append(_correlations(fresh, batch, seed)[0])
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
        "parameters": np.asarray(counts),
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
            "parameters": (("cell",), np.asarray(measured[0]["parameters"])),
        },
        coords={
            "residual": ("cell", [cell.residual for cell in found]),
            "normalization": ("cell", [cell.normalization for cell in found]),
            "step": ("cell", [cell.step for cell in found]),
            "scale": ("cell", [cell.scale for cell in found]),
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
        train={**LISTOPS, **_SMALL},
        examples=64,
        # Several steps a layer, so that the field stays what it is, and one step of v2's 0.2 a layer, which is a shorter depth.
        options={
            "steps": (
                *(("lietrotter", 1), ("euler", 5), ("euler", 1, 0.2)),
                *(("lietrotter", 1, 1.0, "√d"), ("euler", 1, 0.2, "√d")),
            )
        },
        seeds=5,
    ),
    "paper": Settings(
        train={**LISTOPS_PAPER, "clip": None},
        examples=64,
        options={"steps": (("lietrotter", 1), ("lietrotter", 4), ("rk4", 1), ("lietrotter", 1, 1.0, "√d"))},
        seeds=5,
    ),
}


TRANSFORMER = (1.00, 0.99, 0.98, 0.98, 0.99, 0.98)
SIMULATOR = (1.00, 0.93, 0.91, 0.89, 0.87, 0.85)
# What v2 prints of which combination, by layer.
PRINTED = {
    ("on", "pre"): ("pre-LN network", TRANSFORMER),
    ("off", "none"): ("bare simulator", SIMULATOR),
}
MET = 0.02  # two units of the last printed digit


def judge_residual(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """The last layer's correlation with the input in every cell; layer by layer, at every step, for the two that v2 has."""
    before, after, accuracy = (stacked(measured, name) for name in ("before", "after", "accuracy"))
    found = cells(settings)
    rows: list[Row] = []
    for i, cell in enumerate(found):
        name, printed = PRINTED.get((cell.residual, cell.normalization), ("", ()))
        for layer in range(after.shape[-1] if name else 0):
            rows.append(
                row(
                    f"correlation with the input, layer {layer}, {name}, {cell.setting}",
                    after[:, i, layer],
                    paper=f"{printed[layer]:.2f}" if layer < len(printed) else None,
                    null=before[:, i, layer],
                    null_name="untrained",
                    within=CORRELATION,
                )
            )
    for i, cell in enumerate(found):
        reached = f"accuracy {np.nanmean(accuracy[:, i]):.3f}" if np.isfinite(accuracy[:, i]).any() else "diverged"
        rows.append(
            row(
                f"last layer, {cell.name}",
                after[:, i, -1],
                null=before[:, i, -1],
                null_name="untrained",
                within=CORRELATION,
                note=f"{made(cell, measured, i)}; {reached}",
            )
        )
    said = [_lost(found, before, after)]
    scaled = [i for i, c in enumerate(found) if (c.residual, c.normalization, c.scale) == ("on", "pre", "√d")]
    for (residual, normalization), (name, printed) in PRINTED.items():
        own = [i for i, c in enumerate(found) if (c.residual, c.normalization) == (residual, normalization)]
        said.append(f"v2's curve of the {name} ({printed[1]:.2f} after one layer, {printed[-1]:.2f} after the last) ")
        said[-1] += _nearest(found, own, printed, after)
    if scaled:
        said.append(_scaled(found, scaled, before, after) + f" ({settings.train['steps']} steps).")
    data = dataset(settings, measured)
    caption = (
        "Correlation with the input by layer, means over seeds, a row of panels for each step and embedding; dashed before "
        "training, solid after, thin the seeds. Left: with residual connections; right: without (the leaky field). Crosses are "
        "v2's figures."
    )
    return Judgement(
        rows=rows,
        sentence=" ".join(said),
        dataset=data,
        pictures=[Picture("residual.png", caption, lambda: _correlation_curves(settings, data))],
    )


def made(cell: Cell, measured: Sequence[Evidence], index: int) -> str:
    """What a combination is made of: its class of functions, its parameters."""
    return f"{cell.form}; {int(measured[0]['parameters'][index]):,} parameters in the field"


def _lost(found: Sequence[Cell], before: np.ndarray, after: np.ndarray) -> str:
    """What a layer of step 1 keeps of the input with and without residual connections: whether training has to do with it."""
    on, coarse = (
        np.asarray([flag(c) for c in found])
        for flag in (lambda c: c.residual == "on", lambda c: c.per_layer == c.length == 1 and c.scale == "1")
    )
    kept = {
        (time, kind): np.nanmean(values[:, chosen & coarse, 1], axis=1)
        for time, values in (("fresh", before), ("trained", after))
        for kind, chosen in (("with", on), ("without", ~on))
    }
    fresh, trained = (over(kept[time, "with"] - kept[time, "without"]) for time in ("fresh", "trained"))
    middle = {key: _number(float(np.mean(values))) for key, values in kept.items()}
    return (
        f"After one layer at h = 1 the correlation with the input is {middle['fresh', 'with']} with residual connections and "
        f"{middle['fresh', 'without']} without at initialization, {middle['trained', 'with']} and "
        f"{middle['trained', 'without']} after training (means over the normalizations; differences {_known(fresh)} and "
        f"{_known(trained)}, {spread(len(before))}): the loss is "
        f"{_answer(fresh, 'a property of the architecture', 'not there at initialization')}, "
        f"{_answer(trained, 'kept by training', 'and training removes most of it')}."
    )


def _nearest(found: Sequence[Cell], own: Sequence[int], printed: Sequence[float], after: np.ndarray) -> str:
    """Which step comes nearest to a printed curve after training, and how near."""
    count = min(len(printed), after.shape[-1])
    largest = _largest(own, printed, after)
    if not largest:
        return "is compared with nothing: all trainings of its kind failed."
    best = min(largest, key=lambda i: float(largest[i]))
    met = [found[i].setting for i in largest if high(largest[i]) <= MET]
    each = "; ".join(
        f"{found[i].setting}: {' and '.join(shown(over(after[:, i, k], CORRELATION)) for k in (1, count - 1))}"
        for i in largest
    )
    return (
        f"is surely met to {MET:g} after training by {', '.join(met) or 'none'} ({each}), the nearest {found[best].setting}, "
        f"{shown(largest[best], 3)} away at most."
    )


def _largest(own: Sequence[int], printed: Sequence[float], curves: np.ndarray) -> dict[int, Any]:
    """By cell, how far over the layers the curves of each seed are from a printed one at most; cells that failed are left out."""
    count = min(len(printed), curves.shape[-1])
    apart = np.max(np.abs(curves[:, own, :count] - np.asarray(printed[:count])), axis=-1)
    return {i: over(apart[:, k], RATIO) for k, i in enumerate(own) if np.all(np.isfinite(apart[:, k]))}


def _scaled(found: Sequence[Cell], own: Sequence[int], before: np.ndarray, after: np.ndarray) -> str:
    """Whether pre-LN networks whose embedding is multiplied by √d have v2's curve, before training and after."""
    fresh, trained = (_largest(own, TRANSFORMER, curves) for curves in (before, after))
    answers = "; ".join(f"{found[i].step} {_met(fresh.get(i))} before and {_met(trained.get(i))} after" for i in own)
    return f"With the embedding times √d the pre-LN network's curve, to {MET:g} in every layer: {answers} training"


def _met(largest: Any) -> str:
    """Whether a curve at this largest distance is within `MET`: the whole interval decides."""
    if largest is None:
        return "not measured"
    answer = "met" if high(largest) <= MET else "not met" if low(largest) > MET else "perhaps met"
    return f"{answer} ({shown(largest, 3)} away at most)"


def _known(figure: Any) -> str:
    return shown(figure) if np.isfinite(float(figure)) else "an unknown one"


def _number(value: float, form: str = ".2f") -> str:
    return f"{value:{form}}" if np.isfinite(value) else "an unknown figure"


def _answer(difference: Any, large: str, small: str) -> str:
    """What a difference of two correlations says: its whole interval decides; nothing where there is none, as when all trainings
    failed."""
    if not np.isfinite(float(difference)):
        return "not measured"
    return large if low(difference) > 0.2 else small if high(difference) < 0.2 else "not decided"


def _correlation_curves(settings: Settings, data: xr.Dataset) -> Figure:
    found = cells(settings)
    steps = list(dict.fromkeys(cell.setting for cell in found))
    figure = Figure(figsize=(10.6, 0.6 + 2.6 * len(steps)), layout="constrained")
    panels = figure.subplots(len(steps), 2, sharex=True, sharey=True, squeeze=False)
    layers = np.arange(data.sizes["layer"])
    for line, step in zip(panels, steps, strict=True):
        for ax, residual, printed in zip(line, RESIDUAL, (TRANSFORMER, SIMULATOR), strict=True):
            axes_of(ax)
            for i, cell in enumerate(found):
                if (cell.residual, cell.setting) != (residual, step):
                    continue
                index = NORMALIZATION.index(cell.normalization)
                style = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 4}
                ax.plot(layers, np.nanmean(data["after"].values[:, i], axis=0), **style)
                ax.plot(layers, np.nanmean(data["before"].values[:, i], axis=0), linestyle="--", alpha=0.7, **style)
                ax.plot(layers, data["after"].values[:, i].T, color=COLOURS[index], linewidth=0.5, alpha=0.4)
            count = min(len(printed), len(layers))
            ax.plot(layers[:count], printed[:count], "x", color="black")
            ax.set_title(f"residual {residual} ({step})", fontsize=10)
            whole_layers(ax)
        line[0].set_ylabel("correlation with the input")
    for ax in panels[-1]:
        ax.set_xlabel(LAYER)
    names = [
        Line2D([], [], color=COLOURS[i], marker=MARKERS[i], markersize=4, label=f"normalization {name}")
        for i, name in enumerate(NORMALIZATION)
    ]
    lines: Any = (("-", 1.5, "after training"), ("-", 0.5, "its seeds"), ("--", 1.5, "before training"))
    names += [Line2D([], [], color="0.4", linestyle=dash, linewidth=width, label=label) for dash, width, label in lines]
    names += [Line2D([], [], color="black", linestyle="", marker="x", label="v2, printed")]
    figure.legend(handles=names, loc="outside right center", frameon=False, fontsize=9)
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
