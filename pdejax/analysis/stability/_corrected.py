r"""Two a-priori bounds on forward Euler's step: v1 (21) as printed, and the one that holds (claim C3)."""

import dataclasses
import math

import numpy as np
from jaxtyping import ArrayLike

from pdejax._check import on_numbers
from pdejax._equation import AbstractEquation
from pdejax.analysis.stability._lipschitz import field_lipschitz
from pdejax.terms import AbstractTerm
from pdejax.terms._constants import COUPLED


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


@on_numbers
def corrected_step_bound(
    spacing: ArrayLike,
    *,
    diffusivity: ArrayLike = 0.0,
    leak: ArrayLike = 0.0,
    lipschitz: ArrayLike = 0.0,
    real_limit: ArrayLike = 2.0,
) -> np.ndarray | np.floating:
    r"""Step below which forward Euler adds no growth of its own:

    $$h \le \frac{2}{4D/\Delta x^2 + c + G}.$$

    `diffusivity` D ≥ 0, a scalar (length² per depth); `spacing` Δx; `leak` c, the sum of the rates of all terms −u (leaks
    of attention and reaction, linear damping γ); `lipschitz` G, a Lipschitz constant of the rest of the field in the
    token-max norm $|||u||| = \max_i\|u_i\|_2$ on the set that is visited. All broadcast; inf where the denominator is 0.

    *Derivation.* One step of the difference δ of two solutions is $(1 - hc)\delta + hD\Delta_h\delta + h(N(u) - N(v))$. With
    $r = hD/\Delta x^2$ a row of the linear part is $(r, 1 - 2r - hc, r)$, so for scalar D

    $$|||\delta^+||| \le \big(|1 - hc - 2r| + 2r + hG\big)\,|||\delta||| =
      \max\big(1 + h(G - c),\; h(4D/\Delta x^2 + c + G) - 1\big)\,|||\delta|||.$$

    Under the bound the second entry is at most 1. If G ≤ c the step is non-expansive; if G > c the first entry is
    $\le e^{h(G-c)}$, the growth the field itself may have, and the bound limits the numerical part only. N(0) = 0 gives the
    same for |||u||| itself. The constant is reached by c = 0, N(u) = −Gu.

    A symmetric matrix D has no max-norm principle: take its largest eigenvalue and Lipschitz constants in the 2-norm. For
    another scheme put its limit on the real axis (`pdejax.solvers.real_stability_limit`) in place of 2 as `real_limit`,
    which is exact where the whole field is linear and normal, and else an estimate.

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
    return np.asarray(np.where(rate > 0, limit / np.where(rate > 0, rate, 1.0), math.inf))


@dataclasses.dataclass(frozen=True)
class StepConstants:
    """What the corrected bound needs of an equation, per unit depth: `diffusion` 4D/Δx², `leak` c, and `lipschitz` G in
    the token-max norm."""

    diffusion: float
    leak: float
    lipschitz: float

    @property
    def dt_max(self) -> float:
        """2/(4D/Δx² + c + G)."""
        rate = self.diffusion + self.leak + self.lipschitz
        return 2 / rate if rate > 0 else math.inf


@on_numbers
def step_constants(
    field: AbstractEquation | AbstractTerm, n: int, radius: float, *, spread: float = 0.0
) -> StepConstants:
    r"""Give the constants of [`corrected_step_bound`][pdejax.analysis.stability.corrected_step_bound] for a field.

    4D/Δx² (per feature: the largest diffusivity), c and G come from the certificate
    [`field_lipschitz`][pdejax.analysis.field_lipschitz] on fields of `n` tokens with $\|u_i\|_2 \le R$ = `radius` and,
    where norms are inside, a standard deviation over the features of at least `spread`.

    A run stays in the ball of its start where the field's growth constant is at most c (see the derivation); else take the
    largest token met. Raises `ValueError`/`TypeError` for something else than a field of terms, a diffusivity matrix, or a term
    that has no certificate there.
    """
    found = field_lipschitz(field, n, radius, spread=spread)
    if COUPLED in found.conditions:
        raise ValueError(
            "step_constants: the diffusivity is a matrix, and no scalar or one number per feature, which the bound needs. For a "
            "symmetric matrix use its largest eigenvalue in corrected_step_bound."
        )
    return StepConstants(found.diffusion, found.decay, found.rest)


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
