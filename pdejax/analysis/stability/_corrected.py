r"""A-priori bounds on forward Euler's step: v1 (21) as printed, and two that hold under their hypotheses (claim C3)."""

import dataclasses
import math

import numpy as np
from jaxtyping import ArrayLike

from pdejax._arguments import checked
from pdejax._check import on_numbers
from pdejax._depth import DepthVarying
from pdejax._equation import AbstractEquation
from pdejax.analysis.stability._lipschitz import field_lipschitz
from pdejax.terms import AbstractTerm
from pdejax.terms._constants import UNEQUAL, UNSYMMETRIC


@checked
@on_numbers
def v1_21(
    step: ArrayLike,
    spacing: ArrayLike,
    *,
    diffusivity: ArrayLike,
    strength: ArrayLike = 0.0,
    output_norm: ArrayLike = 0.0,
) -> np.ndarray | np.floating:
    r"""Left side of v1 (21), $2D\,\Delta t/\Delta x^2 + \alpha\,\Delta t\,\|W_O\|_2$, which v1 asks to be at most 1.

    `step` Δt (depth), `spacing` Δx (length), `diffusivity` D (length² per depth), `strength` α (per depth), `output_norm`
    ‖W_O‖₂; all broadcast. For diffusion alone the condition is sharp on a fine grid. With the other terms it is neither
    sufficient (the reaction, the leaks, W_V and the derivative of the softmax are absent) nor necessary (a pre-LN field
    stays bounded at any αΔt): claim C3, and [`corrected_step_bound`][pdejax.analysis.stability.corrected_step_bound].

    Raises `ValueError` for values that are negative or not finite, or Δx = 0.
    """
    h, dx, d, alpha, norm = _nonnegative(
        "v1_21", step=step, spacing=spacing, diffusivity=diffusivity, strength=strength, output_norm=output_norm
    )
    _positive("v1_21", spacing=dx)
    return np.asarray(2 * d * h / dx**2 + alpha * h * norm)


@checked
@on_numbers
def corrected_step_bound(
    spacing: ArrayLike,
    *,
    diffusivity: ArrayLike = 0.0,
    leak: ArrayLike = 0.0,
    lipschitz: ArrayLike = 0.0,
    real_limit: ArrayLike = 2.0,
) -> np.ndarray | np.floating:
    r"""Step up to which forward Euler brings no two solutions further apart, **if G ≤ c**:

    $$h \le \frac{2}{4D/\Delta x^2 + c + G}\quad\text{if } G \le c; \qquad 0,\text{ that is no certificate, if } G > c.$$

    `diffusivity` D ≥ 0, a scalar (length² per depth); `spacing` Δx; `leak` c, the sum of the rates of all terms −u (leaks
    of attention and reaction, linear damping γ; where they vary over tokens see
    [`step_constants`][pdejax.analysis.stability.step_constants]); `lipschitz` G, a Lipschitz constant of the rest of the field
    in the token-max norm $|||u||| = \max_i\|u_i\|_2$ on the set that is visited. All broadcast; inf where all are 0.

    *Derivation.* One step of the difference δ of two solutions is $(1 - hc)\delta + hD\Delta_h\delta + h(N(u) - N(v))$. With
    $r = hD/\Delta x^2$ a row of the linear part is $(r, 1 - 2r - hc, r)$, so for scalar D

    $$|||\delta^+||| \le \big(|1 - hc - 2r| + 2r + hG\big)\,|||\delta||| =
      \max\big(1 + h(G - c),\; h(4D/\Delta x^2 + c + G) - 1\big)\,|||\delta|||.$$

    If G ≤ c the first entry is at most 1 at every step, and the second under the bound. If G > c the first exceeds 1 at every
    step: the field may be an isometry all the same, and Euler grow. One token turned by $u' = uJ$ has c = 0, G = 1, keeps its
    length, and Euler multiplies it by √(1 + h²), whatever h. For fields that turn as they decay
    [`one_sided_step_bound`][pdejax.analysis.stability.one_sided_step_bound] has a certificate. N(0) = 0 gives the same for
    |||u||| itself. The constant is reached by N(u) = −Gu, G ≤ c.

    Unequal diffusivities or a symmetric matrix D have no maximum principle for tokens: take the largest eigenvalue and constants
    in the 2-norm, in which the same holds. For another scheme put its limit on the real axis
    (`pdejax.solvers.real_stability_limit`) in place of 2 as `real_limit`: exact, in the 2-norm, where the whole field is linear
    and **symmetric** (its eigenvalues are then real; those of a normal matrix need not be), and else an estimate.

    Raises `ValueError` for values that are negative or not finite, or Δx = 0.
    """
    dx, d, c, g, limit = _nonnegative(
        "corrected_step_bound",
        spacing=spacing,
        diffusivity=diffusivity,
        leak=leak,
        lipschitz=lipschitz,
        real_limit=real_limit,
    )
    _positive("corrected_step_bound", spacing=dx)
    rate = 4 * d / dx**2 + c + g
    step = np.where(rate > 0, limit / np.where(rate > 0, rate, 1.0), math.inf)
    return np.asarray(np.where(g <= c, step, 0.0))


@checked
def one_sided_step_bound(*, dissipation: ArrayLike, lipschitz: ArrayLike) -> np.ndarray | np.floating:
    r"""Step up to which forward Euler brings no two solutions further apart in the 2-norm, **if μ > 0**:

    $$h \le 2\mu/L^2 \quad\text{if } \mu > 0; \qquad 0,\text{ that is no certificate, if } \mu \le 0 .$$

    `dissipation` μ with $\langle F(u) - F(v), u - v\rangle \le -\mu\,\|u - v\|^2$, minus the field's log-norm; `lipschitz` L with
    $\|F(u) - F(v)\| \le L\,\|u - v\|$; both of the **whole** field, diffusion and leaks included, in the Frobenius norm and on
    a set that the iterates do not leave. Broadcast; inf where L = 0.

    *Derivation.* $\|\delta + h(F(u) - F(v))\|^2 \le (1 - 2h\mu + h^2L^2)\,\|\delta\|^2$. Attained by rotation: for
    $u' = u(\omega J - c)$ it is $2c/(c^2 + \omega^2)$, the limit of the eigenvalues −c ± iω. For a symmetric field of
    eigenvalues in [−L, −μ] the limit is 2/L, which is larger.

    Raises `ValueError` for values that are not finite, L < 0, or μ > L, which no field has.
    """
    owner = "one_sided_step_bound"
    (constant,) = _nonnegative(owner, lipschitz=lipschitz)
    rate = np.asarray(dissipation, float)
    if not np.all(np.isfinite(rate)) or np.any(rate > constant * (1 + 1e-9)):
        raise ValueError(
            f"{owner}: dissipation={dissipation!r} must be finite and at most lipschitz={lipschitz!r}: "
            "|⟨F(u) − F(v), u − v⟩| ≤ L‖u − v‖² for every field."
        )
    step = 2 * rate / np.where(constant > 0, constant, 1.0) ** 2
    return np.asarray(np.where(constant > 0, np.maximum(step, 0.0), math.inf))


@dataclasses.dataclass(frozen=True)
class StepConstants:
    """What the corrected bound needs of an equation, per unit depth, in `norm` and on the ball of `radius` (and `spread`).

    - `diffusion` 4D/Δx², `least_leak` and `largest_leak` c (they differ where the rate varies over tokens), `rest_lipschitz` G.
    - `rest_at_most_leak`: whether G ≤ the least c, the hypothesis without which there is no certificate.
    - `dt_max`: 2/(4D/Δx² + c + G) with the largest c; **0** where the hypothesis fails, and `why` says so.
    - `conditions`: what else it rests on.
    """

    diffusion: float
    least_leak: float
    largest_leak: float
    rest_lipschitz: float
    norm: str
    radius: float
    spread: float
    conditions: tuple[str, ...] = ()

    @property
    def rest_at_most_leak(self) -> bool:
        return self.rest_lipschitz <= self.least_leak

    @property
    def dt_max(self) -> float:
        rate = self.diffusion + self.largest_leak + self.rest_lipschitz
        return 0.0 if not self.rest_at_most_leak else 2 / rate if rate > 0 else math.inf

    @property
    def why(self) -> str:
        return (
            ""
            if self.rest_at_most_leak
            else f"no certificate: G = {self.rest_lipschitz:.4g} > c = {self.least_leak:.4g}, and Euler may grow at every step"
        )


@checked
@on_numbers
def step_constants(
    field: AbstractEquation | AbstractTerm, n: int, radius: float, *, norm: str = "token_max", spread: float = 0.0
) -> StepConstants:
    r"""Give the constants of [`corrected_step_bound`][pdejax.analysis.stability.corrected_step_bound] for a field.

    4D/Δx² (for several diffusivities the largest), c and G come from the certificate
    [`field_lipschitz`][pdejax.analysis.field_lipschitz] in `norm` on fields of `n` tokens with $\|u_i\|_2 \le R$ = `radius` and,
    where norms are inside, a standard deviation over the features of at least `spread`. Of a `DepthVarying` equation of kind
    `"constant"` the layer of the smallest `dt_max`.

    `norm`: `"token_max"`, for one diffusivity; or `"frobenius"`, for unequal ones and for symmetric matrices too, which have no
    maximum principle for tokens: with D = (0, 1) a step of 0.9 of 2/(4D/Δx²) takes the token-max norm of three tokens from 1 to
    1.345.

    A run stays in the ball of its start where the field's growth constant is at most c (see the derivation); else take the
    largest token met. Raises `ValueError`/`TypeError` for something else than a field of terms, diffusivities for which the norm
    has no step bound, or a term that has no certificate there.
    """
    if isinstance(field, DepthVarying) and field.kind == "constant":
        layers = (step_constants(field.layer(i), n, radius, norm=norm, spread=spread) for i in range(field.size))
        return min(layers, key=lambda constants: constants.dt_max)
    found = field_lipschitz(field, n, radius, norm=norm, spread=spread)
    if UNEQUAL in found.conditions:
        raise ValueError(
            "step_constants: norm='token_max' needs one diffusivity for all features: unequal ones have no maximum principle "
            "for tokens. Use norm='frobenius'."
        )
    if UNSYMMETRIC in found.conditions:
        raise ValueError(
            "step_constants: the diffusivity is a matrix that is not symmetric: its modes turn as they decay, and the bound does "
            "not see it. Use one_sided_step_bound, or predict_dt_max."
        )
    return StepConstants(
        found.diffusion, found.least_decay, found.decay, found.rest, norm, found.radius, found.spread, found.conditions
    )


def _nonnegative(owner: str, **values: ArrayLike) -> list[np.ndarray]:
    arrays = []
    for name, value in values.items():
        array = np.asarray(value, float)
        if not np.all(np.isfinite(array)) or np.any(array < 0):
            raise ValueError(f"{owner}: {name}={value!r} must be finite and not negative.")
        arrays.append(array)
    return arrays


def _positive(owner: str, **values: np.ndarray) -> None:
    for name, value in values.items():
        if np.any(value == 0):
            raise ValueError(f"{owner}: {name} must be positive.")
