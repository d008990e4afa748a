r"""Linear cases of the master equation, THEORY §5.2, §5.3 and §5.8, by the matrix exponential.

Tokens are rows, so a matrix acts from the right: `u @ V` applies V to every token. Papers that write tokens
as columns, $u' = V\bar u$, mean `V.T` here. For the library's attention V = Σ_h `wv[:, h] @ wo[h]`, for its
feed-forward term with identity activation M = `w1 @ w2`.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from pdejax._types import Depth, Field
from pdejax.exact._arguments import (
    Boundary,
    as_float,
    closed_form,
    depth,
    known_boundary,
    nonnegative,
    positive,
    require,
    shares,
    square,
)
from pdejax.exact._heat import heat_eigenvalues, mode_amplitudes, mode_sum
from pdejax.exact._numerics import matrix_exponential, product


@closed_form
def uniform_attention(
    u0: Field,
    value_matrix: Real[ArrayLike, "_ _"],
    t: Depth,
    leak: bool = True,
    weights: Real[ArrayLike, " _"] | None = None,
) -> Field:
    r"""Attention with equal logits (W_Q = 0 or W_K = 0): $u_i' = \bar u V - c\,u_i$,
    $\bar u = \sum_j w_ju_j$, c = 1 with `leak`, else 0. The mean and the deviations from it separate:

    $$u_i(t) = \bar u_0\,e^{t(V - cI)} + e^{-ct}(u_{i,0} - \bar u_0).$$

    `u0` (n, d), `value_matrix` V (d, d) acting from the right, `weights` w (n,), divided by their sum,
    equal for None. Returns (n, d). With a strength α in front of the term replace t by αt.

    Raises `ValueError` for t < 0, a wrong shape of V or w, a weight ≤ 0. Source: v2 (5) with constant
    kernel.
    """
    depth(t)
    n, d = u0.shape
    u, v, time = as_float(u0, value_matrix, t)
    square("value_matrix", v, d)
    mean = product(shares(weights, n, u.dtype), u)
    c = 1.0 if leak else 0.0
    moved = product(mean, matrix_exponential(time * (v - c * jnp.eye(d, dtype=u.dtype))))
    return moved[None] + jnp.exp(-c * time) * (u - mean[None])


@closed_form
def linear_reaction(
    u0: Field,
    m: Real[ArrayLike, "_ _"],
    t: Depth,
    leak: bool = False,
    offset: Real[ArrayLike, " _"] | None = None,
) -> Field:
    r"""Reaction with identity activation, $u' = uM + b - c\,u$, c = 1 with `leak`, else 0:

    $$u(t) = u_0e^{tA} + b\int_0^te^{sA}ds,\qquad A = M - cI,$$

    from the exponential of the (d+1, d+1) matrix [[A, 0], [b, 0]], so A may be singular. `u0` (n, d), `m` M
    (d, d) acting from the right, `offset` b (d,), zero for None: for the feed-forward term b =
    `b1 @ w2 + b2`. Returns (n, d).

    Raises `ValueError` for t < 0 or a wrong shape of M or b. Source: v2 (6) with σ(x) = x.
    """
    depth(t)
    d = u0.shape[1]
    u, a, time = as_float(u0, m, t)
    square("m", a, d)
    a = a - (1.0 if leak else 0.0) * jnp.eye(d, dtype=u.dtype)
    if offset is None:
        return product(u, matrix_exponential(time * a))
    b = jnp.asarray(offset, u.dtype)
    if b.shape != (d,):
        raise ValueError(f"offset must have shape {(d,)}; got {b.shape}.")
    propagator = matrix_exponential(time * jnp.zeros((d + 1, d + 1), u.dtype).at[:d, :d].set(a).at[d, :d].set(b))
    return product(u, propagator[:d, :d]) + propagator[d, :d][None]


@closed_form
def linear_master_equation(
    u0: Field,
    m: Real[ArrayLike, "_ _"],
    t: Depth,
    diffusivity: Depth,
    boundary: Boundary,
    length: Depth = 1.0,
    leak: bool = True,
    weights: Real[ArrayLike, " _"] | None = None,
) -> Field:
    r"""Master equation of linear terms, $u' = (\bar u - c\,u) + uM + D\,\nabla_h^2u$: uniform attention
    with V = I and leak (c = 1, without 0), linear reaction, diffusion. For Neumann and periodic boundaries
    with equal weights the modes of the Laplacian separate, and mode k evolves by

    $$e^{([k=0] - c + \lambda_k)t}\;e^{Mt},$$

    which with the leak is $e^{(-[k\ne0]+\lambda_k)t}e^{Mt}$. With `weights` or a Dirichlet boundary the
    mean couples the modes; then the (n, n) matrix $\mathbf 1w^\top - cI + D\nabla_h^2$ is exponentiated,
    O(n³), and acts from the left.

    `u0` (n, d), `m` M (d, d) from the right, `diffusivity` D ≥ 0 a scalar, `length` of the domain,
    `weights` w (n,) of the mean, divided by their sum (None: equal; a Dirichlet
    [`Grid`][pdejax.solvers.Grid] has unequal ones, to be passed here). A leak in the reaction belongs into
    M. Returns (n, d).

    Raises `ValueError` for t < 0, D < 0, length ≤ 0, an unknown boundary, wrong shapes. Source: v2 (4), v1
    (1).
    """
    depth(t)
    known_boundary(boundary)
    nonnegative("diffusivity", diffusivity)
    positive("length", length)
    n, d = u0.shape
    u, matrix, time, rate, size = as_float(u0, m, t, diffusivity, length)
    square("m", matrix, d)
    c = 1.0 if leak else 0.0
    reacted = product(u, matrix_exponential(time * matrix))
    if weights is None and boundary != "dirichlet":
        spacing = size / n
        growth = (jnp.arange(n) == 0).astype(u.dtype) - c + heat_eigenvalues(n, boundary, rate, spacing)
        return mode_sum(jnp.exp(growth * time)[:, None] * mode_amplitudes(reacted, boundary), boundary)
    spacing = size / (n + 1 if boundary == "dirichlet" else n)
    eye = jnp.eye(n, dtype=u.dtype)
    curvature = mode_sum(
        heat_eigenvalues(n, boundary, rate, spacing)[:, None] * mode_amplitudes(eye, boundary), boundary
    )
    averaging = jnp.broadcast_to(shares(weights, n, u.dtype)[None], (n, n))
    return product(matrix_exponential(time * (averaging - c * eye + curvature)), reacted)


@closed_form
def sphere_retraction_single_token(
    x0: Float[Array, "*n d"], value_matrix: Real[ArrayLike, "_ _"], t: Depth
) -> Float[Array, "*n d"]:
    r"""One token on the unit sphere, $x' = P_x(xV)$ with $P_x(y) = y - \langle x, y\rangle x$, equivalently
    $x' = xV$ with retraction $x \leftarrow x/\|x\|$ at any time:

    $$x(t) = x_0e^{tV}/\|x_0e^{tV}\|.$$

    A token alone attends to itself, so this is attention with n = 1 (THEORY §5.8). `x0` (d,) or (n, d),
    every row a system of its own, of any length > 0 (only the direction counts); `value_matrix` V (d, d)
    from the right.

    Raises `ValueError` for t < 0, a zero token, a wrong shape of V. Source: arXiv 2312.10794, (2.2) with n
    = 1.
    """
    depth(t)
    require("x0", x0, lambda v: np.any(v != 0, axis=-1), "free of zero tokens, which have no direction")
    x, v, time = as_float(x0, value_matrix, t)
    square("value_matrix", v, x.shape[-1])
    # A multiple of I leaves the direction alone; with the log-norm subtracted nothing can overflow.
    log_norm = jnp.linalg.eigvalsh(0.5 * (v + v.T))[-1]
    y = product(x, matrix_exponential(time * (v - log_norm * jnp.eye(x.shape[-1], dtype=x.dtype))))
    return y / jnp.linalg.norm(y, axis=-1, keepdims=True)
