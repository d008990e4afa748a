"""The learnable field of a simulator: weights of A, R, D and S, one set per layer, and the equation they make."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax._depth import LayerStack, loop_order
from pdejax._equation import MasterEquation, unstack
from pdejax._types import Depth, Field, Mask
from pdejax.models._ends import cast, lecun, make_norm
from pdejax.models._simulator_config import AbstractSimulatorConfig
from pdejax.solvers import Grid, LieTrotter, Retract, Strang, get_solver
from pdejax.solvers._splitting import Injecting
from pdejax.solvers._written import one_line
from pdejax.terms import (
    AbstractTerm,
    Attention,
    Diffusion,
    FeedForward,
    FieldArgs,
    LayerNorm,
    LayerNormRelaxation,
    Linear,
    LinearDamping,
    RMSNorm,
    SpatialNorm,
)
from pdejax.terms._injection import Injection


class HalfPrecision(AbstractTerm):
    """A term evaluated in a narrower type than the field's, `term(t, u.astype(dtype)).astype(u.dtype)`."""

    term: AbstractTerm
    dtype: str = eqx.field(static=True)

    def __call__(self, t: Depth, u: Field, args: FieldArgs | None) -> Field:
        return self.term(t, u.astype(self.dtype), args).astype(u.dtype)

    def maps(self, u: Field, mask: Mask | None = None) -> Float[Array, "H n n"] | None:
        found = self.term.maps(u.astype(self.dtype), mask)
        return None if found is None else found.astype(u.dtype)

    def damping(self) -> Float[Array, ""]:
        return self.term.damping()

    def linear(self, n: int, mask: Any = None) -> Linear | None:
        return self.term.linear(n, mask)

    def check(self, n: int, d: int) -> None:
        self.term.check(n, d)

    @property
    def smoothness(self) -> float:
        return self.term.smoothness

    def lipschitz(self, radius: float, n: int, norm: str = "token_max", spread: float = 0.0) -> Any:
        """The term's own constant, up to the rounding of the narrower type."""
        return self.term.lipschitz(radius, n, norm, spread)

    def growth(self, n: int, norm: str = "token_max") -> tuple[float, float] | None:
        """The term's own growth, up to the rounding of the narrower type."""
        return self.term.growth(n, norm)


class FieldWeights(eqx.Module):
    """Weights of A, R, D and S, or some of them.

    `diffusivity` and `gamma` hold ϑ, of which D and γ are the softplus: `(1,)`, or `(d,)` per feature. `relaxation` is the LN
    of S = −γ(u − LN(u)), `retractions` are the norms applied after steps: one per term of a splitting, else one.
    """

    interaction: Attention | None = None
    reaction: FeedForward | None = None
    diffusivity: Float[Array, "*layers features"] | None = None
    gamma: Float[Array, "*layers one"] | None = None
    relaxation: LayerNorm | RMSNorm | None = None
    retractions: tuple[LayerNorm | RMSNorm, ...] | None = None

    __repr__ = one_line


# Not inside `make_weights`: a function made anew is compiled anew, and every training makes a model.
@eqx.filter_jit
def _draw(config: AbstractSimulatorConfig, key: PRNGKeyArray, layers: int | None) -> FieldWeights:
    """The weights of one field, or of `layers` of them with a leading axis."""

    def one(key: PRNGKeyArray) -> FieldWeights:
        interaction, reaction = _terms(config, key)
        columns = config.architecture.dim if config.diffusion == "feature" else 1
        rated = config.stabilization in ("damping", "spatial", "layernorm")
        return FieldWeights(
            interaction,
            reaction,
            None if config.diffusion == "none" else _rate(config, config.diffusivity, columns),
            _rate(config, config.gamma, 1) if rated else None,
            make_norm(config.architecture) if config.stabilization == "layernorm" else None,
            tuple(make_norm(config.architecture) for _ in range(2 if splits(config) else 1))
            if config.stabilization == "retraction"
            else None,
        )

    return one(key) if layers is None else eqx.filter_vmap(one)(jax.random.split(key, layers))


def make_weights(config: AbstractSimulatorConfig, key: PRNGKeyArray) -> tuple[FieldWeights | None, FieldWeights | None]:
    """Fresh weights as `(stacked, common)`: those with a leading axis over the K layers, and those that serve all depths.

    Piecewise-constant weights are all stacked, a shared field's all common. Between knots a spline of D or γ could fall below
    0 and a retraction is not interpolated, so cubic weights have the former in common, linear and cubic ones the latter.
    """

    if config.weights == "shared":
        return None, _draw(config, key, None)
    stacked = _draw(config, key, config.architecture.layers)
    moved = {"constant": (), "linear": ("retractions",), "cubic": ("retractions", "diffusivity", "gamma")}[
        config.weights
    ]
    held = {name: jax.tree.map(lambda x: x[0], getattr(stacked, name)) for name in moved}
    if all(part is None for part in held.values()):
        return stacked, None
    stacked = FieldWeights(**{n: v for n, v in vars(stacked).items() if n not in moved})
    return stacked, FieldWeights(**held)


# Compiled here: one program in place of one for every weight.
@eqx.filter_jit
def stacked_equation(
    config: AbstractSimulatorConfig, stacked: FieldWeights, common: FieldWeights | None, n: int
) -> MasterEquation:
    """The master equation on n tokens, its array leaves with a leading axis over the layers."""
    # Retractions belong to the solver.
    given = {name: part for name, part in vars(stacked).items() if part is not None and name != "retractions"}
    rest = {} if common is None else vars(common)
    equation = eqx.filter_vmap(lambda layer: _master(config, n, FieldWeights(**rest | layer)))(given)
    sizes = config.architecture
    if sizes.injection == "none":
        return equation
    gate = (jnp.arange(sizes.layers) == sizes.prelude).astype(jnp.int32)
    return equation.replace(injection=Injection(None, gate, sizes.depth / config.t1))


def single_equation(config: AbstractSimulatorConfig, common: FieldWeights, n: int) -> MasterEquation:
    """The master equation of a shared field on n tokens."""
    return _master(config, n, common)


def make_solver(
    config: AbstractSimulatorConfig, stacked: FieldWeights | None, common: FieldWeights | None
) -> tuple[str | diffrax.AbstractSolver, tuple[tuple[str, ...], ...] | None]:
    """The solver's name, or the solver with the retractions where there are any and what is injected first; and the groups of
    terms that it splits the field into, where they are not the terms."""
    solver, split = _with_retractions(config, stacked, common), None
    if config.architecture.injection == "none" or config.solver not in ("euler", "lietrotter", "macaron"):
        return solver, split
    if config.solver == "euler":
        split = (_others(config), ("injection",))
        solver = LieTrotter((get_solver(solver),))
    elif isinstance(solver, str):
        solver = get_solver(solver, terms=len(_others(config)))
    assert isinstance(solver, LieTrotter | Strang)
    # As the block has it: the whole of what is injected comes before it.
    return Injecting.of(solver, diffrax.Euler()), split


def _others(config: AbstractSimulatorConfig) -> tuple[str, ...]:
    """Names of the terms beside an injection."""
    rated = config.stabilization in ("damping", "spatial", "layernorm")
    found = {"interaction": True, "reaction": True, "diffusion": config.diffusion != "none", "stabilization": rated}
    return tuple(name for name, there in found.items() if there)


def _with_retractions(
    config: AbstractSimulatorConfig, stacked: FieldWeights | None, common: FieldWeights | None
) -> str | diffrax.AbstractSolver:
    layered = stacked is not None and stacked.retractions is not None
    holder = stacked if layered else common
    if holder is None or holder.retractions is None:
        return config.solver
    # Strang's halves of what is injected are the outermost.
    strang = config.architecture.injection != "none" and config.solver == "strang"
    solver = get_solver(config.solver, terms=len(_others(config)) + strang)
    maps: tuple[Any, ...] = holder.retractions
    if layered:
        sizes = config.architecture
        order = loop_order(sizes.layers, sizes.loops, sizes.prelude, sizes.coda)
        # Norms are small: those of a loop are written out, one per layer of the depth.
        maps = tuple(LayerStack(norm if sizes.loops == 1 else unstack(norm, order)) for norm in maps)
    if not splits(config):
        return Retract(solver, maps[0])
    assert isinstance(solver, LieTrotter | Strang)
    first, second, *rest = solver.solvers
    return type(solver)((Retract(first, maps[0]), Retract(second, maps[1]), *rest))


def splits(config: AbstractSimulatorConfig) -> bool:
    """Whether the solver takes A and R one after the other."""
    return config.solver in ("lietrotter", "strang", "macaron")


def _rate(config: AbstractSimulatorConfig, value: float, size: int) -> Array:
    """ϑ `(size,)` with softplus(ϑ) = value > 0."""
    return jnp.full(size, value + np.log(-np.expm1(-value)), config.architecture.param_dtype)


def _terms(config: AbstractSimulatorConfig, key: PRNGKeyArray) -> tuple[Attention, FeedForward]:
    """A and R of one layer, with the initialization of a Transformer layer."""
    sizes = config.architecture
    d, hidden, heads = sizes.dim, sizes.ffn, sizes.heads
    inside, outside = sizes.norm in ("pre", "peri"), sizes.norm == "peri"

    def norm(wanted: bool) -> LayerNorm | RMSNorm | None:
        return make_norm(sizes) if wanted else None

    interaction = Attention(
        d,
        heads,
        key=key,
        leak=config.leak,
        strength=config.strength,
        causal=sizes.causal,
        rotary=sizes.rotary_theta if sizes.positions == "rotary" else None,
        bias=sizes.bias,
        norm=norm(inside),
        norm_out=norm(outside),
        implementation=config.implementation,
    )
    reaction = FeedForward(
        d,
        hidden,
        key=key,
        activation=sizes.activation,
        leak=config.leak,
        strength=config.strength,
        norm=norm(inside),
        norm_out=norm(outside),
    )
    interaction, reaction = cast((interaction, reaction), sizes.param_dtype)
    inward, outward = (d, heads, sizes.head_dim), (heads, sizes.head_dim, d)
    shapes = ((inward, d), (inward, d), (inward, d), (outward, d), ((d, hidden), d), ((hidden, d), hidden))
    drawn = [lecun(k, *shape, sizes.param_dtype) for k, shape in zip(jax.random.split(key, 6), shapes, strict=True)]
    return eqx.tree_at(lambda p: (p[0].wq, p[0].wk, p[0].wv, p[0].wo, p[1].w1, p[1].w2), (interaction, reaction), drawn)


def _master(config: AbstractSimulatorConfig, n: int, weights: FieldWeights) -> MasterEquation:
    """The equation of one layer on n tokens."""
    interaction, reaction = weights.interaction, weights.reaction
    diffusion = stabilization = None
    if weights.diffusivity is not None:
        outer = n + 1 if config.boundary == "dirichlet" else n
        grid = Grid(n, config.boundary, float(outer) if config.domain is None else config.domain)
        d = jax.nn.softplus(weights.diffusivity)
        diffusion = Diffusion(grid, d[0] if config.diffusion == "scalar" else d)
    if weights.gamma is not None:
        rate = jax.nn.softplus(weights.gamma[0])
        if config.stabilization == "damping":
            stabilization = LinearDamping(rate)
        elif config.stabilization == "spatial":
            stabilization = SpatialNorm(rate, eps=jnp.asarray(1e-5, rate.dtype))
        else:
            stabilization = LayerNormRelaxation(config.architecture.dim, rate, norm=weights.relaxation)
    narrow = config.architecture.dtype
    if narrow in ("bfloat16", "float16"):
        assert interaction is not None and reaction is not None
        interaction, reaction = HalfPrecision(interaction, narrow), HalfPrecision(reaction, narrow)
    return MasterEquation(interaction=interaction, reaction=reaction, diffusion=diffusion, stabilization=stabilization)
