"""One step of training, compiled once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from pdejax.analysis.jacobian._systems import layer_norms
from pdejax.data._batch import Batch
from pdejax.training._losses import Metrics
from pdejax.training._state import Static, TrainState, merge_model

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def start_training(params: PyTree[Array], optimizer: optax.GradientTransformation, key: PRNGKeyArray) -> TrainState:
    """Return the state before the first step. The parameters are copied: steps give their memory away."""
    params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.clone(key))


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
