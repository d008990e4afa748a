"""What training is made of: state, optimizer, losses and metrics, and the step."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from pdejax._arguments import checked
from pdejax._check import choice, integer, number
from pdejax.analysis.jacobian._systems import layer_norms
from pdejax.data._dataset import Batch
from pdejax.solvers._written import one_line
from pdejax.training._names import OptimizerName, ScheduleName


class Static(NamedTuple):
    """What is left of a model without its parameters: hashable for Flax models, a tree without float arrays for Equinox."""

    kind: str
    rest: Any

    def __repr__(self) -> str:
        return f"Static({self.kind} model without its parameters)"


@checked
def split_model(model: Any) -> tuple[PyTree[Array], Static]:
    """Return a Flax (nnx) or Equinox model as a tree of float parameters and the rest, for `merge_model`.

    Of an Equinox model with a method `trainable()`, which gives a tree of booleans like the model, the parameters are the
    leaves marked true; else all float arrays.

    Raises `TypeError` for other objects.
    """
    if isinstance(model, nnx.Module):
        graph, parameters, rest = nnx.split(model, nnx.Param, ...)
        return nnx.to_pure_dict(parameters), Static("flax", (graph, parameters, rest))
    if isinstance(model, eqx.Module):
        trainable = getattr(model, "trainable", None)
        parameters, rest = eqx.partition(model, eqx.is_inexact_array if trainable is None else trainable())
        return parameters, Static("equinox", rest)
    raise TypeError(f"model is a {type(model).__name__}; it must be a flax.nnx.Module or an equinox.Module.")


@checked
def merge_model(parameters: PyTree[Array], static: Static) -> Any:
    """Return the model with these parameters, the inverse of `split_model`; cheap, also inside `jit`."""
    if static.kind == "equinox":
        return eqx.combine(parameters, static.rest)
    graph, state, rest = static.rest
    state = jax.tree.map(lambda x: x, state)  # a copy of the structure, so that no tracer stays behind
    nnx.replace_by_pure_dict(state, parameters)
    return nnx.merge(graph, state, rest)


class TrainState(NamedTuple):
    """Everything a step changes and a checkpoint must hold, but for the place in the data.

    - `step`: steps taken, an integer scalar.
    - `params`: the model's parameters, as `split_model` gives them.
    - `opt_state`: the optimizer's.
    - `key`: for dropout and noise; each step derives its own by `jax.random.fold_in(key, step)`, so it never changes.
    - `extra`: parameters and optimizer state of an estimator trained beside the model, or `None`.
    """

    step: Int[Array, ""]
    params: PyTree[Array]
    opt_state: PyTree
    key: PRNGKeyArray
    extra: PyTree = None

    def __repr__(self) -> str:
        count = sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves(self.params))
        return (
            f"TrainState(step {self.step}, {count:,} parameters{'' if self.extra is None else ', an estimator beside'})"
        )


def make_schedule(
    name: ScheduleName, learning_rate: float, steps: int, warmup: int = 0, final: float = 0.0
) -> optax.Schedule:
    r"""Return the learning rate η at each step: a linear rise over `warmup` steps to `learning_rate`, then

    - `"constant"`: η;
    - `"cosine"`: half a cosine, `"linear"`: a line, both to `final`·η at step `steps`;
    - `"inverse_sqrt"`: $\eta\sqrt{w/s}$ at step s with w = max(warmup, 1) (arXiv:1706.03762 §5.3).

    Raises `ValueError` for an unknown name or numbers that do not fit.
    """
    choice("make_schedule", "schedule", name, get_args(ScheduleName))
    number("make_schedule", "learning_rate", learning_rate, above=0)
    integer("make_schedule", "steps", steps)
    integer("make_schedule", "warmup", warmup, 0)
    if warmup >= steps:
        raise ValueError(f"make_schedule: warmup={warmup} must be less than steps={steps}.")
    number("make_schedule", "final", final, least=0, most=1, advice="it is a part of the learning rate")
    rest = steps - warmup
    main: Any
    if name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, rest, final)
    elif name == "linear":
        main = optax.linear_schedule(learning_rate, final * learning_rate, rest)
    elif name == "inverse_sqrt":
        start = max(warmup, 1)
        main = lambda count: learning_rate * jax.lax.rsqrt((count + start) / start)  # noqa: E731
    else:
        main = optax.constant_schedule(learning_rate)
    if warmup == 0:
        return main
    # The first step is not a step of size zero.
    rise = optax.linear_schedule(learning_rate / (warmup + 1), learning_rate, warmup)
    return optax.join_schedules([rise, main], [warmup])


@checked
def make_optimizer(
    name: OptimizerName = "adam",
    *,
    learning_rate: float | optax.Schedule,
    weight_decay: float = 0.0,
    clip: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    momentum: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Return an optax optimizer.

    `"adam"`; `"adamw"`, which alone takes `weight_decay`, on matrices and not on biases, norms and other vectors; `"sgd"`
    with `momentum`. `clip` scales gradients whose global norm exceeds it: off by default, because it hides instability.

    Raises `ValueError` for an unknown name, numbers out of range, and decay where it would do nothing.
    """
    choice("make_optimizer", "optimizer", name, get_args(OptimizerName))
    if not callable(learning_rate):
        number("make_optimizer", "learning_rate", learning_rate, above=0)
    if clip is not None:
        number("make_optimizer", "clip", clip, above=0)
    number("make_optimizer", "weight_decay", weight_decay, least=0)
    if weight_decay and name != "adamw":
        raise ValueError(
            f"make_optimizer: weight_decay={weight_decay} does nothing with optimizer={name!r}: use 'adamw'."
        )
    for key, value in (("b1", b1), ("b2", b2), ("momentum", momentum)):
        number("make_optimizer", key, value, least=0, below=1)
    if name == "adam":
        main = optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)
    elif name == "adamw":
        main = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=is_matrix)
    else:
        main = optax.sgd(learning_rate, momentum=momentum or None)
    chain = main if clip is None else optax.chain(optax.clip_by_global_norm(clip), main)
    return _promoting(optax.with_extra_args_support(chain))


def _promoting(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """The same under JAX's strict dtype promotion, which optax's bias corrections do not allow for."""

    def update(updates, state, params=None, **extra):
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def is_matrix(params: Any) -> Any:
    """A tree of booleans, true at weights that decay: those whose name begins with w, and Flax's kernels and embeddings."""

    def decays(path, leaf) -> bool:
        last = str(getattr(path[-1], "key", getattr(path[-1], "name", "")))
        return last.startswith("w") or last in ("kernel", "embedding", "table")

    return jax.tree_util.tree_map_with_path(decays, params)


Metrics = dict[str, Float[Array, "..."]]


class AbstractTask(eqx.Module):
    """A loss of a model on a batch. `model(tokens, mask)` gives the logits of one sequence."""

    __repr__ = one_line

    @abc.abstractmethod
    def loss(self, model: Any, batch: Batch, key: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        """Return the mean loss of the batch and scalars to record, themselves means."""

    @abc.abstractmethod
    def weight(self, batch: Batch) -> Float[Array, ""]:
        """Count how many terms the mean of `loss` has, so that means of batches can be joined."""


class Classification(AbstractTask):
    r"""Cross-entropy of classes, $-\frac1b\sum_i \log p_{y_i}(x_i)$ in nats; v1 (15) with the usual ℓ.

    `label_smoothing` ε puts (1 − ε) on the label and ε/classes on every class. Records `accuracy`.
    """

    label_smoothing: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        number(type(self).__name__, "label_smoothing", self.label_smoothing, least=0, below=1)

    def loss(self, model: Any, batch: Batch, key: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        del key
        logits = jax.vmap(model)(batch.inputs, batch.mask)
        logits = _widened(logits)
        loss = jnp.mean(_cross_entropy(logits, batch.labels, self.label_smoothing))
        right = _predicted(logits, batch.labels) == batch.labels
        return loss, {"accuracy": jnp.mean(right.astype(loss.dtype))}

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return jnp.asarray(len(batch.labels), jnp.float32)


class LanguageModel(AbstractTask):
    r"""Cross-entropy of the next token, a mean over the real tokens of the batch, in nats.

    `batch.labels (b, n)` holds the token to predict at each place; `batch.mask` says which places count. Records `accuracy`.
    """

    label_smoothing: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        number(type(self).__name__, "label_smoothing", self.label_smoothing, least=0, below=1)

    def loss(self, model: Any, batch: Batch, key: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        del key
        logits = jax.vmap(model)(batch.inputs, batch.mask)
        logits = _widened(logits)
        # A mean with weights: `where=` would count a batch without tokens as NaN.
        weights = batch.mask.astype(logits.dtype)
        count = jnp.maximum(jnp.sum(weights), 1.0)
        loss = jnp.sum(weights * _cross_entropy(logits, batch.labels, self.label_smoothing)) / count
        right = (_predicted(logits, batch.labels) == batch.labels).astype(logits.dtype)
        return loss, {"accuracy": jnp.sum(weights * right) / count}

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return jnp.sum(jnp.asarray(batch.mask).astype(jnp.float32))


def _cross_entropy(logits: Float[Array, "... c"], labels, smoothing: float) -> Float[Array, "..."]:
    exact = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if smoothing == 0:
        return exact
    uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - smoothing) * exact + smoothing * uniform


def _predicted(logits: Float[Array, "... c"], labels) -> Array:
    return jnp.argmax(logits, axis=-1).astype(labels.dtype)


def _widened(logits: Float[Array, "... c"]) -> Float[Array, "... c"]:
    return logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@checked
def start_training(params: PyTree[Array], optimizer: optax.GradientTransformation, key: PRNGKeyArray) -> TrainState:
    """Return the state before the first step. The parameters are copied: steps give their memory away."""
    params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.clone(key))


@checked
def make_step(task: Any, optimizer: optax.GradientTransformationExtraArgs, static: Static) -> Step:
    r"""Return `step(state, batch) -> (state, metrics)`: a gradient step, compiled; the old state's memory is reused.

    Metrics: the task's own, `loss`, `gradient_norm` $\|\nabla_\theta L\|$ over all parameters, and `layer_gradient_norms`
    `(L,)`, the same for the parameters of each layer (absent where weights do not vary with depth), before clipping.
    """

    def objective(params, batch, key):
        return task.loss(merge_model(params, static), batch, key)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        (loss, metrics), gradients = jax.value_and_grad(objective, has_aux=True)(state.params, batch, key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, **metrics, **gradient_norms(gradients)}
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return jax.jit(step, donate_argnums=0)


def gradient_norms(gradients: PyTree[Array]) -> Metrics:
    """Return Euclidean norms of a tree of gradients: `gradient_norm` of all, `layer_gradient_norms (L,)` layer by layer.

    Layers are told by the leading axis of what lies under `layers` (Flax) or `stacked` (`DepthVarying`).
    """
    found: Metrics = {"gradient_norm": optax.tree.norm(gradients)}
    layers = layer_norms(gradients)
    return found if layers is None else found | {"layer_gradient_norms": layers}


@checked
def make_evaluate(task: Any, static: Static) -> Callable[[TrainState, Sequence[Batch]], dict[str, float]]:
    """Return `evaluate(state, batches) -> dict`: the task's loss and metrics over all batches, each weighted by what it holds.

    A task with a method `weight(batch)` says how many terms its means have; else it is the number of sequences. Batches of
    another size than the first compile once more; no parameter changes.
    """

    @jax.jit
    def one(params, batch, key):
        loss, metrics = task.loss(merge_model(params, static), batch, key)
        weigh = getattr(task, "weight", None)
        return {"loss": loss, **metrics}, len(batch.labels) if weigh is None else weigh(batch)

    def evaluate(state: TrainState, batches: Sequence[Batch]) -> dict[str, float]:
        found = [one(state.params, batch, jax.random.fold_in(state.key, i)) for i, batch in enumerate(batches)]
        if not found:
            raise ValueError("evaluate: no batches: the split is empty.")
        weights = np.array([float(weight) for _, weight in found])
        return {
            name: float(np.dot([float(metrics[name]) for metrics, _ in found], weights) / weights.sum())
            for name in found[0][0]
        }

    return evaluate


def count_parameters(params: PyTree[Any]) -> int:
    """Count how many numbers are trained."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
