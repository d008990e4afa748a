"""Two of v1's studies of text, a Transformer beside the bare simulator: gradients of each layer (§3.4, Figure 5), and answers to
perturbed inputs (§3.5, Figure 6).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pdejax.analysis import gradient_flow, perturbation_sensitivity
from pdejax.plot._style import COLOURS, LAYER, MARKERS, NULL, axes_of, whole_layers
from pdejax.runs._records import Picture
from pdejax.studies.papers._experiment import (
    RATIO,
    RESAMPLES,
    TEXT,
    TEXT_PAPER,
    TEXT_STANDARD,
    Models,
    Settings,
    experiment,
    over,
    presets,
    row,
    sign,
    signed,
    spread,
    stacked,
    surely,
    times,
    with_text,
)
from pdejax.studies.papers._pairs import TEXT_SYSTEMS as SYSTEMS
from pdejax.studies.papers._pairs import bench, legend_beside, made_of_systems
from pdejax.studies.study import Evidence, Judgement
from pdejax.training import read_metrics


def measure_gradients(settings: Settings, seed: int, models: Models) -> Evidence:
    """Norms of the parameters' gradients per layer at every training step, and of ∂loss/∂u_l at the end on held-out text."""
    truth = bench(settings, seed, models, ("bare",))
    parameters, states, null = [], [], []
    for run in (truth.trained, models.simulator(settings, seed, "bare")):
        metrics = read_metrics(run.folder / "metrics.csv")
        layers = run.config.layers
        parameters.append(np.stack([metrics[f"layer_gradient_norms_{i}"] for i in range(layers)]))
        flow = gradient_flow(
            run.model,
            jnp.asarray(truth.batch.inputs),
            jnp.asarray(truth.batch.labels),
            mask=truth.mask,
            key=jax.random.key(seed),
            resamples=RESAMPLES,
        )
        states.append(flow.median.value)
        null.append(jnp.asarray(flow.median.nulls.get("labels", jnp.full_like(flow.median.value, jnp.nan))))
    return {"parameters": np.stack(parameters), "states": np.stack(states), "null": np.stack(null)}


def judge_gradients(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Medians over training per layer beside v1's ranges, and the ratio of the two systems."""
    parameters, states, null = (stacked(measured, name) for name in ("parameters", "states", "null"))
    median = np.median(parameters, axis=-1)
    layers = median.shape[-1]
    made = made_of_systems(settings.train)
    printed = ("1e-4 … 1e-3", "1e-3 … 1e-2")
    rows = [
        row(
            f"gradient norm of the parameters, layer {layer + 1}, {system}",
            median[:, i, layer],
            paper=printed[i],
            note=f"median over training; v1 does not say which norm or mean; {made[i]}",
        )
        for i, system in enumerate(SYSTEMS)
        for layer in range(layers)
    ]
    for i, system in enumerate(SYSTEMS):
        for depth in (0, states.shape[-1] - 1):
            rows.append(
                row(
                    f"‖∂loss/∂u‖ at layer {depth}, {system}",
                    states[:, i, depth],
                    null=null[:, i, depth],
                    null_name="labels exchanged",
                    note=f"median over held-out sequences, trained; {made[i]}",
                )
            )
    ratio = np.exp(np.mean(np.log(median[:, 1] / median[:, 0]), axis=-1))
    uneven = np.max(median, axis=-1) / np.min(median, axis=-1)
    rows.append(row("PDE / Transformer, geometric mean over layers", ratio, paper="about 10", within=RATIO))
    for i, system in enumerate(SYSTEMS):
        rows.append(
            row(
                f"largest / smallest layer, {system}",
                uneven[:, i],
                paper="uniform" if i == 0 else "uneven",
                note=made[i],
                within=RATIO,
            )
        )
    answers = {
        1: "more uneven, as in v1",
        -1: "less uneven, against v1",
        0: "neither is surely the more uneven, against v1",
    }
    verdict = (
        f"The PDE model's gradients are {times(over(ratio, RATIO))} times the Transformer's ({spread(len(measured))}; v1: "
        f"about ten times); they differ by a factor {times(over(uneven[:, 1], RATIO))} between its layers and "
        f"{times(over(uneven[:, 0], RATIO))} between the Transformer's: {answers[sign(np.log(uneven[:, 1] / uneven[:, 0]))]}."
    )
    data = xr.Dataset(
        {
            "parameters": (("seed", "system", "layer", "step"), parameters),
            "states": (("seed", "system", "depth"), states),
            "null": (("seed", "system", "depth"), null),
        },
        coords={"system": list(SYSTEMS), "layer": np.arange(1, layers + 1), "depth": np.arange(states.shape[-1])},
        attrs={"dataset": settings.train["dataset"]},
    )
    caption = (
        f"Left, middle: gradient norm of each layer's parameters over training ({settings.train['dataset']}; geometric mean over "
        "seeds, running median of nine steps). Right: norm of the loss's derivative by each layer's state after training, "
        "thin the seeds; dashed: labels exchanged."
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=data,
        pictures=[Picture("gradients.png", caption, lambda: _gradient_curves(data))],
    )


def _gradient_curves(data: xr.Dataset) -> Figure:
    figure = Figure(figsize=(13, 4), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    second.sharey(first)
    for i, ax in enumerate((first, second)):
        axes_of(ax)
        for layer in range(data.sizes["layer"]):
            curve = np.exp(np.mean(np.log(data["parameters"].values[:, i, layer]), axis=0))
            windows = np.lib.stride_tricks.sliding_window_view(curve, min(9, len(curve)))
            ax.semilogy(
                np.arange(len(windows)) + 1,
                np.median(windows, axis=-1),
                color=COLOURS[layer % len(COLOURS)],
                linewidth=1.2,
                label=f"layer {layer + 1}",
            )
        ax.set_title(SYSTEMS[i], fontsize=10)
        ax.set_xlabel("training step")
    first.set_ylabel("gradient norm of a layer's parameters")
    axes_of(third)
    for i, system in enumerate(SYSTEMS):
        # Colours that no layer has: one legend is for all panels.
        style = {"color": COLOURS[4 + i], "marker": MARKERS[i], "markersize": 4}
        third.semilogy(data.depth.values, data["states"].values[:, i].mean(axis=0), label=system, **style)
        if np.isfinite(data["null"].values[:, i]).all():
            own = NULL | {"color": COLOURS[4 + i]}
            label = f"{system}, labels exchanged"
            third.semilogy(data.depth.values, data["null"].values[:, i].mean(axis=0), **own, label=label)
        for each in data["states"].values[:, i]:
            third.semilogy(data.depth.values, each, color=COLOURS[4 + i], linewidth=0.5, alpha=0.4)
    third.set_xlabel(LAYER)
    third.set_ylabel("‖∂loss/∂u‖")
    whole_layers(third)
    legend_beside(figure)
    return figure


GRADIENTS = experiment(
    name="gradients",
    title="Gradient flow",
    question="How large are the gradients of each layer, and how even?",
    source="v1 §3.4, Figure 5",
    presets=presets(TEXT, TEXT_STANDARD, TEXT_PAPER, sizes=(64, 64, 256)),
    measure=measure_gradients,
    judge=judge_gradients,
    lacking=("null",),
    resolve=with_text,
    pairing="independent: the PDE model is the bare simulator (our reading, h = 1), trained on the task",
)


def measure_perturbation(settings: Settings, seed: int, models: Models) -> Evidence:
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


def judge_perturbation(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Loss at v1's sizes for both systems, where they part, and where each leaves the linear regime."""
    epsilon = np.asarray(measured[0]["epsilon"])
    values = {name: stacked(measured, name) for name in measured[0] if name != "epsilon"}
    rows = []
    base, made = values["base"], made_of_systems(settings.train)
    for size, paper in ((1e-3, "similar"), (1e-2, "diverge"), (1e-1, "PDE larger"), (1.0, "PDE larger")):
        k = int(np.argmin(np.abs(np.log(epsilon / size))))
        for kind in ("adversarial", "random"):
            rise, null = values[f"{kind}_loss"][..., k], values["random_loss"][..., k]
            beside: Any = {"unit": "nats"}
            for i, system in enumerate(SYSTEMS):
                own: Any = {"null": null[:, i], "null_name": "random direction"} if kind == "adversarial" else {}
                at = f"at ε = {epsilon[k]:.0e}, {kind}, {system}"
                rows.append(row(f"rise of the loss {at}", rise[:, i], note=made[i], **own, **beside))
                rows.append(row(f"loss {at}", base[:, i] + rise[:, i], note=made[i], **beside))
            for name, gap in (("rises", rise), ("losses", base + rise)):
                quantity = f"PDE − Transformer, {name} at ε = {epsilon[k]:.0e}, {kind}"
                rows.append(row(quantity, gap[:, 1] - gap[:, 0], paper=paper, **beside))
    for i, system in enumerate(SYSTEMS):
        if not np.any(np.isinf(values["limit"][:, i])):  # a state that never leaves it has no such ε
            quantity = f"ε at which the state leaves the linear regime, {system}"
            rows.append(row(quantity, values["limit"][:, i], note=f"10 % off; {made[i]}"))
        rows.append(row(f"loss without perturbation, {system}", values["base"][:, i], unit="nats", note=made[i]))
    more = [_who_suffers(values, f"{kind}_loss", epsilon) for kind in ("adversarial", "random")]
    apart = over(base[:, 1] - base[:, 0])
    most = over((base + values["adversarial_loss"][..., -1])[:, 1] - (base + values["adversarial_loss"][..., -1])[:, 0])
    slopes = values["adversarial_loss"][:, :, 0] / epsilon[0]
    ends = np.median(values["limit"], axis=0)
    upto = [f"{epsilon[-1]:.0e} (the largest)" if np.isinf(end) else f"{end:.1g}" for end in ends]
    parted = "already differs" if sign(base[:, 1] - base[:, 0]) else "does not surely differ"
    verdict = (
        f"Without perturbation the PDE model's loss {parted} from the Transformer's: by {signed(apart)} nats (at "
        f"ε = {epsilon[-1]:.0e}, adversarial, by {signed(most)}). Of the "
        f"rises of the loss (v1: similar at ε = 1e-3, apart from 1e-2 on, the PDE's larger): {more[0]}; {more[1]} (differences "
        f"PDE − Transformer, each with its {spread(len(measured))}; {surely(len(measured))}). Both are linear "
        f"up to ε ≈ {upto[0]} and {upto[1]}: below, sensitivity is "
        f"the slope, {times(over(slopes[:, 0]))} and {times(over(slopes[:, 1]))} nats per unit ε, not a threshold."
    )
    data = xr.Dataset(
        {
            name: (("seed", "system", "epsilon") if value.ndim == 3 else ("seed", "system"), value)
            for name, value in values.items()
        },
        coords={"system": list(SYSTEMS), "epsilon": epsilon},
        attrs={"dataset": settings.train["dataset"]},
    )
    caption = (
        f"Answer to perturbations of the embedding ({settings.train['dataset']}), means over sequences and seeds: how much more "
        f"the PDE model's loss rises, with its {spread(len(measured))}, linear within ±1e-5 nats and logarithmic beyond; the "
        "rise of each; the last state. Thin: the seeds."
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=data,
        pictures=[Picture("perturbation.png", caption, lambda: _perturbation_curves(data))],
    )


def _who_suffers(values: Mapping[str, np.ndarray], name: str, epsilon: np.ndarray) -> str:
    """Whose rise of the loss is larger, by sign: at which ε surely, and by how much at v1's."""
    gaps = values[name][:, 1] - values[name][:, 0]  # (seeds, ε)
    signs = [sign(gaps[:, k]) for k in range(len(epsilon))]
    said = []
    for system, side in (("the PDE model", 1), ("the Transformer", -1)):
        where = [k for k, found in enumerate(signs) if found == side]
        if where:
            whole = len(where) > 2 and where == list(range(where[0], where[-1] + 1))
            shown = [f"{epsilon[k]:.0e}" for k in where]
            said.append(
                f"{system} suffers more at ε = {' … '.join((shown[0], shown[-1])) if whole else ', '.join(shown)}"
            )
    at = int(np.argmin(np.abs(np.log(epsilon / 1e-2))))
    kind = "in the adversarial direction" if name.startswith("adversarial") else "in random directions"
    who = " and ".join(said) or "neither surely suffers more at any ε"
    return f"{kind} {who}; the difference is {signed(over(gaps[:, at]))} at 1e-02"


def _perturbation_curves(data: xr.Dataset) -> Any:
    values = {name: array.values for name, array in data.data_vars.items()}
    epsilon = data.epsilon.values
    figure = Figure(figsize=(15, 4), layout="constrained")
    gaps, rises, states = (axes_of(ax) for ax in figure.subplots(1, 3))
    for k, (kind, line) in enumerate((("adversarial", "-"), ("random", "--"))):
        gap = values[f"{kind}_loss"][:, 1] - values[f"{kind}_loss"][:, 0]
        each = [over(x) for x in gap.T]
        style: Any = {"color": COLOURS[3 + k], "linestyle": line}
        gaps.plot(
            epsilon,
            [float(x) for x in each],
            **style,
            marker=MARKERS[3 + k],
            markersize=4,
            label=f"PDE − Transformer, {kind}",
        )
        if np.isfinite(each[0].low):
            ends: Any = ([float(end) for end in ends] for ends in zip(*((x.low, x.high) for x in each), strict=True))
            gaps.fill_between(epsilon, *ends, color=style["color"], alpha=0.2, linewidth=0)
        for i, system in enumerate(SYSTEMS):
            style = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4, "linestyle": line}
            thin = {"color": COLOURS[i], "linestyle": line, "linewidth": 0.5, "alpha": 0.4}
            rise, state = (values[f"{kind}_{name}"][:, i] for name in ("loss", "state"))
            # On a logarithmic axis a fall has no place: its size is shown, hollow.
            mean = rise.mean(axis=0)
            rises.loglog(epsilon, np.abs(mean), **style | {"marker": ""})
            for falls, face in ((False, COLOURS[i]), (True, "white")):
                there = (mean < 0) == falls
                rises.loglog(epsilon[there], np.abs(mean[there]), **style | {"linestyle": "", "markerfacecolor": face})
            states.loglog(epsilon, state.mean(axis=0), label=f"{system}, {kind}", **style)
            for ax, each_seed in ((rises, np.abs(rise)), (states, state)):
                ax.loglog(epsilon, each_seed.T, **thin)
    gaps.set_xscale("log")
    gaps.set_yscale("symlog", linthresh=1e-5)
    gaps.axhline(0.0, color="0.6", linewidth=0.8)
    gaps.set_ylabel("rise of the loss, PDE − Transformer (nats)")
    rises.set_ylabel("size of the loss's change (nats), hollow: it falls")
    states.set_ylabel("change of the last state ‖Δu‖")
    for ax in (gaps, rises, states):
        ax.set_xlabel("size of the perturbation ε (per entry)")
    legend_beside(figure)
    return figure


_SIZES = {"epsilons": tuple(float(x) for x in np.logspace(-5, 0, 11)), "draws": 4}

PERTURBATION = experiment(
    name="perturbation",
    headline="rise of the loss at ε = 1e-02, adversarial, PDE*",
    title="Perturbation sensitivity",
    question="How do loss and state answer to perturbed inputs?",
    source="v1 §3.5, Figure 6",
    presets=presets(TEXT, TEXT_STANDARD, TEXT_PAPER, sizes=(32, 32, 256), options=_SIZES),
    measure=measure_perturbation,
    judge=judge_perturbation,
    lacking=("limit",),
    resolve=with_text,
    pairing="independent: the PDE model is the bare simulator (our reading, h = 1), trained on the task",
)
