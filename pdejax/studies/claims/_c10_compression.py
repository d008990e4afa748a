"""C10: the information that a field keeps about its input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax._bootstrap import over_seeds
from pdejax._equation import MasterEquation
from pdejax.exact import diffusion_channel_information, heat_eigenvalues
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.studies.claims._claim import Claim, high, low, range_over
from pdejax.terms import Attention, FeedForward

TOKENS, DEPTHS = 4, 6
NOISE = 0.3  # of the input that is asked about, and of the read-out in the corrected statement
SAMPLES, WIDTH = 4000, 0.5
DIFFUSIVITY, LAST = 0.05, 1.5


def measure(seed: int, seeds: int) -> Measured:
    """u′ = D∇²u from a Gaussian u₀, X = u₀ with noise: I(X; u(t)) from determinants at six depths, and from bins of one width of
    the same field; attention with a network, run there and back. Then the same diffusion read with noise σ, a field that
    grows read with the same noise, and one disturbed on the way."""
    changes, falls, there, rises = [], [], [], []
    noisy = {"fall": [], "chain": []}
    for s in range(seeds):
        rng = np.random.default_rng([seed, s])
        root = rng.standard_normal((TOKENS, TOKENS))
        prior = root @ root.T / TOKENS + 0.2 * np.eye(TOKENS)
        maps = propagators(DIFFUSIVITY)
        exact = np.array([information(prior, p) for p in maps])
        changes.append(np.max(np.abs(exact - exact[0])))
        binned = binned_information(prior, maps, rng)
        falls.append(binned[0] - binned[-1])
        noisy["fall"].append(_fall(read_out(prior, maps)))
        rises.append(-_fall(read_out(prior, propagators(-DIFFUSIVITY))))
        noisy["chain"].append(np.max(np.diff(chain(prior))))
        there.append(float(_there_and_back(jax.random.key(1000 * seed + s))))
    rates = heat_eigenvalues(TOKENS, "neumann", DIFFUSIVITY, 1.0 / TOKENS)
    identity = read_out(np.eye(TOKENS), propagators(DIFFUSIVITY))
    formula = [float(diffusion_channel_information(jnp.ones(TOKENS), rates, t, NOISE)) for t in depths()]
    figures = {
        "exact_change_of_information": range_over(changes),
        "fall_of_binned_estimate": over_seeds(falls),
        "error_of_field_run_back_to_its_input": range_over(there),
    }
    corrected = {
        "fall_with_read_out_noise_under_diffusion": over_seeds(noisy["fall"]),
        "rise_with_read_out_noise_in_a_growing_field": over_seeds(rises),
        "largest_rise_along_a_noisy_chain": range_over(noisy["chain"]),
        "error_against_closed_form": float(np.max(np.abs(identity - formula))),
    }
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """Holds if the exact information falls; fails if it stays while the estimate falls."""
    constant = high(evidence["exact_change_of_information"]) < 1e-6
    invertible = high(evidence["error_of_field_run_back_to_its_input"]) < 1e-6
    if not constant and not invertible:
        return HOLDS
    return FAILS if constant and low(evidence["fall_of_binned_estimate"]) > 0.01 else CONDITIONAL


def bears_out(evidence: Evidence) -> bool:
    """Read with noise it falls under diffusion as its closed form says, rises in a growing field, and never rises along a noisy
    chain."""
    falls = low(evidence["fall_with_read_out_noise_under_diffusion"]) > 0
    rises = low(evidence["rise_with_read_out_noise_in_a_growing_field"]) > 0
    chain = high(evidence["largest_rise_along_a_noisy_chain"]) <= 1e-9
    return bool(falls and rises and chain and evidence["error_against_closed_form"] < 1e-9)


def depths() -> np.ndarray:
    return np.linspace(0.0, LAST, DEPTHS)


def propagators(diffusivity: float) -> np.ndarray:
    """exp(tDL) `(DEPTHS, N, N)` on a Neumann grid; a negative D gives the growing field u′ = −DL u."""
    rates = np.asarray(heat_eigenvalues(TOKENS, "neumann", abs(diffusivity), 1.0 / TOKENS)) * np.sign(diffusivity)
    i, k = np.arange(TOKENS)[:, None], np.arange(TOKENS)[None]
    modes = np.cos(np.pi * k * (i + 0.5) / TOKENS)
    modes = modes / np.linalg.norm(modes, axis=0)
    return np.stack([(modes * np.exp(rates * t)) @ modes.T for t in depths()])


def information(prior: np.ndarray, p: np.ndarray) -> float:
    """I(X; Pu₀) for X = u₀ + σξ and u₀ ~ N(0, S): ½ ln(det Σ_X det Σ_u / det Σ), nats."""
    own, seen, both = prior + NOISE**2 * np.eye(len(prior)), p @ prior @ p.T, prior @ p.T
    joint = np.block([[own, both], [both.T, seen]])
    return 0.5 * float(np.linalg.slogdet(own)[1] + np.linalg.slogdet(seen)[1] - np.linalg.slogdet(joint)[1])


def read_out(prior: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """I(u₀; Pu₀ + σξ) at every depth, nats."""
    eye = np.eye(len(prior))
    return np.array([0.5 * np.linalg.slogdet(eye + p @ prior @ p.T / NOISE**2)[1] for p in maps])


def chain(prior: np.ndarray) -> np.ndarray:
    """I(u₀; u_k) for u_{k+1} = P u_k + σξ with an expanding P: a Markov chain, along which I cannot rise."""
    step = propagators(-DIFFUSIVITY)[1]
    eye = np.eye(len(prior))
    gain, noise, found = eye, NOISE**2 * eye, []
    for _ in range(DEPTHS):
        signal = gain @ prior @ gain.T
        found.append(0.5 * (np.linalg.slogdet(signal + noise)[1] - np.linalg.slogdet(noise)[1]))
        gain, noise = step @ gain, step @ noise @ step.T + NOISE**2 * eye
    return np.array(found)


def binned_information(prior: np.ndarray, maps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """I(X; bins of u(t)) = the entropy of the bins, all of one width, of the first two tokens of samples; nats."""
    u0 = rng.multivariate_normal(np.zeros(len(prior)), prior, SAMPLES)
    found = []
    for p in maps:
        cells = np.floor((u0 @ p.T)[:, :2] / WIDTH).astype(int)
        counts = np.unique(cells, axis=0, return_counts=True)[1] / SAMPLES
        found.append(-np.sum(counts * np.log(counts)))
    return np.array(found)


def _fall(values: np.ndarray) -> float:
    return float(values[0] - values[-1])


@eqx.filter_jit
def _there_and_back(key: Array) -> Array:
    """Relative error of u₀ after RK4 steps of a random field to depth 1 and back."""
    k1, k2, k3 = jax.random.split(key, 3)
    equation = MasterEquation(interaction=Attention(4, key=k1), reaction=FeedForward(4, 8, key=k2))
    u0 = jax.random.normal(k3, (TOKENS, 4))
    steps = 200

    def run(u, h):
        def step(_, v):
            a = equation(0.0, v, None)
            b = equation(0.0, v + 0.5 * h * a, None)
            c = equation(0.0, v + 0.5 * h * b, None)
            d = equation(0.0, v + h * c, None)
            return v + h / 6 * (a + 2 * b + 2 * c + d)

        return jax.lax.fori_loop(0, steps, step, u)

    back = run(run(u0, 1.0 / steps), -1.0 / steps)
    return jnp.linalg.norm(back - u0) / jnp.linalg.norm(u0)


def smallest() -> Counterexample:
    """Two independent tokens that shrink by e^{−t}."""
    t = np.linspace(0, 2, 3)
    prior = np.eye(2)
    maps = np.exp(-t)[:, None, None] * np.eye(2)
    exact = np.array([information(prior, p) for p in maps])
    return Counterexample(
        "two independent tokens, u′ = −u: with X = u₀ + 0.3ξ, `information` I(X; u(t)) from determinants of covariances "
        "(`prior` of u₀, `propagators` from u₀ to u) is the same at all depths `t`. In bins of one "
        "width the field falls into fewer.",
        {"t": t, "prior": prior, "propagators": maps, "noise": np.array(NOISE), "information": exact},
    )


C10 = Claim(
    id="C10",
    statement="the representation compresses: I(X; u(t)) falls with depth",
    source="v2 Thm 3.5 (iii)",
    quote="Viewed through the lens of the Information Bottleneck, the dynamics of u(·, t) exhibit three characteristic phases. "
    "Let X be the input and Y be the target. The mutual information dynamics follow: … (iii) Compression: Redundant information "
    "I(X; u(·, t)) decreases while I(Y; u(·, t)) saturates. (v2 §3.3, Thm 3.5) The Fokker-Planck equation … should be "
    "interpreted as a conceptual model for the evolution of the distribution of representations, driven by the deterministic "
    "dynamics of our PDE (the drift term) and stochasticity from data sampling (the diffusion term). (v2 App. B.4)",
    bears_out=bears_out,
    condition="what App. B.4 calls stochasticity is that of X itself: given X nothing is random, a noiseless smooth flow is a "
    "bijection, and I(X; u(t)) cannot change; what falls is the estimate. Read with "
    "noise σ, I(u₀; u(t) + σξ) falls where the flow contracts and rises where it expands; it can only fall "
    "where noise enters on the way",
    headline=("exact_change_of_information", "fall_of_binned_estimate", "rise_with_read_out_noise_in_a_growing_field"),
    measure=measure,
    judge=judge,
)
