"""Lipschitz certificate of a term or a whole field on a ball: what the terms know of themselves, added up."""

import dataclasses
import math
from typing import Any

from pdejax._arguments import checked
from pdejax._check import integer, number, on_numbers
from pdejax._depth import DepthVarying
from pdejax._equation import AbstractEquation, MasterEquation
from pdejax.terms import AbstractTerm
from pdejax.terms._constants import Lipschitz, check_domain


@dataclasses.dataclass(frozen=True)
class Certificate:
    r"""A proven bound: $\|F(u) - F(v)\| \le$ `bound` $\cdot\|u - v\|$ for all fields u, v of the domain, per unit depth.

    - `norm`: `"token_max"`, $\max_i\|u_i\|_2$, or `"frobenius"`, $(\sum_i\|u_i\|_2^2)^{1/2}$. The constant in the
      mesh norm, Frobenius divided by √n, is that of Frobenius.
    - `radius` R, `spread` σ: the domain. Every token has ‖u_i‖₂ ≤ R, and a standard deviation over its features of at
      least σ (0: no condition). `n`: number of tokens.
    - `parts`: what each term adds, by its name, its leak apart as `"… leak"`; they sum to `bound`.
    - `decay` c, the leaks' rates; where they vary over tokens the largest, and `least_decay` the smallest. `diffusion`, 4D/Δx²;
      `rest` G, the constant of everything else. What the corrected form of v1 (21) is made of, h ≤ 2/(4D/Δx² + c + G) if G is
      at most `least_decay`: see [`step_constants`][pdejax.analysis.stability.step_constants].
    - `conditions`: what else the bound, or a step bound made of it, rests on.
    """

    bound: float
    norm: str
    radius: float
    n: int
    spread: float
    parts: dict[str, float]
    decay: float
    least_decay: float
    diffusion: float
    rest: float
    conditions: tuple[str, ...] = ()


@checked
@on_numbers
def field_lipschitz(
    field: AbstractEquation | AbstractTerm, n: int, radius: float, *, norm: str = "token_max", spread: float = 0.0
) -> Certificate:
    r"""Bound the Lipschitz constant of a master equation, or of one term, on n tokens with ‖u_i‖₂ ≤ R: the sum of its terms'
    own constants, `term.lipschitz(radius, n, norm, spread)`.

    | term | token-max norm | Frobenius norm |
    |---|---|---|
    | attention | $\alpha\sum_h\|M_h\|_2\,(1 + 2\|B_h\|_2R^2)$ and the leak | the same, times about √n |
    | feed-forward | $\alpha\sup|\sigma'|\,\|W_1\|_2\|W_2\|_2$ and the leak, or better | same |
    | diffusion | $4\|D\|_2/\Delta x^2$ | $\|D\|_2\max_k\vert\lambda_k\vert$, the exact eigenvalue on the grid |
    | v2 (9), `SpatialNorm` | $\tfrac23\gamma\epsilon^{-1/2}(a+b)^{3/2}(3b)^{-1/2}$ | $\gamma/\sqrt\epsilon$ |
    | `LayerNormRelaxation` | $\gamma\max(1, \|J\| - 1)$ for a uniform scale, else $\gamma(1 + \|J\|)$ | same |
    | `LinearDamping` | γ | same |

    Derivations and hypotheses stand with the terms (`pdejax.Attention.lipschitz` …). A `DepthVarying` equation of kind
    `"constant"` gets the certificate of its worst layer.

    Raises `TypeError` for something else than a term or a field of terms, `ValueError` for a field that does not fit, a
    radius that is not positive and finite, an unknown norm, or a term that knows no bound (`EffectiveDiffusion`).
    """
    n, radius, spread = check_domain("field_lipschitz", n, radius, norm, spread)
    if isinstance(field, DepthVarying):
        if field.kind != "constant":
            raise TypeError(
                f"field_lipschitz: the equation varies over depth (kind={field.kind!r}); pass it at one depth, equation.at(t)."
            )
        layers = (field_lipschitz(field.layer(i), n, radius, norm=norm, spread=spread) for i in range(field.size))
        return max(layers, key=lambda c: c.bound)
    found = {}
    for name, term in terms_by_name("field_lipschitz", field).items():
        bound = term.lipschitz(radius, n, norm, spread)
        if bound is None:
            raise ValueError(
                f"field_lipschitz: {type(term).__name__} knows no Lipschitz bound on a ball; leave it out with "
                "equation.only(...), or measure lower bounds with sampled_lipschitz."
            )
        found[name] = bound if isinstance(bound, Lipschitz) else Lipschitz(float(bound))
    parts = {}
    for name, bound in found.items():
        apart = {name: bound.rest + bound.diffusion, f"{name} leak": bound.leak}
        parts |= {key: value for key, value in apart.items() if value or (len(found) == 1 and key == name)}
    sums = {kind: math.fsum(getattr(b, kind) for b in found.values()) for kind in ("leak", "diffusion", "rest")}
    least = math.fsum(b.leak if b.least_leak is None else b.least_leak for b in found.values())
    conditions = tuple(dict.fromkeys(condition for bound in found.values() for condition in bound.conditions))
    return Certificate(
        math.fsum(sums.values()),
        norm,
        radius,
        n,
        spread,
        parts,
        sums["leak"],
        least,
        sums["diffusion"],
        sums["rest"],
        conditions,
    )


def terms_by_name(owner: str, field: Any) -> dict[str, AbstractTerm]:
    """The terms of a field at one depth; a term alone goes by its class's name."""
    if isinstance(field, AbstractTerm):
        return {type(field).__name__: field}
    if not isinstance(field, MasterEquation):
        raise TypeError(
            f"{owner}: the field is a {type(field).__name__}; pass a MasterEquation (of weights that vary over depth "
            "equation.at(t) or equation.layer(i), of coupled layers one of them)."
        )
    return dict(field.items())


@checked
def castin_bound(value: float, key_query: float, radius: float, n: int) -> float:
    r"""$\sqrt3\,\|V\|_2\,(\|A\|_2^2R^4(4n+1) + n)^{1/2}$, the Frobenius constant of single-head softmax attention with
    value matrix V and logits ⟨u_i, A u_j⟩ (A = W_QᵀW_K/√d_k) on n tokens of norm ≤ R: Castin, Ablin, Peyré, arXiv
    2312.14820, Theorem 3.3. Arguments are ‖V‖₂, ‖A‖₂, R and n."""
    for name, given in (("value", value), ("key_query", key_query), ("radius", radius)):
        number("castin_bound", name, given, least=0)
    integer("castin_bound", "n", n, advice="it is the number of tokens")
    return math.sqrt(3) * value * math.sqrt(key_query**2 * radius**4 * (4 * n + 1) + n)
