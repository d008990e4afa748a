"""C16: v2 Thm 3.5, three phases of information in depth."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax._bootstrap import over_seeds
from pdejax.analysis.information import curve_noise, information_stages, mutual_information
from pdejax.models import observe
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, NOT_SHOWN, Counterexample, Evidence, Measured, Verdict
from pdejax.studies.claims._claim import Claim, high, low, share_over_seeds, train

STEPS = 100
SIZES: dict[str, Any] = {"dim": 16, "heads": 2, "layers": 15, "ffn": 32, "norm": "pre"}
NOISE = {"fixed": 1.0, "relative": 1.0}
RESAMPLES = 200


def measure(seed: int, seeds: int) -> Measured:
    """Pre-LN Transformers of 15 layers, trained for a moment on digits. At each of 16 depths T is the mean over tokens, read with
    noise of one size at all depths (`fixed`, the mean over depths of the root mean square deviation between images) or of each
    depth's own deviation (`relative`): I(X; T + σξ) and I(Y; T + σξ) by kernel densities (limits: ln 240 = 5.5 and H(Y) = 2.3
    nats). Three phases by `information_stages`; and how often that test finds them, at the noise of these curves, in smooth
    curves that have them and in smooth curves that rise and fall together."""
    run = train(SIZES, seed, seeds, STEPS)
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in NOISE}
    shares: dict[str, list[float]] = {f"{kind}_{when}": [] for kind in NOISE for when in ("trained", "untrained")}
    example: dict[str, np.ndarray] = {}
    for i in range(seeds):
        for when, parameters in (("trained", run.end), ("untrained", run.start)):
            model = run.model(parameters, i)
            states = observe(model, run.images, logits=False, maps=False).states
            pooled = jnp.mean(states.astype(float), axis=2)  # (depths, images, d)
            for kind in NOISE:
                both = curves(pooled, run.labels, kind)
                seen = information_stages(both, resamples=RESAMPLES, key=jax.random.key(seed + i)).seen
                shares[f"{kind}_{when}"].append(float(seen))
                if when == "trained":
                    found[kind].append(both)
                    if not seen and kind not in example:
                        example[kind] = both
    figures: dict[str, Any] = {}
    corrected: dict[str, Any] = {}
    for kind, drawn in found.items():
        for name, values in changes(np.stack(drawn)).items():
            figures[f"{name}_{kind}_noise"] = over_seeds(values)
        figures[f"share_with_three_phases_{kind}_noise"] = share_over_seeds(shares[f"{kind}_trained"])
        corrected[f"share_with_three_phases_untrained_{kind}_noise"] = share_over_seeds(shares[f"{kind}_untrained"])
        corrected[f"noise_of_the_curves_over_their_range_{kind}_noise"] = roughness(np.stack(drawn))
    noise = max(corrected[f"noise_of_the_curves_over_their_range_{kind}_noise"] for kind in NOISE)
    corrected |= {
        "share_found_where_there_are_three": share_found(seed, noise, THREE),
        "share_found_where_there_are_none": share_found(seed, noise, NONE),
        "loss_at_the_end": over_seeds(run.losses[:, -10:].mean(axis=1)),
    }
    text = (
        "columns I(X; T) and I(Y; T) in nats at 16 depths of the first trained network whose curves do not have the three "
        "phases, by the noise of the read-out"
    )
    return Measured(figures, corrected, Counterexample(text, example) if example else None)


def judge(evidence: Evidence) -> Verdict:
    """Three phases in at least half of the networks: at both noises, at one (so that they are the read-out's), or at neither. Not
    shown where the test finds less than 0.8 of the phases that are there or more than 0.05 of those that are not, at the noise
    measured."""
    able = low(evidence["share_found_where_there_are_three"]) >= 0.8
    if not able or high(evidence["share_found_where_there_are_none"]) > 0.05:
        return NOT_SHOWN
    seen = [evidence[f"share_with_three_phases_{kind}_noise"] >= 0.5 for kind in NOISE]
    return HOLDS if all(seen) else CONDITIONAL if any(seen) else FAILS


def bears_out(evidence: Evidence) -> bool:
    """The read-out decides: I(X; T) rises and does not fall under noise of one size; under noise relative to each depth's spread
    it rises and falls."""
    kept = high(evidence["fall_of_input_information_fixed_noise"]) < 0.1
    rises = all(low(evidence[f"rise_of_input_information_{kind}_noise"]) > 0.1 for kind in NOISE)
    return bool(kept and rises and low(evidence["fall_of_input_information_relative_noise"]) > 0.1)


def changes(found: np.ndarray) -> dict[str, np.ndarray]:
    """By how much each pair of curves `(seeds, depths, 2)` rises from its start to its peak and falls from there to its end."""
    peak = found.max(axis=1)
    rise, fall = peak - found[:, 0], peak - found[:, -1]
    names = ("input_information", "target_information")
    return {
        f"{what}_of_{name}": x[:, i] for i, name in enumerate(names) for what, x in (("rise", rise), ("fall", fall))
    }


def curves(pooled: Array, labels: Array, kind: str) -> np.ndarray:
    """I(X; T + σξ) and I(Y; T + σξ) `(depths, 2)`, nats: X is the image itself, so that the former is the number of images that
    the noise leaves apart."""
    spread = jnp.sqrt(jnp.mean((pooled - jnp.mean(pooled, axis=1, keepdims=True)) ** 2, axis=(1, 2)))
    sigma = NOISE[kind] * (spread if kind == "relative" else jnp.broadcast_to(jnp.mean(spread), spread.shape))
    # With noise of size 1 after division by σ one compiled estimate serves all depths.
    scaled = pooled / sigma[:, None, None]
    identity = jnp.arange(pooled.shape[1]).astype(float)[:, None]
    found = []
    for t in scaled:
        both = (
            mutual_information(x, t, "kde", noise=1.0, bound=b) for x, b in ((identity, "upper"), (labels, "neither"))
        )
        found.append([float(estimate.value) for estimate in both])
    return np.array(found)


def roughness(found: np.ndarray) -> float:
    """The noise of curves `(seeds, depths, 2)` in units of their ranges: the median over all that change."""
    ranges = np.ptp(found, axis=1)
    noise = np.stack([curve_noise(pair) for pair in found])
    moved = ranges > 1e-6
    return float(np.median(noise[moved] / ranges[moved])) if moved.any() else 0.0


DEPTH = np.arange(16.0)


def _step(centre: float, width: float) -> np.ndarray:
    """A smooth step from 0 to 1 over 16 depths."""
    return 1 / (1 + np.exp(-(DEPTH - centre) / width))


# Smooth curves, I(X; T) and I(Y; T): with the three phases, and such that change together.
THREE = [(1 - 0.8 * _step(12.0, w), _step(3.0, w)) for w in (0.6, 0.8, 1.0)]
NONE = [
    (1 - DEPTH / 15, DEPTH / 15),
    (np.exp(-DEPTH / 5), 1 - np.exp(-DEPTH / 5)),
    (1 - _step(7.5, 1.5), _step(7.5, 1.5)),
    (1 - _step(5.0, 1.0), _step(11.0, 1.0)),
]


def share_found(seed: int, noise: float, shapes: Sequence[tuple[np.ndarray, np.ndarray]], runs: int = 40) -> float:
    """How often `information_stages` sees three phases in these shapes with that noise."""
    found = []
    for s in range(runs):
        rng = np.random.default_rng([seed, s])
        curves = np.stack(shapes[s % len(shapes)], axis=1) + noise * rng.standard_normal((16, 2))
        found.append(information_stages(curves, resamples=RESAMPLES, key=jax.random.key(s)).seen)
    return float(np.mean(found))


C16 = Claim(
    id="C16",
    statement="in depth I(Y; u) rises while I(X; u) is kept, then both rest, then I(X; u) falls while I(Y; u) is kept",
    source="v2 Thm 3.5",
    quote="Viewed through the lens of the Information Bottleneck, the dynamics of u(·, t) exhibit three characteristic phases. "
    "Let X be the input and Y be the target. The mutual information dynamics follow: (i) Extraction: I(Y; u(·, t)) increases "
    "rapidly while I(X; u(·, t)) is preserved. (ii) Equilibrium: A balance is reached between extraction and compression. (iii) "
    "Compression: Redundant information I(X; u(·, t)) decreases while I(Y; u(·, t)) saturates. (v2 §3.3, Thm 3.5) The "
    "Fokker-Planck equation … should be interpreted as a conceptual model for the evolution of the distribution of "
    "representations, driven by the deterministic dynamics of our PDE (the drift term) and stochasticity from data sampling "
    "(the diffusion term). (v2 App. B.4)",
    condition="I(X; u(t)) of a noiseless network is constant (C10), so phases are those of a noisy read-out, and its noise "
    "must be stated: of networks of this size, trained for a moment, I(X; T) rises with depth under noise of one size at all "
    "depths, and rises and falls under noise relative to each depth's spread",
    bears_out=bears_out,
    headline=(
        "share_with_three_phases_fixed_noise",
        "share_with_three_phases_relative_noise",
        "share_found_where_there_are_three",
    ),
    measure=measure,
    judge=judge,
)
