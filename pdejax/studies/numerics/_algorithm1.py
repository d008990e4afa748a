"""Algorithm 1 of v1 as one study, under each of the signs that v1 prints."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from pdejax import data
from pdejax._arguments import checked
from pdejax.analysis.information.trained import CLUB, AbstractInformation, BarberAgakov, InfoNCE, PaperEstimate, fit
from pdejax.data._dataset import Batch
from pdejax.plot._style import COLOURS, MARKERS
from pdejax.runs._parts import Parts
from pdejax.runs._records import Picture, Result
from pdejax.runs._table import Column, Table
from pdejax.studies.numerics._algorithm1_config import PATCHES, Algorithm1Config
from pdejax.studies.numerics._algorithm1_model import Algorithm1Model, measure_orders, stability_rows
from pdejax.studies.study import Evidence, Judgement, Study, run, settings
from pdejax.training._bottleneck import (
    InputProjection,
    bottleneck_flow,
    make_bottleneck_step,
    mean_hidden_states,
    signed_rates,
    start_estimator,
)
from pdejax.training._fit import fit as train_steps
from pdejax.training._step import Classification, TrainState, merge_model, split_model

PANELS = (
    ("parameter_norm", "‖θ‖"),
    ("information", "Ĩ(X; T), nats"),
    ("loss", "cross-entropy, nats"),
    ("accuracy", "accuracy"),
)


def training_plot(content: dict[str, Any]) -> Figure:
    """‖θ‖, Ĩ, loss and accuracy against training steps, one line per reading of the signs.

    Lines are the batches of training, averaged over neighbours; markers are held-out images.
    """
    config, results = content["config"], content["results"]
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True).ravel()
    warm = results["warmup"]
    begin = config["warmup"]
    for axis, (curve, label) in zip(axes, PANELS, strict=True):
        if warm is not None:
            axis.plot(*_smooth(warm["curves"][curve], 0), color="0.55", linewidth=1.3)
            axis.axvline(begin, color="0.4", linestyle=":", linewidth=1.0)
        for i, found in enumerate(results["runs"]):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            axis.plot(*_smooth(found["curves"][curve], begin), color=colour, linewidth=1.4, label=found["name"])
            held = found["held_out"][::2]
            places = [begin + h["step"] for h in held]
            values = [np.nan if h[curve] is None else h[curve] for h in held]
            axis.plot(places, values, color=colour, marker=marker, markersize=4, linestyle="none")
        axis.set_ylabel(label)
        axis.grid(True, which="major", color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[2:]:
        axis.set_xlabel("training step")
    axes[0].legend(fontsize=9, frameon=False)
    figure.suptitle(
        f"Algorithm 1 on digits: L = {config['layers']}, N = {config['tokens']}, d = {config['dim']}, "
        f"T = {config['time_steps']}, "
        f"η = {config['learning_rate']:g}, λ = {config['weight_decay']:g}, β = {config['beta']:g}, σ = {config['noise']:g}. "
        "Lines: training batches, running mean; markers: held-out images",
        fontsize=10,
    )
    return figure


def _smooth(values: list[float | None], begin: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps and running means over up to 9 steps."""
    y = np.asarray([np.nan if v is None else v for v in values], float)
    width = min(9, len(y))
    kernel = np.ones(width) / width
    smooth = np.convolve(y, kernel, mode="valid")
    return begin + width // 2 + 1 + np.arange(len(smooth)), smooth


CONTROL = "λ = β = 0"
ESTIMATORS = {"paper": PaperEstimate, "club": CLUB, "infonce": InfoNCE, "barber-agakov": BarberAgakov}
CURVES = ("parameter_norm", "information", "loss", "accuracy", "gradient_norm", "information_gradient_norm")
ENDS = (
    Column("signs"),
    *(Column(head, ".3g", right=True) for head in ("‖θ‖", "loss", "accuracy", "Ĩ", "InfoNCE ≤", "≤ CLUB")),
)
STEPS = (
    Column("signs"),
    Column("layer", "d", right=True),
    *(Column(head, ".3g", right=True) for head in ("v1 (21) ≤ 1", "corrected Δt", "eigenvalues Δt")),
)


@checked
def algorithm1(config: Algorithm1Config | None = None, *, report: Callable[[str], None] | None = None) -> Result:
    r"""Run Algorithm 1 in float64, without touching the caller's precision setting.

    Read literally, its time loop advances u and θ by the same index, so that θ changes before f_θ(x) is known; we solve the
    field over its T steps for a mini-batch (lines 7–29), then update φ and θ once (lines 30–33), and repeat. Then lines
    36–38. `report(text)` is told what is being done. With `config.out`, `algorithm1.json` and `algorithm1.png` are written,
    and an interrupted study goes on from its finished runs.

    `results` has `warmup` and `runs` (name, signs, curves per step, held-out loss and accuracy, bounds, stability), `orders`.

    Raises `ValueError` for a configuration that cannot be run, `ResultError` for a folder that cannot be written.
    """
    config = Algorithm1Config() if config is None else config
    return run(ALGORITHM1, config, out=config.out, report=report)


def measure(config: Algorithm1Config, seed: int, parts: Parts) -> Evidence:
    """Train under each reading of the signs from the same parameters, run by run."""
    del seed  # the configuration's own
    return _Runs(config, parts.say).run(parts)


def judge(config: Algorithm1Config, evidence: Sequence[Evidence]) -> Judgement:
    """Answer from the curves: what grows and what falls under each reading of the signs."""
    [results] = evidence
    runs, answers = results["runs"], verdicts(config, results)
    content = {"config": settings(config), "results": results}
    limits = [
        (found["name"], *(row[key] for key in ("layer", "v1_21", "corrected_dt", "dt_eigenvalues")))
        for found in runs
        for row in (found["end"] or found["start"])["stability"]
    ]
    lost = [found["name"] for found in runs if found["diverged"] is not None]
    return Judgement(
        sentence=answers.get("C9", "") or (f"diverged: {', '.join(lost)}" if lost else "every run ended"),
        verdicts=answers,
        passed=len(lost) < len(runs),
        tables=(
            Table(ENDS, [_end(found) for found in runs], "At the end"),
            Table(STEPS, limits, f"Steps (Δt = {config.dt:g})"),
        ),
        results=results,
        pictures=(
            Picture(
                "algorithm1.png",
                "‖θ‖, Ĩ, loss and accuracy against training steps: lines are batches, markers held-out images.",
                lambda: training_plot(content),
            ),
        ),
    )


def _end(found: Mapping[str, Any]) -> tuple[Any, ...]:
    """One run's end as a line of the table."""
    end = found["end"]
    if end is None:
        return f"{found['name']} (diverged at step {found['diverged']})", *[None] * 6
    bounds = end.get("bounds") or {}
    values = (end[key] for key in ("parameter_norm", "loss", "accuracy", "information"))
    return found["name"], *values, bounds.get("lower"), bounds.get("upper")


class _Runs:
    """The data, the model and the estimator, and the runs on them."""

    def __init__(self, config: Algorithm1Config, say: Callable[[str], None]):
        self.config, self.say = config, say
        keys = jax.random.split(jax.random.key(config.seed), 4)
        options = {"form": "patches", "patch": PATCHES[config.tokens]}
        train, test = (data.load("digits", split, **options) for split in ("train", "test"))
        # Pixels in units of their spread over the training images.
        centre, scale = float(np.mean(train.inputs)), float(np.std(train.inputs))
        self.train, self.test = (_batch(d, centre, scale) for d in (train, test))
        if config.batch > len(self.train.labels):
            raise ValueError(f"batch={config.batch} must be at most {len(self.train.labels)}, the images to train on.")
        features = self.train.inputs.shape[-1]
        self.model = Algorithm1Model(config, features=features, classes=10, key=keys[0])
        projection = InputProjection(config.x_dim, length=config.tokens, features=features, key=keys[1])
        centre, scale = (f(np.asarray(projection(self.train)), axis=0, keepdims=True) for f in (np.mean, np.std))

        def summary(batch: Batch):
            return (projection(batch) - centre) / scale

        self.summary, self.task = summary, Classification()
        self.params, self.static = split_model(self.model)
        maker = ESTIMATORS[config.estimator]
        self.estimator: AbstractInformation = maker(config.x_dim, config.dim, 32, key=keys[2])
        self.fitting, self.key = optax.adam(5e-3), keys[3]
        make = optax.inject_hyperparams(bottleneck_flow, static_args=("signs", "dt", "optimizer"))
        self.flow = make(learning_rate=config.learning_rate, weight_decay=config.weight_decay, beta=config.beta)
        self.step = make_bottleneck_step(
            self.task,
            self.flow,
            self.static,
            self.estimator,
            noise=config.noise,
            estimator_optimizer=self.fitting,
            summary=self.summary,
            estimator_updates=config.updates,
        )

        rest = eqx.filter(self.estimator, eqx.is_inexact_array, inverse=True)

        @jax.jit
        def evaluate(params, extra):
            loss, metrics = self.task.loss(merge_model(params, self.static), self.test, self.key)
            found = {"loss": loss, "accuracy": metrics["accuracy"], "parameter_norm": optax.tree.norm(params)}
            # Always with the same noise, so that values differ by what was learned.
            x, t = represent(params, self.test, self.key)
            return found | {"information": eqx.combine(extra.params, rest).estimate(x, t, self.key).value}

        @jax.jit
        def represent(params, batch, key):
            t = mean_hidden_states(merge_model(params, self.static), batch)[:, -1]
            return summary(batch), t + config.noise * jax.random.normal(key, t.shape, t.dtype)

        self.evaluate, self.represent = evaluate, represent

    def run(self, parts: Parts) -> dict[str, Any]:
        config = self.config
        state = TrainState(
            jnp.zeros((), jnp.int32), self.params, None, self.key, start_estimator(self.estimator, self.fitting)
        )
        results: dict[str, Any] = {}
        start = self.describe(state)
        results["warmup"] = None
        if config.warmup:
            state, found = self.phase(state, "warm-up", CONTROL, config.warmup, start)
            results["warmup"] = found
            if found["diverged"]:
                raise ValueError(
                    f"learning_rate={config.learning_rate:g}: the warm-up diverges at step {found['diverged']}. "
                    "Take a smaller η or Δt."
                )
            start = found["end"]
        results["runs"] = []
        for number, name in enumerate((*config.signs, CONTROL)):

            def trained(name=name):
                return self.phase(state, name, name, config.training_steps, start)[1]

            results["runs"].append(parts.get(f"run-{number}", trained))
        if config.refine:
            model = merge_model(state.params, self.static)

            def orders():
                self.say("orders in Δt and Δx")
                return measure_orders(config, model, self.test.inputs[0])

            results["orders"] = parts.get("orders", orders)
        return results

    def phase(
        self, state: TrainState, name: str, signs: str, steps: int, start: dict[str, Any]
    ) -> tuple[TrainState, dict[str, Any]]:
        """`steps` of training from a copy of `state`, ended early where the loss is lost."""
        config = self.config
        self.say(f"{name}: {steps} steps")
        state = jax.tree.map(jnp.copy, state)
        # The signs are those of the rates, which are part of the optimizer's state: one program for all flows.
        opt_state: Any = self.flow.init(state.params)
        rates = config.learning_rate, 0.0, 0.0
        if signs != CONTROL:
            rates = signed_rates(signs, config.learning_rate, config.weight_decay, config.beta)
        names = ("learning_rate", "weight_decay", "beta")
        hyperparams = {k: jnp.full_like(opt_state.hyperparams[k], v) for k, v in zip(names, rates, strict=True)}
        state = state._replace(opt_state=opt_state._replace(hyperparams=hyperparams))
        curves: dict[str, list[float]] = {key: [] for key in CURVES}
        held: list[dict[str, float]] = []
        lost: list[int] = []
        first, every = int(state.step), max(1, steps // 20)

        def note(n: int, state: TrainState, metrics: Any) -> None:
            n -= first
            for key in CURVES:
                curves[key].append(float(metrics[key]))
            if not all(math.isfinite(curves[key][-1]) for key in ("loss", "parameter_norm", "information")):
                lost.append(n)
            elif n % every == 0 or n == steps:
                found = self.evaluate(state.params, state.extra)
                held.append({"step": n, **{key: float(value) for key, value in found.items()}})

        state = train_steps(
            state,
            self.step,
            self.batches(first),
            steps=first + steps,
            save_every=steps,
            progress=False,
            report=lambda text: None,
            on_step=note,
            stop=lambda: bool(lost),
        ).state
        diverged = lost[0] if lost else None
        end = None if diverged else self.describe(state)
        record = {
            "name": name,
            "signs": signs,
            "curves": curves,
            "held_out": held,
            "diverged": diverged,
            "start": start,
            "end": end,
        }
        return state, record

    def batches(self, step: int) -> Iterator[Batch]:
        """Images to train on in a random order, anew when too few are left, from this step on."""
        rng = np.random.default_rng([self.config.seed, step])
        order = np.zeros(0, int)
        while True:
            if len(order) < self.config.batch:
                order = rng.permutation(len(self.train.labels))
            rows, order = order[: self.config.batch], order[self.config.batch :]
            yield Batch(*(part[rows] for part in self.train))

    def describe(self, state: TrainState) -> dict[str, Any]:
        """‖θ‖, held-out loss, accuracy and Ĩ, bounds of I, and the stability of the field with these parameters."""
        found: dict[str, Any] = {key: float(v) for key, v in self.evaluate(state.params, state.extra).items()}
        found["stability"] = stability_rows(merge_model(state.params, self.static), self.test.inputs[0])
        if self.config.bounds:
            found["bounds"] = self.bounds(state.params)
        return found

    def bounds(self, params) -> dict[str, float]:
        """InfoNCE from below and CLUB from above, fitted to the training images and taken on the held-out ones."""
        keys = jax.random.split(self.key, 6)
        x, t = self.represent(params, self.train, keys[0])
        y, s = self.represent(params, self.test, keys[1])
        if not bool(jnp.all(jnp.isfinite(t))):
            return {"lower": math.nan, "upper": math.nan, "limit": math.nan, "saturated": False}
        # T in units of its spread, for the networks' sake: information does not depend on the unit.
        centre, scale = jnp.mean(t, axis=0, keepdims=True), jnp.std(t, axis=0, keepdims=True)
        t, s = (t - centre) / scale, (s - centre) / scale
        dims = self.config.x_dim, self.config.dim
        low, _ = fit(InfoNCE(*dims, 32, key=keys[2]), x, t, key=keys[3], steps=400)
        high, _ = fit(CLUB(*dims, 32, key=keys[4]), x, t, key=keys[5], steps=400)
        lower, upper = _estimate(low, y, s), _estimate(high, y, s)
        return {
            "lower": float(lower.value),
            "upper": float(upper.value),
            "limit": float(lower.limit),
            "saturated": bool(lower.saturated),
        }


@eqx.filter_jit
def _estimate(estimator: AbstractInformation, x, t):
    return estimator.estimate(x, t)


def _batch(dataset: data.Dataset, centre: float, scale: float) -> Batch:
    values = jnp.asarray((np.asarray(dataset.inputs, np.float64) - centre) / scale)
    mask = jnp.asarray(np.asarray(dataset.mask, bool))
    return Batch(values, mask, jnp.asarray(np.asarray(dataset.labels, np.int32)))


def verdicts(config: Algorithm1Config, results: Mapping[str, Any]) -> dict[str, str]:
    """Say in words what the numbers say."""
    answers: dict[str, str] = {}
    shown: dict[str, bool | None] = {}
    # What training does without λ and β is not their doing: every run is held against it, and against its own start.
    control = next(one for one in results["runs"] if one["name"] == CONTROL)
    plain_norm, plain_information = _change(control, "parameter_norm"), _change(control, "information")
    for one in results["runs"]:
        norm = _change(one, "parameter_norm")
        information = _change(one, "information")
        if one["diverged"]:
            answers[one["name"]] = (
                f"diverges at step {one['diverged']}: ‖θ‖ {_arrow(norm)}, Ĩ {_arrow(information)} nats"
            )
        else:
            end = one["end"]
            answers[one["name"]] = (
                f"‖θ‖ {_arrow(norm)}, Ĩ {_arrow(information)} nats, held-out accuracy {end['accuracy']:.1%}"
                + (f", {end['bounds']['lower']:.2f} ≤ I ≤ {end['bounds']['upper']:.2f}" if "bounds" in end else "")
            )
        grows, rises = norm[1] > norm[0], information[1] > information[0]
        bigger, richer = norm[1] > plain_norm[1], information[1] > plain_information[1]
        shown[one["name"]] = {
            "v1 (14)": not (grows or rises or bigger or richer),
            "v1 (3)": grows and bigger,
            "algorithm 1": rises and richer,
        }.get(one["name"])
    expected = [name for name in config.signs if shown[name] is not None]
    if len(expected) == 3:
        words = {
            "v1 (14)": "(14) compresses: ‖θ‖ and Ĩ fall",
            "v1 (3)": "(3) expands: ‖θ‖ grows",
            "algorithm 1": "line 33 expands: Ĩ grows",
        }
        parts = [words[name] if shown[name] else f"not seen: {words[name]}" for name in expected]
        answers["C9"] = ("contradict each other: " if all(shown[n] for n in expected) else "") + "; ".join(parts)
    if "orders" in results:
        t, x = results["orders"]["time"], results["orders"]["space"]
        answers["v1 (24)"] = f"order {t['order']:.2f} in Δt (Euler: 1), {x['order']:.2f} in Δx (second differences: 2)"
    failed = {}
    for one in results["runs"]:
        rows = (one["end"] or one["start"])["stability"]
        failed[one["name"]] = max(row["v1_21"] for row in rows), min(row["corrected_dt"] for row in rows), rows[0]
    answers["v1 (21)"] = "; ".join(
        f"{name}: {left:.2f} {'≤' if left <= 1 else '>'} 1 with Δt = {config.dt:g}, "
        f"{f'sufficient Δt ≤ {bound:.2g}' if bound > 0 else 'no Δt certified (G > 0 and no leak)'}, "
        f"eigenvalues {'not found' if row['dt_eigenvalues'] is None else format(row['dt_eigenvalues'], '.2g')}"
        for name, (left, bound, row) in failed.items()
    )
    return answers


def _change(run: dict[str, Any], key: str) -> tuple[float, float]:
    """Means over the first tenth and the last fifth of the steps: single batches scatter too much."""
    values = np.asarray([v for v in run["curves"][key] if v is not None and math.isfinite(v)] or [math.nan])
    first, last = (max(1, len(values) // part) for part in (10, 5))
    return float(values[:first].mean()), float(values[-last:].mean())


def _arrow(change: tuple[float, float]) -> str:
    return f"{change[0]:.3g} → {change[1]:.3g}"


ALGORITHM1 = Study(
    name="algorithm1",
    title="Algorithm 1 under each of the signs that v1 prints",
    question="Which of v1's signs compress the representation, and do its stability and error statements hold on the way?",
    source="v1 Algorithm 1",
    measure=measure,
    judge=judge,
)
