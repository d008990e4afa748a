"""C7: v2 (7)–(8), an emergent diffusion."""

import jax
import numpy as np

from pdejax.analysis import random_negative_fraction
from pdejax.studies._claims_stability import claim_c7
from pdejax.studies.claims._record import (
    CONDITIONAL,
    FAILS,
    HOLDS,
    Claim,
    Counterexample,
    Evidence,
    Measured,
    Verdict,
    low,
    over_seeds,
    value,
)

SIZES, DRAWS = (16, 64), 60


def measure(seed: int, seeds: int) -> Measured:
    """How often Tr(∂FFN/∂u) < 0 over random networks; how fast the frozen operator of (7) lets a perturbation grow, on two grids
    of the same field, for (8) as written and for forms of it that are not negative."""
    found = claim_c7(draws=DRAWS, sizes=SIZES, seed=seed).figures
    keys = jax.random.split(jax.random.key(seed), seeds)
    shares = [random_negative_fraction(key, draws=DRAWS, dim=found["dim"], hidden=64).fraction for key in keys]
    rates = found["growth_rates"]
    coarse, fine = (rates["raw"][str(n)] for n in SIZES)
    safe = max(max(rates[form].values()) for form in ("absolute", "softplus", "clip"))
    figures = {
        "share_of_tokens_with_negative_trace": over_seeds(shares),
        "growth_rate_16_tokens": coarse,
        "growth_rate_64_tokens": fine,
        "growth_rate_order_in_1_by_dx": float(np.log(fine / coarse) / np.log(SIZES[1] / SIZES[0]))
        if min(coarse, fine) > 0
        else 0.0,
    }
    corrected = {"growth_rate_of_nonnegative_forms_over_raw": safe / max(abs(fine), 1e-300)}
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """A diffusion dissipates. It fails if growth is met and is the faster the finer the grid."""
    negative = low(evidence["share_of_tokens_with_negative_trace"]) > 0
    grows = value(evidence["growth_rate_64_tokens"]) > 0
    if not negative and not grows:
        return HOLDS
    return FAILS if grows and value(evidence["growth_rate_order_in_1_by_dx"]) > 1 else CONDITIONAL


def smallest() -> Counterexample:
    """One unit with W₁W₂ < 0."""
    return Counterexample(
        "one feature, one hidden unit, W₁ = 1, W₂ = −1, GELU: at u = 0 the trace is W₁ σ′(0) W₂ = −1/2, a backward heat "
        "equation.",
        {"w1": np.ones((1, 1)), "w2": -np.ones((1, 1)), "u": np.zeros((1, 1)), "slope_of_gelu": np.array(0.5)},
    )


C7 = Claim(
    id="C7",
    statement="attention and network act as a diffusion with coefficient D_eff, inherently dissipative",
    source="v2 (7), (8), App. B.2",
    condition="where Tr(∂FFN/∂u) ≥ 0 at every token, or with a non-negative form of it (absolute value, softplus, clip)",
    code="pdejax.studies._claims_stability.claim_c7",
    headline=(
        "share_of_tokens_with_negative_trace",
        "growth_rate_order_in_1_by_dx",
        "growth_rate_of_nonnegative_forms_over_raw",
    ),
    measure=measure,
    judge=judge,
)
