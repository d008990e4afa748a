"""C3: v1 (21), the stability condition."""

import numpy as np

from pdejax._bootstrap import over_seeds
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.studies.claims import _c3_cases as cases
from pdejax.studies.claims._claim import Claim, high, range_over
from pdejax.studies.numerics._stability import stability
from pdejax.studies.numerics._stability_config import StabilityConfig

RESOLUTION, DRAWS = 4, 112


def measure(seed: int, seeds: int) -> Measured:
    """Runs of Euler that (21) calls safe and that blow up though the flow decays, and runs that it calls unsafe and that stay
    bounded; the share of either in maps of seven families of fields, for (21) among all runs and for the corrected bound among
    those with G ≤ c; and an isometry with G > c, on which Euler grows at a step that 2/(4D/Δx² + c + G) would allow."""
    blown, calm = cases.blown(), cases.calm()
    shares: dict[str, list[float]] = {
        f"{bound}_{kind}": [] for bound in ("v1", "corrected") for kind in ("false_safe", "false_alarm")
    }
    for s in range(seeds):
        maps = stability(
            StabilityConfig(solvers=(), resolution=RESOLUTION, draws=DRAWS, seed=1000 * seed + s, chunk=128)
        ).results["maps"]
        runs = {"v1": sum(m["runs"] for m in maps), "corrected": sum(m["corrected"]["inside"] for m in maps)}
        for name, found in shares.items():
            bound, kind = name.split("_", 1)
            found.append(sum(m[bound][kind] for m in maps) / runs[bound])
    figures = {
        "left_side_of_a_run_that_blows_up": blown[0].left,
        "growth_beyond_flow_log10": float(np.log10(max(blown[0].factor, 1e-300) / blown[0].allowed)),
        "runs_blown_up_with_left_side_at_most_1": sum(c.left <= 1 and c.factor > 1e3 * c.allowed for c in blown),
        "left_side_of_a_run_that_stays_bounded": calm[-1].left,
        "runs_bounded_with_left_side_above_1": sum(c.left > 1 and c.factor <= c.allowed for c in calm),
        "factor_of_a_damped_perturbation_at_left_side_half": cases.softmax_factor(100.0),
        "share_of_runs_wrongly_called_safe": over_seeds(shares["v1_false_safe"]),
        "share_of_runs_wrongly_called_unsafe": over_seeds(shares["v1_false_alarm"]),
    }
    corrected = {
        "limit_for_diffusion_alone": cases.diffusion_limit(),
        "growth_of_an_isometry_with_G_above_c": cases.isometry().factor,
        "corrected_share_wrongly_called_safe": range_over(shares["corrected_false_safe"]),
        "corrected_share_wrongly_called_unsafe": over_seeds(shares["corrected_false_alarm"]),
    }
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """It claims that its left side at most 1 suffices. Fails if runs that it calls safe blow up; conditional if only the runs it
    forbids are wrong."""
    unsafe = evidence["runs_blown_up_with_left_side_at_most_1"] > 0
    unsafe = unsafe or high(evidence["share_of_runs_wrongly_called_safe"]) > 0
    if unsafe:
        return FAILS
    return HOLDS if abs(evidence["limit_for_diffusion_alone"] - 1) < 0.01 else CONDITIONAL


def smallest() -> Counterexample:
    """u′ = −u with h = 2.5: u_{n+1} = −1.5 u_n, while the left side is 0."""
    u = (-1.5) ** np.arange(61.0)
    return Counterexample(
        "one token, one feature, attention with leak and W_O = 0, so u′ = −u: at h = 2.5 the left side of (21) is 0, and every "
        "Euler step multiplies `u` by −1.5.",
        {"u": u[:, None, None], "step": np.array(2.5), "left_side": np.array(0.0)},
    )


C3 = Claim(
    id="C3",
    statement="2DΔt/Δx² + αΔt‖W^O‖₂ ≤ 1 guarantees a stable step",
    source="v1 Thm 2, (21)",
    condition="2DΔt/Δx² ≤ 1 is sharp for diffusion alone. In the token-max norm, with leak rate c and Lipschitz constant G of "
    "the rest, Euler is non-expansive if G ≤ c and h ≤ 2/(4D/Δx² + c + G); with G > c that certifies nothing (u' = uJ keeps its "
    "length, and Euler grows at every h). In the 2-norm, with log-norm −μ < 0 and Lipschitz constant L of the whole field, it is "
    "non-expansive if h ≤ 2μ/L²",
    headline=(
        "runs_blown_up_with_left_side_at_most_1",
        "share_of_runs_wrongly_called_safe",
        "corrected_share_wrongly_called_safe",
    ),
    measure=measure,
    judge=judge,
)
