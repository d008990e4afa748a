"""C13: v2 Thm 3.4, fidelity with and without residual connections."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax._bootstrap import over_seeds
from pdejax.analysis.residual import fidelity
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.studies.claims._claim import Claim, high, low, range_over
from pdejax.terms import Attention, FeedForward

TOKENS, DIM, LAYERS = 16, 32, 16
SCALES = (0.5, 1.0, 2.0)
DRAWS = 16  # networks per seed, over which |ρ| is averaged


def measure(seed: int, seeds: int) -> Measured:
    """Layers u ← Attn(u), u ← FFN(u), which are the leaky field at h = 1, and u ← u + Attn(u), u ← u + FFN(u): weights drawn
    anew in each layer, W_O and W_2 times `scale`. The root mean square of ρ over networks by layer; its rate, the fall of its
    logarithm per layer, in the first layer and over the second half of the layers."""
    figures, corrected = {}, {}
    floor = 1 / math.sqrt(TOKENS * DIM)
    for scale in SCALES:
        rates: dict[str, list[float]] = {"first": [], "later": []}
        ends: dict[str, list[float]] = {"leaky": [], "residual": []}
        for s in range(seeds):
            for residual, name in ((False, "leaky"), (True, "residual")):
                rho = np.asarray(fidelities(jax.random.key(1000 * seed + s), jnp.asarray(scale), residual))
                ends[name].append(rho[-1])
                if not residual:
                    logs = np.log(rho)
                    rates["first"].append(logs[0] - logs[1])
                    rates["later"].append(-np.polyfit(np.arange(LAYERS // 2, LAYERS + 1), logs[LAYERS // 2 :], 1)[0])
        figures[f"rate_in_layer_1_without_residual_scale_{scale:g}"] = over_seeds(rates["first"])
        figures[f"rate_in_layers_8_to_16_without_residual_scale_{scale:g}"] = over_seeds(rates["later"])
        figures[f"fidelity_at_16_with_residual_scale_{scale:g}"] = over_seeds(ends["residual"])
        corrected[f"fidelity_at_16_without_residual_over_chance_scale_{scale:g}"] = over_seeds(
            np.array(ends["leaky"]) / floor
        )
    identity, turned, error = exact()
    figures["fidelity_without_residual_identity_values"] = identity
    figures["fidelity_with_residual_rotation"] = turned
    corrected["rotation_error_against_cosine"] = error
    corrected["share_below_bound_with_small_updates"] = range_over(_small_updates(seed, seeds))
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """(i) Without residual connections ρ must decay at some positive rate at all depths and in every network; (ii) with them it
    must stay above a positive constant. Both, for random weights only, or not even there."""
    decays = all(low(evidence[f"rate_in_layers_8_to_16_without_residual_scale_{s:g}"]) > 0.02 for s in SCALES)
    kept = all(low(evidence[f"fidelity_at_16_with_residual_scale_{s:g}"]) > 0.1 for s in SCALES)
    everywhere = evidence["fidelity_without_residual_identity_values"] < 0.5
    everywhere = everywhere and evidence["fidelity_with_residual_rotation"] > 0
    if decays and kept:
        return HOLDS if everywhere else CONDITIONAL
    small = high(evidence["share_below_bound_with_small_updates"]) == 0
    return CONDITIONAL if kept and everywhere and small else FAILS


@eqx.filter_jit
def fidelities(key: Array, scale: Array, residual: bool) -> Array:
    """√⟨ρ²⟩ over networks `(LAYERS + 1,)`."""

    def one(key):
        k1, k2 = jax.random.split(key)
        u0 = jax.random.normal(k1, (TOKENS, DIM))

        def layer(u, k):
            a, b = jax.random.split(k)
            attention, network = Attention(DIM, 4, key=a), FeedForward(DIM, 2 * DIM, key=b)
            for term in (attention, network):
                out = scale * term(jnp.zeros(()), u, None)
                u = u + out if residual else out
            # The angle is all that matters: a scale that cannot overflow.
            return u, u / jnp.linalg.norm(u)

        us = jax.lax.scan(layer, u0, jax.random.split(k2, LAYERS))[1]
        return jnp.concatenate([jnp.ones(1), fidelity(us, u0)])

    return jnp.sqrt(jnp.mean(jax.vmap(one)(jax.random.split(key, DRAWS)) ** 2, axis=0))


def exact() -> tuple[float, float, float]:
    """ρ after 16 layers u ← Attn(u) with one token and W_O W_V = 1; ρ at t = π of u′ = uJ; and its error against cos t."""
    attention = Attention(1, key=jax.random.key(0))
    ones = tuple(jnp.ones_like(w) for w in (attention.wv, attention.wo))
    attention = eqx.tree_at(lambda a: (a.wv, a.wo), attention, ones)
    u = start = jnp.full((1, 1), 0.7)
    for _ in range(16):
        u = attention(jnp.zeros(()), u, None)
    arrays = smallest().arrays
    rho = np.asarray(fidelity(jnp.asarray(arrays["u"]), jnp.asarray(arrays["u"][0])))
    return float(fidelity(u, start)), float(rho[-1]), float(np.max(np.abs(rho - np.cos(arrays["t"]))))


def _small_updates(seed: int, seeds: int) -> list[float]:
    """Share of random updates with ‖I‖ = r‖u₀‖, r < 1, for which ρ is below √(1 − r²)."""
    shares = []
    for s in range(seeds):
        rng = np.random.default_rng([seed, s, 3])
        u0, update = rng.standard_normal((2, 400, 8))
        r = rng.uniform(0, 0.99, 400)
        update *= (r * np.linalg.norm(u0, axis=1) / np.linalg.norm(update, axis=1))[:, None]
        u = u0 + update
        rho = np.sum(u * u0, axis=1) / (np.linalg.norm(u, axis=1) * np.linalg.norm(u0, axis=1))
        shares.append(float(np.mean(rho < np.sqrt(1 - r**2) - 1e-12)))
    return shares


def smallest() -> Counterexample:
    t = np.linspace(0, math.pi, 13)
    u = np.stack([np.cos(t), np.sin(t)], axis=1)[:, None]
    return Counterexample(
        "(i) one token, one feature, W_O W_V = 1, no residual connection: `kept` is the state after every layer, ρ = 1 at all "
        "depths. (ii) one token turned by u′ = uJ, residual and norm-preserving: ρ = cos t, −1 at t = π.",
        {"t": t, "u": u, "kept": np.full((17, 1, 1), 0.7)},
    )


C13 = Claim(
    id="C13",
    statement="without residual connections ρ decays exponentially; with them it is bounded below by a positive constant",
    source="v2 Thm 3.4",
    condition="without them, and with weights drawn anew in each layer, ρ is near chance, 1/√(nd), after one layer and has no "
    "rate from there on. With them ρ ≥ √(1 − r²) as long as the update stays below ‖u₀‖, r < 1; not beyond",
    headline=(
        "rate_in_layer_1_without_residual_scale_1",
        "rate_in_layers_8_to_16_without_residual_scale_1",
        "fidelity_at_16_with_residual_scale_2",
        "fidelity_with_residual_rotation",
    ),
    measure=measure,
    judge=judge,
)
