"""The master equation as a pure vector field, and the coupled multi-layer system of v1 (4)."""

import abc
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pdejax._arguments import checked
from pdejax._nnx import is_nnx, split
from pdejax._types import Depth, Field
from pdejax.terms import AbstractTerm, Exchange, FieldArgs

T = TypeVar("T")
ROLES = ("interaction", "reaction", "diffusion", "stabilization")


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
    def linear_rate(self) -> Float[Array, ""]:
        """The part of `damping` that holds at every state: without the γ/√ε of `SpatialNorm`, which holds near σ = 0 only."""

    @abc.abstractmethod
    def couples_neighbours(self, n: int) -> bool:
        """Whether a term on `n` tokens is, or may be, a stiff operator along them."""

    @abc.abstractmethod
    def check(self, shape: tuple[int, ...]) -> None:
        """Raise `ValueError` unless a state of this shape fits every term."""

    @abc.abstractmethod
    def describe(self) -> str:
        """The terms in words: `attention + feed-forward`."""

    def __repr__(self) -> str:
        return f"∂u/∂t = {self.describe()}"

    def looked_at(self) -> "AbstractEquation":
        """The same equation, its terms looked at before their values are traced (`AbstractTerm.looked_at`)."""
        return self

    @property
    def needs_start(self) -> bool:
        """Whether a term wants the state that a solve begins with, and has none (`AbstractTerm.given`)."""
        return False

    def given(self, start: Array) -> "AbstractEquation":
        """The same equation, its terms with the state that a solve begins with."""
        del start
        return self

    def no_linear_part(self) -> str:
        """Why no solver can take a linear part of this field apart."""
        return f"a {type(self).__name__} has no linear part that one transform diagonalizes"

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
    r"""The master equation v2 (4), $\partial_t u = A(u) + R(u) + D(u) + S(u)$, from any number of terms.

    `MasterEquation(attention, feed_forward, my_term)` names every term by its role: `interaction` A (`Attention`), `reaction` R
    (`FeedForward`), `diffusion` D (`Diffusion`, `EffectiveDiffusion`), `stabilization` S (`SpatialNorm`, `LayerNormRelaxation`,
    `LinearDamping`), any other by its class. By keyword a term gets the name you give it:
    `MasterEquation(attention, hyper=HyperDiffusion(...))`. The papers' four stand first, in the papers' order; None is left out.

    `equation(t, u, args)` is a pure function of depth t (a scalar), field `u (n, d)` and `FieldArgs` or None, and returns
    `∂u/∂t (n, d)`. One sequence at a time: batches by `jax.vmap`. v1 (1) is the same equation with α inside A.
    `equation["name"]` is a term; `equation.interaction`, `.reaction`, `.diffusion`, `.stabilization` are the papers' four, None
    where absent.

    Raises `TypeError` if something that is not a term is passed, `ValueError` if no term is given, two have one name, or `u` is
    not `(n, d)`.
    """

    terms: tuple[AbstractTerm, ...]
    _names: tuple[str, ...] = eqx.field(static=True)

    @checked
    def __init__(self, *terms: AbstractTerm | None, **named: AbstractTerm | None):
        given: dict[str, AbstractTerm] = {}
        for name, term in [(None, term) for term in terms] + list(named.items()):
            if term is None:
                continue
            if not isinstance(term, AbstractTerm):
                raise TypeError(
                    f"MasterEquation: {name or 'a term'} is a {type(term).__name__}, not a term; pass an object from "
                    "pdejax.terms, or of a subclass of pdejax.terms.AbstractTerm."
                )
            name = name or term.role or type(term).__name__.lower()
            if name in given:
                raise ValueError(
                    f"MasterEquation: two terms are called {name!r}; give one of them a name of its own, such as {name}_2=…."
                )
            given[name] = term
        if not given:
            raise ValueError(f"MasterEquation: no term given; pass at least one, such as one of {ROLES}.")
        self._names = tuple(sorted(given, key=lambda name: ROLES.index(name) if name in ROLES else len(ROLES)))
        self.terms = tuple(given[name] for name in self._names)

    def __call__(self, t: Depth, u: Field, args: FieldArgs | None = None) -> Field:
        _require_field(u.shape)
        first, *rest = (term(t, u, args) for term in self.terms)
        return sum(rest, start=first)

    def __getitem__(self, name: str) -> AbstractTerm:
        return self.terms[self._place(name)]

    @property
    def interaction(self) -> Any:
        """The term of that name, A of v2 (4), or None."""
        return self.get("interaction")

    @property
    def reaction(self) -> Any:
        """The term of that name, R of v2 (4), or None."""
        return self.get("reaction")

    @property
    def diffusion(self) -> Any:
        """The term of that name, D of v2 (4), or None."""
        return self.get("diffusion")

    @property
    def stabilization(self) -> Any:
        """The term of that name, S of v2 (4), or None."""
        return self.get("stabilization")

    def get(self, name: str) -> AbstractTerm | None:
        """The term of this name, or None."""
        return self[name] if name in self._names else None

    def items(self) -> tuple[tuple[str, AbstractTerm], ...]:
        """Names and terms, in order."""
        return tuple(zip(self._names, self.terms, strict=True))

    def names(self) -> tuple[str, ...]:
        return self._names

    def only(self, names: Sequence[str]) -> "MasterEquation":
        for name in names:
            self._place(name)
        return MasterEquation(**{name: term for name, term in self.items() if name in names})

    def replace(self, **changes: AbstractTerm | None) -> "MasterEquation":
        """Another equation with some terms exchanged, added, or (None) left out."""
        return MasterEquation(**dict(self.items()) | changes)

    def looked_at(self) -> "MasterEquation":
        return eqx.tree_at(lambda e: e.terms, self, tuple(term.looked_at() for term in self.terms))

    @property
    def needs_start(self) -> bool:
        return any(term.needs_start for term in self.terms)

    def given(self, start: Array) -> "MasterEquation":
        return eqx.tree_at(lambda e: e.terms, self, tuple(term.given(start) for term in self.terms))

    def damping(self) -> Float[Array, ""]:
        return _rates(self.terms)

    def linear_rate(self) -> Float[Array, ""]:
        return _rates(term for term in self.terms if not term.state_dependent)

    def couples_neighbours(self, n: int) -> bool:
        def stiff(term: AbstractTerm) -> bool:
            try:
                part = term.linear(n)
            except ValueError:  # a linear part that depends on the state
                return True
            return part is not None and part.operator is not None

        return any(map(stiff, self.terms))

    def check(self, shape: tuple[int, ...]) -> None:
        _require_field(shape)
        for term in self.terms:
            term.check(*shape)

    def describe(self) -> str:
        return " + ".join(term.words() for term in self.terms)

    def _place(self, name: str) -> int:
        if name not in self._names:
            raise ValueError(f"MasterEquation: there is no term {name!r}; present are {self._names}.")
        return self._names.index(name)


class FunctionField(AbstractEquation):
    """Any JAX function `f(t, u, args)` as a field of one term, on states of any shape."""

    function: Callable[..., Any]

    def __call__(self, t: Depth, u: Array, args: FieldArgs | None = None) -> Array:
        du = self.function(t, u, args)
        if getattr(du, "shape", None) != u.shape:
            raise ValueError(
                f"the field {_name_of(self.function)} gives {getattr(du, 'shape', type(du).__name__)} for a state of shape "
                f"{u.shape}; it must return ∂u/∂t of the same shape."
            )
        return du

    def names(self) -> tuple[str, ...]:
        return ("field",)

    def only(self, names: Sequence[str]) -> "FunctionField":
        if tuple(names) != ("field",):
            raise ValueError(f"a plain function is one term, 'field'; there are no terms {tuple(names)}.")
        return self

    def damping(self) -> Float[Array, ""]:
        return jnp.zeros(())

    def linear_rate(self) -> Float[Array, ""]:
        return jnp.zeros(())

    def couples_neighbours(self, n: int) -> bool:
        del n
        return False

    def no_linear_part(self) -> str:
        return "a plain function has no linear part that could be taken apart"

    def check(self, shape: tuple[int, ...]) -> None:
        del shape

    def describe(self) -> str:
        return _name_of(self.function)


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

    @checked
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

    def linear_rate(self) -> Float[Array, ""]:
        rate = jnp.max(eqx.filter_vmap(lambda layer: layer.linear_rate())(self.layers))
        return rate if self.exchange is None else rate + jnp.max(jnp.linalg.norm(self.exchange.w, 2, axis=(-2, -1)))

    def couples_neighbours(self, n: int) -> bool:
        return unstack(self.layers, 0).couples_neighbours(n)

    def no_linear_part(self) -> str:
        return "coupled layers have no common transform, so no linear part that one transform diagonalizes"

    def describe(self) -> str:
        return f"{self.size} coupled fields of {self.layers.describe()}{'' if self.exchange is None else ' + exchange'}"

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

    def linear_rate(self) -> Float[Array, ""]:
        return self.damping()

    def couples_neighbours(self, n: int) -> bool:
        del n
        return False

    def check(self, shape: tuple[int, ...]) -> None:
        del shape

    def describe(self) -> str:
        return "exchange"


def as_field(owner: str, field: Any) -> AbstractEquation:
    """An equation as it is, any function `f(t, u, args)` or `f(t, u)` as a `FunctionField`; else `TypeError`, naming `owner`."""
    if isinstance(field, AbstractEquation):
        return field
    if isinstance(field, type) or not callable(field):
        what = f"the class {field.__name__}" if isinstance(field, type) else f"a {type(field).__name__}"
        raise TypeError(
            f"{owner}: field is {what}; give a MasterEquation, a DepthVarying, or a function f(t, u, args)."
        )
    if hasattr(field, "hidden_states"):
        raise TypeError(
            f"{owner}: field is a {type(field).__name__}, a whole model; pdejax.lift(model) gives its field, solver and step."
        )
    whole = _takes(field, 3)
    function = field if whole else _checked_arguments(owner, field)
    if is_nnx(function):
        function = split(function, 3 if whole else 2)
    return FunctionField(function if whole else _WithoutArgs(function))


class _WithoutArgs(eqx.Module):
    """A function `f(t, u)` as one of three arguments."""

    function: Callable[..., Any]

    def __call__(self, t: Depth, u: Array, args: FieldArgs | None) -> Array:
        del args
        return self.function(t, u)

    @property
    def __name__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


def _checked_arguments(owner: str, field: Any) -> Any:
    if not _takes(field, 2):
        raise TypeError(
            f"{owner}: field {_name_of(field)} takes {inspect.signature(field)}; it must take (t, u, args) or (t, u)."
        )
    return field


def _takes(function: Any, count: int) -> bool:
    """Whether a function can be called with so many positional arguments; yes, where Python cannot tell."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _name_of(function: Any) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return "a function" if name == "<lambda>" else name


def _rates(terms: Iterable[AbstractTerm]) -> Float[Array, ""]:
    return sum((jnp.asarray(term.damping(), float) for term in terms), start=jnp.zeros(()))


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
