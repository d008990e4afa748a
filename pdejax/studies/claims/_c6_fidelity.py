"""C6: v2 (17), the lower bound of fidelity."""

import math

import numpy as np

from pdejax.studies._claims_stability import claim_c6
from pdejax.studies.claims._record import (
    CONDITIONAL,
    FAILS,
    HOLDS,
    Claim,
    Counterexample,
    Evidence,
    Measured,
    Verdict,
    high,
    over_seeds,
    range_over,
)

RUNS, DEPTHS = 6, 80


def measure(seed: int, seeds: int) -> Measured:
    """Leaky random fields sampled along their way: how often ρ is below the bound of (17) and below √(1 − r²), r = ‖I‖/‖u₀‖;
    updates that hurt most at given r; and I = −2u₀, reached by a rotation."""
    shares: dict[str, list[float]] = {"below": [], "above": [], "sharp": []}
    found = None
    for s in range(seeds):
        found = claim_c6(seeds=RUNS, depths=DEPTHS, seed=1000 * seed + 6 + s)
        f = found.figures
        shares["below"].append(f["violated_below"] / max(f["below_one"], 1))
        shares["above"].append(f["violated_above"] / max(f["above_one"], 1))
        shares["sharp"].append(f["sharp_violated"] / f["samples"])
    assert found is not None
    attained = found.figures["adversarial"]
    figures = {
        "share_violated_with_r_below_1": range_over(shares["below"]),
        "share_violated_with_r_above_1": over_seeds(shares["above"]),
        "fidelity_at_I_minus_2_u0": found.counterexample.get("fidelity", math.nan),
        "claimed_at_I_minus_2_u0": found.counterexample.get("claimed", math.nan),
    }
    corrected = {
        "share_sharp_violated": range_over(shares["sharp"]),
        "sharp_bound_attained_error": max(abs(a["fidelity"] - a["sharp"]) for a in attained.values()),
        "sharp_minus_claimed_at_r_0.5": attained["0.5"]["sharp"] - attained["0.5"]["claimed"],
    }
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """Printed without a condition on ‖I‖: one case below the bound and it fails, unless that is only for r ≥ 1 and no flow gets
    there."""
    turned = evidence["fidelity_at_I_minus_2_u0"] < evidence["claimed_at_I_minus_2_u0"] - 1e-9
    seen = high(evidence["share_violated_with_r_above_1"]) > 0
    if high(evidence["share_violated_with_r_below_1"]) > 0 or turned:
        return FAILS
    return CONDITIONAL if seen else HOLDS


def smallest() -> Counterexample:
    """u′ = uJ with the rotation J: u(t) = (cos t, sin t)."""
    t = np.linspace(0, math.pi, 13)
    u = np.stack([np.cos(t), np.sin(t)], axis=1)[:, None]
    return Counterexample(
        "one token of two features turned by u′ = uJ, which keeps its norm: at t = π the update I is −2u₀, ρ = −1, where (17) "
        "claims (1 − 2)/(1 + 2) = −1/3.",
        {"t": t, "u": u, "field": np.array([[0.0, 1.0], [-1.0, 0.0]])},
    )


C6 = Claim(
    id="C6",
    statement="ρ(t) ≥ (‖u₀‖ − ‖I‖)/(‖u₀‖ + ‖I‖), I = ∫F",
    source="v2 (17)",
    condition="for r = ‖I‖/‖u₀‖ < 1, where the sharp bound is ρ ≥ √(1 − r²); for r > 1 nothing above −1 holds",
    code="pdejax.studies._claims_stability.claim_c6",
    headline=("fidelity_at_I_minus_2_u0", "claimed_at_I_minus_2_u0", "share_sharp_violated"),
    measure=measure,
    judge=judge,
)
