"""C3: v1 (21), the stability condition."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from pdejax._equation import MasterEquation
from pdejax.analysis.numerics._norms import token_max_norm
from pdejax.analysis.stability import one_sided_step_bound, v1_21
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.solvers import Grid
from pdejax.studies.claims import _c3_step as cases
from pdejax.studies.claims._claim import Claim, high, range_over, share_over_seeds
from pdejax.studies.numerics._stability import stability
from pdejax.studies.numerics._stability_config import StabilityConfig
from pdejax.terms import Attention, Diffusion, FeedForward, LayerNorm

STEPS = 60


@dataclasses.dataclass(frozen=True)
class Case:
    """A run of forward Euler that contradicts v1 (21).

    - `left`: the left side of v1 (21), which calls the run safe at up to 1.
    - `factor`: growth of the token-max norm over `steps` Euler steps of size `step`; `allowed`: how much the flow itself can
      grow, exact for a linear field, a bound else.
    - `corrected`: a step that is certified, by the corrected bound if G ≤ c, else by the one-sided one; None where neither is.
    """

    name: str
    step: float
    steps: int
    left: float
    factor: float
    allowed: float
    corrected: float | None


def blown() -> list[Case]:
    """Runs that v1 (21) calls safe and that blow up though the flow decays, by its left side."""
    return sorted((reaction(), values(), rotation()), key=lambda case: case.left)


def calm() -> list[Case]:
    """Runs that v1 (21) forbids and that stay bounded."""
    return [mean_attention(), prelayernorm()]


def reaction() -> Case:
    """Two tokens, R(u) = −100u as a pair of ReLUs, D = 0.1, Δx = 1: v1 (21) has no reaction."""
    network = FeedForward(1, 2, key=jax.random.key(0), activation="relu")
    pair = (jnp.array([[1.0, -1.0]]), jnp.array([[-100.0], [100.0]]))
    network = eqx.tree_at(lambda r: (r.w1, r.w2), network, pair)
    equation = MasterEquation(reaction=network, diffusion=Diffusion(Grid(2, length=2.0), 0.1))
    h = 0.05
    left = v1_21(h, 1.0, diffusivity=0.1, strength=1.0, output_norm=1.0)  # attention may be there as well, W_V = 0
    factor = growth(equation, jnp.ones((2, 1)), h, STEPS)
    bound = one_sided_step_bound(dissipation=100.0, lipschitz=100.0 + 4 * 0.1)
    return Case("reaction −100u", h, STEPS, float(left), factor, math.exp(-100 * h * STEPS), float(bound))


def values() -> Case:
    """One token, attention with W_O = 1, W_V = −10: v1 (21) has no W_V."""
    equation = MasterEquation(interaction=_mean(1, -10.0))
    h = 0.5
    left = v1_21(h, 1.0, diffusivity=0.0, strength=1.0, output_norm=1.0)
    factor = growth(equation, jnp.ones((1, 1)), h, STEPS)
    bound = one_sided_step_bound(dissipation=10.0, lipschitz=10.0)
    return Case("W_V = −10", h, STEPS, float(left), factor, math.exp(-10 * h * STEPS), float(bound))


def rotation() -> Case:
    """A diffusivity matrix with eigenvalues 1 ± 5i, measured by ‖D‖₂: each mode of the Laplacian turns as it decays, and
    Euler needs Δt/Δx² ≤ min 2Re μ/(4|μ|²) for the eigenvalues μ of D, which is given here as the corrected step."""
    matrix = jnp.array([[1.0, 5.0], [-5.0, 1.0]])
    n, norm = 16, float(np.linalg.norm(matrix, 2))
    h = 0.9 / (2 * norm)
    equation = MasterEquation(diffusion=Diffusion(Grid(n, boundary="periodic", length=float(n)), matrix))
    alternating = jnp.tile(jnp.array([[1.0, 0.0], [-1.0, 0.0]]), (n // 2, 1))
    left = v1_21(h, 1.0, diffusivity=norm)
    factor = growth(equation, alternating, h, STEPS)
    mu = np.linalg.eigvals(matrix)
    limit = float(np.min(2 * mu.real / (4 * np.abs(mu) ** 2)))
    return Case("D with eigenvalues 1 ± 5i", h, STEPS, float(left), factor, math.exp(-4 * h * STEPS), limit)


def isometry() -> Case:
    """One token turned, u' = uJ by W_V = J: the flow keeps its length, c = 0, G = 1, and Euler grows by √(1 + h²) at every h. So
    2/(4D/Δx² + c + G), which is 2 here, certifies nothing where G > c."""
    attention = _mean(2, 1.0)
    turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    equation = MasterEquation(interaction=eqx.tree_at(lambda a: a.wv, attention, turn[:, None]))
    h = 0.5
    left = v1_21(h, 1.0, diffusivity=0.0, strength=1.0, output_norm=1.0)
    return Case("u' = uJ, W_V = J", h, STEPS, float(left), growth(equation, jnp.ones((1, 2)), h, STEPS), 1.0, None)


def mean_attention() -> Case:
    """Mean attention with W = −1 next to diffusion: only the mean feels it, and diffusion does not touch the mean."""
    n, h = 16, 1.85
    d = 0.98 / (2 * h)
    equation = MasterEquation(
        interaction=_mean(1, -1.0), diffusion=Diffusion(Grid(n, boundary="periodic", length=float(n)), d)
    )
    u = jax.random.normal(jax.random.key(0), (n, 1))
    left = v1_21(h, 1.0, diffusivity=d, strength=1.0, output_norm=1.0)
    return Case("mean attention, W = −1", h, 400, float(left), growth(equation, u, h, 400), 1.0, None)


def prelayernorm() -> Case:
    """A pre-LN field: its attention is bounded, so that the state grows linearly at any αΔt."""
    n, d, h = 16, 8, 1.0
    attention = Attention(d, key=jax.random.key(1), strength=50.0, norm=LayerNorm(d))
    scale = jnp.linalg.norm(attention.wo[0], 2)
    attention = eqx.tree_at(lambda a: a.wo, attention, attention.wo / scale)
    equation = MasterEquation(interaction=attention, diffusion=Diffusion(Grid(n, length=float(n)), 0.45))
    u = jax.random.normal(jax.random.key(2), (n, d))
    left = v1_21(h, 1.0, diffusivity=0.45, strength=50.0, output_norm=1.0)
    # Normalized tokens have size √d, so that |||F||| ≤ 50 ‖W_V‖ √d.
    size = 50 * float(jnp.linalg.norm(attention.wv[:, 0], 2)) * d**0.5
    allowed = 1 + 400 * h * size / float(token_max_norm(u))
    return Case("pre-LN attention, αΔt = 50", h, 400, float(left), growth(equation, u, h, 400), allowed, None)


def diffusion_limit() -> float:
    """The largest 2DΔt/Δx² whose 2000 steps from the sawtooth do not grow, by bisection."""
    n = 64
    equation = MasterEquation(diffusion=Diffusion(Grid(n, boundary="periodic", length=float(n)), 0.5))
    sawtooth = jnp.tile(jnp.array([[1.0], [-1.0]]), (n // 2, 1))
    low, high = 0.5, 2.0
    for _ in range(20):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if growth(equation, sawtooth, middle, 2000) <= 1 + 1e-9 else (low, middle)
    return low


def softmax_factor(norm: float) -> float:
    """What one step of size ½ does to a perturbation of the middle one of three tokens (1, 0, −1) with W_O = 1, W_V = −1 and
    W_Q = W_K = `norm`: v1 (21) knows neither W_Q nor W_K, and its left side is ½.

    The middle token attends to all alike, and its own derivative is −(2 `norm`² + 1)/3: the flow damps the perturbation
    at this rate, and the step multiplies it by 1 − (2 `norm`² + 1)/6.
    """
    attention = _mean(1, -1.0)
    weight = jnp.full((1, 1, 1), norm)
    equation = MasterEquation(interaction=eqx.tree_at(lambda a: (a.wq, a.wk), attention, (weight, weight)))
    u, v = jnp.array([[1.0], [0.0], [-1.0]]), jnp.array([[0.0], [1.0], [0.0]])
    pushed = jax.jvp(lambda w: w + 0.5 * equation(0.0, w, None), (u,), (v,))[1]
    return float(jnp.abs(pushed[1, 0]))


def _mean(dim: int, scale: float) -> Attention:
    """Attention with W_Q = W_K = 0, W_V = scale·I, W_O = I: it adds scale times the mean of the tokens."""
    attention = Attention(dim, key=jax.random.key(0))
    eye = jnp.eye(dim)
    zero = jnp.zeros_like(attention.wq)
    return eqx.tree_at(lambda a: (a.wq, a.wk, a.wv, a.wo), attention, (zero, zero, scale * eye[:, None], eye[None]))


def growth(equation: MasterEquation, u, h: float, steps: int) -> float:
    """|||u_n|||/|||u_0||| after n Euler steps."""
    return float(_growth(equation, u, jnp.asarray(h), steps))


@eqx.filter_jit
def _growth(equation, u, h, steps):
    end, _ = jax.lax.scan(lambda v, _: (v + h * equation(0.0, v, None), None), u, length=steps)
    return token_max_norm(end) / token_max_norm(u)


RESOLUTION, DRAWS = 4, 112
WITHOUT_LEAK = ("diffusion", "mean attention", "linear reaction", "pre-LN block")  # families that v1 (1) can be


def measure(seed: int, seeds: int) -> Measured:
    """Runs of Euler that (21) calls safe and that blow up though the flow decays, and runs that it calls unsafe and that stay
    bounded; the share of either in maps of families of fields, for (21) among those of v1's model, which has no leak, and for the
    corrected bound among all with G ≤ c; and an isometry with G > c, on which Euler grows at a step that 2/(4D/Δx² + c + G)
    would allow."""
    blown, calm = cases.blown(), cases.calm()
    shares: dict[str, list[float]] = {
        f"{bound}_{kind}": [] for bound in ("v1", "corrected") for kind in ("false_safe", "false_alarm")
    }
    for s in range(seeds):
        maps = stability(
            StabilityConfig(solvers=(), resolution=RESOLUTION, draws=DRAWS, seed=1000 * seed + s, chunk=128)
        ).results["maps"]
        of = {"v1": [m for m in maps if m["family"] in WITHOUT_LEAK], "corrected": maps}
        runs = {"v1": sum(m["runs"] for m in of["v1"]), "corrected": sum(m["corrected"]["inside"] for m in maps)}
        for name, found in shares.items():
            bound, kind = name.split("_", 1)
            found.append(sum(m[bound][kind] for m in of[bound]) / runs[bound])
    figures = {
        "left_side_of_a_run_that_blows_up": blown[0].left,
        "growth_beyond_flow_log10": float(np.log10(max(blown[0].factor, 1e-300) / blown[0].allowed)),
        "runs_blown_up_with_left_side_at_most_1": sum(c.left <= 1 and c.factor > 1e3 * c.allowed for c in blown),
        "left_side_of_a_run_that_stays_bounded": calm[-1].left,
        "runs_bounded_with_left_side_above_1": sum(c.left > 1 and c.factor <= c.allowed for c in calm),
        "factor_of_a_damped_perturbation_at_left_side_half": cases.softmax_factor(100.0),
        "share_of_runs_wrongly_called_safe": share_over_seeds(shares["v1_false_safe"]),
        "share_of_runs_wrongly_called_unsafe": share_over_seeds(shares["v1_false_alarm"]),
    }
    corrected = {
        "limit_for_diffusion_alone": cases.diffusion_limit(),
        "growth_of_an_isometry_with_G_above_c": cases.isometry().factor,
        "corrected_share_wrongly_called_safe": range_over(shares["corrected_false_safe"]),
        "corrected_share_wrongly_called_unsafe": share_over_seeds(shares["corrected_false_alarm"]),
    }
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """A left side of at most 1 suffices: it fails if runs of v1's own model that it calls safe blow up though the flow decays. Of
    diffusion alone it holds if no step above it is stable; else it is only sufficient, for which a condition is to be added."""
    unsafe = evidence["runs_blown_up_with_left_side_at_most_1"] > 0
    unsafe = unsafe or high(evidence["share_of_runs_wrongly_called_safe"]) > 0
    if unsafe:
        return FAILS
    return HOLDS if abs(evidence["limit_for_diffusion_alone"] - 1) < 0.01 else CONDITIONAL


def bears_out(evidence: Evidence) -> bool:
    """Sharp for diffusion; no run with G ≤ c is wrongly called safe; an isometry with G > c shows that G ≤ c is needed."""
    sharp = abs(evidence["limit_for_diffusion_alone"] - 1) < 0.01
    safe = high(evidence["corrected_share_wrongly_called_safe"]) == 0
    return bool(sharp and safe and evidence["growth_of_an_isometry_with_G_above_c"] > 1)


def smallest() -> Counterexample:
    """u′ = −10u with h = 1/2: u_{n+1} = −4 u_n, while the left side is 1/2."""
    u = (-4.0) ** np.arange(61.0)
    return Counterexample(
        "one token, one feature, attention with W_O = 1 and W_V = −10, so u′ = −10u: at h = 1/2 the left side of (21) is "
        "1/2, and every Euler step multiplies `u` by −4.",
        {"u": u[:, None, None], "step": np.array(0.5), "left_side": np.array(0.5)},
    )


C3 = Claim(
    id="C3",
    statement="2DΔt/Δx² + αΔt‖W^O‖₂ ≤ 1 guarantees a stable step",
    source="v1 Thm 2, (21)",
    quote="For the discretized model, the numerical method is stable if 2D_lΔt/(Δx)² + α_lΔt‖W^O‖₂ ≤ 1, where ‖W^O‖₂ is the "
    "spectral norm of matrix W^O. (v1 A.5)",
    bears_out=bears_out,
    condition="2DΔt/Δx² ≤ 1 is sharp for diffusion alone. In the token-max norm, with leak rate c and Lipschitz constant G of "
    "the rest, Euler is non-expansive if G ≤ c and h ≤ 2/(4D/Δx² + c + G); with G > c that certifies nothing (u' = uJ keeps its "
    "length, and Euler grows at every h)",
    headline=(
        "runs_blown_up_with_left_side_at_most_1",
        "share_of_runs_wrongly_called_safe",
        "corrected_share_wrongly_called_safe",
    ),
    measure=measure,
    judge=judge,
)
