"""One run of a phase diagram: tokens under self-attention with a normalization, read at many depths."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from pdejax._discretization import Discretization
from pdejax._simulate import simulate
from pdejax.analysis.tokens._clustering import count_components
from pdejax.solvers import Retract, get_solver
from pdejax.terms import Attention, RMSNorm, SphereProjection

_EPS = 1e-20  # of the normalization of a direction


def measure_run(
    key: PRNGKeyArray,
    *,
    beta: Any,
    tokens: int,
    normalization: str,
    dim: int,
    depths: Sequence[float],
    step: float,
    close: float,
    start: Callable[[PRNGKeyArray], Array] | None = None,
) -> dict[str, Array]:
    r"""Measure how far n tokens have drawn together by depth, under attention with identity weights at inverse temperature β.

    $$x_i' = \sum_j \mathrm{softmax}_j(\beta\langle x_i, x_j\rangle)\,x_j$$

    `"none"`: as it stands. `"pre-norm"`: the right-hand side of $x_i/\|x_i\|$ in the place of $x_i$. `"sphere"`: its part tangent
    to the unit sphere, $P_{x_i}$, with a projection after every step. RK4 with steps of at most `step`, from independent uniform
    directions, or those that `start(key)` gives, `(n, d)`.

    Returns, `(depths,)` each: `cosine`, the mean cosine of two tokens, 1 where all point one way; and `clusters`, the number of
    groups of tokens joined by cosines above `close`. Source: arXiv 2312.10794, (2.2), Figure 4; arXiv 2510.22026 for pre-norm.
    """
    x = jax.random.normal(key, (tokens, dim)) if start is None else start(key)
    x = SphereProjection()(x)
    field, solver = _field(normalization, beta, dim), get_solver("rk4")
    if normalization == "sphere":
        solver = Retract(solver, SphereProjection())
    end = float(depths[-1])
    d = Discretization(field, solver, t1=end, steps=math.ceil(end / step))
    saved = simulate(d, x, save=list(map(float, depths)), reduce=lambda t, u, args: _order(u, close))
    return dict(saved.us)


def _field(normalization: str, beta: Any, dim: int) -> Any:
    """Attention alone, its weights the identity but for β."""
    norm = None
    if normalization == "pre-norm":
        # With the scale 1/√d a token becomes its direction.
        norm = eqx.tree_at(lambda n: n.scale, RMSNorm(dim, eps=_EPS), jnp.full(dim, dim**-0.5))
    attention = Attention(dim, key=jax.random.key(0), norm=norm, logit_scale=1.0, implementation="dense")
    eye = jnp.eye(dim)
    weights = (eye[:, None] * beta, eye[:, None], eye[:, None], eye[None])
    attention = eqx.tree_at(lambda a: (a.wq, a.wk, a.wv, a.wo), attention, weights)
    if normalization != "sphere":
        return attention

    def tangent(t, u, args):
        v = attention(t, u, args)
        return v - jnp.sum(v * u, axis=1, keepdims=True) * u

    return tangent


def _order(u: Array, close: float) -> dict[str, Array]:
    unit = SphereProjection()(u)
    n = u.shape[0]
    cosines = unit @ unit.T
    mean = (jnp.sum(cosines) - jnp.trace(cosines)) / (n * (n - 1))
    clusters = count_components(cosines > close, jnp.ones(n, bool))
    return {"cosine": mean, "clusters": clusters}
