"""A model apart from its parameters, and what a training step carries along."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
from flax import nnx
from jaxtyping import Array, Int, PRNGKeyArray, PyTree


class Static(NamedTuple):
    """What is left of a model without its parameters: hashable for Flax models, a tree without float arrays for Equinox."""

    kind: str
    rest: Any

    def __repr__(self) -> str:
        return f"Static({self.kind} model without its parameters)"


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
