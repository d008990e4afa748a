"""Energy of a field, v2 (13), its exact split over the terms, v2 (14), what v2 (9) does to it (claim C4), and linear
growth bounds: the corrected form of v2 Thm 3.3 (docs/stability.md, Theorems 1 and 2)."""

import dataclasses
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from pdejax._arguments import checked
from pdejax._check import choice, integer, number, on_numbers, real_array, spoken_by
from pdejax._equation import AbstractEquation, as_field
from pdejax._figure import AbstractRecord
from pdejax._types import Depth, Field, Mask
from pdejax.analysis.stability._lipschitz import terms_by_name
from pdejax.exact._arguments import as_float, nonnegative
from pdejax.terms import AbstractTerm, FieldArgs

NORMS = ("token_max", "mesh")


@dataclasses.dataclass(frozen=True)
class Growth:
    r"""A proven bound on how fast solutions grow: $\frac{d^+}{dt}\|u\| \le \lambda\|u\| + f$ for every field u.

    `rate` λ and `offset` f (field units), per unit depth, sums over `parts`: `{term: (λ, f)}`; `norm` is `"token_max"`,
    $\max_i\|u_i\|_2$, or `"mesh"`, $(\frac1n\sum_i\|u_i\|^2)^{1/2}$.
    """

    rate: float
    offset: float
    norm: str
    parts: dict[str, tuple[float, float]]

    @property
    def absorbing_radius(self) -> float:
        """f/(−λ): every solution enters each larger ball and stays there. inf unless λ < 0."""
        return self.offset / -self.rate if self.rate < 0 else math.inf

    def bound(self, initial: ArrayLike, t: ArrayLike) -> Float[Array, "..."]:
        r"""Bound of ‖u(t)‖ for ‖u(0)‖ = `initial`: $e^{\lambda t}\|u_0\| + f\,(e^{\lambda t}-1)/\lambda$ (f·t for λ = 0)."""
        return decay_bound(initial, self.rate, self.offset, t)


def decay_bound(initial: ArrayLike, rate: ArrayLike, offset: ArrayLike, t: ArrayLike) -> Float[Array, "..."]:
    """`Growth.bound` for any rate and offset."""
    with spoken_by("decay_bound"):
        nonnegative("initial", initial)
        nonnegative("offset", offset)
        nonnegative("t", t)
    x, rate_, f, time = as_float(initial, rate, offset, t)
    safe = jnp.where(rate_ == 0, 1, rate_)
    return x * jnp.exp(rate_ * time) + f * jnp.where(rate_ == 0, time, jnp.expm1(safe * time) / safe)


@checked
@on_numbers
def growth_bound(field: AbstractEquation | AbstractTerm, n: int, *, norm: str = "token_max") -> Growth:
    r"""Find λ and f such that $\frac{d^+}{dt}\|u\| \le \lambda\|u\| + f$ along solutions of v2 (4), from any u: what takes
    the place of v2 (15). The sum of what the terms know of themselves, `term.growth(n, norm)`.

    | term | rate λ | offset f |
    |---|---|---|
    | attention, softmax | $\alpha\min(\sum_h\|M_h\|_2, \|W_O\|_2(\sum_h\|W_V^h\|_2^2)^{1/2})$, times √n in the mesh norm | ‖b‖ |
    | feed-forward | $\alpha(\lambda_{max}(\mathrm{sym}\,cW_1W_2) + r\|W_1\|_2\|W_2\|_2)$, slopes in [c−r, c+r] | ‖R(0)‖ |
    | either with a norm before or after | 0 | its largest output |
    | leak, `LinearDamping` | −α, −γ | 0 |
    | diffusion, D symmetric part ≥ 0 | 0 | 0 |
    | v2 (9), `SpatialNorm` | **0** | 0 |
    | `LayerNormRelaxation` | −γ | γ sup‖LN‖ |

    λ < 0 makes every solution enter the ball of radius f/(−λ) exponentially fast; for S = −γu that is γ > G.

    Raises `TypeError` for something else than a term or a `MasterEquation`, `ValueError` for an unknown norm, n < 1, or a term
    without such a bound: the linear attention kernel (cubic in u), `EffectiveDiffusion`, a source, unequal diffusivities
    in the token-max norm, v2 (9) with γ or weights that vary over tokens in the mesh norm.
    """
    choice("growth_bound", "norm", norm, NORMS)
    n = integer("growth_bound", "n", n, advice="it is the number of tokens")
    parts = {}
    for name, term in terms_by_name("growth_bound", field).items():
        found = term.growth(n, norm)
        if found is None:
            raise ValueError(
                f"growth_bound: {type(term).__name__} knows no growth bound; leave it out with equation.only(...)."
            )
        parts[name] = (float(found[0]), float(found[1]))
    return Growth(math.fsum(r for r, _ in parts.values()), math.fsum(f for _, f in parts.values()), norm, parts)


class EnergyBudget(AbstractRecord):
    r"""Energy along a trajectory of k depths.

    - `ts (k,)`; `energy (k,)`: E = ½‖u‖_Ω²; `mean (k,)`: ½‖μ‖², the part in the spatial mean; `deviation (k,)`:
      σ = ‖u − μ‖_Ω. E = ½‖μ‖² + ½σ².
    - `rates {term: (k,)}`: ⟨u, term(u)⟩_Ω, and `total (k,)` their sum, dE/dt.
    """

    ts: Array
    energy: Array
    mean: Array
    deviation: Array
    rates: dict[str, Array]
    total: Array


@checked
def energy(
    u: Float[Array, "... n d"], *, weights: Float[Array, " n"] | None = None, mask: Mask | None = None
) -> Float[Array, "..."]:
    r"""Give $E = \tfrac12\|u\|_\Omega^2 = \tfrac12\sum_iw_i\|u_i\|_2^2$, v2 (13), with `weights` divided by their sum (equal for
    None; 0 where `mask` is False). Acts on the last two axes."""
    return 0.5 * _inner(u, u, weights, mask)


@checked
def energy_rates(
    field: AbstractEquation | Callable[..., Array],
    u: Field,
    t: Depth = 0.0,
    *,
    weights: Float[Array, " n"] | None = None,
    mask: Mask | None = None,
) -> dict[str, Float[Array, ""]]:
    r"""Give what each term adds to dE/dt, v2 (14): $\langle u, A(u)\rangle_\Omega$ and so on, by the term's name. They sum to
    dE/dt exactly, because the terms sum to ∂u/∂t. `weights` and `mask` as in [`energy`][pdejax.analysis.growth.energy].

    A function f(t, u, args) counts as one term, `"field"`.

    For v2 (9) the rate is $-\gamma\sigma^2/\sqrt{\sigma^2+\epsilon}$, of degree 1 in the field, not −2γE (claim C4)."""
    equation = as_field("energy_rates", field)
    _check_state("energy_rates", equation, u, u.shape)
    parts = equation.contributions(t, u, None if mask is None else FieldArgs(mask))
    return {name: _inner(u, part, weights, mask) for name, part in parts.items()}


@checked
def energy_budget(
    field: AbstractEquation | Callable[..., Array],
    ts: Float[Array, " k"],
    us: Float[Array, "k n d"],
    *,
    weights: Float[Array, " n"] | None = None,
    mask: Mask | None = None,
) -> EnergyBudget:
    """Find the energy, its split into mean and deviation, and every term's rate, at the points `(ts, us)` of a trajectory.
    One field evaluation per term and point, compiled once."""
    if ts.shape[0] != us.shape[0]:
        raise ValueError(
            f"energy_budget: ts has {ts.shape[0]} depths, but us has {us.shape[0]} fields; they must be as many."
        )
    equation = as_field("energy_budget", field)
    _check_state("energy_budget", equation, us, us.shape[1:])
    e, mean, deviation, rates = _budget(equation, ts, us, weights, mask)
    return EnergyBudget(ts, e, mean, deviation, rates, sum(rates.values(), start=jnp.zeros_like(e)))


def _check_state(owner: str, equation: AbstractEquation, u: Array, shape: tuple[int, ...]) -> None:
    real_array(owner, "the field", u)
    with spoken_by(owner):
        equation.check(shape)


@checked
def claimed_energy(initial: ArrayLike, gamma: ArrayLike, lipschitz: ArrayLike, t: ArrayLike) -> Float[Array, "..."]:
    r"""Give what v2 Thm 3.3 promises, (15) with Grönwall: $E(t) \le E(0)\,e^{-2(\gamma-L)t}$, L = L_A + L_R. It rests on
    ⟨u, S(u)⟩ ≤ −2γE, which holds for S = −γu and not for v2 (9)."""
    return jnp.asarray(initial) * jnp.exp(-2.0 * (jnp.asarray(gamma) - jnp.asarray(lipschitz)) * jnp.asarray(t))


@checked
def decay_rate(ts: Float[Array, " k"], energies: Float[Array, " k"]) -> Float[Array, ""]:
    """Give the largest δ with E(t) ≤ E(t₀)·e^{−δ(t − t₀)} at every depth given: what to hold against 2(γ − L). Negative if the
    energy ever exceeds its initial value; inf if it is 0 at once."""
    if ts.shape[0] < 2 or energies.shape != ts.shape:
        raise ValueError(
            f"decay_rate: ts and energies have shapes {ts.shape} and {energies.shape}; they need at least two depths, as many "
            "of each."
        )
    return -jnp.max(jnp.log(energies[1:] / energies[0]) / (ts[1:] - ts[0]))


@checked
@on_numbers
def extinction_time(sigma: float, gamma: float, *, rate: float = 0.0, eps: float = 0.0, level: float = 0.0) -> float:
    r"""Give the depth at which $\sigma' = \lambda\sigma - \gamma\sigma/\sqrt{\sigma^2+\varepsilon}$ has come from `sigma`
    down to `level`.

    With w = √(σ²+ε), e = √ε, dt = −w² dw/((w² − e²)(γ − λw)), so by partial fractions $t = T(w_0) - T(w_1)$,

    $$T(w) = \frac{e\,\ln(w-e)}{2(\gamma-\lambda e)} - \frac{e\,\ln(w+e)}{2(\gamma+\lambda e)}
      - \frac{\gamma^2}{\gamma^2-\lambda^2\varepsilon}\,\frac{\ln(\gamma-\lambda w)}{\lambda} .$$

    `level` = 0 is reached in finite time only for ε = 0: σ₀/γ for λ = 0, else $-\ln(1-\lambda\sigma_0/\gamma)/\lambda$; for
    ε > 0 the time is inf, the end being exponential at rate γ/√ε − λ. inf also for σ₀ at or above the basin radius.
    `rate` λ may have any sign. 0 if `sigma` ≤ `level`. Raises `ValueError` for negative σ, γ, ε or level.
    Source: derived here from v2 (9).
    """
    for name, value in (("sigma", sigma), ("gamma", gamma), ("eps", eps), ("level", level)):
        number("extinction_time", name, value, least=0)
    number("extinction_time", "rate", rate)
    if sigma <= level:
        return 0.0
    e = math.sqrt(eps)
    start, end = math.hypot(sigma, e), math.hypot(level, e)
    if gamma <= rate * start or (level == 0 and (eps > 0 or gamma == 0)):
        return math.inf
    near = 1e-5
    if eps > 0 and abs(gamma + rate * e) < 0.5 * near * gamma:
        # A removable pole of two of the parts: the mean of both sides, in error by O(near²).
        sides = (rate * (1 - near), rate * (1 + near))
        return 0.5 * sum(extinction_time(sigma, gamma, rate=side, eps=eps, level=level) for side in sides)
    ratio = (start - end) / (gamma - rate * start)
    # (ln(γ − λw₁) − ln(γ − λw₀))/λ with its limit at λ = 0.
    drift = math.log1p(rate * ratio) / rate if rate != 0 else ratio
    if eps == 0:
        return drift
    above, below = gamma + rate * e, gamma - rate * e
    slow = e / (2 * below) * (_log_excess(sigma, e) - _log_excess(level, e))
    slow -= e / (2 * above) * math.log((start + e) / (end + e))
    return slow + gamma**2 / (above * below) * drift


def _log_excess(sigma: float, e: float) -> float:
    """ln(w − e) without cancellation, w = √(σ² + e²)."""
    return 2 * math.log(sigma) - math.log(math.hypot(sigma, e) + e)


@eqx.filter_jit
def _budget(field, ts, us, weights, mask):
    def point(x):
        t, u = x
        w = _shares(u.shape[0], u.dtype, weights, mask)
        mu = jnp.sum(w[:, None] * u, axis=0)
        deviation = jnp.sqrt(jnp.sum(w * jnp.sum((u - mu[None]) ** 2, axis=-1)))
        rates = energy_rates(field, u, t, weights=weights, mask=mask)
        return energy(u, weights=weights, mask=mask), 0.5 * jnp.sum(mu**2), deviation, rates

    return jax.lax.map(point, (ts, us))


def _inner(a: Array, b: Array, weights: Array | None, mask: Array | None) -> Array:
    w = _shares(a.shape[-2], a.dtype, weights, mask)
    return jnp.einsum("...id,...id,i->...", a, b, w)


def _shares(n: int, dtype: np.dtype, weights: Array | None, mask: Array | None) -> Array:
    w = jnp.ones(n, dtype) if weights is None else weights.astype(dtype)
    w = w if mask is None else jnp.where(mask, w, 0)
    return w / jnp.sum(w)
