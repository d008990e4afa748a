"""What does another scheme or another step do to a trained Transformer? The field keeps its weights, only h changes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure

from pdejax.models import observe, pair
from pdejax.plot._style import COLOURS, MARKERS, NULL, axes_of, legend
from pdejax.runs._records import Picture
from pdejax.studies.papers._experiment import (
    LISTOPS,
    LISTOPS_PAPER,
    Models,
    Settings,
    experiment,
    held_out,
    presets,
    row,
    stacked,
)
from pdejax.studies.study import Evidence, Judgement

EXPECTED = {"euler": 1.0, "lietrotter": 1.0, "heun": 2.0, "strang": 2.0, "rk4": 4.0}


def measure(settings: Settings, seed: int, models: Models) -> Evidence:
    """Distance to the fine solution and to the network, and accuracy, for each scheme and number of steps per layer, in
    float64: the errors of RK4 are below float32's rounding after few steps."""
    trained = models.transformer(settings, seed)
    _, batch = held_out(trained.config, settings.examples)
    schemes, counts = settings.options["schemes"], settings.options["steps_per_layer"]
    shape = (len(schemes), len(counts))
    found = {name: np.zeros(shape) for name in ("error", "away", "accuracy", "agreement")}
    with jax.enable_x64(True):
        network = trained.model.astype("float64")
        mask, labels = jnp.asarray(batch.mask), np.asarray(batch.labels)

        inputs = jnp.asarray(batch.inputs)

        def refined(scheme, per_layer):
            model = pair(network, "shared", steps=network.architecture.layers * per_layer, solver=scheme)
            return _ends(model, inputs, mask)

        def distance(u, v):
            real = mask[:, :, None]
            squares = jnp.sum(jnp.where(real, u - v, 0) ** 2, axis=(1, 2)) / jnp.sum(
                jnp.where(real, v, 0) ** 2, axis=(1, 2)
            )
            return float(jnp.sqrt(jnp.mean(squares)))

        fine, _ = refined("rk4", settings.options["reference"])
        last, logits = _ends(network, inputs, mask)
        chosen = np.asarray(jnp.argmax(logits, axis=-1))
        for i, scheme in enumerate(schemes):
            for j, per_layer in enumerate(counts):
                u, y = refined(scheme, per_layer)
                choice = np.asarray(jnp.argmax(y, axis=-1))
                found["error"][i, j], found["away"][i, j] = distance(u, fine), distance(u, last)
                found["accuracy"][i, j] = float(np.mean(choice == labels))
                found["agreement"][i, j] = float(np.mean(choice == chosen))
        found["network_accuracy"] = np.mean(chosen == labels)
        found["network_to_limit"] = np.asarray(distance(last, fine))
    return found


def _ends(model: Any, inputs: Array, mask: Array) -> tuple[Array, Array]:
    """The last hidden states and the logits of a batch."""
    found: Any = observe(model, inputs, mask, maps=False)
    return found.states[-1], found.logits


def judge(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Orders fitted over the finest steps, and what refinement does to accuracy."""
    schemes, counts = list(settings.options["schemes"]), list(settings.options["steps_per_layer"])
    error, away, accuracy, agreement = (stacked(measured, n) for n in ("error", "away", "accuracy", "agreement"))
    limit, network = stacked(measured, "network_to_limit"), stacked(measured, "network_accuracy")
    tail = np.log2(np.asarray(counts[-3:], float))
    rows = []
    orders = {}
    for i, name in enumerate(schemes):
        orders[name] = [-np.polyfit(tail, np.log2(e[-3:]), 1)[0] for e in error[:, i]]
        rows.append(row(f"order of {name}", orders[name], note=f"theory: {EXPECTED[name]:g}; finest three steps"))
    rows.append(row("distance of the network from its limit h → 0", limit, note="relative, last layer"))
    rows.append(row("accuracy of the network", network))
    best = schemes.index("rk4") if "rk4" in schemes else 0
    finest = f"accuracy at {counts[-1]} steps per layer ({schemes[best]})"
    rows.append(row(finest, accuracy[:, best, -1], note="the same weights"))
    rows.append(row("predictions that stay the same there", agreement[:, best, -1]))
    off = [name for name in schemes if abs(float(np.mean(orders[name])) - EXPECTED[name]) > 0.25]
    change = float(np.mean(accuracy[:, best, -1] - network))
    ordered = "each scheme at its order" if not off else f"not at the order of theory: {', '.join(off)}"
    near = float(np.mean(limit)) < 0.05
    verdict = (
        f"Refining the step converges ({ordered}) to a flow that is {np.mean(limit):.0%} away from the network: "
        f"the trained Transformer {'is close to' if near else 'is no approximation of'} the flow of its own weights. Accuracy "
        f"changes by {100 * change:+.1f} points on the way."
    )
    data = xr.Dataset(
        {
            "error": (("seed", "scheme", "steps_per_layer"), error),
            "distance_to_network": (("seed", "scheme", "steps_per_layer"), away),
            "accuracy": (("seed", "scheme", "steps_per_layer"), accuracy),
            "agreement": (("seed", "scheme", "steps_per_layer"), agreement),
            "network_to_limit": (("seed",), limit),
            "network_accuracy": (("seed",), network),
        },
        coords={"scheme": schemes, "steps_per_layer": counts},
    )
    caption = (
        "A trained Transformer's field under other schemes and steps: left the error, right what it does to the task."
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        dataset=data,
        pictures=[Picture("discretization.png", caption, lambda: _curves(data, orders))],
    )


def _curves(data: xr.Dataset, orders: Mapping[str, Sequence[float]]) -> Any:
    schemes, counts = list(data.scheme.values), data.steps_per_layer.values
    error, accuracy, network = (data[name].values for name in ("error", "accuracy", "network_accuracy"))
    figure = Figure(figsize=(9.4, 3.8), layout="constrained")
    left, right = (axes_of(ax) for ax in figure.subplots(1, 2))
    for i, name in enumerate(schemes):
        style = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4}
        middle = np.exp(np.mean(np.log(error[:, i]), axis=0))
        left.loglog(counts, middle, label=f"{name}: order {np.mean(orders[name]):.2f}", **style)
        right.semilogx(counts, 100 * np.mean(accuracy[:, i], axis=0), label=name, **style)
    left.set_xlabel("steps per layer")
    left.set_ylabel("relative distance to the fine solution")
    right.axhline(100 * float(np.mean(network)), **NULL, label="the network itself")
    right.set_xlabel("steps per layer")
    right.set_ylabel("accuracy on held-out sequences (%)")
    for ax in (left, right):
        ax.set_xticks(counts, [str(count) for count in counts])
        ax.minorticks_off()
        legend(ax)
    return figure


_OPTIONS = {"schemes": tuple(EXPECTED), "steps_per_layer": (1, 2, 4, 8), "reference": 32}

DISCRETIZATION = experiment(
    name="discretization",
    title="Discretization",
    question="What do other schemes and steps do to a trained Transformer's field?",
    source="v2 §5, follow-up: discretization sensitivity",
    presets=presets(LISTOPS, LISTOPS_PAPER, sizes=(96, 64), options=_OPTIONS),
    measure=measure,
    judge=judge,
    pairing="shared",
)
