"""A Transformer as (vector field, solver, step): what is behind the table "block = field + solver + step"."""

from typing import Any

from pdejax._check import instance
from pdejax._discretization import Discretization
from pdejax.models._pairing import pair
from pdejax.models._transformer import Transformer


def lift(model: Transformer) -> Discretization:
    r"""Give the discretization that a Transformer is: its field with the model's weights, its solver, one step per layer.

    Depth is measured in layers: t ∈ [0, L], or [0, L·s] for a gated residual of scale s (whose step *is* s).
    `simulate(lift(model), model.embed(tokens))` returns the model's hidden states to rounding:

    | block | field | solver, one step per layer |
    |---|---|---|
    | pre-LN, sequential | A = Attn∘LN, R = FFN∘LN, no leak | Lie–Trotter, one Euler substep per term |
    | parallel (GPT-J, PaLM) | the same A + R | Euler |
    | Macaron | the same A, R | Strang with Euler substeps, R taking the halves |
    | peri-LN | A = LN∘Attn∘LN, R = LN∘FFN∘LN | Lie–Trotter with Euler substeps |
    | post-LN | A = Attn, R = FFN | Lie–Trotter with LN as retraction after each substep |
    | non-residual `u ← Attn(u)` | A with leak −u | Lie–Trotter with Euler, h = 1 |
    | gated `(1−s)u + s·Attn(u)` | A with leak −u | Lie–Trotter with Euler, h = s |

    So a "simulator without residual connections" (v2 Thm 3.4) is the leaky field at h = 1: refining h makes it residual.
    The weights are piecewise constant in depth; refining the step converges to the ODE with those weights, which is not
    the network itself but its continuous-depth sibling.

    Raises `TypeError` for anything but a `Transformer`.
    """
    instance(
        "lift",
        "model",
        model,
        Transformer,
        "a Simulator has model.discretization(n)",
    )
    return functional(model).discretization()


def functional(model: Any) -> Any:
    """A Transformer as the simulator with its weights, in their type for any type of state; other models as they are."""
    return pair(model, dtype=model.architecture.param_dtype) if isinstance(model, Transformer) else model
