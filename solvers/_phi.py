"""The φ-functions of exponential integrators."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

# Inside this radius the Taylor series, outside the recurrence: both are accurate to rounding here.
_RADIUS = 2.0


def _terms(first: int, largest: float) -> int:
    """Number of Taylor terms of φ_first after which the rest is below 2⁻⁵⁶ of φ_first(−largest)."""
    term, count = 1.0, 0
    while term > 2.0**-56 / (first + 1.0):
        count += 1
        term *= largest / (first + count)
    return count


@jax.named_scope("pdejax.solvers.phi")
def phi(z: Inexact[Array, "*shape"], largest: int) -> tuple[Inexact[Array, "*shape"], ...]:
    r"""$(\varphi_0(z), \dots, \varphi_\mathrm{largest}(z))$, elementwise, for a real or complex array z of any size.

    $$\varphi_0(z) = e^z,\qquad \varphi_k(z) = \int_0^1 e^{(1-s)z}\frac{s^{k-1}}{(k-1)!}\,ds,\qquad
      \varphi_{k+1}(z) = \frac{\varphi_k(z) - 1/k!}{z},\qquad \varphi_k(0) = \frac1{k!}.$$

    For |z| < 2 the Taylor series of the largest one and the recurrence downwards, else the recurrence upwards from
    $\varphi_1 = \mathrm{expm1}(z)/z$. In float64 the relative error is below 1e-15 for Re z ≤ 0 and for real z up to
    φ₄; in float32 below 1e-6. Derivatives of every order are finite, also at z = 0. `largest` is from 0 to 6.

    Raises `ValueError` for `largest` out of this range.

    Source: Hochbruck and Ostermann, *Acta Numerica* 19 (2010), (2.10)–(2.11).
    """
    if not 0 <= largest <= 6:
        raise ValueError(f"largest is the index of the last phi-function, from 0 to 6; got {largest}.")
    exponential = jnp.exp(z)
    if largest == 0:
        return (exponential,)
    small = jnp.abs(z) < _RADIUS
    # The branch that is not taken gets an argument where it has finite values and derivatives.
    near, far = jnp.where(small, z, 0.0), jnp.where(small, _RADIUS, z)
    taylor = jnp.full_like(z, 0.0)
    for j in reversed(range(_terms(largest, _RADIUS))):
        taylor = taylor * near + 1.0 / math.factorial(largest + j)
    down = [taylor]
    for k in range(largest - 1, 0, -1):
        down.append(near * down[-1] + 1.0 / math.factorial(k))
    up = [jnp.expm1(far) / far]
    for k in range(1, largest):
        up.append((up[-1] - 1.0 / math.factorial(k)) / far)
    return exponential, *(jnp.where(small, a, b) for a, b in zip(reversed(down), up, strict=True))


# Doublings that are possible: norms up to 2⁴⁰ are taken exactly, and no stiffer step is of use.
_DOUBLINGS = 40


@jax.named_scope("pdejax.solvers.phi_of_matrices")
def phi_of_matrices(z: Inexact[Array, "k d d"], largest: int) -> tuple[Inexact[Array, "k d d"], ...]:
    r"""$(\varphi_0(z), \dots, \varphi_\mathrm{largest}(z))$ of every matrix `z[k]`, of any kind.

    Each is halved until its norm is below ½, where a Taylor series of the largest function and the recurrence downwards
    give them all, and doubled back by

    $$\varphi_k(2z) = 2^{-k}\Bigl(\varphi_0(z)\varphi_k(z) + \sum_{j=1}^{k}\frac{\varphi_j(z)}{(k-j)!}\Bigr).$$

    O(k d³) a doubling, of which there are log₂‖z‖ + 1. No eigenvectors: derivatives are finite everywhere.

    Source: B. V. Minchev and W. M. Wright, *A review of exponential integrators* (NTNU, 2005), section 4.
    """
    unit = jnp.eye(z.shape[-1], dtype=z.dtype)[None]
    size = jax.lax.stop_gradient(jnp.max(jnp.sum(jnp.abs(z), axis=-1), axis=-1))
    needed = jnp.clip(jnp.ceil(jnp.log2(jnp.maximum(size, 0.25))) + 1.0, 0.0, _DOUBLINGS).astype(jnp.int32)
    small = z * (0.5 ** needed.astype(size.dtype)).astype(z.dtype)[:, None, None]
    taylor = jnp.broadcast_to(unit * (1.0 / math.factorial(largest + _terms(largest, 0.5))), z.shape)
    for j in reversed(range(_terms(largest, 0.5))):
        taylor = small @ taylor + unit * (1.0 / math.factorial(largest + j))
    found = [taylor]
    for k in range(largest - 1, -1, -1):
        found.append(small @ found[-1] + unit * (1.0 / math.factorial(k)))
    first = tuple(reversed(found))

    def double(phis):
        sums = []
        for k, value in enumerate(phis):
            total = phis[0] @ value
            for j in range(1, k + 1):
                total = total + phis[j] * (1.0 / math.factorial(k - j))
            sums.append(total * 0.5**k)
        return tuple(sums)

    @jax.checkpoint
    def step(phis, i):
        def some(phis):
            left = (i < needed)[:, None, None]
            return jax.tree.map(lambda new, old: jnp.where(left, new, old), double(phis), phis)

        return jax.lax.cond(i < jnp.max(needed), some, lambda phis: phis, phis), None

    return jax.lax.scan(step, first, jnp.arange(_DOUBLINGS, dtype=jnp.int32))[0]
