"""C8: v1 (16) as a lower bound of I(X; T)."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax._bootstrap import over_seeds
from pdejax.analysis.information.trained import CLUB, BarberAgakov, PaperEstimate
from pdejax.exact import bivariate_normal_information
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.studies.claims._claim import Claim, high, low

SAMPLES = 4000
FLOOR = 1e-6
NOISE = 0.5
SHARP = 0.1  # noise of the two-valued channel, whose I is below ln 2
WIDTHS = {"best": (NOISE, math.sqrt(1 + NOISE**2)), "poor_conditional": (3 * NOISE, math.sqrt(1 + NOISE**2)),
          "poor_marginal": (NOISE, 5.0)}  # fmt: skip


def measure(seed: int, seeds: int) -> Measured:
    """T = X + σξ with X normal, I known: Ĩ in closed form and from samples for three pairs of densities q(t|x) = N(x, τ²),
    q(t) = N(0, ω²); and X = ±1, where the Gaussians of maximum likelihood are used."""
    information = float(bivariate_normal_information(1 / math.sqrt(1 + NOISE**2)))
    sampled: dict[str, list[float]] = {name: [] for name in ("two_valued", "lower", "upper", *WIDTHS)}
    for s in range(seeds):
        x, t = channel(seed + 1000 * s, two_valued=False)
        for name, (tau, omega) in WIDTHS.items():
            sampled[name].append(float(estimator(tau, omega).estimate(x, t).value))
        sampled["lower"].append(barber_agakov(x, t, 3 * NOISE))
        sampled["upper"].append(club(x, t, NOISE))
        x, t = channel(seed + 1000 * s, two_valued=True)
        residual, spread = float(jnp.sqrt(jnp.mean((t - x) ** 2))), float(jnp.sqrt(jnp.mean(t**2)))
        sampled["two_valued"].append(float(estimator(residual, spread).estimate(x, t).value))
    kl = {name: divergences(*widths) for name, widths in WIDTHS.items()}
    exact = {name: information - one + two for name, (one, two) in kl.items()}
    two_valued = two_valued_information(SHARP)
    figures = {
        "information": information,
        **{f"estimate_{name}": over_seeds(sampled[name]) for name in WIDTHS},
        **{f"closed_form_{name}": exact[name] for name in WIDTHS},
        "excess_poor_marginal": over_seeds(np.array(sampled["poor_marginal"]) - information),
        "excess_poor_conditional": over_seeds(np.array(sampled["poor_conditional"]) - information),
        "information_two_valued": two_valued,
        "excess_two_valued": over_seeds(np.array(sampled["two_valued"]) - two_valued),
    }
    corrected = {
        "identity_error": max(
            abs(np.mean(sampled[name]) - exact[name]) / max(abs(exact[name]), 1.0) for name in WIDTHS
        ),
        "barber_agakov_excess": over_seeds(np.array(sampled["lower"]) - information),
        "club_excess": over_seeds(np.array(sampled["upper"]) - information),
    }
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """A lower bound has no estimate above I; what has them on both sides is neither bound."""
    names = ("excess_poor_marginal", "excess_two_valued", "excess_poor_conditional")
    if all(high(evidence[name]) <= 0.02 for name in names):
        return HOLDS
    above = any(low(evidence[name]) > 0.02 for name in names)
    return FAILS if above else CONDITIONAL


def bears_out(evidence: Evidence) -> bool:
    """Ĩ = I − KL + KL in every case; Barber–Agakov stays below I, CLUB above."""
    bounds = high(evidence["barber_agakov_excess"]) <= 0.02 and low(evidence["club_excess"]) >= -0.02
    return bool(evidence["identity_error"] < 0.05 and bounds)


def divergences(tau: float, omega: float) -> tuple[float, float]:
    """KL(p(t|x)‖q(t|x)) and KL(p(t)‖q(t)) of centred Gaussians, nats."""

    def between(own, other):
        return math.log(other / own) + own**2 / (2 * other**2) - 0.5

    return between(NOISE, tau), between(math.sqrt(1 + NOISE**2), omega)


def channel(seed: int, *, two_valued: bool) -> tuple[Array, Array]:
    """Pairs x, t = x + σξ, each `(SAMPLES, 1)`."""
    k1, k2 = jax.random.split(jax.random.key(seed))
    shape = (SAMPLES, 1)
    if two_valued:
        x = jax.random.rademacher(k1, shape, float)
        return x, x + SHARP * jax.random.normal(k2, shape)
    x = jax.random.normal(k1, shape)
    return x, x + NOISE * jax.random.normal(k2, shape)


def estimator(tau: float, omega: float) -> PaperEstimate:
    """v1 (16) with q(t|x) = N(t; x, τ²) and q(t) = N(t; 0, ω²)."""
    found = PaperEstimate(1, 1, 0, key=jax.random.key(0), floor=FLOOR)

    def raw(width: float) -> Array:
        # s² = σ₀² + e^{2r}: the floor is taken out, so that s is the width exactly.
        return jnp.full(1, 0.5 * math.log(width**2 - FLOOR**2))

    return eqx.tree_at(
        lambda e: (e.conditional.mean.w, e.conditional.log_std, e.marginal.log_std),
        found,
        (jnp.ones((1, 1)), raw(tau), raw(omega)),
    )


def barber_agakov(x: Array, t: Array, tau: float) -> float:
    """The lower bound h(T) + E ln q(t|x), with the entropy of T known."""
    entropy = 0.5 * math.log(2 * math.pi * math.e * (1 + NOISE**2))
    bound = BarberAgakov(1, 1, 0, key=jax.random.key(0), direction="t given x", entropy=entropy, floor=FLOOR)
    return float(eqx.tree_at(lambda b: b.q, bound, estimator(tau, 1.0).conditional).estimate(x, t).value)


def club(x: Array, t: Array, tau: float) -> float:
    """The upper bound E ln q(t|x) − E ln q(t|x′), with the channel's own q."""
    bound = CLUB(1, 1, 0, key=jax.random.key(0), floor=FLOOR)
    return float(eqx.tree_at(lambda c: c.q, bound, estimator(tau, 1.0).conditional).estimate(x, t).value)


def two_valued_information(sigma: float) -> float:
    """I(X; X + σξ) for X = ±1 alike: ln 2 − E ln(1 + e^{−2(1+σξ)/σ²}), by Gauss–Hermite quadrature, nats."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    loss = np.logaddexp(0.0, -2 * (1 + sigma * nodes) / sigma**2)
    return math.log(2) - float(weights @ loss) / math.sqrt(2 * math.pi)


def smallest() -> Counterexample:
    """X and T independent and binary, I = 0; q(t|x) = p(t) exact, q(t) = (0.9, 0.1) against p(t) = (½, ½): Ĩ = KL₂ > 0."""
    joint = np.full((2, 2), 0.25)
    conditional, marginal = np.full((2, 2), 0.5), np.array([0.9, 0.1])
    estimate = np.sum(joint * np.log(conditional)) - np.sum(joint.sum(0) * np.log(marginal))
    return Counterexample(
        "two independent bits: `joint`[x, t] = 1/4, so I(X;T) = 0; with `conditional`[x, t] = q(t|x) = 1/2, the truth, and "
        f"`marginal` q(t) = (0.9, 0.1), v1 (16) gives {estimate:.3f} nats.",
        {"joint": joint, "conditional": conditional, "marginal": marginal, "estimate": np.array(estimate)},
    )


C8 = Claim(
    id="C8",
    statement="Ĩ = E ln q(t|x) − E ln q(t) is a variational lower bound of I(X; T)",
    source="v1 (16)",
    quote="Since exact computation of mutual information I(X; T_θ(X)) is often infeasible, we use a variational lower bound "
    "Ĩ(X; T_θ(X)) = E_{p(x,t)}[log q_φ(t|x)] − E_{p(x)p(t)}[log q_φ(t)]. (v1 A.2)",
    bears_out=bears_out,
    condition="it is neither bound: Ĩ = I − KL(p(t|x)‖q(t|x)) + KL(p(t)‖q(t)). With the true entropy of T in place of the "
    "second term (Barber–Agakov) it is a lower bound, E ln q(t|x) − E ln q(t|x′) with the true channel (CLUB) an upper one",
    headline=("information", "closed_form_poor_marginal", "excess_poor_marginal", "excess_two_valued"),
    measure=measure,
    judge=judge,
)
