"""What residual connections and normalization do: every combination of the two, at two steps, before and after training."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from pdejax.analysis import layer_correlation
from pdejax.models import observe
from pdejax.studies.papers._experiment import stacked
from pdejax.studies.papers._models import Models, held_out
from pdejax.studies.papers._settings import LISTOPS, LISTOPS_PAPER, Settings
from pdejax.studies.study import Evidence
from pdejax.training import TrainConfig, build_model, read_metrics

RESIDUAL = ("on", "off")
NORMALIZATION = ("none", "pre", "post", "v2 (9)")
RESAMPLES = 20


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
    "paper": Settings(
        train={**LISTOPS_PAPER, "clip": None},
        examples=64,
        options={"steps": (("lietrotter", 1), ("lietrotter", 4), ("rk4", 1))},
        seeds=5,
    ),
}
