"""Linear growth bounds of a master equation: the corrected form of v2 Thm 3.3 (docs/stability.md, Theorems 1 and 2)."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from pdejax._check import choice, integer, on_numbers
from pdejax._equation import AbstractEquation
from pdejax.analysis.stability._lipschitz import terms_by_name
from pdejax.exact._arguments import as_float, nonnegative
from pdejax.terms import AbstractTerm

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
        """Bound of ‖u(t)‖ for ‖u(0)‖ = `initial`, see [`decay_bound`][pdejax.analysis.decay_bound]."""
        return decay_bound(initial, self.rate, self.offset, t)


def decay_bound(initial: ArrayLike, rate: ArrayLike, offset: ArrayLike, t: ArrayLike) -> Float[Array, "..."]:
    r"""$e^{\lambda t}\|u_0\| + f\,(e^{\lambda t}-1)/\lambda$ (f·t for λ = 0), which bounds ‖u(t)‖ if
    $\frac{d^+}{dt}\|u\| \le \lambda\|u\| + f$. With linear damping, λ is the one-sided Lipschitz constant of the rest minus
    γ, and f = ‖F(0)‖. Arguments broadcast. Raises `ValueError` for a negative norm, offset or depth."""
    nonnegative("initial", initial)
    nonnegative("offset", offset)
    nonnegative("t", t)
    x, rate_, f, time = as_float(initial, rate, offset, t)
    safe = jnp.where(rate_ == 0, 1, rate_)
    return x * jnp.exp(rate_ * time) + f * jnp.where(rate_ == 0, time, jnp.expm1(safe * time) / safe)


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
