"""C16: v2 Thm 3.5, three phases of information in depth."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax._bootstrap import over_seeds
from pdejax.analysis.information import information_stages, mutual_information
from pdejax.models import observe
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, NOT_SHOWN, Counterexample, Evidence, Measured, Verdict
from pdejax.studies.claims._claim import Claim, high, low, train

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
    shares: dict[str, list[float]] = {f"{kind}_{when}": [] for kind in NOISE for when in ("trained", "untrained")}
    falls: dict[str, list[float]] = {kind: [] for kind in NOISE}
    rises: dict[str, list[float]] = {kind: [] for kind in NOISE}
    losses: dict[str, list[float]] = {kind: [] for kind in NOISE}
    example: dict[str, np.ndarray] = {}
    noise: list[float] = []
    for i in range(seeds):
        for when, parameters in (("trained", run.end), ("untrained", run.start)):
            model = run.model(parameters, i)
            states = observe(model, run.images, logits=False, maps=False).states
            pooled = jnp.mean(states.astype(float), axis=2)  # (depths, images, d)
            for kind in NOISE:
                found = curves(pooled, run.labels, kind)
                seen = information_stages(found, resamples=RESAMPLES, key=jax.random.key(seed + i)).seen
                shares[f"{kind}_{when}"].append(float(seen))
                if when == "trained":
                    noise.append(roughness(found))
                    falls[kind].append(found[:, 0].max() - found[-1, 0])
                    rises[kind].append(found[:, 1].max() - found[0, 1])
                    losses[kind].append(found[:, 1].max() - found[-1, 1])
                    if not seen and kind not in example:
                        example[kind] = found
    figures: dict[str, Any] = {}
    for kind in NOISE:
        figures[f"share_with_three_phases_{kind}_noise"] = over_seeds(shares[f"{kind}_trained"])
        figures[f"fall_of_input_information_{kind}_noise"] = over_seeds(falls[kind])
        figures[f"rise_of_target_information_{kind}_noise"] = over_seeds(rises[kind])
        figures[f"fall_of_target_information_{kind}_noise"] = over_seeds(losses[kind])
    corrected = {
        **{
            f"share_with_three_phases_untrained_{kind}_noise": over_seeds(shares[f"{kind}_untrained"]) for kind in NOISE
        },
        "noise_of_the_curves_over_their_range": float(np.median(noise)),
        "share_found_where_there_are_three": share_found(seed, float(np.median(noise)), THREE),
        "share_found_where_there_are_none": share_found(seed, float(np.median(noise)), NONE),
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
    """The read-out decides: I(X; T) is kept under noise of one size and falls under noise relative to each depth's spread."""
    kept = high(evidence["fall_of_input_information_fixed_noise"]) < 0.1
    return bool(kept and low(evidence["fall_of_input_information_relative_noise"]) > 0.1)


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
    """The noise of the two curves, from second differences, in units of their ranges; the larger."""
    noise = np.sqrt(np.mean(np.diff(found, 2, axis=0) ** 2, axis=0) / 6)
    ranges = np.ptp(found, axis=0)
    return float(np.max(noise[ranges > 1e-6] / ranges[ranges > 1e-6], initial=0.0))


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
    quote="(i) Extraction: I(Y; u(·, t)) increases rapidly while I(X; u(·, t)) is preserved. (ii) Equilibrium: A balance is "
    "reached between extraction and compression. (iii) Compression: Redundant information I(X; u(·, t)) decreases while I(Y; "
    "u(·, t)) saturates. (v2 §3.3)",
    condition="I(X; u(t)) of a noiseless network is constant (C10), so phases are those of a noisy read-out, and its noise "
    "must be stated: of networks of this size, trained for a moment, I(X; T) is kept under noise of one size at all depths, "
    "and falls under noise relative to each depth's spread",
    bears_out=bears_out,
    headline=(
        "share_with_three_phases_fixed_noise",
        "share_with_three_phases_relative_noise",
        "share_found_where_there_are_three",
    ),
    measure=measure,
    judge=judge,
)
