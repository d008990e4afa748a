"""Recipes of residual networks: how weights depend on depth, and what each layer is multiplied by."""

from collections.abc import Callable
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from pdejax import _check
from pdejax._arguments import checked
from pdejax._equation import MasterEquation, unstack
from pdejax._types import Field
from pdejax.solvers._written import one_line
from pdejax.terms._base import gaussian

Weights = Literal["tied", "iid", "mean", "smooth", "rough"]
_MODES = 3


class Recipe(eqx.Module):
    r"""Hold a recipe of residual networks of any number of layers L, $u \leftarrow \rho\big(u + L^{-\alpha}F(u;\theta_l)\big)$.

    - `base`: the field F of one layer, a `MasterEquation`. Its matrices give the size of weights: ξ below is Gaussian with the
      root mean square of each matrix of `base`, θ̄ is `base`, s = (l + ½)/L.
    - `weights`, what θ_l is in one draw: `"tied"` one ξ for all layers; `"iid"` one ξ_l for each; `"mean"` θ̄ + aξ_l,
      independent around a common mean; `"smooth"` θ̄ + aΣ_{k=1}^3 k^{−2} ξ_k cos(πks); `"rough"` θ̄ + aB(s) with Brownian
      motion B, Hölder-½ in depth.
    - `alpha` α: exponent of the residual scale. `amplitude` a.
    - `retraction` ρ: what normalizes the state after each layer, such as `SphereProjection()` or a LayerNorm; None for none.

    Raises `ValueError` for unknown weights, or an α or a that is not a finite number of at least 0.
    """

    base: MasterEquation
    weights: Weights = eqx.field(static=True)
    alpha: float = eqx.field(static=True)
    amplitude: float = eqx.field(static=True)
    retraction: Callable[[Array], Array] | None

    __repr__ = one_line

    @checked
    def __init__(
        self,
        base: MasterEquation,
        weights: str = "iid",
        alpha: float | int = 0.5,
        *,
        amplitude: float | int = 0.5,
        retraction: Callable[[Array], Array] | None = None,
    ):
        _check.instance("Recipe", "base", base, MasterEquation)
        self.base, self.retraction = base, retraction
        self.weights = _check.choice("Recipe", "weights", weights, get_args(Weights))
        self.alpha = _check.number("Recipe", "alpha", alpha, least=0)
        self.amplitude = _check.number("Recipe", "amplitude", amplitude, least=0)

    def draw(self, longest: int, key: PRNGKeyArray) -> MasterEquation:
        """The random numbers of one draw, which networks of up to `longest` layers share: a stack that `layer` reads."""
        count = {"tied": 1, "smooth": _MODES}.get(self.weights, longest)
        drawn = eqx.filter_vmap(lambda k: redraw(self.base, k))(jax.random.split(key, count))
        if self.weights == "rough":
            drawn = self._mixed(drawn, lambda base, x: jnp.cumsum(x, axis=0) / longest**0.5, stacked=True)
        return drawn

    def layer(self, drawn: MasterEquation, index, layers, longest: int) -> MasterEquation:
        """The field of layer `index` (traced) of a network of `layers` (traced) in this draw."""
        if self.weights in ("tied", "iid"):
            return unstack(drawn, index if self.weights == "iid" else 0)
        if self.weights == "mean":
            return self._mixed(drawn, lambda base, x: base + self.amplitude * x[index])
        if self.weights == "rough":
            place = index * longest // layers
            return self._mixed(drawn, lambda base, x: base + self.amplitude * x[place])
        k = jnp.arange(1.0, _MODES + 1)
        place = (jnp.asarray(index).astype(k.dtype) + 0.5) / jnp.asarray(layers).astype(k.dtype)

        def wave(base, x):
            waves = (jnp.cos(jnp.pi * k * place) / k**2).astype(x.dtype)
            return base + self.amplitude * jnp.tensordot(waves, x, axes=1)

        return self._mixed(drawn, wave)

    def step(self, field: MasterEquation, u: Field, scale) -> Field:
        """The state after a layer."""
        moved = u + scale * field(0.0, u, None)
        return moved if self.retraction is None else self.retraction(moved)

    def _mixed(self, drawn: MasterEquation, mix, *, stacked: bool = False) -> MasterEquation:
        """`mix(base, drawn)` of the matrices that are drawn, the rest as in `base`; `stacked` keeps the axis of draws."""

        def one(base, x):
            if is_drawn(base):
                return mix(base, x)
            return x if stacked or not eqx.is_array(x) else base

        return jax.tree.map(one, self.base, drawn)


def is_drawn(leaf) -> bool:
    """Whether a leaf of an equation is a weight matrix, which recipes draw."""
    return eqx.is_inexact_array(leaf) and leaf.ndim >= 2


def redraw(equation: MasterEquation, key: PRNGKeyArray) -> MasterEquation:
    """The same equation with every weight matrix drawn anew, Gaussian of the same root mean square."""
    leaves, treedef = jax.tree.flatten(equation)
    drawn = iter(gaussian(key, *(leaf.shape for leaf in leaves if is_drawn(leaf))))

    def draw(leaf):
        return (jnp.sqrt(jnp.mean(leaf**2)) * next(drawn)).astype(leaf.dtype) if is_drawn(leaf) else leaf

    return jax.tree.unflatten(treedef, [draw(leaf) for leaf in leaves])
