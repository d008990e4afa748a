"""C7: v2 (7)–(8), an emergent diffusion."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax.analysis.growth._diffusivity import (
    AntiDiffusion,
    anti_diffusion,
    negative_fraction,
    random_negative_fraction,
)
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.solvers import Grid
from pdejax.studies.claims._claim import Claim, high, share_over_seeds
from pdejax.studies.numerics._verify_cases import normal
from pdejax.terms import Attention, EffectiveDiffusion, FeedForward

SIZES, DRAWS = (16, 64), 60
DIM, HIDDEN = 16, 64


def measure(seed: int, seeds: int) -> Measured:
    """How often Tr(∂FFN/∂u) < 0 over random networks; how fast the frozen operator of (7) lets a perturbation grow, on two grids
    of the same field, for (8) as written and for forms of it that are not negative."""
    keys = jax.random.split(jax.random.key(seed), seeds)
    shares = [random_negative_fraction(key=key, draws=DRAWS, dim=DIM, hidden=HIDDEN).fraction for key in keys]
    coarse, fine = (growth_rate(n).rate for n in SIZES)
    safe = max(growth_rate(SIZES[-1], form).rate for form in ("absolute", "softplus", "clip"))
    figures = {
        "share_of_tokens_with_negative_trace": share_over_seeds(shares),
        "growth_rate_16_tokens": coarse,
        "growth_rate_64_tokens": fine,
        "growth_rate_order_in_1_by_dx": float(np.log(fine / coarse) / np.log(SIZES[1] / SIZES[0]))
        if min(coarse, fine) > 0
        else 0.0,
    }
    corrected = {"growth_rate_of_nonnegative_forms_over_raw": safe / max(abs(fine), 1e-300)}
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """A diffusion dissipates: the D of App. B.2 is the D_eff of (7), and the last sign there needs D ≥ 0, which is not said. How
    well (7) stands for the network, its "≈", is not judged. It holds if nothing grows; with a condition to add on the trace if
    few random networks, less than one token in ten, break it; it fails if growth is met in typical ones and is the faster the
    finer the grid."""
    if evidence["growth_rate_64_tokens"] <= 0:
        return HOLDS
    rare = high(evidence["share_of_tokens_with_negative_trace"]) < 0.1
    return CONDITIONAL if rare or evidence["growth_rate_order_in_1_by_dx"] < 1 else FAILS


def bears_out(evidence: Evidence) -> bool:
    """No non-negative form of the coefficient lets anything grow."""
    return bool(evidence["growth_rate_of_nonnegative_forms_over_raw"] <= 1e-6)


def growth_rate(n: int, form: str = "raw") -> AntiDiffusion:
    """How fast ∂x(D_eff ∂x u) lets a perturbation grow, D_eff of that form frozen at a smooth field sampled on n tokens, and the
    bound 4D/Δx² of it."""
    network = FeedForward(DIM, HIDDEN, key=jax.random.key(1))
    if negative_fraction(network, _smooth(SIZES[0])).fraction < 0.5:  # the same law, the other sign
        network = eqx.tree_at(lambda f: f.w2, network, -network.w2)
    mixing = Attention(DIM, 2, key=jax.random.key(2))
    return anti_diffusion(EffectiveDiffusion(Grid(n), mixing, network, 0.1 * _smooth(n, seed=1), form=form), _smooth(n))


def _smooth(n: int, seed: int = 0) -> Array:
    """The same smooth field on [0, 1], sampled at n cell centres: two random cosine modes per feature."""
    modes = np.cos(np.pi * np.arange(3)[None, :] * ((np.arange(n) + 0.5) / n)[:, None])
    return jnp.asarray(modes @ np.asarray(normal(20 + seed, 3, DIM)))


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
    quote="A central insight of our framework is that the coupling of positional encodings with the FFN induces an emergent "
    "diffusion effect …: D(u) ≈ ∇_x · (D_eff(u, x) ∇_x u). … D_eff(u, x) ∝ |∇_x P(x)|² · Tr(∇_u FFN(u)) · σ²_att(x). (v2 "
    "§3.2, (7), (8)) The diffusion operator is inherently dissipative. Using integration by parts (Green’s first identity), we "
    "find ∫⟨u, ∇ · (D∇u)⟩dx = −∫D‖∇u‖²dx ≤ 0. (v2 App. B.2)",
    bears_out=bears_out,
    condition="where Tr(∂FFN/∂u) ≥ 0 at every token, or with a non-negative form of it (absolute value, softplus, clip)",
    headline=(
        "share_of_tokens_with_negative_trace",
        "growth_rate_order_in_1_by_dx",
        "growth_rate_of_nonnegative_forms_over_raw",
    ),
    measure=measure,
    judge=judge,
)
