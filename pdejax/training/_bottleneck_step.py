"""One training step with the information-bottleneck flow, and what it calls X and T."""

import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from pdejax._check import integer, number
from pdejax.analysis.information.trained import AbstractInformation
from pdejax.data._batch import Batch
from pdejax.training._bottleneck import takes_information
from pdejax.training._state import Static, TrainState, merge_model
from pdejax.training._step import gradient_norms

Summary = Callable[[Batch], Array]


class EstimatorState(NamedTuple):
    """`TrainState.extra` of a bottleneck step: the estimator's parameters and its own optimizer's state."""

    params: PyTree[Array]
    opt_state: PyTree


def start_estimator(estimator: AbstractInformation, optimizer: optax.GradientTransformation) -> EstimatorState:
    """Return the estimator's state before the first step, for `TrainState(extra=...)`. Copied: steps give their memory away."""
    params = jax.tree.map(jnp.copy, eqx.filter(estimator, eqx.is_inexact_array))
    return EstimatorState(params, optimizer.init(params))


class InputProjection(eqx.Module):
    r"""A fixed random projection of the input to `x_dim` numbers, as the X of an information estimate:

    values $v\,(n, f)$: $x_k = (nf)^{-1/2}\sum_{ij}G_{ijk}v_{ij}$; token ids $z\,(n,)$:
    $x_k = n^{-1/2}\sum_i P_{ik}E_{z_ik}$, with entries of G, P, E standard normal. Padding counts as 0.

    It is not trained, so X is the same variable throughout training, which the mean embedding is not. By the data-processing
    inequality I(x; T) ≤ I(X; T): a projection can only lose information about T.

    `length` n; `features` f of values, or `vocab` size of ids; `key`. Raises `ValueError` for sizes below 1 or both kinds at
    once, and for a batch of another shape.
    """

    table: Float[Array, "rows x_dim"]
    places: Float[Array, "n x_dim"] | None
    length: int = eqx.field(static=True)

    def __init__(
        self, x_dim: int, *, length: int, key: PRNGKeyArray, features: int | None = None, vocab: int | None = None
    ):
        if (features is None) == (vocab is None):
            raise ValueError("InputProjection: give features=... for values or vocab=... for token ids, not both.")
        for name, value in (("x_dim", x_dim), ("length", length), ("features", features), ("vocab", vocab)):
            if value is not None:
                integer("InputProjection", name, value)
        k1, k2 = jax.random.split(key)
        self.length = int(length)
        if vocab is None:
            assert features is not None
            self.table = jax.random.normal(k1, (length * features, x_dim)) / (length * features) ** 0.5
            self.places = None
        else:
            assert vocab is not None
            self.table = jax.random.normal(k1, (vocab, x_dim))
            self.places = jax.random.normal(k2, (length, x_dim)) / length**0.5

    def __call__(self, batch: Batch) -> Float[Array, "b x_dim"]:
        """x for every sequence of the batch."""
        inputs, mask = jnp.asarray(batch.inputs), jnp.asarray(batch.mask)
        ids = jnp.issubdtype(inputs.dtype, jnp.integer)
        wide = math.prod(inputs.shape[1:])
        if (
            ids != (self.places is not None)
            or inputs.shape[1] != self.length
            or not (ids or wide == self.table.shape[0])
        ):
            raise ValueError(
                f"InputProjection: inputs of shape {inputs.shape} and dtype {inputs.dtype} do not fit a projection built for "
                f"{self.length} {'token ids' if self.places is not None else 'places of values'}."
            )
        if self.places is not None:
            return jnp.sum(jnp.where(mask[:, :, None], self.places[None] * self.table[inputs], 0), axis=1)
        values = jnp.where(mask.reshape(*mask.shape, *(1,) * (inputs.ndim - 2)), inputs, 0)
        return values.reshape(len(values), -1) @ self.table.astype(values.dtype)


def mean_hidden_states(model: Any, batch: Batch) -> Float[Array, "b K d"]:
    """All states of `model.hidden_states` (0 is the embedding, −1 the last), averaged over each sequence's real tokens."""

    def one(tokens, mask):
        u = model.hidden_states(tokens, mask)
        weight = mask.astype(u.dtype)
        return jnp.einsum("n,knd->kd", weight, u) / jnp.maximum(jnp.sum(weight), 1)

    return jax.vmap(one)(jnp.asarray(batch.inputs), jnp.asarray(batch.mask))


def make_bottleneck_step(
    task: Any,
    optimizer: optax.GradientTransformationExtraArgs,
    static: Static,
    estimator: AbstractInformation,
    *,
    noise: float,
    estimator_optimizer: optax.GradientTransformation,
    representation: int = -1,
    summary: Summary | Literal["embedding"] = "embedding",
    estimator_updates: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    r"""Return `step(state, batch) -> (state, metrics)`, one compiled step of the bottleneck flow; the old memory is reused.

    Per step: ∇L; $T = \bar u_l + \sigma\xi$; `estimator_updates` steps of `estimator_optimizer` on
    `estimator.fit_loss(x, T)` with x and T held fixed; then Ĩ of the new estimator, and one update of θ from ∇L and ∇Ĩ
    through `optimizer`, a [`bottleneck_flow`][pdejax.training.bottleneck_flow], which holds η, λ, β and their signs.

    - T: state `representation` of `model.hidden_states` (0 the embedding, −1 the last), averaged over the real tokens,
      `(d,)`, plus Gaussian noise of standard deviation `noise` σ > 0. Without noise T is a function of X, and a noiseless
      smooth flow is a bijection, so that I(X; T) is infinite or the constant H(X) whatever the layer does (claim C10): only
      σ makes Ĩ and its gradient mean something. Read Ĩ beside σ and the size of T: scaling T up raises it.
    - `summary`: x, a function of the batch such as [`InputProjection`][pdejax.training.InputProjection], or `"embedding"`, the
      mean of state 0, which moves as the embedding is trained. Its gradient is cut: θ acts on Ĩ through T only.

    `state.extra` must be [`start_estimator`][pdejax.training.start_estimator]`(estimator, estimator_optimizer)`. Metrics:
    those of the task, `loss`, `information` (nats, of this batch, which has just trained the estimator),
    `information_saturated` (0 or 1), `information_limit`, `estimator_loss`, `gradient_norm` ‖∇L‖
    and `layer_gradient_norms`, `information_gradient_norm` ‖∇Ĩ‖, `parameter_norm` ‖θ‖ after the step.

    Raises `ValueError`/`TypeError` for σ ≤ 0, an optimizer that would ignore ∇Ĩ, an estimator or state that does not fit, or
    sizes that do not fit, before anything compiles or as the first step is traced.
    """
    why = "without noise the representation is a function of the input and its information infinite or constant (claim C10)"
    number("make_bottleneck_step", "noise", noise, above=0, advice=why)
    if not isinstance(estimator, AbstractInformation):
        raise TypeError(f"estimator is a {type(estimator).__name__}; use one of pdejax.analysis.information.")
    if isinstance(representation, bool) or not isinstance(representation, numbers.Integral):
        raise TypeError(f"representation={representation!r} must be an integer: 0 the embedding, −1 the last state.")
    integer("make_bottleneck_step", "estimator_updates", estimator_updates)
    if summary != "embedding" and not callable(summary):
        raise TypeError(f"summary={summary!r} must be a function of the batch or 'embedding'.")
    if not takes_information(optimizer.init({"probe": jnp.zeros(1)})):
        raise ValueError(
            "optimizer would ignore ∇Ĩ: build it with bottleneck_flow, or chain add_information(beta) before it."
        )
    fixed = eqx.filter(estimator, eqx.is_inexact_array, inverse=True)

    def objective(params, batch, key):
        return task.loss(merge_model(params, static), batch, key)

    def represent(params, batch):
        states = mean_hidden_states(merge_model(params, static), batch)
        t = states[:, representation]
        x = jnp.asarray(summary(batch)) if callable(summary) else states[:, 0]
        return t, jax.lax.stop_gradient(x.astype(t.dtype))

    def refit(extra: EstimatorState, x, t, key) -> tuple[EstimatorState, Array]:
        def fit_loss(params, key):
            return eqx.combine(params, fixed).fit_loss(x, t, key)

        def once(extra, key):
            value, gradient = jax.value_and_grad(fit_loss)(extra.params, key)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts with floats
                updates, opt_state = estimator_optimizer.update(gradient, extra.opt_state, extra.params)
            return EstimatorState(optax.apply_updates(extra.params, updates), opt_state), value

        extra, losses = jax.lax.scan(once, extra, jax.random.split(key, int(estimator_updates)))
        return extra, losses[-1]

    def step(state: TrainState, batch: Batch):
        if not isinstance(state.extra, EstimatorState):
            raise TypeError("state.extra must be start_estimator(estimator, estimator_optimizer).")
        key = jax.random.fold_in(state.key, state.step)
        task_key, noise_key, fit_key, own_key = jax.random.split(key, 4)
        (loss, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(state.params, batch, task_key)
        clean, pull, x = jax.vjp(lambda params: represent(params, batch), state.params, has_aux=True)
        t = clean + float(noise) * jax.random.normal(noise_key, clean.shape, clean.dtype)
        extra, fit_loss = refit(state.extra, x, jax.lax.stop_gradient(t), fit_key)

        def information(t):
            found = eqx.combine(extra.params, fixed).estimate(x, t, own_key, noise=noise)
            return found.value, found

        slope, found = jax.grad(information, has_aux=True)(t)
        (compression,) = pull(slope)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, information_gradient=compression)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            **metrics,
            "loss": loss,
            "information": found.value,
            "information_limit": found.limit,
            "information_saturated": found.saturated.astype(found.value.dtype),
            "estimator_loss": fit_loss,
            **gradient_norms(gradient),
            "information_gradient_norm": optax.tree.norm(compression),
            "parameter_norm": optax.tree.norm(params),
        }
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state, extra=extra), metrics

    return jax.jit(step, donate_argnums=0)
