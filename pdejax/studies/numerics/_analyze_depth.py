"""What users of a trained model ask first of its depth: how far it is from its continuum limit, what a finer step changes, the
largest stable step, its exponents, and which layers can be left out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure as Canvas

from pdejax._bootstrap import bootstrap
from pdejax._depth import take_layer
from pdejax._figure import Figure
from pdejax._step_maps import AbstractMaps
from pdejax.analysis import lyapunov_exponents, mesh_norm, predict_dt_max
from pdejax.analysis.jacobian import shuffle_weights
from pdejax.analysis.jacobian._systems import as_system
from pdejax.models import observe
from pdejax.networks import Network
from pdejax.plot._style import COLOURS, LAYER, MARKERS, NULL, axes_of, band, legend, whole_layers
from pdejax.runs._table import Cell, Column, Table
from pdejax.solvers._retract import retractions

FACTORS = (1, 2, 4, 8, 16)  # steps for each of the network's own
FINEST = 64  # as many stand for the continuum: its own error is about a 64th of the network's distance
FEW = 4  # sequences whose exponents are computed
RESAMPLES = 200
PROJECTS = 1e-3  # relative change by which a projection taken twice may differ from once
SKIPPABLE = 0.02  # accuracy that leaving a layer out may cost
REFINEMENT = (
    Column("steps per step of the network", "d", right=True),
    Column("distance from the continuum", right=True),
    Column("accuracy", right=True),
    Column("same answer as the network", right=True),
)
EXPONENTS = (
    Column("rank", "d", right=True),
    Column("Lyapunov exponent, per unit depth", right=True),
    Column("null", right=True),
)


class Refined(eqx.Module):
    """A network at `FACTORS` steps for each of its own: distances from `FINEST`, accuracies and agreement, each with its interval
    over sequences; `by_layer (layers + 1,)` the network's own distance, `own` error of the finest."""

    distance: Figure
    accuracy: Figure | None
    agreement: Figure | None
    by_layer: Figure
    own: float


def measured(
    net: Network, inputs: Array, mask: Array, labels: Array | None, key: Any, say: Callable[[str], None]
) -> dict:
    """Return `refined`, `dt_max`, `exponents` and `skipped`, of which those that a network has none of are missing, and `notes`
    that say why."""
    found: dict[str, Any] = {"notes": []}
    d = net.discretization
    normalized = bool(retractions(d.solver))
    if d.adaptive:
        found["notes"].append("Steps are adaptive: there is no step to refine.")
    elif normalized and not projects(net, inputs[0], mask[0]):
        found["notes"].append(
            "Post-LN with a learned scale or bias is no projection: it acts once per step however short the step is, so that the "
            "network's own scheme has no limit under refinement."
        )
    else:
        say("refinement of the step")
        found["refined"] = refined(net, inputs, mask, labels, key)
    if normalized:
        found["notes"].append(
            "Post-LN bounds the states after every step: the largest stable step of the field alone says nothing of it."
        )
    elif not d.adaptive:
        say("largest stable steps")
        found["dt_max"], found["step"] = largest_steps(net, inputs[0], mask[0]), float(d.step)
    if not d.adaptive:
        say("Lyapunov exponents")
        found["exponents"] = exponents(net, inputs[:FEW], mask[:FEW], key)
        if labels is not None and d.layers:
            say("layers left out")
            found["skipped"] = skipped(net, inputs, mask, labels, key)
    return found


def projects(net: Network, tokens: Array, mask: Array) -> bool:
    """Whether every retraction ρ of the solver is a projection, ρ(ρ(u)) = ρ(u), at this sequence's states: up to the ε in the
    root of a norm, which is far below what a learned scale does."""
    d, states = net.discretization, net.hidden_states(tokens, mask)
    for layer in range(net.layers):
        solver = take_layer(d.solver, layer) if d.layers else d.solver
        for retraction in retractions(solver):
            once = retraction(states[layer + 1])
            if float(mesh_norm(retraction(once) - once, mask)) > PROJECTS * float(mesh_norm(once, mask)):
                return False
    return True


def refined(net: Network, inputs: Array, mask: Array, labels: Array | None, key: Any) -> Refined:
    """Run the network with more steps of the same field. The step count is an array: every factor is one compiled program."""

    def run(k: int) -> tuple[Array, Array]:
        d = net.discretization
        logits, states, _ = observe(
            net.replace(discretization=d.replace(steps=jnp.asarray(d.steps * k))), inputs, mask, maps=False
        )
        return logits, states

    norm = jax.vmap(lambda u, m: mesh_norm(u, m), in_axes=(0, 0))
    _, limit = run(FINEST)
    scale = norm(limit[-1], mask)
    distances, right, same = [], [], []
    first, states = run(FACTORS[0])  # the network itself
    by_layer, answers = jnp.stack([norm(a, mask) for a in states - limit]) / scale[None], jnp.argmax(first, -1)
    for k in FACTORS:
        logits, states = run(k)
        distances.append(norm(states[-1] - limit[-1], mask) / scale)
        if labels is not None:
            same.append(agreement(logits, answers, mask))
            right.append(agreement(logits, labels, mask))
    half = norm(run(FINEST // 2)[1][-1] - limit[-1], mask) / scale
    over = {"key": key, "samples": len(inputs)}
    return Refined(
        over_sequences(jnp.stack(distances), **over),
        over_sequences(jnp.stack(right), **over) if right else None,
        over_sequences(jnp.stack(same), **over) if same else None,
        over_sequences(by_layer, **over),
        float(jnp.mean(half)),
    )


def agreement(logits: Array, labels: Array, mask: Array) -> Array:
    """Share of right answers by sequence `(b,)`; of a language model over the real tokens."""
    right = (jnp.argmax(logits, -1).astype(labels.dtype) == labels).astype(logits.dtype)
    if right.ndim == 1:
        return right
    weights = mask.astype(right.dtype)
    return jnp.sum(right * weights, 1) / jnp.sum(weights, 1)


def over_sequences(values: Array, key: Any, samples: int) -> Figure:
    """Means over the last axis, with bootstrap intervals over sequences."""
    return bootstrap(
        lambda w: values @ w.astype(values.dtype) / samples, samples, key=key, resamples=RESAMPLES, dtype=values.dtype
    )


def largest_steps(net: Network, tokens: Array, mask: Array) -> np.ndarray:
    """The largest stable step of forward Euler `(layers,)` on the field of each layer, at this sequence's state before it."""
    states = net.hidden_states(tokens, mask)
    d = net.discretization
    depths = np.linspace(float(d.t0), float(d.t1), net.layers + 1)
    # The whole state with its mask: a grid has as many tokens as the padded sequence, and positions are its own.
    return np.asarray(
        [
            predict_dt_max(d, states[layer], "euler", t=float(depths[layer]), mask=mask).dt_max
            for layer in range(net.layers)
        ]
    )


def exponents(net: Network, inputs: Array, mask: Array, key: Any) -> Figure:
    """The four largest exponents, means over a few sequences with the range over them, beside those of shuffled weights."""
    shuffled = shuffle_weights(net, key=key)
    most = min(4, int(jnp.min(jnp.sum(mask, 1))) * int(net.embed(inputs[0]).shape[-1]))
    values, nulls = [], []
    for tokens, real in zip(inputs, mask, strict=True):
        record = lyapunov_exponents(net, net.embed(tokens), k=most, mask=real, key=key, null=shuffled)
        values.append(np.asarray(record.exponents.value))
        nulls.append(np.asarray(record.exponents.nulls["null"]))
    table = np.asarray(values)
    return Figure(table.mean(0), table.min(0), table.max(0), {"shuffled weights": np.asarray(nulls).mean(0)})


def skipped(net: Network, inputs: Array, mask: Array, labels: Array, key: Any) -> Figure:
    """Accuracy that leaving each layer out costs `(layers,)`, with intervals over pairs of sequences."""
    system, batch = as_system("analyze", net, inputs, labels, mask, None)
    logits = _without(system, batch.inputs, mask, net.layers)
    scores = jax.vmap(lambda one: agreement(one, labels, mask))(logits)
    return over_sequences(scores[-1][None] - scores[:-1], key=key, samples=len(inputs))


@eqx.filter_jit
def _without(system: Any, inputs: Array, mask: Array, layers: int) -> Array:
    """Logits `(layers + 1, b, …)` with layer i left out, and last with all of them."""

    def one(left_out: Array, x: Array, m: Array) -> Array:
        u = system.begin(x, m)
        before = system.before_loop(u, layers)

        def run(maps: AbstractMaps, u: Array, first: int, last: int) -> Array:
            def step(u: Array, i: Array) -> tuple[Array, None]:
                return jnp.where(i == left_out, u, maps(i, u)), None

            return jax.lax.scan(step, u, jnp.arange(first, last))[0]

        if before:
            # What a loop adds is what the prelude gives out without that layer.
            u = run(system.maps(u, m, jnp.zeros_like(u)), u, 0, before)
        return system.end(run(system.maps(u, m, u if before else None), u, before, layers), m)

    return jax.lax.map(lambda i: jax.vmap(one, in_axes=(None, 0, 0))(i, inputs, mask), jnp.arange(layers + 1))


def tables(found: Mapping[str, Any]) -> list[Table]:
    """What was measured, as tables."""
    made = []
    if "refined" in found:
        r = found["refined"]
        lines = [
            (
                k,
                r.distance[i],
                None if r.accuracy is None else r.accuracy[i],
                None if r.agreement is None else r.agreement[i],
            )
            for i, k in enumerate(FACTORS)
        ]
        made.append(
            Table(REFINEMENT, lines, "The same field with a finer step: distance from the continuum and accuracy")
        )
    if "exponents" in found:
        figure = found["exponents"]
        null = figure.nulls["shuffled weights"]
        lines = [
            (
                i + 1,
                Figure(figure.value[i], figure.low[i], figure.high[i]),
                Cell(float(null.value[i]), small="shuffled weights"),
            )
            for i in range(len(figure.value))
        ]
        made.append(Table(EXPONENTS, lines, f"Lyapunov exponents: mean and range of {FEW} sequences"))
    return made


def sentences(found: Mapping[str, Any]) -> dict[str, str]:
    """Answers to what users ask first, made from the numbers."""
    answers = {}
    if "refined" in found:
        r = found["refined"]
        answers["distance from the continuum"] = (
            f"{_percent(r.distance[0])} at the last layer; halving the step leaves {_percent(r.distance[1])}"
        )
        if r.accuracy is not None:
            answers["accuracy under refinement"] = (
                f"{_number(r.accuracy[0])} as trained, {_number(r.accuracy[-1])} with {FACTORS[-1]} steps for each"
            )
    if "dt_max" in found:
        layer = int(np.argmin(found["dt_max"]))
        least = float(found["dt_max"][layer])
        answers["largest stable step"] = (
            f"{least:.3g} of forward Euler, at layer {layer + 1}; the network's own is {found['step']:g}"
        )
    if "exponents" in found:
        largest = found["exponents"]
        growth = (
            "nearby inputs part"
            if float(largest.low[0]) > 0
            else "nearby inputs stay together"
            if float(largest.high[0]) < 0
            else "neither growth nor decay on all sequences"
        )
        answers["largest Lyapunov exponent"] = f"{_number(largest[0])} per unit depth: {growth}"
    if "skipped" in found:
        costs = found["skipped"]
        free = [str(i + 1) for i in range(len(costs.value)) if float(costs.high[i]) <= SKIPPABLE]
        answers["layers that can be left out, one at a time"] = (
            f"{', '.join(free) or 'none'} (at 95 % the accuracy falls by at most {SKIPPABLE:g})"
        )
    return answers


def _number(figure: Figure) -> str:
    return f"{float(figure.value):.3f} [{float(figure.low):.3f}, {float(figure.high):.3f}]"


def _percent(figure: Figure) -> str:
    return f"{float(figure.value):.1%} [{float(figure.low):.1%}, {float(figure.high):.1%}]"


def pictures(found: Mapping[str, Any]) -> dict[str, tuple[str, Callable[[], Canvas]]]:
    """File name → caption and drawing."""
    made: dict[str, tuple[str, Callable[[], Canvas]]] = {}
    if "refined" in found:
        made["refinement"] = (
            "Distance from the continuum limit, and accuracy, as the network takes more steps for each of its own; bands: 95 % "
            "over sequences.",
            lambda: _refinement(found["refined"]),
        )
    if "skipped" in found:
        made["layers_left_out"] = (
            "Accuracy lost where one layer is left out; band: 95 % over sequences. Dashed: what counts as free.",
            lambda: _left_out(found["skipped"]),
        )
    return made


def _refinement(r: Refined) -> Canvas:
    canvas = Canvas(figsize=(9.0, 3.6), layout="constrained")
    left, right = canvas.subplots(1, 2)
    for ax in (left, right):
        axes_of(ax).set(xscale="log", xlabel="steps for each of the network's")
        ax.set_xticks(FACTORS, [str(k) for k in FACTORS])
        ax.minorticks_off()
    at = np.asarray(FACTORS)
    band(left, at, r.distance.value, r.distance.low, r.distance.high, label="network")
    left.axhline(r.own, label="error of the reference", **NULL)
    left.set(yscale="log", ylabel="relative distance at the end")
    left.set_title("Distance from the continuum", fontsize=10)
    for i, (figure, label) in enumerate(((r.accuracy, "accuracy"), (r.agreement, "same answer"))):
        if figure is not None:
            band(right, at, figure.value, figure.low, figure.high, index=i, label=label)
    right.set(ylabel="share of sequences")
    right.set_title("Accuracy under refinement", fontsize=10)
    legend(left)
    legend(right)
    return canvas


def _left_out(costs: Figure) -> Canvas:
    canvas = Canvas(figsize=(5.2, 3.6), layout="constrained")
    ax = axes_of(canvas.subplots())
    at = np.arange(1, len(costs.value) + 1)
    value = np.asarray(costs.value)
    spread = np.abs(np.stack([value - np.asarray(costs.low), np.asarray(costs.high) - value]))
    ax.errorbar(at, value, spread, color=COLOURS[0], marker=MARKERS[0], linestyle="none", capsize=3)
    ax.axhline(SKIPPABLE, **NULL)
    ax.set(xlabel=f"{LAYER} left out", ylabel="accuracy lost")
    ax.set_title("What each layer is for", fontsize=10)
    whole_layers(ax)
    return canvas


def saved(found: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers as JSON has them."""

    def figure(f: Figure | None) -> Any:
        return None if f is None else {name: np.asarray(getattr(f, name)) for name in ("value", "low", "high")}

    r: Refined | None = found.get("refined")
    refinement = None
    if r is not None:
        refinement = {"factors": FACTORS, "finest": FINEST, "reference_error": r.own}
        refinement |= {name: figure(getattr(r, name)) for name in ("distance", "accuracy", "agreement")}
    return {
        "refinement": refinement,
        "dt_max": found.get("dt_max"),
        "step": found.get("step"),
        "exponents": figure(found.get("exponents")),
        "layers_left_out": figure(found.get("skipped")),
    }


def curves(found: Mapping[str, Any]) -> Sequence[tuple[str, Figure, str, int]]:
    """Figures by layer: name, figure, unit, first layer."""
    made: list[tuple[str, Figure, str, int]] = []
    if "refined" in found:
        made.append(("distance from the continuum", found["refined"].by_layer, "", 0))
    if "dt_max" in found:
        made.append(("largest stable step of forward Euler", Figure(found["dt_max"]), "units of depth", 1))
    if "skipped" in found:
        made.append(("accuracy lost without the layer", found["skipped"], "", 1))
    return made
