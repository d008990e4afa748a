"""C12: v1 Thm 1 and v2 App. B.1, self-attention is Lipschitz."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdejax._bootstrap import over_seeds
from pdejax.analysis.stability._lipschitz import castin_bound, field_lipschitz
from pdejax.analysis.stability._lipschitz_sampled import adversarial_lipschitz
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.studies.claims._claim import Claim, range_over
from pdejax.studies.numerics._verify_cases import attention

RADII = (1.0, 4.0, 8.0)
TOKENS, DIM = 6, 2
# Which norm each bound is about.
BOUNDS = {
    "token_max": ("token_max", "token_max_certificate"),
    "frobenius": ("frobenius", "frobenius_certificate"),
    "castin": ("frobenius", "castin"),
}


def measure(seed: int, seeds: int) -> Measured:
    """Jacobian norms of softmax attention maximized over balls of tokens, against the certificates and the bound of Castin et
    al. (arXiv 2312.14820), and how they grow with the radius."""
    runs = [on_balls(1000 * seed + s) for s in range(seeds)]
    shares = {
        name: [max(row[norm] / row[bound] for row in run) for run in runs] for name, (norm, bound) in BOUNDS.items()
    }
    exponents = []
    for run in runs:
        logs = np.log([[row["radius"], row["token_max"]] for row in run])
        exponents.append(float(np.polyfit(logs[-2:, 0], logs[-2:, 1], 1)[0]))
    figures = {
        "jacobian_norm_at_radius_8": over_seeds([run[-1]["token_max"] for run in runs]),
        "exponent_in_radius": over_seeds(exponents),
    }
    corrected: dict[str, Any] = {f"share_of_{name}_bound_attained": range_over(found) for name, found in shares.items()}
    corrected["bounds_violated"] = sum(
        row[norm] > row[bound] for run in runs for row in run for norm, bound in BOUNDS.values()
    )
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """A uniform constant needs exponent 0: any growth with the radius, however slow, leaves none. On balls: conditional, if no
    bound there is violated."""
    if evidence["bounds_violated"] > 0:
        return FAILS
    return HOLDS if evidence["exponent_in_radius"] < 0.2 else CONDITIONAL


def bears_out(evidence: Evidence) -> bool:
    """No bound on a ball is violated, and the constant grows with R, at most like R²."""
    return bool(evidence["bounds_violated"] == 0 and 0.2 < evidence["exponent_in_radius"] < 2.2)


def on_balls(seed: int) -> list[dict[str, float]]:
    """For each radius: the Jacobian norm reached in the ball by gradient ascent, in both norms, with B = W_V W_O = 1, and the
    bounds."""
    unit = attention(1.0, jnp.eye(DIM))
    rows = []
    for radius in RADII:
        row = {"radius": radius, "castin": castin_bound(1.0, 1.0, radius, TOKENS)}
        for norm in ("token_max", "frobenius"):
            key = jax.random.key(seed)
            row[norm] = adversarial_lipschitz(unit, (TOKENS, DIM), radius, key=key, norm=norm, starts=6, steps=80).value
            row[f"{norm}_certificate"] = field_lipschitz(unit, TOKENS, radius, norm=norm).bound
        rows.append(row)
    return rows


def slope(radius: float) -> float:
    """The derivative of the first output in the first of the tokens (0, R), unit weights."""
    unit, u = attention(1.0, jnp.eye(1)), jnp.array([[0.0], [radius]])
    return float(jax.jvp(lambda w: unit(0.0, w, None), (u,), (jnp.array([[1.0], [0.0]]),))[1][0, 0])


def smallest() -> Counterexample:
    """Two tokens (0, R) of one feature with unit weights: the slope of token 1's output in token 1 is 1/2 + R²/4."""
    radius = np.array([1.0, 4.0, 16.0, 64.0])
    return Counterexample(
        "two tokens (0, R) of one feature, W_Q = W_K = W_V = W_O = 1: the derivative of the first output in the first token is "
        "1/2 + R²/4, which no constant bounds.",
        {"tokens": np.stack([0 * radius, radius], axis=1)[..., None], "slope": np.array([slope(r) for r in radius])},
    )


C12 = Claim(
    id="C12",
    statement="self-attention meets the assumption of both theorems: it is Lipschitz, uniformly over hidden states",
    source="v1 Thm 1, v2 App. B.1",
    quote="Given appropriate initial and boundary conditions, and assuming A(u) and R(u, θ, t, x) satisfy Lipschitz "
    "continuity, the PDE system has a unique local solution. (v1 A.4) There exists a constant L_F > 0 such that for all "
    "layers ℓ and all hidden states U, V, ‖F_ℓ(U) − F_ℓ(V)‖ ≤ L_F‖U − V‖. (v2 App. B.1)",
    condition="on bounded sets of tokens, which is enough for v1's local solution, and for v2's theorem while the states stay in "
    "one; with a constant of order R²: ‖W_V W_O‖(1 + 2‖B‖R²) in the token-max norm, ‖W_V W_O‖(√N(1 + ‖B‖R²) + ‖B‖R²) in the "
    "Frobenius norm",
    bears_out=bears_out,
    headline=("exponent_in_radius", "bounds_violated", "share_of_token_max_bound_attained"),
    measure=measure,
    judge=judge,
)
