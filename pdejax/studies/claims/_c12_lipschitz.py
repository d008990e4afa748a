"""C12: v1 Thm 1 and v2 App. B.1, self-attention is Lipschitz."""

from typing import Any

import numpy as np

from pdejax.studies._claims_stability import claim_c12
from pdejax.studies.claims._record import (
    CONDITIONAL,
    FAILS,
    HOLDS,
    Claim,
    Counterexample,
    Evidence,
    Measured,
    Verdict,
    over_seeds,
    range_over,
    value,
)

RADII = (1.0, 4.0, 8.0)
TOKENS = 6


def measure(seed: int, seeds: int) -> Measured:
    """Jacobian norms of softmax attention maximized over balls of tokens, against the certificates and the bound of Castin et
    al. (arXiv 2312.14820), and how they grow with the radius."""
    runs = [claim_c12(radii=RADII, tokens=TOKENS, seed=1000 * seed + s).figures for s in range(seeds)]
    last = [run["rows"][-1] for run in runs]
    shares = {
        "token_max": [max(row["token_max"] / row["token_max_certificate"] for row in run["rows"]) for run in runs],
        "frobenius": [max(row["frobenius"] / row["frobenius_certificate"] for row in run["rows"]) for run in runs],
        "castin": [max(row["frobenius"] / row["castin"] for row in run["rows"]) for run in runs],
    }
    figures = {
        "jacobian_norm_at_radius_8": over_seeds([row["token_max"] for row in last]),
        "exponent_in_radius": over_seeds([run["exponent_in_radius"] for run in runs]),
    }
    corrected: dict[str, Any] = {f"share_of_{name}_bound_attained": range_over(found) for name, found in shares.items()}
    corrected["bounds_violated"] = sum(run["violations"] for run in runs)
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """A uniform constant needs exponent 0. On balls: conditional, if no bound there is violated."""
    if value(evidence["bounds_violated"]) > 0:
        return FAILS
    return HOLDS if value(evidence["exponent_in_radius"]) < 0.2 else CONDITIONAL


def smallest() -> Counterexample:
    """Two tokens (0, R) of one feature with unit weights: the slope of token 1's output in token 1 is 1/2 + R²/4."""
    radius = np.array([1.0, 4.0, 16.0, 64.0])
    return Counterexample(
        "two tokens (0, R) of one feature, W_Q = W_K = W_V = W_O = 1: the derivative of the first output in the first token is "
        "1/2 + R²/4, which no constant bounds.",
        {"tokens": np.stack([0 * radius, radius], axis=1)[..., None], "slope": 0.5 + radius**2 / 4},
    )


C12 = Claim(
    id="C12",
    statement="self-attention is (uniformly) Lipschitz",
    source="v1 Thm 1, v2 App. B.1",
    condition="on bounded sets of tokens, with a constant of order R²: ‖W_V W_O‖(1 + 2‖B‖R²) in the token-max norm, "
    "‖W_V W_O‖(√N(1 + ‖B‖R²) + ‖B‖R²) in the Frobenius norm",
    code="pdejax.studies._claims_stability.claim_c12",
    headline=("exponent_in_radius", "bounds_violated", "share_of_token_max_bound_attained"),
    measure=measure,
    judge=judge,
)
