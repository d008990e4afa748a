"""The interface every term of the master equation keeps, and what is passed along with the field."""

import abc
import dataclasses
import itertools
import math
import re
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from pdejax._arguments import checked
from pdejax._check import traced
from pdejax._types import Depth, Field, Mask
from pdejax.solvers import AbstractLinearOperator, DiagonalizableOperator
from pdejax.solvers._written import one_line
from pdejax.terms._constants import Lipschitz
from pdejax.terms._token_axis import TokenAxis

T = TypeVar("T")
# The least ε under a root: the derivative of 1/√ε is ε^{-3/2}/2, which must not overflow float32.
LEAST_EPS = 1e-24


@checked
class FieldArgs(eqx.Module):
    """What a vector field needs beside `(t, u)`.

    - `mask`: `(n,)` booleans, True at real tokens and False at padding, or None for no padding. Attention
      ignores padded keys, averages over tokens leave them out, and diffusion lets no flux across their faces.
    """

    mask: Mask | None = None

    __repr__ = one_line


@checked
class Linear(eqx.Module):
    """The linear part of a term, `operator·u − rate·u`, for solvers that take it exactly or implicitly.

    - `operator`: an operator from `pdejax.solvers`, or None. `rate`: one number, per unit depth, or None.
    - `whole`: whether nothing of the term is left when it is taken away.
    """

    operator: AbstractLinearOperator | None = None
    rate: Array | None = None
    whole: bool = eqx.field(static=True, default=False)

    __repr__ = one_line


class AbstractTerm(eqx.Module):
    """One right-hand-side term of v2 (4): a pure function `(t, u, args) -> du` on fields of shape `(n, d)`.

    A term knows itself. What a subclass must say: its value, `damping` and `check`. What it may say: its `linear` part, so
    that exponential and implicit solvers take it apart; its `lipschitz` constant and its `growth`, for bounds and step
    limits; its `smoothness`, which caps orders. Class attributes: `role`, the name it gets in a `MasterEquation` when
    none is given; `label`, its name in words; `state_dependent`, whether `damping` bounds a rate that varies with the state.
    """

    role: ClassVar[str] = ""
    label: ClassVar[str] = ""
    state_dependent: ClassVar[bool] = False

    __repr__ = one_line

    @abc.abstractmethod
    def __call__(self, t: Depth, u: Field, args: FieldArgs | None) -> Field:
        """The term's contribution to `∂u/∂t` at depth `t`, shape `(n, d)`."""

    @abc.abstractmethod
    def damping(self) -> Float[Array, ""]:
        """Largest linear decay rate the term imposes (per unit depth): 4·D/Δx² for diffusion, the leak, γ.

        It limits explicit steps (v1 (21) knows only part of it) and rules out integrating backwards.
        """

    @abc.abstractmethod
    def check(self, n: int, d: int) -> None:
        """Raise `ValueError` if the term cannot act on a field of `n` tokens and `d` features."""

    def across(self, tokens: TokenAxis) -> "Callable[[Depth, Field, FieldArgs | None], Field]":
        """The term as a function `(t, u, args)` of the tokens of one device, `(n, d)`, and their mask, inside `jax.shard_map`:
        `self` where every token is on its own, else with what `tokens` exchanges between devices (see `shard_tokens`).

        Raises `ValueError`, the default, for a term that does not say how.
        """
        del tokens
        raise ValueError(
            f"{type(self).__name__} does not say how it acts on tokens that lie on several devices; give it a method "
            "across(tokens), which returns itself where every token is on its own."
        )

    def looked_at(self) -> "AbstractTerm":
        """The term with what can only be seen of known values written into static fields, before they are traced by a solve."""
        return self

    def learned(self) -> PyTree[bool]:
        """True at the arrays that are weights: by default all of real numbers. False at what is part of the input."""
        return jax.tree.map(eqx.is_inexact_array, self)

    @property
    def needs_start(self) -> bool:
        """Whether the term wants the state that a solve begins with (`given`)."""
        return False

    def given(self, start: Array) -> "AbstractTerm":
        """The term with the state that a solve begins with, where it wants it and has none."""
        del start
        return self

    @property
    def smoothness(self) -> float:
        """How many derivatives by u are continuous: no scheme keeps an order above this plus 2 (claim C17). ∞ by default; 0 for
        a field with kinks, such as ReLU."""
        return math.inf

    def modes(self, n: int, d: int, mask: Mask | None = None) -> tuple[np.ndarray, np.ndarray] | None:
        """The Jacobian of a term that is linear as a whole, in closed form: real eigenvalues `(m,)` of an orthonormal set
        of token modes and the matrix `(j, j)` by which each is multiplied, m·j = n·d. None, the default, where there is no
        such form, and from `linear` where that is the whole term and symmetric."""
        try:
            part = self.linear(n, mask)
        except ValueError:  # a linear part that depends on the state, or that no operator can solve
            return None
        if part is None or not part.whole:
            return None
        values = np.zeros((n, d))
        if isinstance(part.operator, DiagonalizableOperator):
            values = np.asarray(part.operator.eigenvalues())
        elif part.operator is not None:
            return None
        if np.iscomplexobj(values):
            return None
        rate = 0.0 if part.rate is None else float(np.asarray(part.rate))
        return np.broadcast_to(values - rate, (n, d)).ravel(), np.eye(1)

    def lipschitz(
        self, radius: float, n: int, norm: str = "token_max", spread: float = 0.0
    ) -> Lipschitz | float | None:
        r"""Bound L of $\|f(u) - f(v)\| \le L\,\|u - v\|$, per unit depth, over the fields u, v of `n` tokens with
        $\|u_i\|_2 \le R$ = `radius` and a standard deviation of every token over its features of at least `spread`.

        `norm`: `"token_max"`, $\max_i\|u_i\|_2$, or `"frobenius"`, $(\sum_i\|u_i\|_2^2)^{1/2}$. A number, or a `Lipschitz`
        where a part of it is a leak −c·u or diffusion; None, the default, where no bound is known.
        """
        del radius, n, norm, spread
        return None

    def growth(self, n: int, norm: str = "token_max") -> tuple[float, float] | None:
        r"""Bound $(\lambda, f)$ of the growth that the term adds, $\frac{d^+}{dt}\|u\| \le \lambda\|u\| + f$ for every
        field u of `n` tokens. `norm`: `"token_max"`, or `"mesh"`, $(\frac1n\sum_i\|u_i\|^2)^{1/2}$. None, the default,
        where none is known; a `ValueError` says why there is none.
        """
        del n, norm
        return None

    def maps(self, u: Field, mask: Mask | None = None) -> Float[Array, "H n n"] | None:
        """Attention weights of the term at u, `(H, n, n)`, or None where it has none."""
        del u, mask
        return None

    def linear(self, n: int, mask: Mask | None = None) -> Linear | None:
        """The linear part on `n` tokens, with a padding mask, or None where there is none to take apart.

        Raises `ValueError`, saying what to do instead, for a linear part that no operator can solve.
        """
        del n, mask
        return None

    @classmethod
    def words(cls) -> str:
        """The term's name in words."""
        return cls.label or " ".join(re.findall(r"[A-Z]+[a-z0-9]*", cls.__name__)).lower() or cls.__name__


def with_static(module: T, **fields: Any) -> T:
    """A module with other values of static fields, which `eqx.tree_at` does not reach."""
    new = object.__new__(type(module))
    for field in dataclasses.fields(module):  # pyright: ignore[reportArgumentType]
        object.__setattr__(new, field.name, fields.get(field.name, getattr(module, field.name)))
    return new


def mask_of(args: FieldArgs | None) -> Mask | None:
    return None if args is None else args.mask


def constant(value: ArrayLike) -> Array:
    """A coefficient as an inexact array leaf, so that changing its value never recompiles."""
    array = jnp.asarray(value)
    inexact = jnp.issubdtype(array.dtype, jnp.inexact)
    # A type of its own: a weak one would change, and recompile, as soon as the number is updated.
    return jnp.asarray(array, array.dtype if inexact else jnp.result_type(float))


def check_norms(owner: str, d: int, *norms) -> None:
    """Raise `ValueError` unless every norm that is there has the width of the field."""
    for norm in norms:
        if norm is not None:
            check_features(f"{owner} (its norm)", norm.scale.shape[-1], d)


def scalar(owner: str, name: str, value: ArrayLike) -> Array:
    """A coefficient that is one number."""
    if jnp.ndim(value) or (concrete(value) and not np.isfinite(value)):
        raise ValueError(f"{owner}: {name}={value} must be one finite number.")
    return constant(value)


def at_least_float32(dtype):
    """The type to accumulate in: float32 for half precisions, else `dtype` itself (also under strict promotion)."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def gaussian(key: PRNGKeyArray, *shapes: tuple[int, ...]) -> list[Array]:
    """Standard normal arrays of these shapes, from a single draw.

    One draw, because XLA compiles a random generator anew for every array: six of them under `vmap` took 4× as long.
    """
    sizes = [math.prod(shape) for shape in shapes]
    flat = jax.random.normal(key, (sum(sizes),))
    parts = jnp.split(flat, list(itertools.accumulate(sizes))[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def token_average(
    values: Float[Array, "n d"], weights: Float[Array, " n"] | None, mask: Mask | None, tokens: TokenAxis | None = None
) -> Array:
    """Quadrature mean over real tokens, `Σ w_i v_i / Σ w_i`, of shape `(d,)`; over those of all devices with `tokens`."""
    if weights is None and mask is None and tokens is None:
        return jnp.mean(values, axis=0)
    w = jnp.ones(values.shape[0], values.dtype) if weights is None else weights.astype(values.dtype)
    if mask is not None:
        w = jnp.where(mask, w, 0)
    if tokens is not None:
        return tokens.sum(w @ values) / tokens.sum(jnp.sum(w))
    return w @ values / jnp.sum(w)


def concrete(x) -> bool:
    """Whether a value can be looked at, i.e. is not traced."""
    return not traced(x)


def check_features(owner: str, expected: int, d: int) -> None:
    if d != expected:
        raise ValueError(
            f"{owner} was built for fields of width dim={expected}, but the field has {d} features. "
            f"Pass a field of shape (n, {expected}) or build the term with dim={d}."
        )


def check_grid(owner: str, grid_n: int, n: int) -> None:
    if n != grid_n:
        raise ValueError(
            f"{owner} was built on a grid of {grid_n} tokens, but the field has {n}. "
            f"Use Grid({n}, ...) or a field of shape ({grid_n}, d)."
        )


def learned(tree: PyTree) -> PyTree[bool]:
    """True at the weights of a tree: of its terms what `AbstractTerm.learned` says, elsewhere all arrays of real numbers."""

    def marks(x: Any) -> PyTree[bool]:
        return x.learned() if isinstance(x, AbstractTerm) else eqx.is_inexact_array(x)

    return jax.tree.map(marks, tree, is_leaf=lambda x: isinstance(x, AbstractTerm))


def holds_input(tree: PyTree) -> bool:
    """Whether a tree of terms and arrays holds a part of one input: an array of real numbers that is no weight."""
    return any(
        eqx.is_inexact_array(x) and not weight
        for x, weight in zip(jax.tree.leaves(tree), jax.tree.leaves(learned(tree)), strict=True)
    )
