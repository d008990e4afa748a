"""Does the network converge to a flow as its layers are refined (v2 Thm 3.2, by the convergence study), and what does another
scheme or step do to a trained Transformer, whose field keeps its weights while only h changes?
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from matplotlib.figure import Figure as Drawing

from pdejax._figure import Figure
from pdejax.analysis import fit_order
from pdejax.analysis.limits._exponents import ROUNDING
from pdejax.analysis.numerics._fit import order_over_seeds
from pdejax.models import observe, pair
from pdejax.plot._style import COLOURS, MARKERS, NULL, axes_of, legend
from pdejax.runs._records import Picture, Row
from pdejax.studies.numerics._convergence import convergence
from pdejax.studies.numerics._convergence_config import ConvergenceConfig
from pdejax.studies.papers._experiment import (
    LISTOPS,
    LISTOPS_PAPER,
    LISTOPS_STANDARD,
    RATIO,
    SHARE,
    Models,
    Settings,
    experiment,
    held_out,
    over,
    presets,
    row,
    shown,
    signed,
    spread,
    stacked,
)
from pdejax.studies.papers._pairs import legend_beside
from pdejax.studies.study import Evidence, Judgement, high, low

TOLERANCE = 0.25  # half-width of an interval above which it tells no order
SCHEMES = ("euler", "lietrotter", "heun", "strang", "rk4")


class Order(NamedTuple):
    """A fitted order: its `figure` over seeds, whose interval holds the bias of the fits, and that of each of the `seeds`."""

    figure: Figure
    seeds: tuple[float, ...]


def measure_continuum(settings: Settings, seed: int, models: Models) -> Evidence:
    """Errors and fitted orders of each scheme, the bound v2 (12) over the error, and the distance of the network."""
    config = ConvergenceConfig(seed=seed, spatial=(), solvers=SCHEMES, **settings.options)
    found = convergence(config, report=models.report)
    orders = found.results["orders"]
    data = found.to_xarray()
    regimes = {regime["family"]: regime["exponent"] for regime in found.results["regimes"]}
    return {
        "order": np.asarray([r["order"] for r in orders], float),
        "expected": np.asarray([r["expected"] for r in orders], float),
        "steps": np.asarray(data.steps.values, float),
        "error": np.asarray(data["errors"].values, float),
        "bound": np.asarray(data["v2_12_bounds"].values, float),
        # Exponent of L in the spread between draws of independent layers, at residual scale 1/L and 1/√L.
        "iid": np.asarray([regimes["iid 1/L"], regimes["iid 1/sqrt(L)"]], float),
    }


def judge_continuum(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Orders beside those of theory; the bound's least ratio to the error. An order that is missed or an error above the bound is
    a fault of ours: the study does not pass."""
    order, error, bound = (stacked(measured, name) for name in ("order", "error", "bound"))
    expected, steps = np.asarray(measured[0]["expected"]), np.asarray(measured[0]["steps"])
    orders = orders_of(steps, error, SCHEMES, order)
    rows = [
        order_row(
            name,
            order,
            float(expected[i]),
            paper="1 (Thm 3.2)" if name in ("euler", "lietrotter") else None,
            note=", for weights smooth in depth",
        )
        for i, (name, order) in enumerate(orders.items())
    ]
    ratio = np.nanmin((bound / error)[:, 0], axis=1)
    rows.append(
        row(
            "least bound v2 (12) / error, Euler",
            ratio,
            paper="≥ 1",
            note="below 1 the bound would be violated",
            within=RATIO,
        )
    )
    iid = stacked(measured, "iid")
    note = "no ODE limit along a path; arXiv:2205.14612, arXiv:2206.06929"
    rows.append(
        row("independent layers, scale 1/L: exponent of L in the spread of draws", iid[:, 0], note="theory: −1/2")
    )
    rows.append(row("independent layers, scale 1/√L: the same exponent", iid[:, 1], note=f"theory: 0; {note}"))
    near, said = orders_said(orders, expected)
    kept = bool(np.all(ratio >= 1))
    verdict = (
        f"{'Depth-smooth weights have a continuum limit' if near else 'Whether there is a continuum limit is not shown'}: "
        f"{said} (Euler {shown(orders['euler'].figure, 3)}, RK4 {shown(orders['rk4'].figure, 3)}); the bound v2 (12) was "
        f"{'never violated' if kept else 'VIOLATED'}."
    )
    data = xr.Dataset(
        {
            "order": (("seed", "scheme"), order),
            "error": (("seed", "scheme", "steps"), error),
            "bound": (("seed", "scheme", "steps"), bound),
            "iid_exponent": (("seed", "scale"), iid),
            "expected": (("scheme",), expected),
        },
        coords={"scheme": list(SCHEMES), "steps": steps, "scale": ["1/L", "1/sqrt(L)"]},
    )
    caption = (
        "Errors against the number of steps (geometric mean over seeds, thin the seeds), with fitted orders and their intervals, "
        "and the bound v2 (12)."
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        passed=near and kept,
        dataset=data,
        pictures=[Picture("continuum.png", caption, lambda: _order_curves(data, orders))],
    )


def orders_of(
    steps: Sequence[Any] | np.ndarray, errors: np.ndarray, schemes: Sequence[str], known: np.ndarray | None = None
) -> dict[str, Order]:
    """Fit each scheme's order to each seed's errors `(seeds, schemes, steps)` at these numbers of steps. `known`: orders
    fitted when measured `(seeds, schemes)`, with the floor of that solution, of which only the half-widths are lacking; where
    the fit here is another, its distance is part of them."""
    h = [1 / float(count) for count in steps]
    found = {}
    for i, name in enumerate(schemes):
        fits = [fit_order(h, e) for e in errors[:, i]]
        if known is not None:
            fits = [
                dataclasses.replace(fit, order=float(p), ci=max(fit.ci, abs(fit.order - float(p))))
                for fit, p in zip(fits, known[:, i], strict=True)
            ]
        found[name] = Order(order_over_seeds(fits, average=over), tuple(fit.order for fit in fits))
    return found


def order_row(name: str, order: Order, expected: float, paper: str | None = None, note: str = "") -> Row:
    """The line of a scheme's order: its interval over seeds is widened by the half-widths of the fits."""
    note = f"theory: {expected:g}{note}; extrapolated to small steps, the interval holds the bias of the fits"
    return Row(f"order of {name}", order.figure, order.seeds, paper=paper, note=note)


def orders_said(orders: Mapping[str, Order], expected: Sequence[Any] | np.ndarray) -> tuple[bool, str]:
    """Whether the orders of all schemes are those of theory: each interval holds it, and no wider than `TOLERANCE` to either
    side, so that it could tell another order; and of how many."""
    theory = dict(zip(orders, map(float, expected), strict=True))
    missed, wide = [], []
    for name, order in orders.items():
        figure = order.figure
        if not low(figure) - ROUNDING <= theory[name] <= high(figure) + ROUNDING:
            ends = Figure(figure.value - theory[name], figure.low - theory[name], figure.high - theory[name])
            missed.append(f"{name} {signed(ends)}")
        elif high(figure) - low(figure) > 2 * TOLERANCE:
            wide.append(name)
    held = len(orders) - len(missed)
    said = f"the {spread(len(next(iter(orders.values())).seeds))}, the bias of the fits included, holds the order of theory "
    said += f"for {held} of {len(orders)} schemes" + (f", missed by {', '.join(missed)}" if missed else "")
    return not missed and not wide, said + (f", too wide to tell for {', '.join(wide)}" if wide else "")


def _order_curves(data: xr.Dataset, orders: Mapping[str, Order]) -> Any:
    steps, error, bound = (data[name].values for name in ("steps", "error", "bound"))
    ax = axes_of(None, width=7.0)
    for i, name in enumerate(SCHEMES):
        middle = np.exp(np.mean(np.log(error[:, i]), axis=0))
        label = f"{name}: order {shown(orders[name].figure)}"
        for own in error[:, i]:
            ax.loglog(steps, own, color=COLOURS[i], linewidth=0.5, alpha=0.4)
        ax.loglog(steps, middle, color=COLOURS[i], marker=MARKERS[i], markersize=4, label=label)
    ax.loglog(steps, np.exp(np.mean(np.log(bound[:, 0]), axis=0)), "k:", linewidth=1.2, label="bound v2 (12), Euler")
    ax.set_xlabel("steps over the whole depth")
    ax.set_ylabel("relative error at the end")
    ax.set_xticks(steps, [f"{n:g}" for n in steps])
    ax.minorticks_off()
    legend(ax, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax.figure


_SMALL = {"steps": (8, 16, 32, 64), "regimes": (8, 32), "draws": 6, "length": 24, "dim": 16}

CONTINUUM = experiment(
    name="continuum",
    title="Continuum limit",
    question="Does the network converge to a flow as layers are refined, at the order of its scheme?",
    source="v2 Thm 3.2, (10), (12); v1 (24)",
    presets={
        "quick": Settings(options=_SMALL),
        "standard": Settings(options=_SMALL, seeds=5),
        "paper": Settings(options={"length": 128, "dim": 128}, seeds=5),
    },
    measure=measure_continuum,
    judge=judge_continuum,
    pairing="shared",
)


EXPECTED = {"euler": 1.0, "lietrotter": 1.0, "heun": 2.0, "strang": 2.0, "rk4": 4.0}


def measure_refined(settings: Settings, seed: int, models: Models) -> Evidence:
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
            model = pair(network, "shared", steps=network.architecture.depth * per_layer, solver=scheme)
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


def judge_refined(settings: Settings, measured: Sequence[Evidence]) -> Judgement:
    """Orders extrapolated to small steps, and what refinement does to accuracy. It passes where the orders are those of theory;
    how far the limit is from the network is a finding."""
    schemes, counts = list(settings.options["schemes"]), list(settings.options["steps_per_layer"])
    error, away, accuracy, agreement = (stacked(measured, n) for n in ("error", "away", "accuracy", "agreement"))
    limit, network = stacked(measured, "network_to_limit"), stacked(measured, "network_accuracy")
    orders = orders_of(counts, error, schemes)
    rows = [order_row(name, order, EXPECTED[name]) for name, order in orders.items()]
    rows.append(row("distance of the network from its limit h → 0", limit, note="relative, last layer"))
    rows.append(row("accuracy of the network", network, within=SHARE))
    best = schemes.index("rk4") if "rk4" in schemes else 0
    finest = f"accuracy at {counts[-1]} steps per layer ({schemes[best]})"
    rows.append(row(finest, accuracy[:, best, -1], note="the same weights", within=SHARE))
    rows.append(row("predictions that stay the same there", agreement[:, best, -1], within=SHARE))
    near, ordered = orders_said(orders, [EXPECTED[name] for name in schemes])
    change = over(100 * (accuracy[:, best, -1] - network))
    apart = over(limit)
    close = (
        "is close to" if high(apart) < 0.05 else "is no approximation of" if low(apart) > 0.05 else "may be close to"
    )
    verdict = (
        f"Refining the step {'converges' if near else 'is not shown to converge'} ({ordered}) to a flow that is "
        f"{shown(over(100 * limit), 0)} % away from the network: the trained Transformer {close} the flow of its own weights. "
        f"Accuracy changes by {signed(change)} points on the way ({spread(len(measured))})."
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
        "A trained Transformer's field under other schemes and steps: left the error, with fitted orders and their intervals, "
        "right what it does to the task; means over seeds, thin the seeds."
    )
    return Judgement(
        rows=rows,
        sentence=verdict,
        passed=near,
        dataset=data,
        pictures=[Picture("discretization.png", caption, lambda: _refined_curves(data, orders))],
    )


def _refined_curves(data: xr.Dataset, orders: Mapping[str, Order]) -> Any:
    schemes, counts = list(data.scheme.values), data.steps_per_layer.values
    error, accuracy, network = (data[name].values for name in ("error", "accuracy", "network_accuracy"))
    figure = Drawing(figsize=(9.4, 3.8), layout="constrained")
    left, right = (axes_of(ax) for ax in figure.subplots(1, 2))
    for i, name in enumerate(schemes):
        style = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4}
        middle = np.exp(np.mean(np.log(error[:, i]), axis=0))
        left.loglog(counts, middle, label=f"{name}: order {shown(orders[name].figure)}", **style)
        right.semilogx(counts, 100 * np.mean(accuracy[:, i], axis=0), **style)
        for e, a in zip(error[:, i], accuracy[:, i], strict=True):
            left.loglog(counts, e, color=COLOURS[i], linewidth=0.5, alpha=0.4)
            right.semilogx(counts, 100 * a, color=COLOURS[i], linewidth=0.5, alpha=0.4)
    left.set_xlabel("steps per layer")
    left.set_ylabel("relative distance to the fine solution")
    right.axhline(100 * float(np.mean(network)), **NULL, label="the network itself")
    right.set_xlabel("steps per layer")
    right.set_ylabel("accuracy on held-out sequences (%)")
    for ax in (left, right):
        ax.set_xticks(counts, [str(count) for count in counts])
        ax.minorticks_off()
    legend_beside(figure)
    return figure


_OPTIONS = {"schemes": tuple(EXPECTED), "steps_per_layer": (1, 2, 4, 8), "reference": 32}

DISCRETIZATION = experiment(
    name="discretization",
    title="Discretization",
    question="What do other schemes and steps do to a trained Transformer's field?",
    source="v2 §5, follow-up: discretization sensitivity",
    presets=presets(LISTOPS, LISTOPS_STANDARD, LISTOPS_PAPER, sizes=(96, 96, 64), options=_OPTIONS),
    measure=measure_refined,
    judge=judge_refined,
    pairing="shared",
)
