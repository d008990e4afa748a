"""Models and equations in one form: read-in, a sequence of maps, read-out, and the parameters apart."""

import abc
import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PRNGKeyArray, PyTree

from pdejax._check import traced
from pdejax._equation import AbstractEquation, MultilayerEquation
from pdejax._types import Mask
from pdejax.analysis._states import token_mask
from pdejax.analysis.jacobian._step_maps import (
    AbstractMaps,
    EquationMaps,
    block_maps,
    equation_maps,
    ready,
    simulator_maps,
    without_padding,
)
from pdejax.models import Simulator, Transformer
from pdejax.models._block import apply_norm
from pdejax.terms import FieldArgs


class AbstractSystem(eqx.Module):
    """One sequence at a time: `end(through(maps(u, mask), u), mask)` with `u = begin(inputs)` is what the model computes."""

    @abc.abstractmethod
    def begin(self, inputs: Array, mask: Mask | None) -> Array:
        """The initial state, zeros at padding."""

    @abc.abstractmethod
    def maps(self, u: Array, mask: Mask | None) -> AbstractMaps:
        """The maps from this state."""

    @abc.abstractmethod
    def end(self, u: Array, mask: Mask | None) -> Array:
        """What the loss sees: logits, or the last state with zeros at padding."""

    @abc.abstractmethod
    def trained(self) -> PyTree[bool]:
        """True at the parameters."""


class TransformerSystem(AbstractSystem):
    """A Transformer, its weights apart as plain dictionaries."""

    graph: Any = eqx.field(static=True)
    weights: dict[str, Any]
    state: Any
    rest: Any

    def model(self) -> Transformer:
        state = jax.tree.map(lambda x: x, self.state)  # a copy of the structure, so that no tracer stays behind
        nnx.replace_by_pure_dict(state, self.weights)
        return nnx.merge(self.graph, state, self.rest)

    def begin(self, inputs: Array, mask: Mask | None) -> Array:
        return without_padding(self.model().embed(inputs), mask)

    def maps(self, u: Array, mask: Mask | None) -> AbstractMaps:
        return block_maps(self.model(), mask)

    def end(self, u: Array, mask: Mask | None) -> Array:
        model = self.model()
        if model.final_norm is not None:
            u = apply_norm(model.final_norm, u)
        if model.head is None:
            return without_padding(u, mask)
        if model.architecture.head == "classification":
            u = u.mean(axis=0) if mask is None else u.mean(axis=0, where=mask[:, None])
        return model.head(u)

    def trained(self) -> PyTree[bool]:
        marked = jax.tree.map(lambda _: False, self)
        return eqx.tree_at(lambda s: s.weights, marked, jax.tree.map(lambda _: True, self.weights))


class SimulatorSystem(AbstractSystem):
    """A Simulator."""

    model: Simulator

    def begin(self, inputs: Array, mask: Mask | None) -> Array:
        return without_padding(self.model.embed(inputs).astype(self.model.architecture.state_dtype), mask)

    def maps(self, u: Array, mask: Mask | None) -> AbstractMaps:
        return ready(simulator_maps(self.model, u, mask), u)

    def end(self, u: Array, mask: Mask | None) -> Array:
        # A simulator without a head gives the state.
        return without_padding(self.model.readout(u, mask), mask if self.model.architecture.head == "none" else None)

    def trained(self) -> PyTree[bool]:
        marked = jax.tree.map(lambda _: False, self)
        return eqx.tree_at(lambda s: s.model, marked, self.model.trainable())


class EquationSystem(AbstractSystem):
    """An equation on states, its solver and steps."""

    template: EquationMaps

    def begin(self, inputs: Array, mask: Mask | None) -> Array:
        return without_padding(inputs, mask)

    def maps(self, u: Array, mask: Mask | None) -> AbstractMaps:
        return ready(dataclasses.replace(self.template, args=FieldArgs(mask)), u)

    def end(self, u: Array, mask: Mask | None) -> Array:
        return without_padding(u, mask)

    def trained(self) -> PyTree[bool]:
        marked = jax.tree.map(lambda _: False, self)
        weights = jax.tree.map(eqx.is_inexact_array, self.template.equation)
        return eqx.tree_at(lambda s: s.template.equation, marked, weights)


class Examples(eqx.Module):
    """A batch ready for a system: inputs `(b, ...)`, labels `(b, ...)` or None, masks `(b, n)`."""

    inputs: Array
    labels: Array | None
    mask: Array | None
    batched: bool = eqx.field(static=True)


def as_system(
    owner: str, system: Any, inputs: Any, labels: Any, mask: Any, *, t0, t1, steps, solver, split, maps: int | None
) -> tuple[AbstractSystem, Examples]:
    """A model or equation and its batch, checked; one sequence is a batch of one.

    Raises `TypeError`/`ValueError`, which name `owner`, for what does not fit.
    """
    if isinstance(inputs, AbstractEquation | nnx.Module | eqx.Module):
        raise TypeError(f"{owner}: inputs is a {type(inputs).__name__}; the system comes first, then its inputs.")
    x = jnp.asarray(inputs)
    if x.size == 0:
        raise ValueError(f"{owner}: inputs has shape {x.shape}; give at least one sequence with a token.")
    model = isinstance(system, Transformer | Simulator)
    if model:
        if any(value is not None for value in (t1, steps, solver, split, maps)):
            raise ValueError(f"{owner}: t1, steps, solver, split and depths belong to equations; a model has its own.")
        axes = 2 if system.architecture.vocab is not None else 3
    else:
        axes = 4 if isinstance(system, MultilayerEquation) else 3
    if x.ndim not in (axes - 1, axes):
        raise ValueError(
            f"{owner}: inputs has shape {x.shape}; give one sequence ({axes - 1} axes) or a batch ({axes} axes)."
        )
    batched = x.ndim == axes
    x = x if batched else x[None]
    real = None if mask is None else token_mask(owner, mask, x.shape[0], x.shape[1] if axes == 2 else x.shape[-2])
    x = _clean(owner, x, real)
    if labels is not None:
        labels = jnp.asarray(labels)
        labels = labels if batched else labels[None]
        if not labels.ndim or labels.shape[0] != x.shape[0]:
            raise ValueError(
                f"{owner}: labels has shape {labels.shape} for {x.shape[0]} sequences; give one entry each."
            )
    given = (t0, t1, steps, solver, split, maps)
    found = _of_model(owner, system, x) if model else _of_equation(owner, system, x, real, *given)
    return found, Examples(x, labels, real, batched)


def _of_model(owner: str, system: Transformer | Simulator, x: Array) -> AbstractSystem:
    vocab = system.architecture.vocab
    if vocab is not None and not traced(x):
        low, high = int(np.min(np.asarray(x))), int(np.max(np.asarray(x)))
        if low < 0 or high >= vocab:
            raise ValueError(f"{owner}: inputs has ids from {low} to {high}; allowed are 0 to {vocab - 1}.")
    jax.eval_shape(lambda first: system.embed(first), x[0])  # says what it does not like
    if isinstance(system, Simulator):
        return SimulatorSystem(system)
    graph, weights, rest = nnx.split(system, nnx.Param, ...)
    return TransformerSystem(graph, nnx.to_pure_dict(weights), weights, rest)


def _of_equation(owner, system, x, mask, t0, t1, steps, solver, split, maps) -> EquationSystem:
    if t1 is None:
        raise ValueError(f"{owner}: an equation needs its depth t1 and steps; give t1=…, steps=….")
    solver = "rk4" if solver is None else solver
    first = None if mask is None else mask[0]
    given = {"t0": t0, "t1": t1, "steps": steps, "solver": solver, "split": split, "maps": maps}
    found, _ = equation_maps(owner, system, x[0], mask=first, **given)
    return EquationSystem(found)


def _clean(owner: str, x: Array, mask: Array | None) -> Array:
    """Zeros (id 0) at padding; what is real must be finite."""
    if mask is not None:
        shape = mask.shape if x.ndim == 2 else (mask.shape[0], *(1,) * (x.ndim - 3), mask.shape[1], 1)
        x = jnp.where(jnp.broadcast_to(mask.reshape(shape), x.shape), x, jnp.zeros((), x.dtype))
    if jnp.issubdtype(x.dtype, jnp.floating) and not traced(x) and not np.isfinite(np.asarray(x)).all():
        raise ValueError(f"{owner}: inputs has values at real tokens that are not finite; clean or mask them.")
    return x


def layer_norms(gradients: PyTree[Array]) -> Array | None:
    """Euclidean norms `(L,)` of the gradients of each layer's parameters, told by the leading axis of what lies under `layers`
    (Flax, coupled layers) or `stacked` (`DepthVarying`, `Simulator`); None where weights serve all depths."""
    squares = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        names = {str(getattr(key, "key", getattr(key, "name", ""))) for key in path}
        if {"layers", "stacked"} & names and leaf.ndim:
            squares.append(jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim))))
    if not squares or len({s.shape for s in squares}) != 1:
        return None
    return jnp.sqrt(jnp.sum(jnp.stack(squares), axis=0))


def shuffle_weights(system: Any, *, key: PRNGKeyArray) -> Any:
    """A null model: the same model or equation with the entries of every weight matrix in a random order, layer by layer.

    Sizes and the distribution of the entries stay; what was learned or designed is lost. Vectors (biases, scales, rates) keep
    their place. Raises `TypeError` for something without weight matrices, such as a plain function.
    """
    if isinstance(system, Transformer):
        found = {name: _shuffled(leaf, name, key, i) for i, (name, leaf) in enumerate(system.parameters().items())}
        return Transformer.from_parameters(system.architecture, found)
    leaves, structure = jax.tree_util.tree_flatten_with_path(system)
    if not isinstance(system, eqx.Module) or not any(eqx.is_inexact_array(x) and x.ndim >= 2 for _, x in leaves):
        raise TypeError(
            f"shuffle_weights: {type(system).__name__} has no weight matrices to shuffle; give a null of your own."
        )
    return jax.tree.unflatten(
        structure, [_shuffled(leaf, jax.tree_util.keystr(path), key, i) for i, (path, leaf) in enumerate(leaves)]
    )


def _shuffled(leaf: Any, name: str, key: PRNGKeyArray, index: int) -> Any:
    if not eqx.is_inexact_array(leaf):
        return leaf
    layered = "layers" in name or "stacked" in name
    if leaf.ndim < (3 if layered else 2):
        return leaf
    key = jax.random.fold_in(key, index)
    if not layered:
        return jax.random.permutation(key, leaf.ravel()).reshape(leaf.shape)
    flat = leaf.reshape(leaf.shape[0], -1)
    return jax.vmap(jax.random.permutation)(jax.random.split(key, leaf.shape[0]), flat).reshape(leaf.shape)
