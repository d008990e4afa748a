"""What a perturbation analysis returns: answers along one kind of direction, and all kinds together."""

import equinox as eqx
from jaxtyping import Array, Bool, Float

from pdejax._figure import AbstractRecord, Figure


class Response(AbstractRecord):
    r"""Answers along one kind of direction: b sequences, r directions each, k sizes ε.

    - `state (b, r, k)`: ‖u_L(u + δ) − u_L(u)‖ over real tokens; `state_slope (b, r)`: its linear prediction per unit ε, ‖J δ‖/ε.
    - `loss (b, r, k)`: ℓ(u + δ) − ℓ(u), `loss_slope (b, r)`: ⟨∂ℓ/∂u, δ⟩/ε; None without a loss.
    - `state_departure`, `loss_departure (b, r, k)`: how far the answer is from the linear one. Relative to ‖Jδ‖ for the state;
      for the loss to the slope that directions of this kind have in root mean square, because a random one may be flat.
    - `state_resolved`, `loss_resolved (b, r, k)`: whether rounding could make at most half the tolerance of the departure. Where
      False, differences are noise (small ε in float32) and the linear prediction is the better figure.
    - `state_limit`, `loss_limit (b, r)`: ε at which the departure first exceeds the tolerance, between two sizes by its
      logarithm; the first resolved size if it does there already, inf if it never does.
    - `state_median (k,)`, `loss_median (k,)` of |·|, `state_limit_median ()`, `loss_limit_median ()`: medians with bootstrap
      intervals over sequences, or over directions where there is one sequence.
    """

    state: Float[Array, "..."]
    state_slope: Float[Array, "..."]
    state_departure: Float[Array, "..."]
    state_resolved: Bool[Array, "..."]
    state_limit: Float[Array, "..."]
    state_median: Figure
    state_limit_median: Figure
    loss: Float[Array, "..."] | None
    loss_slope: Float[Array, "..."] | None
    loss_departure: Float[Array, "..."] | None
    loss_resolved: Bool[Array, "..."] | None
    loss_limit: Float[Array, "..."] | None
    loss_median: Figure | None
    loss_limit_median: Figure | None


class PerturbationSensitivity(AbstractRecord):
    r"""Answers to perturbations at depth `at`.

    - `epsilons (k,)`, ‖δ‖ = ε·`scale (b,)`; `base_loss (b,)` without perturbation, or None.
    - `random`: the null, random directions; `gradient`: along +∂ℓ/∂u (adversarial to the loss; None without a loss);
      `singular`: along the direction to which the final state answers most. None where they were not asked for.
    - `state_floor (b,)`, `loss_floor (b,)`: rounding noise of the differences, as measured.
    - `ratio (k,)`: median state answer of `singular` / `random`; `loss_ratio (k,)`: of |loss| for `gradient` / `random`, with
      intervals from the same draws; None where one is missing. To compare two models (trained, untrained) compare their
      medians, limits and ratios.
    """

    epsilons: Float[Array, "..."]
    scale: Float[Array, "..."]
    base_loss: Float[Array, "..."] | None
    random: Response | None
    gradient: Response | None
    singular: Response | None
    state_floor: Float[Array, "..."]
    loss_floor: Float[Array, "..."] | None
    ratio: Figure | None
    loss_ratio: Figure | None
    at: int = eqx.field(static=True)
    tolerance: float = eqx.field(static=True)
