"""C15: v2 §4.3.2, gradients without LayerNorm."""

from typing import Any

import numpy as np

from pdejax._bootstrap import over_seeds
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.studies.claims._claim import Claim, low, ratio_over_seeds, train

STEPS, SETTLED = 40, 20
SIZES: dict[str, Any] = {"dim": 16, "heads": 2, "layers": 4, "ffn": 32}
KINDS: dict[str, dict[str, Any]] = {
    "pre": {"norm": "pre"},
    "post": {"norm": "post"},
    "none": {"norm": "none"},
    "bare": {"norm": "none", "residual": "none"},
}
LEAST = 10 / 3  # what counts as "about ten times"


def measure(seed: int, seeds: int) -> Measured:
    """‖∇L‖ over all parameters of Transformers of 4 layers on digits, at the start and, as the median over steps 20 to 40, in
    training: without LayerNorm against pre-LN and post-LN, seed by seed; and v2's own probe, which has neither LayerNorm nor
    residual connections. Spikes: the largest norm of these steps over their median."""
    runs = {name: train(SIZES | options, seed, seeds, STEPS) for name, options in KINDS.items()}
    start = {name: run.norms[:, 0] for name, run in runs.items()}
    later = {name: np.median(run.norms[:, SETTLED:], axis=1) for name, run in runs.items()}
    spikes = {name: run.norms[:, SETTLED:].max(axis=1) / later[name] for name, run in runs.items()}
    figures: dict[str, Any] = {}
    for name in ("none", "bare"):
        for base in ("pre", "post"):
            figures[f"gradient_{name}_over_{base}_at_start"] = ratio_over_seeds(start[name] / start[base])
            figures[f"gradient_{name}_over_{base}_in_training"] = ratio_over_seeds(later[name] / later[base])
        figures[f"spikes_{name}_over_pre"] = ratio_over_seeds(spikes[name] / spikes["pre"])
    corrected = {f"loss_at_the_end_{name}": over_seeds(run.losses[:, -10:].mean(axis=1)) for name, run in runs.items()}
    corrected["gradient_post_over_pre_at_start"] = ratio_over_seeds(start["post"] / start["pre"])
    curves = {f"gradient_norm_{name}": runs[name].norms[0].astype(float) for name in KINDS}
    example = Counterexample(
        "‖∇L‖ by training step for the first seed: `bare` (v2's probe, neither LayerNorm nor residual connections) starts "
        "below `pre` and `post`, `none` (residual connections, no LayerNorm) above.",
        curves,
    )
    return Measured(figures, corrected, example)


def judge(evidence: Evidence) -> Verdict:
    """About ten times larger, at the start and in training, without LayerNorm: with residual connections and for v2's own probe,
    for the former alone, or for neither."""

    def larger(name: str, when: str) -> bool:
        return all(evidence[f"gradient_{name}_over_{base}_{when}"] > LEAST for base in ("pre", "post"))

    every = all(larger(name, when) for name in ("none", "bare") for when in ("at_start", "in_training"))
    if every and all(low(evidence[f"spikes_{name}_over_pre"]) > 1 for name in ("none", "bare")):
        return HOLDS
    return CONDITIONAL if larger("none", "at_start") else FAILS


C15 = Claim(
    id="C15",
    statement="without LayerNorm gradients are about ten times larger, and spike",
    source="v2 §4.3.2, Fig. 5",
    condition="larger at the start where residual connections are kept, the more the deeper; in training the factor shrinks, and "
    "there are no more spikes than with LayerNorm. Without residual connections too, as in v2's own probe, gradients are smaller",
    headline=(
        "gradient_none_over_pre_at_start",
        "gradient_none_over_pre_in_training",
        "gradient_bare_over_pre_at_start",
        "spikes_none_over_pre",
    ),
    measure=measure,
    judge=judge,
)
