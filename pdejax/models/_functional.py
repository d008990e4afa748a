"""A Transformer as a pytree: read-in, discretization, read-out, and its parameters, for what differentiates a model."""

from typing import Any

import equinox as eqx
import jax
from flax import nnx
from jaxtyping import Array, Float, PyTree

from pdejax._discretization import Discretization
from pdejax._types import Field, Mask
from pdejax.models._lift import lift
from pdejax.models._transformer import Transformer


class FunctionalTransformer(eqx.Module):
    """A Flax Transformer, its weights apart as plain dictionaries of arrays.

    `head(u, mask)` of the last state of `discretization()` from `embed(inputs)` is what the Transformer computes, to rounding.
    """

    graph: Any = eqx.field(static=True)
    weights: dict[str, Any]
    state: Any
    rest: Any

    @classmethod
    def of(cls, model: Transformer) -> "FunctionalTransformer":
        """Take a Transformer apart."""
        graph, weights, rest = nnx.split(model, nnx.Param, ...)
        return cls(graph, nnx.to_pure_dict(weights), weights, rest)

    def model(self) -> Transformer:
        """The Transformer with these weights."""
        state = jax.tree.map(lambda x: x, self.state)  # a copy of the structure, so that no tracer stays behind
        nnx.replace_by_pure_dict(state, self.weights)
        return nnx.merge(self.graph, state, self.rest)

    def embed(self, inputs: Any) -> Field:
        """The initial state `(n, d)`."""
        return self.model().embed(inputs)

    def discretization(self, n: int | None = None) -> Discretization:
        """The field with these weights, the solver and the step that the Transformer is."""
        del n
        return lift(self.model())

    def head(self, u: Field, mask: Mask | None) -> Float[Array, "..."]:
        """Logits of the last state, or without a head the state after the last normalization."""
        return self.model().readout(u, mask)

    @property
    def headed(self) -> bool:
        """Whether there are logits."""
        return self.model().head is not None

    @property
    def layers(self) -> int:
        """Number of layers, between which the hidden states lie."""
        return self.model().architecture.layers

    def trainable(self) -> PyTree[bool]:
        """True at the parameters."""
        marked = jax.tree.map(lambda _: False, self)
        return eqx.tree_at(lambda s: s.weights, marked, jax.tree.map(lambda _: True, self.weights))


def functional(model: Any) -> Any:
    """The model as a pytree with `embed`, `discretization`, `head`, `headed`, `layers` and `trainable`."""
    return FunctionalTransformer.of(model) if isinstance(model, Transformer) else model
