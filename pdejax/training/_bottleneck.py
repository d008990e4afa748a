"""The information-bottleneck flow of the parameters, v1 (14), and the two contradictory signs v1 also prints."""

from typing import Any, NamedTuple, get_args

import jax
import optax

from pdejax._check import choice, number, traced
from pdejax.training._names import Signs


class InformationState(NamedTuple):
    """Marks a chain that adds ∇Ĩ; it holds nothing."""


def bottleneck_flow(
    learning_rate: Any,
    *,
    weight_decay: Any = 0.0,
    beta: Any = 0.0,
    signs: str = "v1 (14)",
    dt: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Return the bottleneck flow as an optax chain: `update(∇L, state, params, information_gradient=∇Ĩ)`, all trees like θ.

    | `signs` | right side of θ' | |
    |---|---|---|
    | `"v1 (14)"` | $-\eta\nabla L - \lambda\theta - \beta\nabla\tilde I$ | descends all three: compresses |
    | `"v1 (3)"` | $-\eta\nabla L + \lambda\theta - \beta\nabla\tilde I$ | λ expands the weights; v1 has η = 1 here |
    | `"algorithm 1"` | $-\eta(\nabla L + \lambda\theta - \beta\nabla\tilde I)$ | line 33: ascends Ĩ; η multiplies all |

    Claim C9: they contradict each other. With L = 0 and β = 0 a step multiplies θ by 1 − Δt·λ, 1 + Δt·λ and 1 − Δt·ηλ.

    Without `optimizer` the chain is explicit Euler in training time, $\theta \leftarrow \theta + \Delta t\,\theta'$, with
    step `dt` (v1: 1). It is stable for Δt·(ηh + λ) < 2, h the largest curvature of L + βĨ/η.
    With `optimizer` the chain hands −θ' to it as if it were a gradient, for instance `optax.adam(1e-3)`. The terms keep their
    relative weights, but Adam divides the sum by its running size: λ and β no longer set rates in time, a common factor
    of η, λ, β drops out, and the fixed points, where θ' = 0, are all that is left of the flow. Decay then is Adam's "L2"
    (coupled), not AdamW's.

    - `learning_rate` η ≥ 0, or an optax schedule of it (which does not change λ and β, except under `"algorithm 1"`).
    - `weight_decay` λ ≥ 0, `beta` β ≥ 0: signs are chosen by `signs` only. All parameters decay, biases too, as v1 has it.
    - All three may be traced, so `optax.inject_hyperparams(bottleneck_flow, static_args=("signs", "dt", "optimizer"))` works.

    Raises `ValueError` for numbers out of range, unknown signs, or `dt` together with an optimizer, which has its own step;
    `update` raises it if `params` is missing, or `information_gradient` where β > 0.
    """
    choice("bottleneck_flow", "signs", signs, get_args(Signs))
    rates = {"learning_rate": learning_rate, "weight_decay": weight_decay, "beta": beta, "dt": dt}
    for name, value in rates.items():
        if not (traced(value) or (name == "learning_rate" and callable(value))):
            number("bottleneck_flow", name, value, least=0)
    if isinstance(dt, jax.Array) or dt == 0 or (optimizer is not None and dt != 1.0):
        raise ValueError(
            f"dt={dt!r} must be positive, and 1.0 (left out) with an optimizer, whose learning rate is the step."
        )
    schedule: Any = learning_rate
    scale = optax.scale_by_schedule(schedule) if callable(learning_rate) else optax.scale(learning_rate)
    if signs == "algorithm 1":
        parts = (optax.add_decayed_weights(weight_decay), add_information(-beta), scale)
    else:
        decay = weight_decay if signs == "v1 (14)" else -weight_decay
        parts = (scale, optax.add_decayed_weights(decay), add_information(beta))
    chain = optax.chain(*parts, optax.scale(-dt) if optimizer is None else optimizer)

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError("bottleneck_flow: update(gradient, state, params) needs params: λθ is part of the flow.")
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts with floats
            return chain.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(chain.init, update)


def signed_rates(signs: str, learning_rate: float, weight_decay: float, beta: float) -> tuple[float, float, float]:
    r"""η, a and b of $\theta' = -\eta\nabla L - a\theta - b\nabla\tilde I$ for these signs: a < 0 expands, b < 0 ascends Ĩ."""
    if signs == "algorithm 1":
        return learning_rate, learning_rate * weight_decay, -learning_rate * beta
    return learning_rate, weight_decay if signs == "v1 (14)" else -weight_decay, beta


def add_information(beta: Any) -> optax.GradientTransformationExtraArgs:
    """Return a link of a chain: it adds `beta`·∇Ĩ, from `update(..., information_gradient=∇Ĩ)`, to what passes. β < 0 ascends Ĩ.

    `update` raises `ValueError` if β ≠ 0 and the gradient is missing, or not a tree like the parameters.
    """
    if not traced(beta):
        number("add_information", "beta", beta)

    def init(params):
        del params
        return InformationState()

    def update(updates, state, params=None, *, information_gradient=None, **extra):
        del params, extra
        if not traced(beta) and beta == 0:
            return updates, state
        if information_gradient is None:
            raise ValueError(f"beta={beta}, but update(...) was given no information_gradient=∇Ĩ.")
        if jax.tree.structure(information_gradient) != jax.tree.structure(updates):
            raise ValueError("information_gradient must be a tree like the parameters.")
        return jax.tree.map(lambda u, g: u + beta * g, updates, information_gradient), state

    return optax.GradientTransformationExtraArgs(init, update)


def takes_information(opt_state: Any) -> bool:
    """Whether the optimizer with this state has a link that adds ∇Ĩ."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, InformationState))
    return any(isinstance(leaf, InformationState) for leaf in leaves)
