"""The Jacobian of one layer, I + h ∂F/∂u of v1 (23)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from pdejax._check import finite, integer, real_array, token_mask, traced
from pdejax.analysis.jacobian._maps import OneMap, steps_of
from pdejax.analysis.jacobian._operator import Jacobian
from pdejax.analysis.jacobian._padding import without_padding
from pdejax.analysis.jacobian._systems import discretization_of, is_system, layers_of


def layer_jacobian(
    system: Any,
    u: ArrayLike,
    *,
    step: ArrayLike | None = None,
    layer: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Jacobian:
    r"""Give the Jacobian of a layer or of a solver's step at `u (n, d)`, as an operator that is never formed.

    - A `Discretization` with `step` k = 0 … steps − 1: of its k-th step. For forward Euler that is $I + h\,\partial
      F/\partial u$, v1 (23). The step at depth t of a field F is `layer_jacobian(Discretization(F, "euler", t0=t, t1=t + h,
      steps=1), u, step=0)`.
    - A `Discretization` with layers, a `Network`, a `Transformer` or a `Simulator`, with `layer` 0 … L − 1: of the actual layer,
      all its steps, normalizations and splitting included.
    - Any function u -> u (neither step nor layer): its Jacobian.

    `step` and `layer` may be traced, so that `eqx.filter_vmap` runs over layers and their states. Padded tokens (`mask (n,)`
    False) count neither as inputs nor as outputs: J is that of the real tokens.

    Raises `TypeError`/`ValueError` for states, steps, layers or masks that do not fit.
    """
    owner = "layer_jacobian"
    state: Array = real_array(owner, "u", u, "(n, d)")
    if not is_system(system):
        if not callable(system) or step is not None or layer is not None:
            raise TypeError(
                f"{owner}: the system is a {type(system).__name__}; give a Discretization and a step, a model and a layer, or a "
                "function u -> u and neither."
            )
        return _of_function(owner, system, state, mask)
    if (step is None) == (layer is None):
        raise ValueError(f"{owner}: give either step=0 … steps − 1, one step of the solver, or layer=0 … L − 1.")
    d = discretization_of(owner, system, state.shape[-2] if state.ndim > 1 else None)
    count = d.steps if step is not None else layers_of(owner, system, d)
    maps, state, real = steps_of(owner, d, state, mask, count=count)
    name, index = ("step", step) if step is not None else ("layer", layer)
    if not traced(index):
        integer(owner, name, np.asarray(index).item(), 0, count - 1)
    return Jacobian(OneMap(maps, jnp.asarray(index)), state, real)


def marchenko_pastur_cdf(x: ArrayLike, edge: ArrayLike) -> Array:
    r"""Give the share of the singular values of a square Gaussian matrix below `x`, with largest value `edge`: the quarter circle
    $F(x) = \tfrac2\pi(\arcsin s + s\sqrt{1-s^2})$, s = x/edge in [0, 1]. Source: Marchenko & Pastur (1967), ratio 1."""
    s = jnp.clip(jnp.asarray(x) / jnp.asarray(edge), 0, 1)
    return 2 / np.pi * (jnp.arcsin(s) + s * jnp.sqrt(1 - s**2))


def _of_function(owner: str, function: Any, u: Array, mask: Any) -> Jacobian:
    if mask is not None and u.ndim < 2:
        raise ValueError(f"{owner}: mask needs a state (n, d) with an axis of tokens; u has shape {u.shape}.")
    real = None if mask is None else token_mask(owner, mask, u.shape[-2])
    u = without_padding(u, real)
    finite(owner, "u", u, "mask the tokens, or take another state")
    found = jax.eval_shape(function, u)
    if getattr(found, "shape", None) != u.shape:
        raise ValueError(f"{owner}: the function gives {found} for shape {u.shape}; it must keep the shape.")
    return Jacobian(function, u, real)
