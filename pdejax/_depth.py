"""Weights that vary with depth: θ(t) from a stack of layers."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree
from scipy.interpolate import CubicSpline

from pdejax import _check
from pdejax._arguments import checked
from pdejax._equation import AbstractEquation, MasterEquation, stack, unstack, unstack_shapes
from pdejax._types import Depth, Field
from pdejax.solvers._written import one_line
from pdejax.terms import FieldArgs
from pdejax.terms._base import gaussian

Kind = Literal["constant", "linear", "cubic", "cosine"]
Scaling = Literal["1/L", "1/sqrt(L)", "1"]


class DepthVarying(AbstractEquation):
    r"""A master equation whose weights θ(t) vary over depth $t \in [0, t_1]$, made from K stacked sets of weights.

    - `kind="constant"`: layer l holds on $[l t_1/K, (l+1) t_1/K)$: an actual Transformer. `simulate` integrates it layer by
      layer; evaluating it inside a step that crosses layers would cap every scheme at order 1.
    - `kind="linear"`: piecewise linear through knots at layer centres $(l+½)t_1/K$, constant beyond the outermost.
    - `kind="cubic"`: natural cubic spline through the same knots, extended linearly: C² in depth.
    - `kind="cosine"`: $\theta(t) = \sum_k \theta_k \cos(\pi k t/t_1)$: smooth (C^∞) in depth.
    - `passes` p (of `kind="constant"`): the stack is gone through p times over [0, t_1], a looped Transformer of pK layers whose
      weights are stored once. The first `prelude` and the last `coda` layers of the stack are gone through once, before and
      after the loop over the others.

    `stacked` is an equation, most often a `MasterEquation`, whose array leaves carry a leading axis K. Build it with
    `DepthVarying.from_layers`,
    `smooth_random`, `iid` or `pdejax.lift`. The rate of v2 Thm 3.2 (L → ∞) rests on θ smooth in depth: see `iid`
    for what happens else.

    `size` is the number of layers that depth goes through, K or with a loop more; `order (size,)` says which of the K stored ones
    each is. Raises `ValueError` for an unknown kind, K that differs between leaves, t1 ≤ 0, several passes of weights that are
    no layers, or a prelude and a coda that leave nothing to loop over.
    """

    stacked: AbstractEquation
    t1: float = eqx.field(static=True)
    kind: str = eqx.field(static=True)
    size: int = eqx.field(static=True)
    passes: int = eqx.field(static=True)
    prelude: int = eqx.field(static=True)
    coda: int = eqx.field(static=True)

    @checked
    def __init__(
        self,
        stacked: AbstractEquation,
        t1: float,
        kind: str = "constant",
        *,
        passes: int = 1,
        prelude: int = 0,
        coda: int = 0,
    ):
        _check.instance(
            "DepthVarying", "stacked", stacked, AbstractEquation, "DepthVarying.from_layers([…]) makes one of a list"
        )
        _check.choice("DepthVarying", "kind", kind, get_args(Kind))
        self.t1 = _check.number("DepthVarying", "t1", t1, above=0, advice="it is the depth the weights span")
        self.passes = _check.integer("DepthVarying", "passes", passes)
        sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(eqx.filter(stacked, eqx.is_array))}
        if len(sizes) != 1 or () in sizes:
            raise ValueError(
                f"DepthVarying: the stacked equation's array leaves must share a leading layer axis, found {sorted(sizes)}. "
                "Use DepthVarying.from_layers([...])."
            )
        self.prelude, self.coda = (
            _check.integer("DepthVarying", name, value, 0) for name, value in (("prelude", prelude), ("coda", coda))
        )
        if self.passes > 1 and kind != "constant":
            raise ValueError(
                f"DepthVarying: passes={passes} repeats layers, so it needs kind='constant', not {kind!r}."
            )
        self.stacked, self.kind = stacked, kind
        stored = sizes.pop()[0]
        looped = stored - self.prelude - self.coda
        if (self.prelude or self.coda) and looped < 1:
            raise ValueError(
                f"DepthVarying: prelude={prelude} and coda={coda} leave none of the {stored} layers to loop over."
            )
        self.size = stored + (self.passes - 1) * looped

    @property
    def stored(self) -> int:
        """Number K of layers whose weights are stored."""
        once = self.prelude + self.coda
        return once + (self.size - once) // self.passes

    @property
    def order(self) -> np.ndarray:
        """Which stored layer each layer of the depth is, `(size,)`."""
        return loop_order(self.stored, self.passes, self.prelude, self.coda)

    @classmethod
    def from_layers(cls, layers: Sequence[MasterEquation], t1: float, kind: str = "constant") -> "DepthVarying":
        """From one `MasterEquation` per layer, all of the same structure."""
        if not layers:
            raise ValueError("DepthVarying.from_layers: no layers given.")
        for layer in layers:
            if not isinstance(layer, MasterEquation):
                raise TypeError(
                    f"DepthVarying.from_layers: layers has a {type(layer).__name__}; it must hold MasterEquation objects."
                )
        return cls(stack(layers), t1, kind)

    def layer(self, index) -> Any:
        """The equation with the weights of one layer (or of one basis function for `"cosine"`)."""
        if self.passes == 1:
            return unstack(self.stacked, index)
        if not self.prelude and not self.coda:
            return unstack(self.stacked, index % self.stored)
        return unstack(self.stacked, jnp.asarray(self.order)[index])

    def edges(self) -> np.ndarray:
        """Depths `(size + 1,)` at which piecewise-constant layers begin and end."""
        return np.linspace(0.0, self.t1, self.size + 1)

    def at(self, t: Depth) -> Any:
        """The equation with the weights θ(t)."""
        s = jnp.asarray(t) / self.t1 * self.size  # in units of layers
        if self.kind == "constant":
            return self.layer(self._index(s))
        # Integers, such as a window, have no curve: those of the layer, of a series those of its mean.
        if self.kind == "linear":
            position = jnp.clip(s - 0.5, 0, self.size - 1)
            floor = jnp.clip(jnp.floor(position), 0, max(self.size - 2, 0))
            left = floor.astype(int)
            right = jnp.minimum(left + 1, self.size - 1)
            return _combine(self.layer(left), self.layer(right), position - floor, self.layer(self._index(s)))
        cosine = self.kind == "cosine"
        basis = self._cosines(s / self.size) if cosine else _spline_basis(s - 0.5, self.size)
        whole = 0 if cosine else self._index(s)

        def value(leaf):
            if not eqx.is_array(leaf):
                return leaf
            return jnp.tensordot(basis.astype(leaf.dtype), leaf, axes=1) if eqx.is_inexact_array(leaf) else leaf[whole]

        return jax.tree.map(value, self.stacked)

    def __call__(self, t: Depth, u: Field, args: FieldArgs | None = None) -> Field:
        return self.at(t)(t, u, args)

    def looked_at(self) -> "DepthVarying":
        return self._of(self.stacked.looked_at())

    @property
    def needs_start(self) -> bool:
        return self.stacked.needs_start

    def given(self, start: Array) -> "DepthVarying":
        return self._of(self.stacked.given(start)) if self.needs_start else self

    def names(self) -> tuple[str, ...]:
        return self.stacked.names()

    def only(self, names: Sequence[str]) -> "DepthVarying":
        return self._of(self.stacked.only(names))

    def damping(self) -> Float[Array, ""]:
        # A cosine series bounds its coefficients' sum only; its mean is the honest scale of the damping.
        if self.kind == "cosine":
            return self.layer(0).damping()
        return jnp.max(eqx.filter_vmap(lambda layer: layer.damping())(self.stacked))

    def linear_rate(self) -> Float[Array, ""]:
        if self.kind == "cosine":
            return self.layer(0).linear_rate()
        return jnp.max(eqx.filter_vmap(lambda layer: layer.linear_rate())(self.stacked))

    def couples_neighbours(self, n: int) -> bool:
        return self.layer(0).couples_neighbours(n)

    def no_linear_part(self) -> str:
        return f"the weights, of kind {self.kind!r}, vary within a step, and with them the linear part"

    def check(self, shape: tuple[int, ...]) -> None:
        unstack_shapes(self.stacked).check(shape)

    def describe(self) -> str:
        return self.stacked.describe()

    def __repr__(self) -> str:
        how = {"constant": "constant in each of", "cosine": "a series of"}.get(self.kind, f"{self.kind} through")
        what = "cosines" if self.kind == "cosine" else "layers"
        count = self.stored
        looped = count - self.prelude - self.coda
        which = "" if looped == count else f" {looped} of them"
        often = f",{which} gone through {self.passes} times," if self.passes > 1 else ""
        return f"∂u/∂t = {self.describe()}, weights {how} {count} {what}{often} over t in [0, {self.t1:g}]"

    def _of(self, stacked: AbstractEquation) -> "DepthVarying":
        loop = {"passes": self.passes, "prelude": self.prelude, "coda": self.coda}
        return DepthVarying(stacked, self.t1, self.kind, **loop)

    def _index(self, s) -> Int[Array, ""]:
        """The layer at `s`, in units of layers."""
        return jnp.clip(jnp.floor(s), 0, self.size - 1).astype(int)

    def _cosines(self, x) -> Float[Array, " K"]:
        return jnp.cos(jnp.pi * jnp.arange(self.size).astype(x.dtype) * x)


def loop_order(stored: int, passes: int, prelude: int = 0, coda: int = 0) -> np.ndarray:
    """Which of `stored` layers follow one another where all but the first `prelude` and the last `coda` are looped over."""
    layers = np.arange(stored)
    core = layers[prelude : stored - coda]
    return np.concatenate([layers[:prelude], np.tile(core, passes), layers[stored - coda :]])


class LayerStack(eqx.Module):
    """One thing per layer (e.g. the LayerNorm a post-LN block projects with), for solvers used with layered equations.

    `value` has array leaves with a leading layer axis; `simulate` hands each layer its own entry.
    """

    value: PyTree

    @checked
    def __init__(self, value: PyTree):
        self.value = value

    __repr__ = one_line

    def __call__(self, u: Field) -> Field:
        raise ValueError(
            "this solver carries one retraction per layer, so it can only integrate the piecewise-constant equation it was "
            "made for: use pdejax.simulate(pdejax.lift(model), ...), or Retract(solver, norm) with a single norm."
        )


def take_layer(tree: Any, index) -> Any:
    """Replace every `LayerStack` in a solver by its entry for one layer."""

    def is_stack(node):
        return isinstance(node, LayerStack)

    return jax.tree.map(lambda x: unstack(x.value, index) if is_stack(x) else x, tree, is_leaf=is_stack)


@checked
def smooth_random(
    equation: MasterEquation, t1: float, *, key: PRNGKeyArray, modes: int = 3, amplitude: float = 0.5
) -> DepthVarying:
    r"""Weights that vary smoothly with depth around those of `equation`, for convergence studies:

    $$\theta(t) = \theta_0 + a \sum_{k=1}^{m} k^{-2}\, s(\theta_0)\, \xi_k \cos(\pi k t/t_1),\qquad \xi_k \sim N(0, 1),$$

    with `modes` m, `amplitude` a and s(θ₀) the root mean square of each weight matrix. Only the matrices of attention and
    feed-forward vary. C^∞ in depth, so v2 Thm 3.2 applies and every scheme shows its order.
    """
    _check.instance("smooth_random", "equation", equation, MasterEquation)
    _check.integer("smooth_random", "modes", modes, 0)

    return DepthVarying(_waves(equation, key, modes, amplitude), t1, "cosine")


@eqx.filter_jit
def _waves(equation: MasterEquation, key: PRNGKeyArray, modes: int, amplitude: float) -> MasterEquation:
    """The stack of cosine coefficients (modes + 1, ...) of `smooth_random`."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(equation)
    names = equation.names()
    varying = [
        leaf
        for path, leaf in paths
        if eqx.is_inexact_array(leaf) and leaf.ndim >= 2 and names[path[1].idx] in ("interaction", "reaction")
    ]
    drawn = iter(gaussian(key, *((modes, *leaf.shape) for leaf in varying)))
    leaves = []
    for path, leaf in paths:
        if not eqx.is_array(leaf):
            leaves.append(leaf)
            continue
        waves = jnp.zeros((modes, *leaf.shape), leaf.dtype)
        if eqx.is_inexact_array(leaf) and leaf.ndim >= 2 and names[path[1].idx] in ("interaction", "reaction"):
            decay = (jnp.arange(1, modes + 1, dtype=leaf.dtype) ** -2).reshape(-1, *(1,) * leaf.ndim)
            waves = amplitude * jnp.sqrt(jnp.mean(leaf**2)) * decay * next(drawn).astype(leaf.dtype)
        leaves.append(jnp.concatenate([leaf[None], waves]))
    return jax.tree.unflatten(treedef, leaves)


@checked
def iid(
    make: Callable[[PRNGKeyArray], MasterEquation], layers: int, *, key: PRNGKeyArray, scaling: str = "1/L"
) -> DepthVarying:
    r"""Independent random layers on [0, 1], to which v2 Thm 3.2 does not apply: `u ← u + s(L)·F_l(u)`, l = 1…L.

    `make(key)` draws one layer's `MasterEquation`. `scaling` s(L): `"1/L"` averages the layers out (they converge in the
    mean, at the rate L^{-1/2}, to the ODE of the mean field), `"1/sqrt(L)"` tends to an SDE (Marion et al.,
    arXiv 2206.06929), `"1"` is the standard initialization and has no limit. With step h = 1/L the scale enters as
    `strength = s(L)·L`.
    """
    _check.integer("iid", "layers", layers)
    _check.choice("iid", "scaling", scaling, get_args(Scaling))
    stacked = eqx.filter_vmap(make)(jax.random.split(key, layers))
    if stacked.interaction is None and stacked.reaction is None:
        raise ValueError("iid: make must return attention or feed-forward, whose strength carries the scaling.")
    return DepthVarying(scale_strength(stacked, strength_factor(scaling, layers)), 1.0, "constant")


def strength_factor(scaling: str, layers: int) -> float:
    """s(L)·L: what a residual scale s(L) is as a `strength`, with step 1/L."""
    return {"1/L": 1.0, "1/sqrt(L)": layers**0.5, "1": float(layers)}[scaling]


def scale_strength(equation: MasterEquation, factor) -> MasterEquation:
    """The equation with the strengths of attention and reaction multiplied by `factor`."""

    def strengths(e):
        return [term.strength for term in (e.interaction, e.reaction) if term is not None]

    return eqx.tree_at(strengths, equation, replace_fn=lambda s: s * jnp.asarray(factor, s.dtype))


def _combine(a: MasterEquation, b: MasterEquation, weight, whole: MasterEquation) -> MasterEquation:
    """The equation between two layers; what cannot lie between them, such as integers, that of `whole`."""

    def mix(x, y, z):
        if not eqx.is_inexact_array(x):
            return z
        w = weight.astype(x.dtype)
        return (1 - w) * x + w * y

    return jax.tree.map(mix, a, b, whole)


def _spline_basis(s, size: int) -> Float[Array, " K"]:
    """Values at `s` (in knots) of the cardinal natural splines on knots 0…K−1, extended linearly beyond them."""
    if size == 1:
        return jnp.ones(1, s.dtype)
    knots = np.arange(size, dtype=float)
    coefficients = CubicSpline(knots, np.eye(size), bc_type="natural").c if size > 2 else None
    if coefficients is None:
        return jnp.stack([1 - s, s])
    table = jnp.asarray(coefficients, s.dtype)  # (4, K−1, K): highest power first, per interval
    inside = jnp.clip(s, 0, size - 1)
    floor = jnp.clip(jnp.floor(inside), 0, size - 2)
    x = inside - floor
    c = table[:, floor.astype(int)]
    value = ((c[0] * x + c[1]) * x + c[2]) * x + c[3]
    slope = (3 * c[0] * x + 2 * c[1]) * x + c[2]
    return value + slope * (s - inside)
