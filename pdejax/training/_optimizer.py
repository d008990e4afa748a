"""Optimizers by name, from optax."""

from typing import Any, get_args

import jax
import optax

from pdejax._check import choice, integer, number
from pdejax.training._names import OptimizerName, ScheduleName


def make_schedule(
    name: ScheduleName, learning_rate: float, steps: int, warmup: int = 0, final: float = 0.0
) -> optax.Schedule:
    r"""Return the learning rate η at each step: a linear rise over `warmup` steps to `learning_rate`, then

    - `"constant"`: η;
    - `"cosine"`: half a cosine, `"linear"`: a line, both to `final`·η at step `steps`;
    - `"inverse_sqrt"`: $\eta\sqrt{w/s}$ at step s with w = max(warmup, 1) (arXiv:1706.03762 §5.3).

    Raises `ValueError` for an unknown name or numbers that do not fit.
    """
    choice("make_schedule", "schedule", name, get_args(ScheduleName))
    number("make_schedule", "learning_rate", learning_rate, above=0)
    integer("make_schedule", "steps", steps)
    integer("make_schedule", "warmup", warmup, 0)
    if warmup >= steps:
        raise ValueError(f"make_schedule: warmup={warmup} must be less than steps={steps}.")
    number("make_schedule", "final", final, least=0, most=1, advice="it is a part of the learning rate")
    rest = steps - warmup
    main: Any
    if name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, rest, final)
    elif name == "linear":
        main = optax.linear_schedule(learning_rate, final * learning_rate, rest)
    elif name == "inverse_sqrt":
        start = max(warmup, 1)
        main = lambda count: learning_rate * jax.lax.rsqrt((count + start) / start)  # noqa: E731
    else:
        main = optax.constant_schedule(learning_rate)
    if warmup == 0:
        return main
    # The first step is not a step of size zero.
    rise = optax.linear_schedule(learning_rate / (warmup + 1), learning_rate, warmup)
    return optax.join_schedules([rise, main], [warmup])


def make_optimizer(
    name: OptimizerName = "adam",
    *,
    learning_rate: float | optax.Schedule,
    weight_decay: float = 0.0,
    clip: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    momentum: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Return an optax optimizer.

    `"adam"`; `"adamw"`, which alone takes `weight_decay`, on matrices and not on biases, norms and other vectors; `"sgd"`
    with `momentum`. `clip` scales gradients whose global norm exceeds it: off by default, because it hides instability.

    Raises `ValueError` for an unknown name, numbers out of range, and decay where it would do nothing.
    """
    choice("make_optimizer", "optimizer", name, get_args(OptimizerName))
    if not callable(learning_rate):
        number("make_optimizer", "learning_rate", learning_rate, above=0)
    if clip is not None:
        number("make_optimizer", "clip", clip, above=0)
    number("make_optimizer", "weight_decay", weight_decay, least=0)
    if weight_decay and name != "adamw":
        raise ValueError(
            f"make_optimizer: weight_decay={weight_decay} does nothing with optimizer={name!r}: use 'adamw'."
        )
    for key, value in (("b1", b1), ("b2", b2), ("momentum", momentum)):
        number("make_optimizer", key, value, least=0, below=1)
    if name == "adam":
        main = optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)
    elif name == "adamw":
        main = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=is_matrix)
    else:
        main = optax.sgd(learning_rate, momentum=momentum or None)
    chain = main if clip is None else optax.chain(optax.clip_by_global_norm(clip), main)
    return _promoting(optax.with_extra_args_support(chain))


def _promoting(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """The same under JAX's strict dtype promotion, which optax's bias corrections do not allow for."""

    def update(updates, state, params=None, **extra):
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def is_matrix(params: Any) -> Any:
    """A tree of booleans, true at weights that decay: those whose name begins with w, and Flax's kernels and embeddings."""

    def decays(path, leaf) -> bool:
        last = str(getattr(path[-1], "key", getattr(path[-1], "name", "")))
        return last.startswith("w") or last in ("kernel", "embedding", "table")

    return jax.tree_util.tree_map_with_path(decays, params)
