"""Attention on the sphere: field, interaction energy, linearization at consensus. THEORY §5.7 and §5.12."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pdejax._types import Depth, Field
from pdejax.exact._arguments import as_float, count, positive
from pdejax.exact._matrix import product


def sphere_attention(x: Field, beta: Depth) -> Field:
    r"""Field of tokens on the unit sphere with identity queries, keys and values, written out plainly:

    $$x_i' = P_{x_i}\Big(\frac1{Z_i}\sum_je^{\beta\langle x_i,x_j\rangle}x_j\Big),\qquad
      P_x(y) = y - \langle x,y\rangle x,\qquad Z_i = \sum_je^{\beta\langle x_i,x_j\rangle}.$$

    `x` (n, d) of unit rows, any finite β; all n tokens are keys, j = i included. Returns (n, d).
    Source: arXiv 2312.10794, (2.2) (there called SA).
    """
    u, b = as_float(x, beta)
    mixed = product(jax.nn.softmax(b * product(u, u.T), axis=1), u)
    return mixed - jnp.sum(mixed * u, axis=1, keepdims=True) * u


def interaction_energy(x: Field, beta: Depth) -> Float[Array, ""]:
    r"""Interaction energy of tokens, $E = \frac1{2\beta n^2}\sum_{ij}e^{\beta\langle x_i,x_j\rangle}$,
    largest at consensus: $e^\beta/2\beta$. `x` (n, d) of unit rows. Raises `ValueError` for β ≤ 0.
    Source: arXiv 2312.10794, §3.
    """
    positive("beta", beta)
    u, b = as_float(x, beta)
    return jnp.mean(jnp.exp(b * product(u, u.T))) / (2 * b)


def interaction_energy_rate(x: Field, beta: Depth) -> Float[Array, ""]:
    r"""Rate of [`interaction_energy`][pdejax.exact.interaction_energy] along
    [`sphere_attention`][pdejax.exact.sphere_attention]:

    $$\frac{dE}{dt} = \frac1{n^2}\sum_iZ_i\,\|x_i'\|^2 \ge 0.$$

    It holds on the sphere only, where $x_i'$ is the projection of
    $\frac1{Z_i}\sum_je^{\beta\langle x_i,x_j\rangle}x_j$: then
    $\langle x_i', Z_i^{-1}\sum_j\dots\rangle = \|x_i'\|^2$. Raises `ValueError` for β ≤ 0. Source: arXiv
    2312.10794, §3.
    """
    positive("beta", beta)
    u, b = as_float(x, beta)
    partition = jnp.sum(jnp.exp(b * product(u, u.T)), axis=1)
    return jnp.sum(partition * jnp.sum(sphere_attention(u, b) ** 2, axis=1)) / u.shape[0] ** 2


def consensus_exponents(n: int, d: int) -> Float[Array, " k"]:
    r"""Lyapunov exponents of [`sphere_attention`][pdejax.exact.sphere_attention] at consensus
    $x_1 = \dots = x_n$, descending, shape (n(d−1),): 0 with multiplicity d−1 (the common direction turns
    freely) and −1 with multiplicity (n−1)(d−1).

    To first order the softmax weights do not matter (they multiply equal tokens), so
    $\xi_i' = \bar\xi - \xi_i$ for tangent ξ, at every β. The field extended to R^d as written there has n
    further exponents −2, radial ones.
    Raises `ValueError` for n < 1, d < 2. Source: linearization of arXiv 2312.10794, (2.2), derived here.
    """
    count("n", n)
    count("d", d, 2)
    return jnp.concatenate([jnp.zeros(d - 1), -jnp.ones((n - 1) * (d - 1))])
