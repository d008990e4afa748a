"""C5: v2 App. B.2, row-stochastic and therefore norm-contractive."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.studies.claims._claim import Claim, high, range_over
from pdejax.studies.numerics._verify_cases import attention

TOKENS, DRAWS = 16, 100
LOGITS = (1.0, 10.0, 100.0)
ROUNDING = 1e-12
IN_L2 = (
    "two_norm_of_one_token_for_all_2",
    "two_norm_of_one_token_for_all_16",
    "two_norm_of_softmax_at_logit_scale_1",
    "two_norm_of_softmax_at_logit_scale_100",
    "largest_two_norm_random",
)
IN_MAX = ("largest_max_norm_of_softmax", "largest_max_norm_random", "largest_max_norm_ratio_of_states")


def measure(seed: int, seeds: int) -> Measured:
    """2-norms of 1e₁ᵀ and of softmax maps that tend to it; and, over random row-stochastic matrices, the largest 2-norm, the
    largest norm by rows, and the largest growth of the token-max norm of a random state; and the largest 2-norm of averages of
    permutations, which are doubly stochastic."""
    maps = softmax_maps(TOKENS, LOGITS)
    worst: dict[str, list[float]] = {"two": [], "rows": [], "state": [], "doubly": []}
    for s in range(seeds):
        rng = np.random.default_rng([seed, s])
        kernels = rng.dirichlet(np.full(TOKENS, 0.1), size=(DRAWS, TOKENS))
        states = rng.standard_normal((DRAWS, TOKENS, 3))
        sizes = [np.max(np.linalg.norm(u, axis=2), axis=1) for u in (kernels @ states, states)]
        worst["two"].append(np.max(np.linalg.norm(kernels, 2, axis=(1, 2))))
        worst["rows"].append(np.max(np.abs(kernels).sum(2)))
        worst["state"].append(np.max(sizes[0] / sizes[1]))
        turned = rng.permuted(np.broadcast_to(np.arange(TOKENS), (DRAWS, TOKENS, TOKENS)), axis=2)
        shares = rng.dirichlet(np.full(TOKENS, 0.1), size=DRAWS)
        doubly = np.einsum("dk,dkij->dij", shares, np.eye(TOKENS)[turned])
        worst["doubly"].append(np.max(np.linalg.norm(doubly, 2, axis=(1, 2))))
    figures = {
        "two_norm_of_one_token_for_all_2": two_norm_of_one_for_all(2),
        "two_norm_of_one_token_for_all_16": two_norm_of_one_for_all(TOKENS),
        "two_norm_of_softmax_at_logit_scale_1": float(np.linalg.norm(maps[0], 2)),
        "two_norm_of_softmax_at_logit_scale_100": float(np.linalg.norm(maps[-1], 2)),
        "largest_two_norm_random": range_over(worst["two"]),
    }
    corrected = {
        "largest_max_norm_of_softmax": max(float(np.abs(k).sum(1).max()) for k in maps),
        "largest_max_norm_random": range_over(worst["rows"]),
        "largest_max_norm_ratio_of_states": range_over(worst["state"]),
        "largest_two_norm_of_doubly_stochastic": range_over(worst["doubly"]),
        "two_norm_over_sqrt_n": two_norm_of_one_for_all(TOKENS) / math.sqrt(TOKENS),
    }
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """In L², the norm of the energy that the paper bounds; in the token-max norm only, which is then a condition to add; or in
    neither."""
    if all(high(evidence[name]) <= 1 + ROUNDING for name in IN_L2):
        return HOLDS
    return CONDITIONAL if all(high(evidence[name]) <= 1 + ROUNDING for name in IN_MAX) else FAILS


def bears_out(evidence: Evidence) -> bool:
    """Contractive in the token-max norm, and in L² where columns sum to 1 too; √N is attained."""
    contracts = all(high(evidence[name]) <= 1 + ROUNDING for name in (*IN_MAX, "largest_two_norm_of_doubly_stochastic"))
    return bool(contracts and abs(evidence["two_norm_over_sqrt_n"] - 1) < 1e-9)


def two_norm_of_one_for_all(n: int) -> float:
    """‖1e₁ᵀ‖₂ of n tokens that all attend to the first alone."""
    return float(np.linalg.norm(np.eye(1, n) * np.ones((n, 1)), 2))


def softmax_maps(n: int, logits: Sequence[float]) -> list[np.ndarray]:
    """Attention among the tokens (2, 1, …, 1) at each scale of the logits: the larger, the nearer to 1e₁ᵀ."""
    u = jnp.ones((n, 1)).at[0].set(2.0)
    return [np.asarray(attention(beta, jnp.eye(1)).weights(u)[0]) for beta in logits]


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
    quote="Due to the row-stochastic nature of the attention mechanism in its discrete form, the integral operator is "
    "norm-contractive up to a learnable projection. By Cauchy-Schwarz, ⟨u, A(u)⟩ ≤ L_A‖u‖², giving ∫⟨…⟩ ≤ 2L_A E(t). (v2 "
    "App. B.2)",
    bears_out=bears_out,
    condition="in the token-max norm max_i‖u_i‖, up to ‖W_V W_O‖; in L² only ‖K‖₂ ≤ √N, which is attained, and 1 for doubly "
    "stochastic K",
    headline=("two_norm_of_one_token_for_all_2", "two_norm_of_softmax_at_logit_scale_100", "largest_max_norm_random"),
    measure=measure,
    judge=judge,
)
