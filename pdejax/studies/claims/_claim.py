"""What a claim is, how it is measured and judged; and the tiny flows and trained networks that claims are measured on."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, PyTree

from pdejax._bootstrap import over_seeds
from pdejax._figure import Figure
from pdejax.data import Dataset, load
from pdejax.models import Architecture, Transformer
from pdejax.runs._findings import BORNE_OUT, NOT_BORNE_OUT, NOT_MEASURED, Evidence, Finding, Measured, Support, Verdict
from pdejax.solvers import RK4
from pdejax.solvers._base import fresh_step
from pdejax.studies.study import high as high
from pdejax.studies.study import low as low
from pdejax.training import merge_model, split_model


def rk4_steps(field, u0: Array, step: Array, number: int, retraction) -> tuple[Array, Array]:
    """The last and all fields after `number` RK4 steps, each retracted. A scan of its own, because these fields are tiny:
    compiling `simulate` for each of them would take longer than the evidence is worth."""
    term = diffrax.ODETerm(lambda t, u, args: field(u))

    def advance(u, _):
        u, _ = fresh_step(RK4(), term, jnp.zeros_like(step), step, u, None)
        u = u if retraction is None else retraction(u)
        return u, u

    return jax.lax.scan(advance, u0, None, length=number)


@eqx.filter_jit
def flow(equation, u0s: Array, t1: float | Array, steps: int | Array, retraction=None) -> Array:
    """Fields at t1 `(k, n, d)` from `u0s (k, n, d)`."""

    def one(u0):
        def advance(_, u):
            return rk4_steps(lambda v: equation(0.0, v, None), u, t1 / jnp.asarray(steps, float), 1, retraction)[0]

        return jax.lax.fori_loop(0, steps, advance, u0)

    return jax.vmap(one)(u0s)


BATCH = 32
RATE = 1e-3
# Runs are so short that compiling takes longest.
QUICK = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class Trained:
    """Parameters of all seeds, stacked, `start` and `end`; gradient norms and losses `(seeds, steps)` by training step; and
    `images (m, n, f)` not trained on with their `labels (m,)`."""

    start: PyTree[Array]
    end: PyTree[Array]
    static: Any
    norms: np.ndarray
    losses: np.ndarray
    images: Array
    labels: Array

    def model(self, parameters: PyTree[Array], i: int) -> Any:
        """The model of seed i."""
        return merge_model(jax.tree.map(lambda leaf: leaf[i], parameters), self.static)


def train(options: dict[str, Any], seed: int, seeds: int, steps: int, kept: int = 240, rate: float = RATE) -> Trained:
    """Adam on 2 × 2 patches of 8 × 8 images, in float32, other weights and batches for each seed."""
    data = load("digits", "train", form="patches", patch=2)
    test = load("digits", "test", form="patches", patch=2, limit=kept)
    inputs, labels = _arrays(data)
    images, answers = _arrays(test)
    config = Architecture(**{"inputs": inputs.shape[-1], "head": "classification", "classes": 10, **options})
    models = [split_model(Transformer(config, rngs=nnx.Rngs(1000 * seed + s))) for s in range(seeds)]
    static = models[0][1]
    unravel = ravel_pytree(models[0][0])[1]
    # One vector for all parameters: an optimizer of one array, which compiles in a fraction of the time.
    start = jnp.stack([ravel_pytree(parameters)[0] for parameters, _ in models])
    optimizer = optax.adam(rate)

    def outputs(vector, x):
        return jax.vmap(merge_model(unravel(vector), static))(x)

    def loss(vector, x, y):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs(vector, x), y))

    def one(vector, key):
        def step(carry, key):
            vector, state = carry
            chosen = jax.random.randint(key, (BATCH,), 0, len(labels))
            found, gradient = jax.value_and_grad(loss)(vector, inputs[chosen], labels[chosen])
            updates, state = optimizer.update(gradient, state, vector)
            return (vector + updates, state), (jnp.linalg.norm(gradient), found)

        (end, _), traces = jax.lax.scan(step, (vector, optimizer.init(vector)), jax.random.split(key, steps))
        return end, traces

    with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts with floats
        keys = jax.random.split(jax.random.key(seed), seeds)
        end, (norms, losses) = jax.jit(jax.vmap(one), compiler_options=QUICK)(start, keys)
    trees = [jax.vmap(unravel)(vectors) for vectors in (start, end)]
    return Trained(trees[0], trees[1], static, np.asarray(norms), np.asarray(losses), images, answers)


def _arrays(data: Dataset) -> tuple[Array, Array]:
    assert data.values is not None
    return jnp.asarray(data.values.astype(np.float32) / data.divisor), jnp.asarray(data.labels)


class NotMeasured(Exception):
    """A figure was asked for that is missing or no number."""


class _Known(Mapping[str, Any]):
    """Evidence that stops whoever asks for a figure that is missing or no finite number: NaN is never evidence."""

    def __init__(self, evidence: Evidence):
        self._evidence = evidence

    def __getitem__(self, name: str) -> Any:
        value = self._evidence.get(name)
        if value is None or not math.isfinite(float(value)):
            raise NotMeasured(name)
        if isinstance(value, Figure) and math.isnan(value.low) != math.isnan(value.high):
            raise NotMeasured(name)  # half an interval
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._evidence)

    def __len__(self) -> int:
        return len(self._evidence)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim or a numbered equation of the papers, how it is measured and how it is judged.

    - `id`, `statement`, `source`: what is claimed and where; `quote`: the paper's sentence with its hypotheses.
    - `measure(seed, seeds)` gives the evidence. An equation without has the evidence of the claim that it `rests_on`.
    - `judge(evidence)`, a pure function of figures and corrected figures together, gives the verdict, so that other figures
      give another; its docstring is the rule. `headline`: the figures that a one-line summary shows.
    - `condition`: the corrected statement. `bears_out(evidence)`: whether its own figures support it.
    """

    id: str
    statement: str
    headline: tuple[str, ...]
    judge: Callable[[Evidence], Verdict]
    condition: str = ""
    source: str = "own check"
    measure: Callable[[int, int], Measured] | None = None
    rests_on: str | None = None
    quote: str = ""
    bears_out: Callable[[Evidence], bool] | None = None

    def __repr__(self) -> str:
        return f"Claim({self.id!r}: {self.statement})"

    @property
    def code(self) -> str:
        """Where it is measured, `module.function`."""
        return "" if self.measure is None else f"{self.measure.__module__}.{self.measure.__name__}"

    @property
    def rule(self) -> str:
        """How it is judged, in words."""
        return " ".join((self.judge.__doc__ or "").split())

    def verdict(self, evidence: Evidence) -> Verdict:
        """The verdict, `"not measured"` where a figure that it rests on is missing or no number."""
        try:
            return self.judge(_Known(evidence))
        except NotMeasured:
            return NOT_MEASURED

    def support(self, evidence: Evidence) -> Support | str:
        """Whether the corrected statement is borne out by its own figures; nothing where there is no such statement."""
        if self.bears_out is None:
            return ""
        try:
            return BORNE_OUT if self.bears_out(_Known(evidence)) else NOT_BORNE_OUT
        except NotMeasured:
            return NOT_MEASURED

    def finding(self, measured: Measured, seconds: float) -> Finding:
        """The verdict from its own evidence."""
        return self._finding(self.source, measured.evidence, measured, self.code, seconds)

    def finding_from(self, other: Finding) -> Finding:
        """The verdict from the evidence of the claim that this equation rests on, of which it shows its headline."""
        shown = Measured({name: other.evidence.get(name, math.nan) for name in self.headline})
        return self._finding(other.claim, other.evidence, shown, other.code, 0.0)

    def _finding(self, source: str, evidence: Evidence, shown: Measured, code: str, seconds: float) -> Finding:
        return Finding(
            self.id,
            self.statement,
            source,
            self.verdict(evidence),
            self.condition,
            shown,
            code,
            self.headline,
            seconds,
            self.quote,
            self.rule,
            self.support(evidence),
        )


def ratio_over_seeds(values: ArrayLike | Sequence[float]) -> Figure:
    """Geometric mean of one positive ratio per seed with the interval of `over_seeds` for its logarithm."""
    found = over_seeds(np.log(np.asarray(values, float)))
    return Figure(np.exp(found.value), np.exp(found.low), np.exp(found.high))


# An order's interval that is wider than this on both sides does not tell it from its neighbours.
TOLD = 0.5


def near(figure: Figure, order: float | int) -> bool:
    """Whether a fitted order is what is expected: its interval, in which the bias of large steps is, holds it, tells it from the
    next whole number, and is centred within 0.15 of it."""
    held = low(figure) <= order <= high(figure) and high(figure) - low(figure) < 2 * TOLD
    return bool(held and abs(figure - order) <= 0.15)


def share_over_seeds(values: ArrayLike | Sequence[float]) -> Figure:
    """Mean of one share per seed, with the interval of `over_seeds` that stays within 0 and 1."""
    return over_seeds(values, within=(0.0, 1.0))


def range_over(values: ArrayLike | Sequence[float]) -> Figure:
    """Median, least and greatest of the values: for statements about every case, where a mean would hide the worst."""
    x = np.asarray(values, float)
    return Figure(np.median(x), np.min(x), np.max(x), level=1.0)
