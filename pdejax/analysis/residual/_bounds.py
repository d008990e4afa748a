r"""Fidelity of a residual flow to its input, v2 Thm 3.4 and (16)–(17): the claimed bound and the sharp one (claim C6)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from pdejax._figure import AbstractRecord


class FidelityReport(AbstractRecord):
    """Fidelity along trajectories against the two bounds; arrays `(...,)` as the samples were given.

    - `fidelity` ρ, `ratio` r = ‖I‖/‖u₀‖, `claimed` v2 (17), `sharp` √(1 − r²) (−1 for r ≥ 1).
    - `below_one`, `above_one`: samples with r < 1 and with r ≥ 1; `violated_below`, `violated_above`: how many of each have
      ρ below the claimed bound; `sharp_violated`: how many (of all) have ρ below the sharp one.
    """

    fidelity: Array
    ratio: Array
    claimed: Array
    sharp: Array
    below_one: Array
    above_one: Array
    violated_below: Array
    violated_above: Array
    sharp_violated: Array


def fidelity(us: Float[Array, "... n d"], u0: Float[Array, "n d"]) -> Float[Array, "..."]:
    r"""$\rho = \langle u, u_0\rangle/(\|u\|\,\|u_0\|)$, v2 Thm 3.4, the cosine between fields; over the last two axes. NaN if
    either is 0."""
    product = jnp.einsum("...nd,nd->...", us, u0)
    return product / (_size(us) * _size(u0))


def residual_ratio(us: Float[Array, "... n d"], u0: Float[Array, "n d"]) -> Float[Array, "..."]:
    r"""$r = \|\int_0^tF\|/\|u_0\| = \|u(t) - u_0\|/\|u_0\|$, by v2 (16). Inf or NaN if u₀ = 0."""
    return _size(us - u0[(None,) * (us.ndim - 2)]) / _size(u0)


def claimed_fidelity(ratio: ArrayLike) -> Float[Array, "..."]:
    r"""v2 (17) in r = ‖I‖/‖u₀‖: $\rho \ge (1-r)/(1+r)$. True for r ≤ 1, where it is weaker than the sharp bound; false beyond,
    where only ρ ≥ −1 is: the numerator is negative there, and dividing it by the largest ‖u‖ rather than the actual one
    raises the bound. I = −2u₀ gives ρ = −1 < −1/3."""
    r = jnp.asarray(ratio)
    return (1 - r) / (1 + r)


def sharp_fidelity(ratio: ArrayLike) -> Float[Array, "..."]:
    r"""The least cosine that ‖I‖ = r‖u₀‖ allows: $\sqrt{1-r^2}$ for r < 1 (u₀ + I lies in a ball about u₀ that the tangents
    from 0 touch at the angle arcsin r), 0 (not attained) for r = 1, −1 for r > 1. Attained by
    [`adversarial_update`][pdejax.analysis.adversarial_update]."""
    r = jnp.asarray(ratio)
    r = r.astype(jnp.result_type(float)) if not jnp.issubdtype(r.dtype, jnp.floating) else r
    return jnp.where(r <= 1, jnp.sqrt(jnp.where(r <= 1, 1 - r**2, 0)), -1)


def adversarial_update(u0: Float[Array, "n d"], ratio: float, *, key: PRNGKeyArray) -> Float[Array, "n d"]:
    r"""The update I of norm r‖u₀‖ that hurts fidelity most: $I = r\|u_0\|\,(-r\,\hat u_0 + \sqrt{1-r^2}\,\hat w)$ for r < 1, ŵ a
    random unit field orthogonal to u₀; $-r\,u_0$ for r > 1.

    Raises `ValueError` for a ratio that is negative or exactly 1 (u₀ + I = 0: no angle), or a field of one number with
    r < 1, which has nothing orthogonal to it.
    """
    if not float(ratio) >= 0 or float(ratio) == 1:
        raise ValueError(f"ratio={ratio} must be at least 0 and not 1, where u₀ + I would be 0.")
    if ratio > 1:
        return -ratio * u0
    if u0.size < 2:
        raise ValueError("a field of one number has no orthogonal direction: give at least two tokens or features.")
    unit = u0 / _size(u0)
    w = jax.random.normal(key, u0.shape, u0.dtype)
    w = w - jnp.sum(w * unit) * unit
    return ratio * _size(u0) * (-ratio * unit + (1 - ratio**2) ** 0.5 * w / _size(w))


def fidelity_report(us: Float[Array, "... n d"], u0: Float[Array, "n d"], tolerance: float = 1e-12) -> FidelityReport:
    """Fidelity, ratio and both bounds at every sample of `us (..., n, d)`, and how often each bound is violated by more than
    `tolerance` (rounding). Samples that are not finite count nowhere."""
    rho, r = fidelity(us, u0), residual_ratio(us, u0)
    claimed, sharp = claimed_fidelity(r), sharp_fidelity(r)
    finite, below = jnp.isfinite(rho), r < 1
    broken = finite & (rho < claimed - tolerance)
    return FidelityReport(
        rho,
        r,
        claimed,
        sharp,
        below_one=jnp.sum(finite & below),
        above_one=jnp.sum(finite & ~below),
        violated_below=jnp.sum(broken & below),
        violated_above=jnp.sum(broken & ~below),
        sharp_violated=jnp.sum(finite & (rho < sharp - tolerance)),
    )


def _size(u: Array) -> Array:
    return jnp.sqrt(jnp.sum(u**2, axis=(-2, -1)))
