"""Constants of weights that bounds are made of: operator norms, slopes of activations, and the record of a Lipschitz bound."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from jaxtyping import ArrayLike
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit

from pdejax._check import choice, integer, number, traced

NORMS = ("token_max", "frobenius")

# Said by a diffusion whose explicit steps are no contraction in the norm, though its constant holds: no step bound then.
UNEQUAL = "unequal diffusivities have no maximum principle for tokens: a step bound needs the Frobenius norm"
UNSYMMETRIC = "a diffusivity matrix that is not symmetric turns modes as they decay: no step bound"


@dataclasses.dataclass(frozen=True)
class Lipschitz:
    """What a term knows of its Lipschitz constant, per unit depth; `float(bound)` is the whole of it.

    - `leak`: the rate c ≥ 0 of a part −c·u of the term, the largest where it varies over tokens; `least_leak` the smallest (None:
      it does not vary). `diffusion`: the constant of a part whose explicit steps, up to 2/constant, do not expand in the norm,
      such as D∇². `rest`: the constant of everything else, a part +c·u too. They add up.
    - `conditions`: what the bound, or a step bound made of it, rests on beside the ball, in words.
    """

    rest: float
    leak: float = 0.0
    diffusion: float = 0.0
    conditions: tuple[str, ...] = ()
    least_leak: float | None = None

    def __float__(self) -> float:
        return self.rest + self.leak + self.diffusion


def check_domain(owner: str, n: Any, radius: Any, norm: Any, spread: Any) -> tuple[int, float, float]:
    """Number of tokens, radius and spread of a domain of fields; raise unless it is a ball with tokens in it."""
    choice(owner, "norm", norm, NORMS)
    advice = "it is a lower bound of every token's standard deviation over its features, 0 for none"
    return (
        integer(owner, "n", n, advice="it is the number of tokens"),
        number(owner, "radius", radius, above=0, advice="it is the largest Euclidean norm of a token"),
        number(owner, "spread", spread, least=0, advice=advice),
    )


def in_float64(value: ArrayLike) -> np.ndarray:
    """Weights in float64, where a bound is computed whatever the precision of the field."""
    if traced(value):
        raise TypeError("certificates are numbers proven for given weights: compute them outside jit, vmap and grad.")
    array = np.asarray(value, np.float64)
    if not np.all(np.isfinite(array)):
        raise ValueError("the weights hold NaN or infinite entries, for which there is no bound.")
    return array


def operator_norm(matrix: np.ndarray) -> float:
    """‖M‖₂; 0 for a matrix without entries."""
    return float(np.linalg.norm(matrix, 2)) if matrix.size else 0.0


def leaking(strength: float, leak: bool) -> tuple[float, float]:
    """What a part −αu adds to `rest` and to `leak`: of a negative strength α it is growth, and no leak."""
    rate = abs(strength) if leak else 0.0
    return (0.0, rate) if strength >= 0 else (rate, 0.0)


def magnitude(rate: ArrayLike) -> float:
    """The largest absolute value of a rate, which may vary over tokens."""
    return float(np.max(np.abs(in_float64(rate))))


@functools.cache
def activation_slopes(activation: str) -> tuple[float, float]:
    r"""Smallest and largest slope $(\inf\sigma', \sup\sigma')$ of an activation by name.

    GELU $x\Phi(x)$: $\sigma'' = \varphi(x)(2-x^2)$, so the extremes are at $\pm\sqrt2$, and their sum is 1:
    (−0.12890, 1.12890). SiLU: extremes where $x\tanh(x/2) = 2$: (−0.09984, 1.09984). The tanh form of GELU by a
    bounded search; ReLU and tanh (0, 1); identity (1, 1). Raises `ValueError` for an unknown name.
    """
    choice("activation_slopes", "activation", activation, ("relu", "gelu", "gelu_tanh", "silu", "tanh", "identity"))
    if activation == "identity":
        return 1.0, 1.0
    if activation in ("relu", "tanh"):
        return 0.0, 1.0
    # σ(x) = x·S(x) with S(x) + S(−x) = 1 has σ'(x) + σ'(−x) = 1: one extreme gives the other.
    if activation == "gelu":
        x = math.sqrt(2)
        largest = 0.5 * (1 + math.erf(1)) + x * math.exp(-1) / math.sqrt(2 * math.pi)
    elif activation == "silu":
        x = float(brentq(lambda x: x * math.tanh(x / 2) - 2, 1, 4, xtol=1e-15))  # pyright: ignore[reportArgumentType]
        s = float(expit(x))
        largest = s + x * s * (1 - s)
    else:
        found = minimize_scalar(
            lambda x: -_gelu_tanh_slope(x), bounds=(0.5, 3), method="bounded", options={"xatol": 1e-9}
        )
        largest = _gelu_tanh_slope(float(found.x))  # pyright: ignore[reportAttributeAccessIssue]
    return 1 - largest, largest


def _gelu_tanh_slope(x: float) -> float:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    steep = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return 0.5 * (1 + math.tanh(inner)) + 0.5 * x * steep / math.cosh(inner) ** 2
