"""What is measured of a loop, input by input: arrays of numbers."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax.analysis.loops import (
    Loop,
    cheap_radii,
    classify_loop,
    exit_scores,
    loop_eigenvalues,
    loop_exponents,
    loop_of,
    predict_change,
    sublayer_gains,
)
from pdejax.analysis.loops._estimates import LARGEST, NORM, ONE, POWER, PRODUCT, RATIO
from pdejax.analysis.loops._exits import COSINE, DIVERGENCE, NO_ANSWER, RATE, RELATIVE, STEP
from pdejax.analysis.loops._kinds import KINDS
from pdejax.models import Simulator, Transformer
from pdejax.runs._parts import Parts
from pdejax.studies.audit._config import AuditConfig
from pdejax.studies.audit._subject import is_training, load_subject, name_of, trained_batch
from pdejax.studies.loops._config import LoopsConfig
from pdejax.studies.study import Evidence
from pdejax.training._kept import saved_model

_OWNER = "loops"
SCORES = (STEP, RELATIVE, COSINE, RATE, DIVERGENCE)
ESTIMATES = (ONE, POWER, LARGEST, NORM, PRODUCT, RATIO)


class Subject(eqx.Module):
    """A network or a model, its inputs and masks `(b, n)`, and labels where there is something to predict."""

    system: Any
    inputs: tuple[Any, ...]
    mask: Array
    labels: Any
    task: str = eqx.field(static=True)
    data: str = eqx.field(static=True)

    def loop(self, i: int) -> Loop:
        """That of input i, in float64."""
        return loop_of(self.system, jnp.asarray(self.inputs[i]), mask=self.mask[i]).astype("float64")


def load(config: LoopsConfig) -> Subject:
    """Read the network and its inputs. Raises `ValueError`, naming the option, for what does not fit."""
    names = ("network", "text", "images", "dataset", "sequences", "length", "seed")
    audit = AuditConfig(**{name: getattr(config, name) for name in names})
    try:
        if not is_training(config.network) or config.text is not None or config.images is not None:
            found = load_subject(audit)
            return Subject(found.network, found.inputs, found.mask, found.labels, found.task, found.data)
        kept = saved_model(_OWNER, "network", config.network)
        if not isinstance(kept.model, Transformer | Simulator):
            raise ValueError(
                f"{_OWNER}: network={config.network!r} holds a {type(kept.model).__name__}; give a Transformer or a Simulator."
            )
        inputs, mask, labels, task, data = trained_batch(audit, kept)
    except (TypeError, ValueError, FileNotFoundError) as error:
        raise type(error)(str(error).replace("audit:", f"{_OWNER}:", 1)) from None
    model = kept.model.astype("float64") if isinstance(kept.model, Transformer) else kept.model
    return Subject(model, tuple(inputs), mask, labels, task, data)


def measure(config: LoopsConfig, seed: int, parts: Parts) -> Evidence:
    """Measure every input for itself."""
    subject = load(config)
    facts = parts.get("subject", lambda: _facts(config, subject))
    key = jax.random.key(seed)
    found = []
    for i in range(len(subject.inputs)):
        parts.say(f"input {i + 1} of {len(subject.inputs)}")
        found.append(
            parts.arrays(f"input-{i}", lambda i=i: one_input(config, subject, facts, i, jax.random.fold_in(key, i)))
        )
    return {"subject": facts, "inputs": found}


def _facts(config: LoopsConfig, subject: Subject) -> dict[str, Any]:
    loop = subject.loop(0)
    trained = config.trained or loop.trained
    assert trained is not None
    if trained >= config.loops:
        raise ValueError(
            f"{_OWNER}: loops={config.loops} must be more than the {trained} passes it counts from; follow more."
        )
    answers = False
    if loop.read is not None:
        out = eqx.filter_eval_shape(loop.read, loop.start)
        answers = out.shape != loop.start.shape
    return {
        "name": name_of(config.network),
        "loop": repr(loop),
        "trained": trained,
        "sub-layers": list(loop.names),
        "answers": answers,
        "labels": subject.labels is not None,
        "task": subject.task,
        "data": subject.data,
        "tokens": [int(x) for x in np.asarray(subject.mask).sum(axis=1)],
        "features": int(loop.start.shape[-1]),
    }


def one_input(config: LoopsConfig, subject: Subject, facts: Any, i: int, key: Any) -> dict[str, Any]:
    """Every number of one input. What there is not is NaN, or has no entries."""
    loop, trained = subject.loop(i), facts["trained"]
    one, two, three = jax.random.split(key, 3)
    states = loop.states(config.loops)
    behaviour = classify_loop(loop, loops=config.loops, periods=config.periods, count=config.eigenvalues, key=one)
    point, spectrum = behaviour.point, behaviour.spectrum
    k = min(config.exponents, int(np.sum(np.asarray(subject.mask[i]))) * facts["features"])
    exponents = np.full(k, np.nan)
    if np.isfinite(float(behaviour.norms[-1])):
        exponents = np.asarray(
            loop_exponents(loop, k=k, loops=config.loops, discard=config.loops // 2, key=two).exponents
        )
    found: dict[str, Any] = {
        "kind": KINDS.index(behaviour.kind),
        "period": behaviour.period,
        "rate": behaviour.rate,
        "growth": behaviour.growth,
        "exponent": float(behaviour.exponent),
        "exponent low": float(behaviour.exponent.low),
        "exponent high": float(behaviour.exponent.high),
        "exponents": exponents,
        "relative": math.nan if point is None else point.relative,
        "newton": 0 if point is None else point.steps,
        "norms": behaviour.norms,
        "steps": behaviour.steps,
        **_pairs("point", spectrum, config.eigenvalues),
    }
    if point is not None:
        # Whether inputs share their point: sequences of different lengths have the mean token in common.
        found["mean token"] = np.asarray(point.state)[np.asarray(subject.mask[i])].mean(axis=0)
    if facts["task"] == "classification" and facts["labels"]:
        found["label"] = int(subject.labels[i])
    found |= _exits(loop, states, behaviour, facts, subject.mask[i])
    there = states[trained]
    if bool(jnp.all(jnp.isfinite(there))):
        found |= _derivatives(config, loop, there, behaviour, i, three, facts)
    return found


def _pairs(name: str, spectrum: Any, count: int) -> dict[str, np.ndarray]:
    values, residuals = np.full(count, np.nan, complex), np.full(count, np.nan)
    if spectrum is not None:
        kept = min(count, len(spectrum.values))
        values[:kept], residuals[:kept] = spectrum.values[:kept], spectrum.residuals[:kept]
    return {f"{name} real": np.real(values), f"{name} imaginary": np.imag(values), f"{name} residual": residuals}


def _exits(loop: Any, states: Any, behaviour: Any, facts: Any, mask: Any) -> dict[str, Any]:
    """Criteria after every pass, the distance to the point, and what is answered."""
    found: dict[str, Any] = {}
    scores = exit_scores(np.asarray(states), mask=mask)
    if behaviour.kind == "fixed point":
        real = np.asarray(mask)
        target = np.asarray(behaviour.point.state)[real]
        size = max(float(np.linalg.norm(target)), 1e-300)
        away = (np.asarray(states)[:, real] - target).reshape(len(states), -1)
        found["distance"] = np.linalg.norm(away, axis=1) / size
    if facts["answers"]:
        answers, moved, beside = read_states(loop, states, facts["trained"])
        real = np.asarray(mask)
        per_token = answers.ndim > 1

        def mean(x):
            return x[:, real].mean(axis=1) if per_token else x

        scores[DIVERGENCE] = mean(np.asarray(moved))[1:]
        found |= {
            "answers": np.where(real, answers, -1) if per_token else answers,
            "divergence": mean(np.asarray(beside)),
        }
    return found | {f"score {name}": value for name, value in scores.items()}


def read_states(loop: Loop, states: Array, trained: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers, KL(p_{k−1} ‖ p_k) and KL(p_trained ‖ p_k) after every pass, token by token where answers are."""
    return tuple(np.asarray(x) for x in _read_states(loop, states, jnp.asarray(trained)))  # pyright: ignore[reportReturnType]


@eqx.filter_jit
def _read_states(loop: Loop, states: Array, trained: Array) -> tuple[Array, Array, Array]:
    assert loop.read is not None

    read = loop.read

    def logs(u):
        return jax.nn.log_softmax(read(u), axis=-1)

    def apart(p, q):
        return jnp.sum(jnp.exp(p) * (p - q), axis=-1)

    reference = logs(states[trained])

    # State by state: of a large vocabulary the logits of all would not fit.
    def step(before, u):
        now = logs(u)
        answer = jnp.where(jnp.all(jnp.isfinite(now), axis=-1), jnp.argmax(now, axis=-1), NO_ANSWER)
        return now, (answer, apart(before, now), apart(reference, now))

    return jax.lax.scan(step, logs(states[0]), states)[1]


def _derivatives(
    config: LoopsConfig, loop: Loop, there: Array, behaviour: Any, i: int, key: Any, facts: Any
) -> dict[str, Any]:
    """The spectrum after the trained passes, what it foresees, and for the first inputs sub-layers and cheap estimates."""
    spectrum = loop_eigenvalues(loop, there, count=config.eigenvalues)
    found: dict[str, Any] = _pairs("trained", spectrum, config.eigenvalues)
    if facts["answers"]:
        change = predict_change(loop, there, horizon=config.horizon)
        found |= {"foreseen": change.loops, "changed": change.measured}
    if i >= config.derivatives:
        return found
    # Where the loop comes to rest, else where training left it.
    at, beside = (there, spectrum)
    if behaviour.kind == "fixed point":
        at, beside = behaviour.point.state, behaviour.spectrum
    gains = sublayer_gains(loop, at, spectrum=beside)
    cheap = cheap_radii(loop, at, key=key, draws=config.draws, spectrum=beside, gains=gains)
    wrong = cheap.wrong_side()
    nothing = (math.nan, math.nan, math.nan, math.nan)
    rows = [
        (float(f.value), float(f.low), float(f.high), wrong[name])
        if (f := cheap.estimates.get(name)) is not None
        else nothing
        for name in ESTIMATES
    ]
    return found | {
        "radius": cheap.radius,
        "radius converged": float(beside.converged),
        "estimates": np.asarray(rows),
        "sub-layer norms": gains.norms,
        "sub-layer gains": gains.gains,
        "at point": float(behaviour.kind == "fixed point"),
    }
