r"""Gaussian tokens under softmax attention without normalization, THEORY §5.9: the limit of infinitely many
tokens.

For tokens distributed as N(0, s²) the softmax average of exponent $a\,xy$ is that of a tilted Gaussian,
$\int y\,e^{axy}d\mu/\int e^{axy}d\mu = a s^2x$. So $x' = va\,s^2x$: tokens stay Gaussian and
$(s^2)' = 2va\,s^4$.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pdejax.exact._arguments import Values, as_float, count, depth, finite, positive


def gaussian_token_variance(variance0: Values, coupling: Values, t: Values) -> Float[Array, "..."]:
    r"""Variance $s^2(t) = s_0^2/(1 - 2c\,s_0^2t)$ of Gaussian tokens under attention without leak; inf from
    the blow-up on.

    `coupling` c = va of any sign: v the value matrix times I, a the logit's, `q·k/√dk = a⟨x, y⟩`. The same
    holds for every coordinate of isotropic tokens in R^d. Each token is $x(t) = x(0)\,s(t)/s_0$. c < 0
    contracts like 1/t. Arguments broadcast. Raises `ValueError` for s0² ≤ 0, t < 0 or c not finite.
    Source: Castin et al., arXiv 2501.18322 (Gaussian initial data), one-dimensional case; derived here.
    """
    positive("variance0", variance0)
    finite("coupling", coupling)
    depth(t)
    s, c, time = as_float(variance0, coupling, t)
    left = 1 - 2 * c * s * time
    return jnp.where(left > 0, s / jnp.where(left > 0, left, 1), jnp.inf)


def gaussian_blowup_time(variance0: Values, coupling: Values) -> Float[Array, "..."]:
    r"""Depth $1/(2c\,s_0^2)$ at which [`gaussian_token_variance`][pdejax.exact.gaussian_token_variance]
    becomes infinite; inf for c ≤ 0. Raises `ValueError` for s0² ≤ 0 or c not finite.
    """
    positive("variance0", variance0)
    finite("coupling", coupling)
    s, c = as_float(variance0, coupling)
    return jnp.where(c > 0, 1 / (2 * jnp.where(c > 0, c, 1) * s), jnp.inf)


def gaussian_quadrature_tokens(n: int, variance: Values = 1.0) -> tuple[Float[Array, "n 1"], Float[Array, " n"]]:
    r"""n tokens (n, 1) and weights (n,), Σ = 1, that stand for N(0, `variance`) in attention with these
    quadrature weights: Gauss–Hermite nodes. Random tokens would reach the Gaussian limit only like
    n^{−1/2}; these reach it to rounding, for every token x with |a s x| below about √n; further ones matter
    only where their weight does, once $a s^2$ passes 1 or so.

    Raises `ValueError` for n < 2, an n whose outermost weights underflow (above 360, in float32 above 50) or
    variance ≤ 0.
    Source: Golub and Welsch 1969, DOI 10.1090/S0025-5718-69-99647-1.
    """
    count("n", n, 2)
    positive("variance", variance)
    (s2,) = as_float(variance)
    most = 360 if s2.dtype == jnp.float64 else 50
    if n > most:
        raise ValueError(f"n must be at most {most} in {s2.dtype}, or the outermost weights underflow; got {n}.")
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return jnp.sqrt(s2) * jnp.asarray(nodes, s2.dtype)[:, None], jnp.asarray(weights / weights.sum(), s2.dtype)
