"""The stiff linear part of a master equation, for solvers that take it exactly or implicitly."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from pdejax._depth import DepthVarying
from pdejax._equation import AbstractEquation, MasterEquation, MultilayerEquation
from pdejax._types import Depth, Field
from pdejax.solvers import AbstractLinearOperator, DiagonalizableOperator, Grid, TridiagonalOperator
from pdejax.terms import (
    AbstractTerm,
    Attention,
    Diffusion,
    EffectiveDiffusion,
    FeedForward,
    FieldArgs,
    LayerNormRelaxation,
    LinearDamping,
    SpatialNorm,
)


class Remainder(eqx.Module):
    """The field without its linear part: the other terms, their leaks given back."""

    terms: tuple[AbstractTerm, ...]
    leak: Array | None

    def __call__(self, t: Depth, u: Field, args: FieldArgs | None = None) -> Field:
        out = jnp.zeros_like(u)
        for term in self.terms:
            out = out + term(t, u, args)
        return out if self.leak is None else out + self.leak.astype(u.dtype) * u


def split_linear(
    equation: AbstractEquation, n: int, args: FieldArgs | None = None
) -> tuple[AbstractLinearOperator, Remainder]:
    r"""The master equation as $\partial_t u = Lu + N(t, u)$ on fields of `n` tokens.

    L holds the constant diffusion, the linear damping −γu, the leaks −αu of attention and feed-forward, and the −γu of
    a LayerNorm relaxation (scalar γ); N is what remains. `L(t, u, args) + N(t, u, args)` equals the equation to rounding.

    Without a padding mask L is a `DiagonalizableOperator`; with one, a `TridiagonalOperator`, because no flux crosses
    the faces of padded tokens. A field without diffusion gets D = 0.

    Raises `ValueError`, saying which solver to use instead, where the linear part has no such structure: coupled layers,
    weights that vary within a step, a diffusivity that depends on the state or is a matrix that is not symmetric,
    a matrix with a mask, or one token.
    """
    equation = _at_one_depth(equation)
    mask = None if args is None else args.mask
    diffusion = equation.diffusion
    if isinstance(diffusion, EffectiveDiffusion):
        raise ValueError(
            "the effective diffusion of v2 (8) depends on the state: no solver can take it exactly. Use solver='rkc2' or "
            "'rock2', which need no structure."
        )
    rate, rest = _take_rates(equation)
    shift = None if rate is None else -rate
    if diffusion is None:
        if n < 2:
            raise ValueError("a field of one token has no diffusion to take exactly: use an explicit solver.")
        return DiagonalizableOperator(Grid(n), 0.0, shift), rest
    assert isinstance(diffusion, Diffusion)
    d = diffusion.diffusivity
    if mask is None:
        return DiagonalizableOperator(diffusion.grid, d, shift), rest
    if d.ndim == 2:
        raise ValueError(
            "a diffusivity matrix with a padding mask has no fast solve: leave the padding out of the field, give one "
            "diffusivity per feature, or use solver='rkc2'."
        )
    grid = diffusion.grid
    coefficient = jnp.broadcast_to(d, (grid.n,)) if d.ndim == 0 else jnp.broadcast_to(d[None], (grid.n, d.shape[0]))
    return TridiagonalOperator(grid, coefficient, mask, shift), rest


def _at_one_depth(equation: AbstractEquation) -> MasterEquation:
    if isinstance(equation, MasterEquation):
        return equation
    if isinstance(equation, DepthVarying):
        raise ValueError(
            f"weights of kind {equation.kind!r} vary within a step, and with them the linear part. Piecewise-constant weights "
            "are taken layer by layer; for smooth ones use solver='rkc2' or 'tsit5'."
        )
    raise ValueError(
        f"a {type(equation).__name__} has no linear part that one transform diagonalizes: use solver='rkc2' or 'tsit5'."
    )


def _take_rates(equation: MasterEquation) -> tuple[Array | None, Remainder]:
    """The sum of the linear decay rates, and the equation without them and without diffusion."""
    damping = leak = None
    rest: list[AbstractTerm] = []
    for name in equation.names():
        term = getattr(equation, name)
        if isinstance(term, Diffusion):
            continue
        if isinstance(term, LinearDamping) and term.gamma.ndim == 0:
            damping = term.gamma
            continue
        rest.append(term)
        if isinstance(term, Attention | FeedForward) and term.leak:
            leak = _sum(leak, term.strength)
        elif isinstance(term, LayerNormRelaxation) and term.gamma.ndim == 0:
            leak = _sum(leak, term.gamma)
    return (damping if leak is None else _sum(damping, leak)), Remainder(tuple(rest), leak)


def _sum(a: Array | None, b: Array) -> Array:
    """a + b in the wider type: strict promotion does not mix float32 and float64."""
    if a is None:
        return b
    kind = jnp.promote_types(a.dtype, b.dtype)
    return a.astype(kind) + b.astype(kind)


def linear_rate(equation: AbstractEquation) -> Array:
    """The largest decay rate of the linear part: diffusion 4D/Δx², linear damping and leaks, per unit depth.

    Unlike `equation.damping()` it counts no rate that depends on the state, such as the γ/√ε of `SpatialNorm`, which
    holds near σ = 0 only.
    """
    names = [
        name
        for name in equation.names()
        if not isinstance(getattr(_layers(equation), name, None), EffectiveDiffusion | SpatialNorm)
    ]
    return equation.only(names).damping() if names else jnp.zeros(())


def _layers(equation: AbstractEquation) -> AbstractEquation:
    """What carries the terms as attributes."""
    if isinstance(equation, DepthVarying):
        return equation.stacked
    return equation.layers if isinstance(equation, MultilayerEquation) else equation
