"""The master equation as a pure vector field, and the coupled multi-layer system of v1 (4)."""

import abc
from collections.abc import Sequence
from typing import TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pdejax._types import Depth, Field
from pdejax.terms import AbstractTerm, Exchange, FieldArgs

T = TypeVar("T")
TERMS = ("interaction", "reaction", "diffusion", "stabilization")


class AbstractEquation(eqx.Module):
    """A vector field `f(t, u, args)` made of named terms that a splitting solver can take apart."""

    @abc.abstractmethod
    def __call__(self, t: Depth, u: Array, args: FieldArgs | None = None) -> Array:
        """`∂u/∂t`, of the shape of `u`. Works as `diffrax.ODETerm(equation)`."""

    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the terms that are present, in the order a splitting applies them."""

    @abc.abstractmethod
    def only(self, names: Sequence[str]) -> "AbstractEquation":
        """The same equation with only these terms."""

    @abc.abstractmethod
    def damping(self) -> Float[Array, ""]:
        """Sum of the linear decay rates the terms impose, per unit depth (see `AbstractTerm.damping`)."""

    @abc.abstractmethod
    def check(self, shape: tuple[int, ...]) -> None:
        """Raise `ValueError` unless a state of this shape fits every term."""

    def contributions(self, t: Depth, u: Array, args: FieldArgs | None = None) -> dict[str, Array]:
        """Each term's part of `∂u/∂t` by name; they sum to `equation(t, u, args)`."""
        return {name: self.only((name,))(t, u, args) for name in self.names()}

    def multiterm(self, split: Sequence[Sequence[str]] | None = None) -> diffrax.MultiTerm:
        """A `diffrax.MultiTerm` with one `ODETerm` per group of term names (default: one per term).

        Raises `ValueError` unless the groups hold every present term exactly once.
        """
        present = self.names()
        groups = [(name,) for name in present] if split is None else [tuple(group) for group in split]
        flat = [name for group in groups for name in group]
        if sorted(flat) != sorted(present):
            raise ValueError(
                f"split={groups} must name every term of the equation exactly once; the equation has {present}."
            )
        return diffrax.MultiTerm(*(diffrax.ODETerm(self.only(group)) for group in groups))


class MasterEquation(AbstractEquation):
    r"""The master equation v2 (4), $\partial_t u = A(u) + R(u) + D(u) + S(u)$, from any subset of its terms.

    - `interaction` A: `Attention`. `reaction` R: `FeedForward`. `diffusion` D: `Diffusion` or `EffectiveDiffusion`.
      `stabilization` S: `SpatialNorm`, `LayerNormRelaxation` or `LinearDamping`.

    `equation(t, u, args)` is a pure function of depth t (a scalar), field `u (n, d)` and `FieldArgs` or None, and returns
    `∂u/∂t (n, d)`. One sequence at a time: batches by `jax.vmap`. v1 (1) is the same equation with α inside A.

    Raises `TypeError` if something that is not a term is passed, `ValueError` if no term is given or `u` is not `(n, d)`.
    """

    interaction: AbstractTerm | None = None
    reaction: AbstractTerm | None = None
    diffusion: AbstractTerm | None = None
    stabilization: AbstractTerm | None = None

    def __check_init__(self):
        for name in TERMS:
            term = getattr(self, name)
            if term is not None and not isinstance(term, AbstractTerm):
                raise TypeError(
                    f"MasterEquation: {name} is a {type(term).__name__}, not a term; pass an object from pdejax.terms."
                )
        if not self.names():
            raise ValueError(f"MasterEquation: no term given; pass at least one of {TERMS}.")

    def __call__(self, t: Depth, u: Field, args: FieldArgs | None = None) -> Field:
        _require_field(u.shape)
        first, *rest = (term(t, u, args) for term in self._present())
        return sum(rest, start=first)

    def names(self) -> tuple[str, ...]:
        return tuple(name for name in TERMS if getattr(self, name) is not None)

    def only(self, names: Sequence[str]) -> "MasterEquation":
        unknown = [name for name in names if name not in self.names()]
        if unknown:
            raise ValueError(f"MasterEquation: no terms {unknown}; present are {self.names()}.")
        return MasterEquation(**{name: getattr(self, name) for name in names})

    def damping(self) -> Float[Array, ""]:
        return sum((jnp.asarray(term.damping(), float) for term in self._present()), start=jnp.zeros(()))

    def check(self, shape: tuple[int, ...]) -> None:
        _require_field(shape)
        for term in self._present():
            term.check(*shape)

    def _present(self) -> list[AbstractTerm]:
        return [getattr(self, name) for name in self.names()]


class MultilayerEquation(AbstractEquation):
    r"""The coupled multi-layer system v1 (4), (17), on a state `u (L, n, d)`:

    $$\partial_t u_l = D_l\nabla^2 u_l + \alpha_l A_l(u_l) + R_l(u_l) + C_{l-1,l}(u_{l-1}) - C_{l,l+1}(u_l).$$

    v1 leaves the ends open; we take $C_{0,1} = C_{L,L+1} = 0$, so exchange only moves the field between layers.

    `layers`: a sequence of L `MasterEquation`s of equal structure; `exchange`: L−1 `Exchange`s. Explicit Euler on this
    field is v1 (20). Raises `ValueError` for counts or structures that do not match.
    """

    layers: MasterEquation
    exchange: Exchange | None
    size: int = eqx.field(static=True)

    def __init__(self, layers: Sequence[MasterEquation], exchange: Sequence[Exchange]):
        if len(layers) < 1 or len(exchange) != len(layers) - 1:
            raise ValueError(
                f"MultilayerEquation: {len(layers)} layers need {max(len(layers) - 1, 0)} exchanges between them, "
                f"but {len(exchange)} were given."
            )
        for name, given, kind in (("layers", layers, MasterEquation), ("exchange", exchange, Exchange)):
            for item in given:
                if not isinstance(item, kind):
                    raise TypeError(
                        f"MultilayerEquation: {name} has a {type(item).__name__}; it must hold {kind.__name__} objects."
                    )
        self.layers = stack(layers)
        self.exchange = stack(exchange) if exchange else None
        self.size = len(layers)

    def __call__(self, t: Depth, u: Float[Array, "L n d"], args: FieldArgs | None = None) -> Float[Array, "L n d"]:
        du = eqx.filter_vmap(lambda layer, field: layer(t, field, args))(self.layers, u)
        if self.exchange is None:
            return du
        flow = eqx.filter_vmap(lambda c, field: c(field))(self.exchange, u[:-1])
        return du.at[1:].add(flow).at[:-1].add(-flow)

    def names(self) -> tuple[str, ...]:
        return (*self.layers.names(), "exchange") if self.exchange is not None else self.layers.names()

    def only(self, names: Sequence[str]) -> "AbstractEquation":
        inner = [name for name in names if name != "exchange"]
        if not inner:
            return _ExchangeOnly(self.exchange, self.size)
        part = eqx.tree_at(lambda e: e.layers, self, self.layers.only(inner))
        if "exchange" in names:
            return part
        return eqx.tree_at(lambda e: e.exchange, part, None, is_leaf=lambda x: x is None)

    def damping(self) -> Float[Array, ""]:
        rate = jnp.max(eqx.filter_vmap(lambda layer: layer.damping())(self.layers))
        return rate if self.exchange is None else rate + jnp.max(jnp.linalg.norm(self.exchange.w, 2, axis=(-2, -1)))

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 3 or shape[0] != self.size:
            raise ValueError(f"MultilayerEquation: the state must have shape ({self.size}, n, d), got {shape}.")
        unstack_shapes(self.layers).check(shape[1:])
        if self.exchange is not None and self.exchange.w.shape[-1] != shape[-1]:
            raise ValueError(
                f"MultilayerEquation: exchange was built for fields of width dim={self.exchange.w.shape[-1]}, but the state "
                f"has {shape[-1]} features."
            )


class _ExchangeOnly(AbstractEquation):
    """The exchange part of v1 (17) on its own, as one group of a splitting."""

    exchange: Exchange | None
    size: int = eqx.field(static=True)

    def __call__(self, t: Depth, u: Float[Array, "L n d"], args: FieldArgs | None = None) -> Float[Array, "L n d"]:
        del t, args
        flow = eqx.filter_vmap(lambda c, field: c(field))(self.exchange, u[:-1])
        return jnp.zeros_like(u).at[1:].add(flow).at[:-1].add(-flow)

    def names(self) -> tuple[str, ...]:
        return ("exchange",)

    def only(self, names: Sequence[str]) -> "AbstractEquation":
        del names
        return self

    def damping(self) -> Float[Array, ""]:
        return jnp.zeros(()) if self.exchange is None else jnp.max(jnp.linalg.norm(self.exchange.w, 2, axis=(-2, -1)))

    def check(self, shape: tuple[int, ...]) -> None:
        del shape


def stack(modules: Sequence[T]) -> T:
    """Modules of equal structure as one, every array leaf with a new leading axis."""
    dynamic, static = zip(*(eqx.partition(m, eqx.is_array) for m in modules), strict=True)
    first = jax.tree.structure(dynamic[0])
    if any(jax.tree.structure(d) != first for d in dynamic) or any(not eqx.tree_equal(s, static[0]) for s in static):
        raise ValueError(
            "layers must have the same structure (same terms, sizes, activations and options) to be stacked."
        )
    return eqx.combine(jax.tree.map(lambda *leaves: jnp.stack(leaves), *dynamic), static[0])


def unstack(stacked: T, index) -> T:
    """Entry `index` (a number or a traced integer) of every stacked array leaf."""
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, stacked)


def unstack_shapes(stacked: T) -> T:
    """One entry of a stack as shapes only, for checks that need no values."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) if eqx.is_array(x) else x, stacked)


def _require_field(shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(
            f"the field must have shape (n, d) with n, d ≥ 1, got {shape}. Batches go through jax.vmap, one sequence at a time."
        )
