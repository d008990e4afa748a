"""C5: v2 App. B.2, row-stochastic and therefore norm-contractive."""

import numpy as np

from pdejax.studies._claims_stability import claim_c5
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
    range_over,
    value,
)

TOKENS, DRAWS = 16, 100
ROUNDING = 1e-12


def measure(seed: int, seeds: int) -> Measured:
    """2-norms of 1e₁ᵀ and of softmax maps that tend to it; and, over random row-stochastic matrices, the largest 2-norm, the
    largest norm by rows, and the largest growth of the token-max norm of a random state."""
    evidence = claim_c5(sizes=(2, TOKENS), draws=10).figures
    worst: dict[str, list[float]] = {"two": [], "rows": [], "state": []}
    for s in range(seeds):
        rng = np.random.default_rng([seed, s])
        kernels = rng.dirichlet(np.full(TOKENS, 0.1), size=(DRAWS, TOKENS))
        states = rng.standard_normal((DRAWS, TOKENS, 3))
        sizes = [np.max(np.linalg.norm(u, axis=2), axis=1) for u in (kernels @ states, states)]
        worst["two"].append(np.max(np.linalg.norm(kernels, 2, axis=(1, 2))))
        worst["rows"].append(np.max(np.abs(kernels).sum(2)))
        worst["state"].append(np.max(sizes[0] / sizes[1]))
    softmax = evidence["two_norm_of_softmax_by_logit_scale"]
    figures = {
        "two_norm_of_one_token_for_all_2": evidence["two_norm_of_1e1"]["2"],
        "two_norm_of_one_token_for_all_16": evidence["two_norm_of_1e1"]["16"],
        "two_norm_of_softmax_at_logit_scale_1": softmax["1.0"],
        "two_norm_of_softmax_at_logit_scale_100": softmax["100.0"],
        "largest_two_norm_random": range_over(worst["two"]),
    }
    corrected = {
        "largest_max_norm_of_softmax": evidence["largest_max_norm_of_softmax"],
        "largest_max_norm_random": range_over(worst["rows"]),
        "largest_max_norm_ratio_of_states": range_over(worst["state"]),
        "two_norm_over_sqrt_n": evidence["two_norm_of_1e1"]["16"] / 4.0,
    }
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """In both norms, in the token-max norm only, or in neither."""
    in_l2 = all(
        high(evidence[name]) <= 1 + ROUNDING for name in evidence if name.startswith(("two_norm_of", "largest_two"))
    )
    in_max = all(high(evidence[name]) <= 1 + ROUNDING for name in evidence if name.startswith("largest_max"))
    return (
        HOLDS if in_l2 and in_max else CONDITIONAL if in_max and value(evidence["two_norm_over_sqrt_n"]) <= 1 else FAILS
    )


def smallest() -> Counterexample:
    """1e₁ᵀ for two tokens."""
    return Counterexample(
        "two tokens that both attend to the first alone: ‖Ku‖ = √2‖u‖. The symmetric part of K − I has the eigenvalue (√2 − "
        "1)/2 > 0, so that leaky attention alone lets the energy grow.",
        {"kernel": np.array([[1.0, 0.0], [1.0, 0.0]]), "u": np.array([[1.0], [0.0]])},
    )


C5 = Claim(
    id="C5",
    statement="attention is row-stochastic and therefore norm-contractive",
    source="v2 App. B.2",
    condition="in the token-max norm max_i‖u_i‖, up to ‖W_V W_O‖; in L² only ‖K‖₂ ≤ √N, which is attained, and 1 for doubly "
    "stochastic K",
    code="pdejax.studies._claims_stability.claim_c5",
    headline=("two_norm_of_one_token_for_all_2", "two_norm_of_softmax_at_logit_scale_100", "largest_max_norm_random"),
    measure=measure,
    judge=judge,
)
