"""v1's information bottleneck: its flow (14) as an optimizer, the step with an estimate of I(X; u), both from a config."""

import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from pdejax._arguments import checked
from pdejax._check import choice, integer, number, traced
from pdejax.analysis.information.trained import CLUB, AbstractInformation, BarberAgakov, InfoNCE, PaperEstimate
from pdejax.data import Dataset
from pdejax.data._dataset import Batch
from pdejax.training._config import TrainConfig
from pdejax.training._names import Signs
from pdejax.training._step import Static, Step, TrainState, gradient_norms, merge_model


class InformationState(NamedTuple):
    """Marks a chain that adds ∇Ĩ; it holds nothing."""


@checked
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


Summary = Callable[[Batch], Array]


class EstimatorState(NamedTuple):
    """`TrainState.extra` of a bottleneck step: the estimator's parameters and its own optimizer's state."""

    params: PyTree[Array]
    opt_state: PyTree

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"EstimatorState({count:,} parameters)"


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
    - `summary`: x, a function of the batch such as `InputProjection`, or `"embedding"`, the
      mean of state 0, which moves as the embedding is trained. Its gradient is cut: θ acts on Ĩ through T only.

    `state.extra` must be `start_estimator(estimator, estimator_optimizer)`. Metrics:
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


_ESTIMATES: dict[str, Callable[..., AbstractInformation]] = {
    "infonce": InfoNCE,
    "club": CLUB,
    "barber_agakov": BarberAgakov,
    "paper": PaperEstimate,
}
PROJECTED = 16
"""Numbers a sequence is projected to, as the X of the estimate."""


def bottleneck_optimizer(config: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """v1 (14), or its contradictory signs. With `"sgd"` the flow itself by explicit Euler, with λ and β as rates per step;
    else the sum of its terms in front of Adam, whose step they then share."""
    terms = {"weight_decay": config.decay, "beta": config.beta, "signs": config.signs}
    if config.optimizer == "sgd":
        return bottleneck_flow(config.make_schedule(), **terms)
    return bottleneck_flow(1.0, **terms, optimizer=config.make_optimizer())


def bottleneck_step(
    config: TrainConfig, task: Any, static: Static, state: TrainState, dataset: Dataset
) -> tuple[Step, TrainState]:
    """The step of the flow for `config.bottleneck`, and the state with its estimator, which is trained by Adam at 1e-3."""
    assert config.bottleneck is not None
    project_key, estimator_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 2))
    ends: dict[str, Any] = {"features": dataset.features}
    if dataset.features is None:
        assert dataset.vocabulary is not None
        ends = {"vocab": len(dataset.vocabulary)}
    summary = InputProjection(PROJECTED, length=dataset.length, key=project_key, **ends)
    estimator = _ESTIMATES[config.bottleneck](PROJECTED, config.dim, key=estimator_key)
    fitting = optax.adam(1e-3)
    step = make_bottleneck_step(
        task,
        bottleneck_optimizer(config),
        static,
        estimator,
        noise=config.noise,
        estimator_optimizer=fitting,
        representation=config.bottleneck_layer,
        summary=summary,
    )
    return step, state._replace(extra=start_estimator(estimator, fitting))
