"""The record of a Lipschitz certificate, and the checks of what it is asked for."""

import dataclasses
import math
from typing import Literal, get_args

import jax
import numpy as np
from jaxtyping import Array

from pdejax._check import traced

NormName = Literal["token_max", "frobenius"]


@dataclasses.dataclass(frozen=True)
class Certificate:
    r"""A proven bound: $\|F(u) - F(v)\| \le$ `bound` $\cdot\|u - v\|$ for all fields u, v of the domain, per unit depth.

    - `norm`: `"token_max"`, $\max_i\|u_i\|_2$, or `"frobenius"`, $(\sum_i\|u_i\|_2^2)^{1/2}$. The constant in the
      mesh norm, Frobenius divided by √n, is that of Frobenius.
    - `radius` R, `spread` σ: the domain. Every token has ‖u_i‖₂ ≤ R, and a standard deviation over its features of at
      least σ (0: no condition). `n`: number of tokens, None where it does not matter.
    - `parts`: what each term adds; they sum to `bound`. Linear decay appears as parts called `... leak` and `damping`.
    - `conditions`: what else the bound rests on.
    """

    bound: float
    norm: str
    radius: float
    n: int | None
    parts: dict[str, float]
    conditions: tuple[str, ...] = ()
    spread: float = 0.0

    @property
    def decay(self) -> float:
        """c, the linear decay rates among the parts: leaks and linear damping (where γ varies over tokens, its largest)."""
        return sum((value for name, value in self.parts.items() if _is_decay(name)), 0.0)

    @property
    def rest(self) -> float:
        """G, the Lipschitz constant of everything but decay and diffusion: with `decay` what the corrected form of
        v1 (21), h ≤ 2/(4D/Δx² + c + G) for G ≤ c, is made of."""
        return sum((value for name, value in self.parts.items() if not _is_decay(name) and name != "diffusion"), 0.0)


def certificate(
    parts: dict[str, float],
    norm: str,
    *,
    radius: float = math.inf,
    n: int | None = None,
    spread: float = 0.0,
    conditions: tuple[str, ...] = (),
) -> Certificate:
    """A certificate whose bound is the sum of its parts."""
    return Certificate(sum(parts.values(), 0.0), norm, radius, n, parts, conditions, spread)


def check_norm(norm: object) -> None:
    if norm not in get_args(NormName):
        raise ValueError(f"norm={norm!r} is unknown; choose one of {get_args(NormName)}.")


def check_domain(n: object, radius: object, spread: object = 0.0) -> None:
    """Raise `ValueError` unless the domain is a ball with tokens in it."""
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"n={n!r} must be a positive integer: the number of tokens.")
    if not _is_number(radius) or not 0 < float(radius) < math.inf:  # pyright: ignore[reportArgumentType]
        raise ValueError(f"radius={radius!r} must be positive and finite: the largest Euclidean norm of a token.")
    check_spread(spread)


def check_spread(spread: object) -> None:
    if not _is_number(spread) or not 0 <= float(spread) < math.inf:  # pyright: ignore[reportArgumentType]
        raise ValueError(
            f"spread={spread!r} must be finite and not negative: a lower bound of every token's standard deviation over "
            "its features, 0 for none."
        )


def weights(value: Array) -> np.ndarray:
    """Weights in float64, where a certificate is computed whatever the precision of the field."""
    if traced(value):
        raise TypeError("certificates are numbers proven for given weights: compute them outside jit, vmap and grad.")
    array = np.asarray(value, np.float64)
    if not np.all(np.isfinite(array)):
        raise ValueError("the weights hold NaN or infinite entries, for which there is no bound.")
    return array


def operator_norm(matrix: np.ndarray) -> float:
    """‖M‖₂; 0 for a matrix without entries."""
    return float(np.linalg.norm(matrix, 2)) if matrix.size else 0.0


def _is_number(value: object) -> bool:
    if isinstance(value, jax.Array | np.ndarray):
        return value.ndim == 0
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _is_decay(name: str) -> bool:
    return name.endswith("leak") or name == "damping"
