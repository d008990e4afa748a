"""C6: v2 (17), the lower bound of fidelity."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax._equation import MasterEquation
from pdejax.analysis.residual._fidelity import (
    adversarial_update,
    fidelity,
    fidelity_bound,
    fidelity_report,
    residual_ratio,
)
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.studies.claims._claim import Claim, flow, high, range_over, rk4_steps, share_over_seeds
from pdejax.studies.numerics._verify_cases import reaction
from pdejax.terms import Attention, FeedForward

RUNS, DEPTHS = 6, 80


def measure(seed: int, seeds: int) -> Measured:
    """Leaky random fields sampled along their way: how often ρ is below the bound of (17) and below √(1 − r²), r = ‖I‖/‖u₀‖;
    updates that hurt most at given r; and I = −2u₀, reached by a rotation."""
    shares: dict[str, list[float]] = {"below": [], "above": [], "sharp": []}
    runs = [leaky_runs(1000 * seed + 6 + s) for s in range(seeds)]
    for u0, us in runs:
        found = counts(u0, us)
        shares["below"].append(found["violated_below"] / max(found["below_one"], 1))
        shares["above"].append(found["violated_above"] / max(found["above_one"], 1))
        shares["sharp"].append(found["sharp_violated"] / (us.shape[0] * us.shape[1]))
    attained = {r: pushed_by_adversary(runs[-1][0][0], r) for r in (0.2, 0.5, 0.9)}
    turned, ratio = half_turn()
    figures = {
        "share_violated_with_r_below_1": range_over(shares["below"]),
        "share_violated_with_r_above_1": share_over_seeds(shares["above"]),
        "fidelity_at_I_minus_2_u0": turned,
        "claimed_at_I_minus_2_u0": float(fidelity_bound(ratio, claimed=True)),
    }
    corrected = {
        "share_sharp_violated": range_over(shares["sharp"]),
        "sharp_bound_attained_error": max(abs(rho - math.sqrt(1 - r**2)) for r, rho in attained.items()),
        "sharp_minus_claimed_at_r_0.5": math.sqrt(1 - 0.5**2) - float(fidelity_bound(0.5, claimed=True)),
    }
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """It fails if it is violated for r = ‖I‖/‖u₀‖ < 1 too; if only beyond, where the paper does not stop, r < 1 is a condition to
    add; else it holds."""
    if high(evidence["share_violated_with_r_below_1"]) > 0:
        return FAILS
    turned = evidence["fidelity_at_I_minus_2_u0"] < evidence["claimed_at_I_minus_2_u0"] - 1e-9
    seen = high(evidence["share_violated_with_r_above_1"]) > 0
    return CONDITIONAL if seen or turned else HOLDS


def bears_out(evidence: Evidence) -> bool:
    """√(1 − r²) is never violated, and attained."""
    return bool(high(evidence["share_sharp_violated"]) == 0 and evidence["sharp_bound_attained_error"] < 1e-9)


def leaky_runs(
    seed: int, runs: int = RUNS, depths: int = DEPTHS, t1: float = 6.0, gain: float = 2.0
) -> tuple[Array, Array]:
    """Initial fields `(runs, n, d)` and samples `(runs, depths, n, d)` up to t1 of attn(u) − u + ffn(u) − u, the papers' form:
    16 tokens, 16 features, random weights with outputs times `gain`."""
    return _leaky_runs(runs, depths, t1, gain, jnp.asarray(seed))


@eqx.filter_jit
def _leaky_runs(seeds: int, depths: int, t1: float, gain: float, seed: Array) -> tuple[Array, Array]:
    def one(key):
        keys = jax.random.split(key, 3)
        mixing, network = Attention(16, 2, key=keys[0], leak=True), FeedForward(16, 64, key=keys[1], leak=True)
        equation = MasterEquation(
            eqx.tree_at(lambda a: a.wo, mixing, gain * mixing.wo),
            eqx.tree_at(lambda r: r.w2, network, gain * network.w2),
        )
        u0 = jax.random.normal(keys[2], (16, 16))
        return u0, rk4_steps(lambda u: equation(0.0, u, None), u0, jnp.asarray(t1 / depths), depths, None)[1]

    return jax.vmap(one)(jax.random.split(jax.random.key(seed), seeds))


def counts(u0: Array, us: Array) -> dict[str, int]:
    """Samples with r < 1 and r > 1, those of either that are below (17), and those below √(1 − r²)."""
    reports = [fidelity_report(us[i], u0[i]) for i in range(len(us))]
    names = ("below_one", "above_one", "violated_below", "violated_above", "sharp_violated")
    return {name: sum(int(getattr(report, name)) for report in reports) for name in names}


def pushed_by_adversary(u0: Array, r: float) -> float:
    """ρ after the update of size r‖u₀‖ that hurts most."""
    return float(fidelity(u0 + adversarial_update(u0, r, key=jax.random.key(1)), u0))


def half_turn() -> tuple[float, float]:
    """ρ and ‖I‖/‖u₀‖ of one token of two features at t = π of u′ = uJ."""
    turn = reaction(jnp.eye(2), jnp.array([[0.0, 1.0], [-1.0, 0.0]]), jnp.zeros(2), jnp.zeros(2))
    first = jnp.array([[1.0, 0.0]])
    end = flow(MasterEquation(reaction=turn), first[None], math.pi, 200)[0]
    return float(fidelity(end, first)), float(residual_ratio(end, first))


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
    quote="Using the triangle inequality on the norm ‖u(·, t)‖ ≤ ‖u(·, 0)‖ + ‖∫₀ᵗ F ds‖, we can lower-bound the fidelity: ρ(t) ≥ "
    "(‖u(·, 0)‖ − ‖∫₀ᵗ F‖)/(‖u(·, 0)‖ + ‖∫₀ᵗ F‖). (v2 App. B.3)",
    bears_out=bears_out,
    condition="for r = ‖I‖/‖u₀‖ < 1, where the sharp bound is ρ ≥ √(1 − r²); for r > 1 nothing above −1 holds",
    headline=("fidelity_at_I_minus_2_u0", "claimed_at_I_minus_2_u0", "share_sharp_violated"),
    measure=measure,
    judge=judge,
)
