"""Optimizers by name, from optax."""

import math
import numbers
from typing import Any, Literal, get_args

import jax
import optax

OptimizerName = Literal["adam", "adamw", "sgd"]
ScheduleName = Literal["constant", "cosine", "linear", "inverse_sqrt"]


def make_schedule(
    name: ScheduleName, learning_rate: float, steps: int, warmup: int = 0, final: float = 0.0
) -> optax.Schedule:
    r"""The learning rate η at each step: a linear rise over `warmup` steps to `learning_rate`, then

    - `"constant"`: η;
    - `"cosine"`: half a cosine, `"linear"`: a line, both to `final`·η at step `steps`;
    - `"inverse_sqrt"`: $\eta\sqrt{w/s}$ at step s with w = max(warmup, 1) (arXiv:1706.03762 §5.3).

    Raises `ValueError` for an unknown name or numbers that do not fit.
    """
    if name not in get_args(ScheduleName):
        raise ValueError(f"schedule={name!r} is unknown; choose one of {get_args(ScheduleName)}.")
    _positive("learning_rate", learning_rate)
    _whole("steps", steps, 1)
    _whole("warmup", warmup, 0)
    if warmup >= steps:
        raise ValueError(f"warmup={warmup} must be less than steps={steps}.")
    if not 0 <= final <= 1:
        raise ValueError(f"final={final!r} is a part of the learning rate: it must lie in [0, 1].")
    rest = steps - warmup
    if name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, rest, final)
    elif name == "linear":
        main = optax.linear_schedule(learning_rate, final * learning_rate, rest)
    elif name == "inverse_sqrt":
        start = max(warmup, 1)

        def main(count):
            return learning_rate * jax.lax.rsqrt((count + start) / start)
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
    """An optax optimizer.

    `"adam"`; `"adamw"`, which alone takes `weight_decay`, on matrices and not on biases, norms and other vectors; `"sgd"`
    with `momentum`. `clip` scales gradients whose global norm exceeds it: off by default, because it hides instability.

    Raises `ValueError` for an unknown name, numbers out of range, and decay where it would do nothing.
    """
    if name not in get_args(OptimizerName):
        raise ValueError(f"optimizer={name!r} is unknown; choose one of {get_args(OptimizerName)}.")
    if not callable(learning_rate):
        _positive("learning_rate", learning_rate)
    if clip is not None:
        _positive("clip", clip)
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay={weight_decay!r} must not be negative.")
    if weight_decay and name != "adamw":
        raise ValueError(f"weight_decay={weight_decay} does nothing with optimizer={name!r}: use 'adamw'.")
    for key, value in (("b1", b1), ("b2", b2), ("momentum", momentum)):
        if not 0 <= value < 1:
            raise ValueError(f"{key}={value!r} must lie in [0, 1).")
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


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r} must be a positive, finite number.")


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name}={value!r} must be an integer of at least {least}.")
