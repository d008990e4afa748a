"""How do loss and state answer to perturbed inputs? v1 Experiment 5, Figure 6."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pdejax.analysis import perturbation_sensitivity
from pdejax.plot._style import COLOURS, MARKERS, axes_of, legend
from pdejax.runs._records import Picture
from pdejax.studies.papers._experiment import (
    TEXT,
    TEXT_PAPER,
    Models,
    Settings,
    experiment,
    presets,
    row,
    stacked,
    with_text,
)
from pdejax.studies.papers._pairs import bench
from pdejax.studies.study import Evidence, Judgement

SYSTEMS = ("Transformer", "PDE (bare simulator)")
RESAMPLES = 20


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """Mean rise of the loss and median answer of the state against ε, in random and adversarial directions."""
    truth = bench(settings, seed, models, ("bare",))
    found: dict[str, list[np.ndarray]] = {}
    epsilons = np.asarray(settings.options["epsilons"])
    for run in (truth.trained, models.simulator(settings, seed, "bare")):
        result: Any = perturbation_sensitivity(
            run.model,
            jnp.asarray(truth.batch.inputs),
            jnp.asarray(truth.batch.labels),
            mask=truth.mask,
            key=jax.random.key(seed),
            epsilons=epsilons,
            draws=settings.options["draws"],
            relative=False,
            resamples=RESAMPLES,
        )
        for name, value in (
            ("random_loss", jnp.mean(result.random.loss, axis=(0, 1))),
            ("adversarial_loss", jnp.mean(result.gradient.loss, axis=(0, 1))),
            ("random_state", result.random.state_median.value),
            ("adversarial_state", result.singular.state_median.value),
            ("limit", result.random.state_limit_median.value),
            ("base", jnp.mean(result.base_loss)),
        ):
            found.setdefault(name, []).append(np.asarray(value))
    return {"epsilon": epsilons, **{name: np.stack(values) for name, values in found.items()}}


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Loss at v1's sizes for both systems, where they part, and where each leaves the linear regime."""
    epsilon = np.asarray(measured[0]["epsilon"])
    values = {name: stacked(measured, name) for name in measured[0] if name != "epsilon"}
    rows = []
    for size, paper in ((1e-3, "similar"), (1e-2, "diverge"), (1e-1, "PDE larger"), (1.0, "PDE larger")):
        k = int(np.argmin(np.abs(np.log(epsilon / size))))
        for i, system in enumerate(SYSTEMS):
            rows.append(
                row(
                    f"rise of the loss at ε = {epsilon[k]:.0e}, adversarial, {system}",
                    values["adversarial_loss"][:, i, k],
                    paper=paper,
                    null=values["random_loss"][:, i, k],
                    null_name="random direction",
                    unit="nats",
                )
            )
    for i, system in enumerate(SYSTEMS):
        rows.append(
            row(f"ε at which the state leaves the linear regime, {system}", values["limit"][:, i], note="10 % off")
        )
        rows.append(row(f"loss without perturbation, {system}", values["base"][:, i], unit="nats"))
    mean = values["adversarial_loss"].mean(axis=0)
    apart = np.abs(mean[1] - mean[0]) > 0.1 * values["base"].mean()
    first = f"{epsilon[int(np.argmax(apart))]:.0e}" if apart.any() else "none of these"
    last = mean[1, -1] > mean[0, -1]
    slopes = values["adversarial_loss"][:, :, 0] / epsilon[0]
    verdict = (
        f"The losses part by a tenth of their value first at ε = {first} per entry (v1: about 1e-2); at "
        f"the largest ε the {'PDE model' if last else 'Transformer'} suffers more (v1: the PDE model). Both are linear "
        f"up to ε ≈ {np.median(values['limit'][:, 0]):.1g} and {np.median(values['limit'][:, 1]):.1g}: below, sensitivity is "
        f"the slope, {slopes[:, 0].mean():.2g} and {slopes[:, 1].mean():.2g} nats per unit ε, not a threshold."
    )
    data = xr.Dataset(
        {
            name: (("seed", "system", "epsilon") if value.ndim == 3 else ("seed", "system"), value)
            for name, value in values.items()
        },
        coords={"system": list(SYSTEMS), "epsilon": epsilon},
        attrs={"dataset": settings.train["dataset"]},
    )
    caption = f"Answer to perturbations of the embedding ({settings.train['dataset']}), means over sequences and seeds."
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=data,
        pictures=[Picture("perturbation.png", caption, lambda: _curves(data))],
    )


def _curves(data: xr.Dataset) -> Any:
    values = {name: array.values for name, array in data.data_vars.items()}
    epsilon = data.epsilon.values
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = (axes_of(ax) for ax in figure.subplots(1, 2))
    for i, system in enumerate(SYSTEMS):
        for kind, line in (("adversarial", "-"), ("random", "--")):
            style = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4, "linestyle": line}
            loss = values["base"][:, i, None] + values[f"{kind}_loss"][:, i]
            left.semilogx(epsilon, loss.mean(axis=0), label=f"{system}, {kind}", **style)
            right.loglog(epsilon, values[f"{kind}_state"][:, i].mean(axis=0), label=f"{system}, {kind}", **style)
    left.set_ylabel("mean loss (nats)")
    right.set_ylabel("change of the last state ‖Δu‖")
    for ax in (left, right):
        ax.set_xlabel("size of the perturbation ε (per entry of the embedding)")
    legend(left)
    legend(right)
    return figure


_OPTIONS = {"epsilons": tuple(float(x) for x in np.logspace(-5, 0, 11)), "draws": 4}

PERTURBATION = experiment(
    name="perturbation",
    title="Perturbation sensitivity",
    question="How do loss and state answer to perturbed inputs?",
    source="v1 §3.5, Figure 6",
    presets=presets(TEXT, TEXT_PAPER, sizes=(32, 256), options=_OPTIONS),
    measure=measure,
    judge=judge,
    resolve=with_text,
    pairing="independent: the PDE model is the bare simulator, trained on the task",
)
