"""The trainable PDE simulator: embedding, master equation, head; a solver and a step."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from pdejax._arguments import checked
from pdejax._check import instance, token_mask
from pdejax._depth import DepthVarying
from pdejax._discretization import Discretization
from pdejax._maps import attention_maps
from pdejax._simulate import simulate
from pdejax._types import Field, Mask
from pdejax.models._architecture import Architecture, model_text
from pdejax.models._ends import Embedding, Readout, checked_field, checked_tokens
from pdejax.models._observe import Observed
from pdejax.models._simulator_config import SimulatorConfig
from pdejax.models._simulator_field import (
    FieldWeights,
    make_solver,
    make_weights,
    single_equation,
    stacked_equation,
)


class Simulator(eqx.Module):
    r"""The master equation as a trainable model of one sequence: $u(\cdot,0) = E + P$, then
    $\partial_t u = A(u) + R(u) + D(u) + S(u)$ by [`simulate`][pdejax.simulate] in `config.steps` steps, then a head.

    What the field consists of, the solver and the step are those of the
    [`SimulatorConfig`][pdejax.models.SimulatorConfig], with a table of the switches between the papers' bare simulator, a
    Transformer and the full equation. With a Transformer's weights and solver it computes what the Transformer does
    (`pair`), and it has as many parameters.

    Symbols: n tokens, d features, H heads, K = `architecture.layers`. Batches by `jax.vmap`: `jax.vmap(model)(tokens, mask)`;
    gradients by `jax.grad`, which stores one field per step and computes the rest of the step again.

    Initial weights are distributed as a `Transformer`'s: LeCun normal kernels, zero biases, unit scales, token embedding
    N(0, 1); the same `key` gives the same weights. Masks are those of a `Transformer`.

    Raises `ValueError` for a float64 model while JAX's 64-bit mode is off.

    Sources: v2 (2), (4)–(9); v1 (1), (9)–(13).
    """

    embedding: Embedding
    stacked: FieldWeights | None
    common: FieldWeights | None
    readout: Readout
    config: SimulatorConfig = eqx.field(static=True)

    @checked
    def __init__(self, config: SimulatorConfig, *, key: PRNGKeyArray):
        instance("Simulator", "config", config, SimulatorConfig, "make one by pdejax.SimulatorConfig(architecture, …)")
        first, second, third = jax.random.split(key, 3)
        self.embedding = Embedding(config.architecture, key=first)
        self.stacked, self.common = make_weights(config, second)
        self.readout = Readout(config.architecture, config.head_norm, key=third)
        self.config = config

    def __repr__(self) -> str:
        return model_text("Simulator", self.architecture, self.parameter_count, self.config.words())

    @property
    def architecture(self) -> Architecture:
        """Sizes and the form of a layer."""
        return self.config.architecture

    @classmethod
    def bare(cls, *, key: PRNGKeyArray, **options: Any) -> "Simulator":
        """Return the papers' simulator without residual connection, LayerNorm, D and S: see `SimulatorConfig.bare`."""
        return cls(SimulatorConfig.bare(**options), key=key)

    def discretization(self, n: int | None = None) -> Discretization:
        """Return the field on n tokens, the solver, with the model's own retraction if it has one, and the steps over [0, t1].

        The field is a `DepthVarying`, or a `MasterEquation` where weights are shared. n is needed for diffusion only, whose grid
        has one point per token. Raises `ValueError` where it is missing.
        """
        config = self.config
        if n is None and config.diffusion != "none":
            raise ValueError(
                f"Simulator.discretization: diffusion={config.diffusion!r} needs a grid; give the number of tokens n, an integer."
            )
        if self.stacked is None:
            assert self.common is not None
            field = single_equation(config, self.common, n or 1)
        else:
            sizes, equation = config.architecture, stacked_equation(config, self.stacked, self.common, n or 1)
            loop = {"passes": sizes.loops, "prelude": sizes.prelude, "coda": sizes.coda}
            field = DepthVarying(equation, config.t1, config.weights, **loop)
        solver, split = make_solver(config, self.stacked, self.common)
        return Discretization(field, solver, t1=config.t1, steps=config.steps, split=split)

    @property
    def headed(self) -> bool:
        """Whether there are logits."""
        return self.architecture.head != "none"

    @property
    def layers(self) -> int:
        """Number of layers, between which the hidden states lie; those of a loop as often as it is gone through."""
        return self.architecture.depth

    def head(self, u: Field, mask: Mask | None = None) -> Float[Array, "..."]:
        """The output from the last field: logits, or without a head the field."""
        return self.readout(u, mask)

    def embed(self, tokens: ArrayLike) -> Field:
        """Return the initial field u(·, 0) = E + P `(n, d)`; v2 (2). As `Transformer.embed`, errors included."""
        return self.embedding(checked_tokens("Simulator", self.architecture, tokens))

    def run(self, u0: ArrayLike, mask: ArrayLike | None = None) -> Float[Array, "layers n d"]:
        """Return the field `(K + 1, n, d)` at the depths l t1/K, l = 0 … K, from an initial field `(n, d)`.

        Raises `ValueError`/`TypeError` for a field or mask of the wrong shape or type.
        """
        return _states(self, *self._check(u0, mask))

    def hidden_states(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Float[Array, "layers n d"]:
        """Return the field at the depths l t1/K, `(K + 1, n, d)`: the embedding first. Raises as `embed` and `run`."""
        return _states(self, *self._begin(tokens, mask))

    def attention_maps(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Float[Array, "layers H n n"]:
        """Return attention weights `(K, H, n, n)` at the start of every layer; entry (l, h, i, j) is what query i gives key j.

        Rows sum to 1. A Strang splitting takes half a step of the other terms before it evaluates A, and the map is the
        one it uses then, as in a Macaron block. Raises as `embed` and `run`.
        """
        return _observe(self, *self._begin(tokens, mask))[2]

    def observe(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Observed:
        """Return logits, `hidden_states` and `attention_maps` of one solve; for a batch see `pdejax.observe`."""
        return _observe(self, *self._begin(tokens, mask))

    def __call__(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Float[Array, "..."]:
        """Class logits `(classes,)`, token logits `(n, vocab)`, or without a head the last field `(n, d)`.

        A field that blows up gives NaN. Raises as `embed` and `run`.
        """
        return _logits(self, *self._begin(tokens, mask))

    def trainable(self) -> PyTree[bool]:
        """Return a tree of booleans like the model, true at parameters: all float arrays, α only with `train_strength`."""
        return trainable(self, self.config.train_strength)

    def parameters(self) -> dict[str, Array]:
        """Return every parameter by its path, such as `stacked/interaction/wq` `(K, d, H, dk)`, `common/…` where there
        is no axis of layers."""
        return named_parameters(self)

    @property
    def parameter_count(self) -> int:
        """Number of trained numbers."""
        return sum(leaf.size for leaf in self.parameters().values())

    @classmethod
    def from_parameters(cls, config: SimulatorConfig, parameters: Mapping[str, ArrayLike]) -> "Simulator":
        """Return the model with these parameters, named and shaped as `parameters()` gives them.

        Raises `ValueError` for names that are missing or too many and for shapes that differ.
        """
        return carrying(cls, config, parameters)

    def _begin(self, tokens: ArrayLike, mask: ArrayLike | None) -> tuple[Field, Mask | None]:
        """The initial field and the mask; both are checked before anything is computed."""
        x = checked_tokens("Simulator", self.architecture, tokens)
        valid = token_mask("Simulator", mask, x.shape[0])
        return self.embedding(x), valid

    def _check(self, u0: ArrayLike, mask: ArrayLike | None) -> tuple[Field, Mask | None]:
        u = checked_field("Simulator", self.architecture, u0, self.architecture.state_dtype)
        return u, token_mask("Simulator", mask, u.shape[0])


# Compiled here, so that a call outside jit is one program; inside jit they are part of the caller's.
@eqx.filter_jit
def _logits(model: Simulator, u0: Field, mask: Mask | None) -> Float[Array, "..."]:
    return model.readout(_solve(model, u0, mask, "end")[0], mask)


@eqx.filter_jit
def _states(model: Simulator, u0: Field, mask: Mask | None) -> Float[Array, "layers n d"]:
    if model.config.weights == "constant":
        return _solve(model, u0, mask, "layers")
    return _solve(model, u0, mask, "steps")[:: model.config.steps_per_layer]


@eqx.filter_jit
def _observe(model: Simulator, u0: Field, mask: Mask | None) -> Observed:
    states = _states(model, u0, mask)
    maps = attention_maps("Simulator.observe", model.discretization(states.shape[1]), states, mask)
    return Observed(model.readout(states[-1], mask), states, maps)


def _solve(model: Simulator, u0: Field, mask: Mask | None, save: str) -> Float[Array, "depths n d"]:
    return simulate(model.discretization(u0.shape[0]), u0, save=save, mask=mask).us


def trainable(model: Any, strength: bool) -> PyTree[bool]:
    """True at the float arrays of a simulator, at the strengths of A and R only if they are learned."""
    marked = jax.tree.map(eqx.is_inexact_array, model)
    where = "common" if model.stacked is None else "stacked"

    def strengths(m):
        weights = getattr(m, where)
        return weights.interaction.strength, weights.reaction.strength

    # Without its arrays, as of `eqx.partition`, a model has None in their place.
    return marked if strength else eqx.tree_at(strengths, marked, (False, False), is_leaf=lambda x: x is None)


def named_parameters(model: Any) -> dict[str, Array]:
    """The leaves that `model.trainable()` marks, by their paths."""
    kept = eqx.filter(model, model.trainable())
    leaves, _ = jax.tree_util.tree_flatten_with_path(kept)
    return {_name(path): leaf for path, leaf in leaves}


def carrying(kind: Any, config: Any, parameters: Mapping[str, ArrayLike]) -> Any:
    """The simulator of this kind and config with these parameters, copied: a training step gives its arrays away."""
    wanted = eqx.filter_eval_shape(lambda: kind(config, key=jax.random.key(0)).parameters())
    _check_parameters(wanted, parameters)
    return _carrying(kind, config, {name: jnp.asarray(value) for name, value in parameters.items()})


# Compiled, so that no weights are drawn to be replaced: in this program they are dead code.
@eqx.filter_jit
def _carrying(kind: Any, config: Any, parameters: dict[str, Array]) -> Any:
    return with_parameters(kind(config, key=jax.random.key(0)), parameters)


def with_parameters(model: Any, parameters: Mapping[str, ArrayLike]) -> Any:
    """The model with its parameters replaced by those of the same names."""
    old, rest = eqx.partition(model, model.trainable())
    leaves, structure = jax.tree_util.tree_flatten_with_path(old)
    named = {_name(path): leaf for path, leaf in leaves}
    _check_parameters(named, parameters)
    # Copies: a training step gives its arrays away.
    new = [jnp.array(parameters[name], leaf.dtype) for name, leaf in named.items()]
    return eqx.combine(jax.tree.unflatten(structure, new), rest)


def _check_parameters(wanted: Mapping[str, Any], given: Mapping[str, ArrayLike]) -> None:
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or unknown:
        raise ValueError(f"parameters do not belong to this config: missing {missing}, unknown {unknown}")
    for name, leaf in wanted.items():
        if np.shape(given[name]) != leaf.shape:
            raise ValueError(
                f"parameter {name!r} must have shape {leaf.shape} for this config, got {np.shape(given[name])}"
            )


def _name(path: tuple) -> str:
    return "/".join(str(getattr(key, "name", getattr(key, "idx", key))) for key in path)
