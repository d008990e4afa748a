"""v1's multi-layer coupled system as a trainable model."""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from pdejax._arguments import checked
from pdejax._check import instance, token_mask
from pdejax._discretization import Discretization
from pdejax._equation import MultilayerEquation, unstack
from pdejax._simulate import simulate
from pdejax._types import Field, Mask
from pdejax.models._architecture import Architecture, model_text
from pdejax.models._ends import Embedding, Readout, cast, checked_tokens
from pdejax.models._observe import Observed
from pdejax.models._simulator import carrying, named_parameters, trainable
from pdejax.models._simulator_config import MultilayerSimulatorConfig
from pdejax.models._simulator_field import FieldWeights, make_weights, stacked_equation
from pdejax.solvers import Retract, get_solver
from pdejax.terms import Exchange, LayerNorm, RMSNorm


class MultilayerSimulator(eqx.Module):
    r"""The coupled system v1 (4), (17) as a trainable model: L fields that evolve together,

    $$\partial_t u_l = D_l\nabla^2 u_l + \alpha_l A_l(u_l) + R_l(u_l) + S_l(u_l) + C_{l-1,l}(u_{l-1}) - C_{l,l+1}(u_l),$$

    $C(u) = Wu + b$ of v1 (18)–(19) and $C_{0,1} = C_{L,L+1} = 0$, on a state `(L, n, d)`; S is off unless asked for.
    Explicit Euler is v1 (20); any solver without a linear part will do. The logits are read from layer L at t1.

    Called like every model, `model(tokens, mask) -> logits` of one sequence. Raises as `Simulator`.
    """

    embedding: Embedding
    stacked: FieldWeights
    exchange: Exchange | None
    readout: Readout
    config: MultilayerSimulatorConfig = eqx.field(static=True)

    @checked
    def __init__(self, config: MultilayerSimulatorConfig, *, key: PRNGKeyArray):
        instance("MultilayerSimulator", "config", config, MultilayerSimulatorConfig)
        first, second, third, fourth = jax.random.split(key, 4)
        sizes = config.architecture
        self.embedding = Embedding(sizes, key=first)
        stacked, _ = make_weights(config, second)
        assert stacked is not None  # weights that are constant in depth all are
        self.stacked = stacked
        self.readout = Readout(sizes, config.head_norm, key=third)
        self.exchange = None
        if sizes.layers > 1:
            make = eqx.filter_vmap(lambda k: Exchange(sizes.dim, key=k, scale=config.exchange))
            self.exchange = cast(make(jax.random.split(fourth, sizes.layers - 1)), sizes.param_dtype)
        self.config = config

    def __repr__(self) -> str:
        return model_text("MultilayerSimulator", self.architecture, self.parameter_count, self.config.words())

    @property
    def architecture(self) -> Architecture:
        """Sizes and the form of a layer."""
        return self.config.architecture

    def discretization(self, n: int) -> Discretization:
        """Return the coupled field on n tokens, the solver, with the retraction of every layer if there is one, and the steps."""
        config, norms = self.config, self.stacked.retractions
        stacked, count = stacked_equation(config, self.stacked, None, n), self.architecture.layers
        between = [] if self.exchange is None else [unstack(self.exchange, i) for i in range(count - 1)]
        field = MultilayerEquation([unstack(stacked, i) for i in range(count)], between)
        solver = config.solver if norms is None else Retract(get_solver(config.solver), _EachLayer(norms[0]))
        return Discretization(field, solver, t1=config.t1, steps=config.steps)

    def embed(self, tokens: ArrayLike) -> Field:
        """Return E + P `(n, d)`; v2 (2). As `Transformer.embed`, errors included."""
        return self.embedding(checked_tokens("MultilayerSimulator", self.architecture, tokens))

    def start(self, tokens: ArrayLike) -> Float[Array, "L n d"]:
        """Return the initial state of all layers, see `MultilayerSimulatorConfig.start`."""
        u0 = self.embed(tokens)
        shape = (self.architecture.layers, *u0.shape)
        if self.config.start == "embedding":
            return jnp.broadcast_to(u0[None], shape)
        return jnp.zeros(shape, u0.dtype).at[0].set(u0)

    def trajectory(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Float[Array, "times L n d"]:
        """Return all layers at t = 0 and after every step, `(steps + 1, L, n, d)`."""
        state = self.start(tokens)
        return _trajectory(self, state, token_mask("MultilayerSimulator", mask, state.shape[1]))

    def hidden_states(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Float[Array, "layers n d"]:
        """Return the embedding, then every layer's field at t1: `(L + 1, n, d)`."""
        return self.observe(tokens, mask)[1]

    def attention_maps(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Float[Array, "layers H n n"]:
        """Return attention weights of every layer on its own field at t1, `(L, H, n, n)`."""
        return self.observe(tokens, mask)[2]

    def observe(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Observed:
        """Return logits, `hidden_states` and `attention_maps` of one solve; for a batch see `pdejax.observe`."""
        state = self.start(tokens)
        return _observe(self, state, token_mask("MultilayerSimulator", mask, state.shape[1]))

    def __call__(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Float[Array, "..."]:
        """Class logits `(classes,)`, token logits `(n, vocab)`, or without a head the last layer `(n, d)`."""
        state = self.start(tokens)
        return _logits(self, state, token_mask("MultilayerSimulator", mask, state.shape[1]))

    def trainable(self) -> PyTree[bool]:
        """Return a tree of booleans like the model, true at parameters: all float arrays, α_l only with `train_strength`."""
        return trainable(self, self.config.train_strength)

    def parameters(self) -> dict[str, Array]:
        """Return every parameter by its path, such as `exchange/w` `(L − 1, d, d)`."""
        return named_parameters(self)

    @property
    def parameter_count(self) -> int:
        """Number of trained numbers."""
        return sum(leaf.size for leaf in self.parameters().values())

    @classmethod
    def from_parameters(
        cls, config: MultilayerSimulatorConfig, parameters: Mapping[str, ArrayLike]
    ) -> "MultilayerSimulator":
        """Return the model with these parameters, named and shaped as `parameters()` gives them; else `ValueError`."""
        return carrying(cls, config, parameters)


@eqx.filter_jit
def _logits(model: MultilayerSimulator, state: Float[Array, "L n d"], mask: Mask | None) -> Float[Array, "..."]:
    return model.readout(_solve(model, state, mask, "end")[0, -1], mask)


@eqx.filter_jit
def _observe(model: MultilayerSimulator, state: Float[Array, "L n d"], mask: Mask | None) -> Observed:
    end = _solve(model, state, mask, "end")[0]
    stacked = stacked_equation(model.config, model.stacked, None, end.shape[1])
    maps = eqx.filter_vmap(lambda field, u: field.interaction.maps(u, mask))(stacked, end)
    # Layer 1 starts from the embedding in either case.
    return Observed(model.readout(end[-1], mask), jnp.concatenate([state[:1], end]), maps)


@eqx.filter_jit
def _trajectory(
    model: MultilayerSimulator, state: Float[Array, "L n d"], mask: Mask | None
) -> Float[Array, "times L n d"]:
    return _solve(model, state, mask, "steps")


def _solve(
    model: MultilayerSimulator, state: Float[Array, "L n d"], mask: Mask | None, save: str
) -> Float[Array, "times L n d"]:
    return simulate(model.discretization(state.shape[1]), state, save=save, mask=mask).us


class _EachLayer(eqx.Module):
    """A norm per layer, each on its own field of a state `(L, n, d)`."""

    norms: LayerNorm | RMSNorm

    def __call__(self, state: Float[Array, "L n d"]) -> Float[Array, "L n d"]:
        return eqx.filter_vmap(lambda norm, u: norm(u))(self.norms, state)
