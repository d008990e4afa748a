"""C9: the three flows of the parameters that v1 prints."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from pdejax._bootstrap import over_seeds
from pdejax.runs._findings import CONDITIONAL, FAILS, HOLDS, Counterexample, Evidence, Measured, Verdict
from pdejax.studies.claims._claim import Claim, high, low
from pdejax.training import bottleneck_flow

SIGNS = {"v1_14": "v1 (14)", "v1_3": "v1 (3)", "line_33": "algorithm 1"}
INPUTS, OUTPUTS, NOISE = 3, 2, 0.5
RATE, DECAY, BETA, STEPS = 0.1, 0.02, 0.05, 150


def measure(seed: int, seeds: int) -> Measured:
    """T = WX + σξ with X normal and L = ½‖W − W*‖²: I(X; T) and its gradient are exact, and with its best Gaussians v1 (16)
    equals I. From the same W, ‖W‖ with λ alone and I with β alone, against the flow without either."""
    norms: dict[str, list[float]] = {name: [] for name in SIGNS}
    contents: dict[str, list[float]] = {name: [] for name in SIGNS}
    for key in jax.random.split(jax.random.key(seed), seeds):
        k1, k2 = jax.random.split(key)
        target = jax.random.normal(k1, (OUTPUTS, INPUTS))
        start = target + 0.3 * jax.random.normal(k2, target.shape)
        plain = _flow(start, target, "v1 (14)", 0.0, 0.0)
        for name, signs in SIGNS.items():
            norms[name].append(float(_size(_flow(start, target, signs, DECAY, 0.0)) / _size(plain) - 1))
            contents[name].append(float(information(_flow(start, target, signs, 0.0, BETA)) - information(plain)))
    figures = {}
    for name in SIGNS:
        figures[f"weight_norm_change_{name}"] = over_seeds(norms[name])
        figures[f"information_change_{name}"] = over_seeds(contents[name])
    corrected = {key: figures.pop(key) for key in ("weight_norm_change_v1_14", "information_change_v1_14")}
    return Measured(figures, corrected, smallest())


def judge(evidence: Evidence) -> Verdict:
    """All three shrink the weights and compress: they hold. Only v1 (14) does, surely: as printed they fail."""

    def shrinks(name: str) -> bool:
        kinds = (f"weight_norm_change_{name}", f"information_change_{name}")
        return all(high(evidence[kind]) < 0 for kind in kinds)

    if all(shrinks(name) for name in SIGNS):
        return HOLDS
    contrary = low(evidence["weight_norm_change_v1_3"]) > 0 or low(evidence["information_change_line_33"]) > 0
    return FAILS if contrary else CONDITIONAL


def bears_out(evidence: Evidence) -> bool:
    """(14) alone shrinks the weights and compresses."""
    return bool(all(high(evidence[f"{kind}_change_v1_14"]) < 0 for kind in ("weight_norm", "information")))


def information(w: Array) -> Array:
    """I(X; WX + σξ) = ½ ln det(1 + WWᵀ/σ²), nats."""
    return 0.5 * jnp.linalg.slogdet(jnp.eye(w.shape[0]) + w @ w.T / NOISE**2)[1]


@functools.partial(jax.jit, static_argnames=("signs", "decay", "beta"))
def _flow(start: Array, target: Array, signs: str, decay: float, beta: float) -> Array:
    flow = bottleneck_flow(RATE, weight_decay=decay, beta=beta, signs=signs)

    def step(carry, _) -> Any:
        w, state = carry
        loss, info = w - target, jax.grad(information)(w)
        updates, state = flow.update(loss, state, w, information_gradient=info)
        return (optax.apply_updates(w, updates), state), None

    return jax.lax.scan(step, (start, flow.init(start)), length=STEPS)[0][0]


def _size(w: Array) -> Array:
    return jnp.sqrt(jnp.sum(w**2))


def smallest() -> Counterexample:
    """One weight θ = 1, L = 0, I = ½ln(1 + θ²/σ²) with σ = 1: one step of each."""
    theta, gradient = np.array(1.0), np.array(0.5)  # I′ = θ/(1 + θ²)
    eta, decay, beta = 0.5, 0.1, 0.1
    after_decay = np.array([1 - decay, 1 + decay, 1 - eta * decay])
    after_information = np.array([1 - beta * 0.5, 1 - beta * 0.5, 1 + eta * beta * 0.5])
    assert math.isclose(float(gradient), float(theta / (1 + theta**2)))
    rates = np.array([eta, decay, beta])
    return Counterexample(
        "one weight θ = 1, L = 0, T = θX + ξ, so I = ½ln(1 + θ²) and I′ = ½; `rates` are η, λ, β. θ after one step with λ "
        "alone and with β alone, in the order v1 (14), v1 (3), line 33: under (3) decay makes it grow, under line 33 I grows.",
        {"theta": theta, "information_gradient": gradient, "rates": rates, "after_decay": after_decay,
         "after_information": after_information},
    )  # fmt: skip


C9 = Claim(
    id="C9",
    statement="(3), (14) and line 33 of Algorithm 1 are one flow, which regularizes the weights and compresses",
    source="v1 (3), (14), Algorithm 1 line 33",
    quote="∂θ/∂t = −∇_θ L(θ) + λθ − β∇_θ I(X; T_θ(X)), where … λθ represents the L2 regularization term, commonly used in "
    "Transformer training. (v1 §2.2.2, (3)) θ^{n+1} = θ^n − η(∇_θ L(θ^n) + λθ^n − β∇_θ Ĩ(X; T_θ(X))). (v1 Algorithm 1, line 33) "
    "∂θ/∂t = −η∇_θ L(θ) − λθ − β∇_θ Ĩ(X; T_θ(X)). … This equation describes how model parameters evolve over time to balance "
    "task performance and information compression. (v1 A.2, (14))",
    bears_out=bears_out,
    condition="only (14) does: (3) has the sign of λθ reversed, so that the weights grow, line 33 that of β∇Ĩ, so that I(X; T) "
    "grows; η also multiplies λ and β in line 33 but not in (14)",
    headline=("weight_norm_change_v1_3", "information_change_line_33", "information_change_v1_14"),
    measure=measure,
    judge=judge,
)
