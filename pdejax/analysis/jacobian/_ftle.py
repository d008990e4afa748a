"""Finite-time Lyapunov exponents token by token: how much a change of one token can grow over the whole depth."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from pdejax._check import choice, integer, probability, real_array
from pdejax._figure import AbstractRecord
from pdejax._types import Mask
from pdejax.analysis.jacobian._krylov import arnoldi
from pdejax.analysis.jacobian._maps import AbstractMaps, Flow
from pdejax.analysis.jacobian._operator import Jacobian
from pdejax.analysis.jacobian._padding import in_batches
from pdejax.analysis.jacobian._systems import model_maps

RESPONSES = ("all", "own")


class FTLE(AbstractRecord):
    r"""Finite-time exponents of n tokens over `depth` t₁ − t₀.

    - `exponents (n,)`: log σ_max/(t₁ − t₀), per unit depth, from below; NaN at padding, −inf where a token has no influence.
    - `residuals (n,)`: of the iteration, relative to σ²_max; `converged (n,)`: at most the tolerance. Then
      σ is that near to a singular value, relative error residual/2. True at padding.
    - `directions (n, d)`: the unit change of token i that grows most; 0 at padding.
    """

    exponents: Float[Array, "..."]
    residuals: Float[Array, "..."]
    converged: Bool[Array, "..."]
    directions: Float[Array, "..."]
    depth: Float[Array, "..."]


def ftle(
    system: Any,
    u0: ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    mask: ArrayLike | None = None,
    response: str = "all",
    iterations: int = 12,
    tolerance: float = 1e-3,
    batch_size: int = 8,
) -> FTLE:
    r"""Find finite-time Lyapunov exponents per token, with J = ∂u(t₁)/∂u(t₀) on the state `u0 (n, d)`:

    $$\lambda_i = \frac1{t_1 - t_0}\log\sigma_{\max}\big(J_{\cdot i}\big)\ (\text{response "all"}),\qquad
      \lambda_i = \frac1{t_1 - t_0}\log\sigma_{\max}\big(J_{ii}\big)\ (\text{"own"}).$$

    "all" takes the columns of token i, (n·d, d): what a change of that token does to all real tokens. "own" takes its diagonal
    block (d, d): what is left of it in the token itself. The largest singular value comes from Lanczos with full
    reorthogonalization on $J_{\cdot i}^\top J_{\cdot i}$, min(`iterations`, d) steps, exact for d ≤ `iterations`.

    Systems and masks are those of [`lyapunov_exponents`][pdejax.analysis.lyapunov_exponents]; batches by `jax.vmap`. For
    u' = uM all tokens have log σ_max(e^{tM})/t. Null: `shuffle_weights(system)`, or no attention (then "all" = "own").

    Cost: n·iterations products forwards and backwards through the whole depth, about 5 solves each: n = 64 tokens, 12
    iterations take some 4,000 solves. `batch_size` tokens run at once, with a trajectory each. In float32 good to 1e-5 in σ.

    Raises `ValueError`/`TypeError` for what does not fit.
    """
    key = jax.random.key(0) if key is None else key
    choice("ftle", "response", response, RESPONSES)
    integer("ftle", "iterations", iterations)
    integer("ftle", "batch_size", batch_size)
    probability("ftle", "tolerance", tolerance, advice="such as 1e-3")
    real_array("ftle", "u0", u0, "(n, d), one field; batches go through jax.vmap", 2)
    maps, u, real = model_maps("ftle", system, u0, mask)
    m = min(iterations, u.shape[1])
    return _ftle(maps, u, real, key, response, m, float(tolerance), batch_size)


@eqx.filter_jit
def _ftle(
    maps: AbstractMaps,
    u: Array,
    mask: Mask | None,
    key: PRNGKeyArray,
    response: str,
    m: int,
    tolerance: float,
    batch: int,
) -> FTLE:
    n, d = u.shape
    jacobian = Jacobian(Flow(maps.ready(u)), u, mask)

    def one(i):
        def gram(v):
            change = jacobian.matvec(jnp.zeros_like(u).at[i].set(v))
            if response == "own":
                change = jnp.where((jnp.arange(n) == i)[:, None], change, 0)
            return jacobian.rmatvec(change)[i]

        matrix, beyond, basis = arnoldi(gram, jnp.ones(d, bool), m, jax.random.fold_in(key, i), u.dtype)
        values, vectors = jnp.linalg.eigh(0.5 * (matrix + matrix.T))
        top, vector = values[-1], vectors[:, -1]
        return top, beyond * jnp.abs(vector[-1]), vector @ basis

    squares, residuals, directions = in_batches(one, jnp.arange(n), batch)
    ts = maps.depths(u.dtype)
    depth = ts[-1] - ts[0]
    positive = squares > 0
    safe = jnp.where(positive, squares, 1)
    exponents = jnp.where(positive, 0.5 * jnp.log(safe) / depth, jnp.where(jnp.isnan(squares), jnp.nan, -jnp.inf))
    relative = jnp.where(positive, residuals / safe, residuals)
    if mask is not None:
        exponents, relative = jnp.where(mask, exponents, jnp.nan), jnp.where(mask, relative, 0)
        directions = jnp.where(mask[:, None], directions, 0)
    return FTLE(exponents, relative, relative <= tolerance, directions, depth)
