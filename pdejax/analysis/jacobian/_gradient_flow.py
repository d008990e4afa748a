"""How gradients flow back through depth: ‖∂loss/∂u_l‖ and the gradients of each layer's parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._bootstrap import bootstrap, check_bootstrap
from pdejax._figure import AbstractRecord, Figure
from pdejax._step_maps import AbstractMaps
from pdejax.analysis.jacobian._systems import Examples, Loss, System, as_system, default_loss, layer_norms


class GradientFlow(AbstractRecord):
    r"""Gradients by depth, of b sequences and L layers.

    - `depths (L + 1,)`; `loss (b,)`, each sequence's own.
    - `states (b, L + 1)`: $\|\partial\ell_i/\partial u_l\|_F$ over real tokens, the total derivative through all later layers.
    - `parameters (b, L)`: norm of the gradient of ℓ_i by the parameters of layer l; `batch_parameters (L,)`: of the mean loss,
      what training calls `layer_gradient_norms`. Both None where weights serve all depths.
    - `median`: median of `states` over sequences, a `Figure` `(L + 1,)` with its bootstrap interval, and with that of the null,
      `"labels"` or `"model"`, among its nulls. `ratio`: median / null median, its interval from the same draws; None
      without a null.
    """

    depths: Float[Array, "..."]
    loss: Float[Array, "..."]
    states: Float[Array, "..."]
    parameters: Float[Array, "..."] | None
    batch_parameters: Float[Array, "..."] | None
    median: Figure
    ratio: Figure | None


class GradientHistory(AbstractRecord):
    """Gradient flow over training: `steps (m,)`, and a `GradientFlow` whose arrays have the axis m in front."""

    steps: Int[Array, " m"]
    flow: GradientFlow


@checked
def gradient_flow(
    system: Any,
    inputs: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    key: PRNGKeyArray | None = None,
    loss: Loss | None = None,
    mask: ArrayLike | None = None,
    null: Any = "labels",
    depths: int | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> GradientFlow:
    r"""Find the norms of $\partial\ell/\partial u_l = \partial\ell/\partial u_{l+1}\cdot\partial u_{l+1}/\partial u_l$, v1
    (22), at every layer, sequence by sequence, and of the gradients of each layer's parameters.

    - `system`: a `Network`, `Transformer` or `Simulator`, whose layers are its own; or a `Discretization` with a number of steps,
      looked at between `depths` equally long parts of them (default: every step).
    - `inputs`: token ids `(n,)`, `(b, n)` or values `(…, n, features)` of a model; initial states `(n, d)`, `(b, n, d)`
      (`(…, L, n, d)` for coupled layers) of a discretization. `mask (n,)` or `(b, n)`, true at real tokens.
    - `loss(output, label, mask)`: a scalar of one sequence's logits (of a model with a head) or last state, zeros at padding.
      Default, for models with a head: cross-entropy of the class, or the mean over real tokens of the next token's. A new
      function compiles anew.
    - `null`: `"labels"`: the labels of other sequences (a random cyclic exchange), which leaves what the network does and takes
      away what it has learned about the answers; needs labels and b ≥ 2, else there is none. Or another system of the same
      kind, such as the untrained model or `shuffle_weights(model, key=…)`. Or None.

    The state derivative adds a zero to every layer's output and differentiates by it: no layer's Jacobian is formed. For one
    linear map per layer, u' = uM, it is $(\partial\ell/\partial u_L)(M^\top)^{L-l}$. Sequences run one after another. Cost: about
    three forward passes per sequence (twice with a null) and, beyond the batch, memory of 3 trajectories of one sequence, two
    copies of the parameters and one layer's working set. In float32 a norm is good to about 1e-5 relative, unless gradients
    vanish below 1e-38.

    Raises `ValueError`/`TypeError` for inputs, labels, masks, losses or steps that do not fit. A sequence whose state is not
    finite has NaN norms, and the median is NaN.
    """
    key = jax.random.key(0) if key is None else key
    check_bootstrap("gradient_flow", level, resamples)
    found, examples = as_system("gradient_flow", system, inputs, labels, mask, depths)
    loss = default_loss("gradient_flow", found, loss, examples.labels)
    one, two = jax.random.split(key)
    b = examples.inputs.shape[0]
    if isinstance(null, str):
        if null != "labels":
            raise ValueError(f"gradient_flow: null={null!r} is unknown; give 'labels', a null model, or None.")
        if examples.labels is None or b < 2:
            other = None
        else:
            exchanged = eqx.tree_at(lambda e: e.labels, examples, examples.labels[_exchange(b, one)])
            other = (found, exchanged)
    elif null is None:
        other = None
    else:
        if not isinstance(null, type(system)):
            raise TypeError(
                f"gradient_flow: null is a {type(null).__name__}; it must be a {type(system).__name__} too, 'labels' or None."
            )
        other = as_system("gradient_flow", null, inputs, labels, mask, depths)
    ts, value, states, parameters, mean = _flow(found, examples, loss)
    nothing = None if other is None else _flow(*other, loss)[2]
    if nothing is not None and nothing.shape != states.shape:
        raise ValueError(
            f"gradient_flow: the null has {nothing.shape[1] - 1} layers, the system {states.shape[1] - 1}."
        )
    median, ratio = _compared(states, nothing, two, level, resamples)
    if nothing is not None:
        name = "labels" if isinstance(null, str) else "model"
        median = median[0].beside({name: median[1]})
    return GradientFlow(ts, value, states, parameters, mean, median, ratio)


@checked
def stack_gradient_flows(flows: Sequence[GradientFlow], steps: ArrayLike | Sequence[int]) -> GradientHistory:
    """Join the gradient flow over training from one record per checkpoint, of the same batch, and the training `steps` they
    belong to.

    Raises `ValueError` for no record, records of different shapes or kinds, or another number of steps.
    """
    flows = list(flows)
    number = jnp.asarray(steps)
    if not flows or number.shape != (len(flows),) or not jnp.issubdtype(number.dtype, jnp.integer):
        raise ValueError(
            f"stack_gradient_flows: {len(flows)} records and steps of shape {number.shape}, type {number.dtype}; give one record "
            "at least and one whole number for each."
        )
    for i, flow in enumerate(flows):
        for name, one in vars(flow).items():
            found, first = (jax.tree.map(jnp.shape, x) for x in (one, getattr(flows[0], name)))
            if found != first or jax.tree.structure(one) != jax.tree.structure(getattr(flows[0], name)):
                raise ValueError(
                    f"stack_gradient_flows: flows[{i}].{name} and flows[0].{name} differ in {_difference(found, first)}; take "
                    "all records of the same batch, with the same null and level."
                )
    return GradientHistory(number, jax.tree.map(lambda *x: jnp.stack(x), *flows))


def _difference(one: Any, other: Any) -> str:
    plain = isinstance(one, tuple) and isinstance(other, tuple)
    return f"shape, {one} and {other}" if plain else "null, level or shape"


def _exchange(b: int, key: PRNGKeyArray) -> Int[Array, " b"]:
    """One random cycle through all sequences: nobody keeps its own."""
    order = jax.random.permutation(key, b)
    return jnp.zeros(b, order.dtype).at[order].set(jnp.roll(order, 1))


@eqx.filter_jit
def _flow(system: System, examples: Examples, loss: Loss):
    trained, rest = eqx.partition(system, system.trained())
    first = jax.tree.map(lambda x: x[0], examples)
    u = jax.eval_shape(system.begin, first.inputs, first.mask)
    count = system.maps(jnp.zeros(u.shape, u.dtype), first.mask).count

    def objective(trained, taps, inputs, label, mask):
        system = eqx.combine(trained, rest)
        u = system.begin(inputs, mask) + taps[0]
        before = system.before_loop(u, count)
        if before:
            # What a prelude's layers give out is added by the loop, with what is added to it here; they add nothing themselves.
            u = _tapped(system.maps(u, mask, jnp.zeros_like(u)), u, taps[1 : before + 1], 0)
        maps = system.maps(u, mask, u if before else None)
        u = _tapped(maps, u, taps[before + 1 :], before)
        value = loss(system.end(u, mask), label, mask)
        if jnp.shape(value):
            raise ValueError(f"gradient_flow: loss gave shape {jnp.shape(value)}; it must be one number per sequence.")
        return value, maps.depths(u.dtype)

    def one(total, example):
        inputs, label, mask = example
        taps = jnp.zeros((count + 1, *u.shape), u.dtype)
        (value, ts), (by_weights, by_state) = jax.value_and_grad(objective, (0, 1), has_aux=True)(
            trained, taps, inputs, label, mask
        )
        total = jax.tree.map(jnp.add, total, by_weights)
        # Padded tokens do not reach real ones, so nothing flows into them; said here against 0 · NaN.
        axes = tuple(range(1, by_state.ndim))
        by_state = by_state if mask is None else jnp.where(mask.reshape(*(1,) * (u.ndim - 1), -1, 1), by_state, 0)
        return total, (ts, value, jnp.sqrt(jnp.sum(by_state**2, axis=axes)), layer_norms(by_weights))

    start = jax.tree.map(jnp.zeros_like, trained)
    total, (ts, value, states, parameters) = jax.lax.scan(one, start, (examples.inputs, examples.labels, examples.mask))
    mean = jax.tree.map(lambda x: x / x.dtype.type(examples.inputs.shape[0]), total)
    return ts[0], value, states, parameters, layer_norms(mean)


def _tapped(maps: AbstractMaps, u: Array, taps: Array, first: int) -> Array:
    """The state after the maps from `first` on, one for each entry of `taps`, which is added to its output."""

    @jax.checkpoint
    def step(u, x):
        k, tap = x
        return maps(k, u) + tap, None

    return jax.lax.scan(step, u, (first + jnp.arange(len(taps)), taps))[0]


@eqx.filter_jit
def _compared(states: Array, null: Array | None, key: PRNGKeyArray, level: float, resamples: int):
    median = medians_of(states if null is None else jnp.stack([states, null], axis=1))

    def medians(weights):
        found = median(weights)
        return found[None] if null is None else jnp.stack([*found, found[0] / found[1]])

    found = bootstrap(medians, states.shape[0], key=key, level=level, resamples=resamples, dtype=states.dtype)
    return (found[0], None) if null is None else (found[:2], found[2])


def medians_of(x: Float[Array, "b *shape"]) -> Callable[[Float[Array, " b"]], Array]:
    """The median over the first axis as a function of how often each entry counts; NaN where any is NaN. Sorted once."""
    flat = x.reshape(x.shape[0], -1)
    order = jnp.argsort(flat, axis=0)
    values = jnp.take_along_axis(flat, order, axis=0)
    lost = jnp.any(jnp.isnan(flat), axis=0)

    def median(weights):
        below = jnp.cumsum(weights[order], axis=0)
        half = 0.5 * jnp.sum(weights)
        pick = jnp.stack([jnp.argmax(below >= half, axis=0), jnp.argmax(below > half, axis=0)])
        found = jnp.mean(jnp.take_along_axis(values, pick, axis=0), axis=0)
        return jnp.where(lost, jnp.nan, found).reshape(x.shape[1:])

    return median
