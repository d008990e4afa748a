"""Which continuum regime a family of random networks is in as the number of layers grows (claim C1)."""

import dataclasses
import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax._depth import DepthVarying, scale_strength, strength_factor
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._simulate import simulate
from pdejax._types import Field
from pdejax.analysis import fit_order, mesh_norm
from pdejax.terms._base import gaussian


@dataclasses.dataclass(frozen=True)
class Regime:
    """How a quantity changes with the number of layers L.

    `values` at `layers`; `exponent` e and its 95 % half-width `ci` of values ∝ L^e; `verdict` in words. For i.i.d. layers the
    quantity is the spread between draws, (mean‖u − ū‖²)^{1/2}/‖ū‖; for smooth weights the distance to the ODE's solution.
    """

    family: str
    quantity: str
    layers: tuple[int, ...]
    values: tuple[float, ...]
    exponent: float
    ci: float
    verdict: str


def iid_spread(
    base: MasterEquation, u0: Field, *, layers: Sequence[int], scaling: str, draws: int, key: PRNGKeyArray
) -> Regime:
    """Spread between `draws` networks of independent layers, each `u ← u + s(L)F_l(u)`, as L grows."""
    longest = max(layers)
    spreads = []
    for count in layers:
        # A network of fewer layers is the longest one with the others switched off: everything compiles once.
        strength = strength_factor(scaling, count) * longest / count
        spreads.append(float(_spread(base, u0, jnp.where(jnp.arange(longest) < count, strength, 0.0), draws, key)))
    return regime(f"iid {scaling}", "spread between draws", layers, spreads)


def regime(family: str, quantity: str, layers: Sequence[int], values: Sequence[float]) -> Regime:
    """Fit values ∝ L^e and say what it means."""
    fit = fit_order([1 / count for count in layers], values, last=len(layers))
    exponent = -fit.order
    return Regime(family, quantity, tuple(layers), tuple(values), exponent, fit.ci, verdict(quantity, exponent))


def verdict(quantity: str, exponent: float) -> str:
    """The regime that an exponent of L shows, within ±0.15."""
    if math.isnan(exponent):
        return "not measurable: fewer than two usable values"
    if quantity != "spread between draws":
        if exponent < -0.85:
            return f"ODE limit, reached at rate L^{exponent:.2f}"
        return f"no first-order ODE limit: the distance changes as L^{exponent:.2f}"
    if abs(exponent + 0.5) <= 0.15:
        return f"ODE limit of the averaged field: draws agree as L^{exponent:.2f}"
    if abs(exponent) <= 0.15:
        return f"no limit along a path: draws keep their spread (L^{exponent:+.2f}), SDE-like"
    return f"unclassified: the spread changes as L^{exponent:.2f}"


@eqx.filter_jit
def _spread(base: MasterEquation, u0: Field, strengths: Float[Array, " layers"], draws: int, key: PRNGKeyArray):
    layers = strengths.shape[0]

    def layer(k, strength):
        return scale_strength(redraw(base, k), strength)

    def end(k):
        network = DepthVarying(eqx.filter_vmap(layer)(jax.random.split(k, layers), strengths), 1.0, "constant")
        return simulate(Discretization(network, "euler", t1=1.0, steps=layers), u0, save="end").us[-1]

    ends = jax.vmap(end)(jax.random.split(key, draws))
    mean = jnp.mean(ends, axis=0)
    return jnp.sqrt(jnp.sum(mesh_norm(ends - mean[None]) ** 2) / (draws - 1)) / mesh_norm(mean)


def redraw(equation: MasterEquation, key: PRNGKeyArray) -> MasterEquation:
    """The same equation with every weight matrix drawn anew, Gaussian of the same root mean square."""
    leaves, treedef = jax.tree.flatten(equation)
    matrices = [leaf for leaf in leaves if eqx.is_inexact_array(leaf) and leaf.ndim >= 2]
    drawn = iter(gaussian(key, *(leaf.shape for leaf in matrices)))

    def draw(leaf):
        if not (eqx.is_inexact_array(leaf) and leaf.ndim >= 2):
            return leaf
        return (jnp.sqrt(jnp.mean(leaf**2)) * next(drawn)).astype(leaf.dtype)

    return jax.tree.unflatten(treedef, [draw(leaf) for leaf in leaves])
