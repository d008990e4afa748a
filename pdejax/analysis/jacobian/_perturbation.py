"""Sensitivity of the flow and of its output to perturbations of tokens."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._bootstrap import bootstrap, check_bootstrap
from pdejax._check import choice, integer, probability, real_array, traced
from pdejax._figure import AbstractRecord, Figure
from pdejax._step_maps import Flow, in_batches, length, real_entries, unit, without_padding
from pdejax.analysis.jacobian._gradient_flow import medians_of
from pdejax.analysis.jacobian._operator import Jacobian
from pdejax.analysis.jacobian._systems import Examples, Loss, System, as_system, default_loss


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


DIRECTIONS = ("random", "adversarial")
EPSILONS = tuple(float(x) for x in np.logspace(-5, 0, 11))
POWER = 20  # iterations for the direction to which the state answers most


@checked
def perturbation_sensitivity(
    system: Any,
    inputs: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    key: PRNGKeyArray | None = None,
    loss: Loss | None = None,
    epsilons: Any = EPSILONS,
    directions: str | Sequence[str] = DIRECTIONS,
    draws: int = 8,
    at: int = 0,
    relative: bool = True,
    tolerance: float = 0.1,
    mask: ArrayLike | None = None,
    depths: int | None = None,
    batch_size: int = 4,
    level: float = 0.95,
    resamples: int = 500,
) -> PerturbationSensitivity:
    r"""Perturb the state at layer `at` (0: the input, after the embedding) by δ of size ε and follow loss and final state.
    What a loop adds before every pass (`injection`) is held fixed.

    - `system`, `inputs`, `labels`, `loss`, `mask`, `depths`: as in
      [`gradient_flow`][pdejax.analysis.gradient_flow]; without logits and without `loss` only the state is followed.
    - `epsilons (k,)`: increasing sizes, positive; 10⁻⁵ … 1 by default. `relative`: ‖δ‖ = ε‖u_at‖, else ‖δ‖ = ε√(n_real·d), one
      ε per entry as noise of that standard deviation would have (v1 §3.5 does not say which).
    - `directions`: `"random"`: `draws` directions, uniform on the sphere of real entries (the null). `"adversarial"`: the
      gradient of the loss, and for the state the leading right singular vector of J = ∂u_L/∂u_at by 20 power iterations on
      JᵀJ (attained whatever the convergence).
    - `tolerance`: the departure from the linear answer that ends the linear regime.

    The linear answer is a forward-mode product. Rounding noise is measured: what ε = 8 units of rounding leaves of a difference
    after the linear answer, the largest over directions.

    Cost per sequence: r·(k + 3) passes from depth `at`, r the number of directions, and 100 for the singular direction. Memory
    beyond the batch: r directions, `batch_size` perturbed states with one layer's working set each, and four states.

    Raises `ValueError`/`TypeError` for sizes, directions, depths and inputs that do not fit.
    """
    owner = "perturbation_sensitivity"
    key = jax.random.key(0) if key is None else key
    check_bootstrap(owner, level, resamples)
    eps = _checked_sizes(owner, epsilons)
    names = (directions,) if isinstance(directions, str) else tuple(directions)
    for name in names or (None,):
        choice(owner, "directions", name, DIRECTIONS)
    integer(owner, "draws", draws)
    integer(owner, "batch_size", batch_size)
    tolerance = probability(owner, "tolerance", tolerance, advice="such as 0.1")
    found, examples = as_system(owner, system, inputs, labels, mask, depths)
    if loss is not None or (found.headed and labels is not None):
        loss = default_loss(owner, found, loss, examples.labels)
    count = _layers(found, examples)
    integer(owner, "at", at, 0, count - 1, advice="it is a depth index before the last state")
    drawn, resampled = jax.random.split(key)
    kinds = tuple(
        kind
        for kind, wanted in (
            ("random", "random" in names),
            ("gradient", "adversarial" in names and loss is not None),
            ("singular", "adversarial" in names),
        )
        if wanted
    )
    raw = _answers(found, examples, loss, eps, drawn, kinds, draws, at, relative, batch_size, tolerance)
    scale, base, floors, responses = raw
    medians, ratios = _medians(responses, resampled, level, resamples)
    built = {kind: _response(responses[kind], medians[kind]) for kind in kinds}
    eps = eps.astype(scale.dtype)
    return PerturbationSensitivity(
        epsilons=eps,
        scale=scale,
        base_loss=base,
        random=built.get("random"),
        gradient=built.get("gradient"),
        singular=built.get("singular"),
        state_floor=floors[0],
        loss_floor=floors[1],
        ratio=ratios[0],
        loss_ratio=ratios[1],
        at=at,
        tolerance=tolerance,
    )


def _checked_sizes(owner: str, epsilons) -> Array:
    eps = real_array(owner, "epsilons", epsilons, "(k,)", 1)
    if not traced(eps):
        known = np.asarray(eps)
        if not np.all(np.isfinite(known)) or known[0] <= 0 or np.any(np.diff(known) <= 0):
            raise ValueError(f"{owner}: epsilons={known} must be positive, finite and increasing; such as 1e-3.")
    return eps


def _layers(system: System, examples: Examples) -> int:
    first = jax.tree.map(lambda x: x[0], examples)
    u = eqx.filter_eval_shape(system.begin, first.inputs, first.mask)
    return eqx.filter_eval_shape(system.maps, u, first.mask).count


@eqx.filter_jit
def _answers(system, examples, loss, eps, key, kinds, draws, at, relative, batch_size, tolerance):
    """Per sequence: scale, loss, floors, and of every kind of direction its raw arrays."""

    def one(x):
        index, inputs, label, mask = x
        u = system.begin(inputs, mask)
        maps = system.maps(u, mask)
        u = without_padding(Flow(maps, 0, at)(u), mask)
        real = real_entries(u.shape, mask)
        sizes = eps.astype(u.dtype)
        random_key, start_key = jax.random.split(jax.random.fold_in(key, index))
        scale = length(u) if relative else jnp.sqrt(jnp.sum(real.astype(u.dtype)))

        flow = Flow(maps, at)

        def value_of(end):
            return jnp.zeros((), u.dtype) if loss is None else loss(system.end(end, mask), label, mask)

        def outcome(u):
            end = without_padding(flow(u), mask)
            return end, value_of(end)

        def drawn(key):
            return unit(jnp.where(real, jax.random.normal(key, u.shape, u.dtype), 0))

        # The last size is for the rounding noise: what it leaves after the linear answer is hardly anything else.
        tiny = 8 * jnp.finfo(u.dtype).eps
        every = jnp.append(sizes, tiny)

        def answer(w):
            """Along w: slopes of state and loss, answers to the sizes and how far they are from linear, loss and end at u."""
            (base, value), (push, slope) = jax.jvp(outcome, (u,), (scale * w,))

            def change(e):
                end, new = outcome(u + e * scale * w)
                moved = end - base
                return length(moved), length(moved - e * push), new - value

            size, beyond, by = in_batches(change, every, batch_size)
            return (
                length(push),
                slope,
                size,
                beyond,
                by,
                jnp.abs(by - every.astype(by.dtype) * slope),
                length(base),
                value,
            )

        slope_of = jax.grad(value_of) if loss is not None else None
        gradient, leading = _adversaries(Jacobian(flow, u, mask), slope_of, drawn(start_key), "singular" in kinds)
        parts = {
            "random": jax.vmap(drawn)(jax.random.split(random_key, draws)),
            "gradient": None if gradient is None else unit(gradient)[None],
            "singular": None if leading is None else leading[None],
        }
        ways = jnp.concatenate([parts[kind] for kind in kinds])
        push, slope, size, beyond, by, off, end, value = jax.lax.map(answer, ways)
        state_floor = jnp.maximum(jnp.max(beyond[:, -1]), jnp.finfo(u.dtype).eps * end[0])
        loss_floor = jnp.maximum(jnp.max(off[:, -1]), jnp.finfo(value.dtype).eps * jnp.abs(value[0]))
        steep = None if gradient is None else scale * length(gradient)
        entries = jnp.sqrt(jnp.sum(real.astype(u.dtype)))
        found, start = {}, 0
        for kind in kinds:
            rows = slice(start, start + parts[kind].shape[0])
            start = rows.stop
            state = _regime(sizes, push[rows, None] * sizes[None], beyond[rows, :-1], state_floor, tolerance)
            entry = (size[rows, :-1], push[rows], *state)
            if steep is not None:
                # The loss is measured against what this kind of direction changes typically.
                typical = {"random": steep / entries, "gradient": steep, "singular": jnp.abs(slope[rows.start])}[kind]
                line = jnp.broadcast_to(typical * sizes, entry[0].shape).astype(off.dtype)
                departed = _regime(sizes, line, off[rows, :-1], loss_floor, tolerance)
                entry = (*entry, by[rows, :-1], slope[rows], *departed)
            found[kind] = entry
        return scale, value[0], state_floor, loss_floor, found

    b = examples.inputs.shape[0]
    x = (jnp.arange(b), examples.inputs, examples.labels, examples.mask)
    scale, value, state_floor, loss_floor, found = jax.lax.map(one, x)
    none = loss is None
    return scale, None if none else value, (state_floor, None if none else loss_floor), found


def _regime(sizes: Array, line: Array, off: Array, floor: Array, tolerance: float) -> tuple[Array, Array, Array]:
    """Departure, what rounding leaves of it to see, and the size at which it first exceeds the tolerance; `(r, k)`, `(r,)`."""
    safe = jnp.where(line > 0, line, 1)
    departure = jnp.where(line > 0, off / safe, jnp.where(off > floor, jnp.inf, 0))
    resolved = floor <= 0.5 * tolerance * line
    # Where the linear answer is 0, everything above the noise is departure.
    resolved = resolved | ((line <= 0) & (off > floor))
    over = resolved & ~(departure <= tolerance)
    first = jnp.argmax(over, axis=1)
    before = jnp.maximum(first - 1, 0)
    rows = jnp.arange(line.shape[0])
    low, high = departure[rows, before], departure[rows, first]
    usable = (first > 0) & resolved[rows, before] & (low > 0) & jnp.isfinite(high) & (high > low)
    fraction = jnp.log(tolerance / jnp.where(usable, low, 1)) / jnp.log(
        jnp.where(usable, high / jnp.where(usable, low, 1), 2)
    )
    between = jnp.exp(jnp.log(sizes[before]) + fraction * (jnp.log(sizes[first]) - jnp.log(sizes[before])))
    limit = jnp.where(usable, between, sizes[first])
    return departure, resolved, jnp.where(jnp.any(over, axis=1), limit, jnp.inf)


def _adversaries(jacobian: Jacobian, slope: Any, start: Array, singular: bool) -> tuple[Array | None, Array | None]:
    """The gradient of the loss at the state, Jᵀ times its `slope` at the end, and the leading right singular direction of
    the state's Jacobian by power iteration: one compiled product, for the loss in the first round, for the state in the
    others."""
    lossy = slope is not None
    if not (lossy or singular):
        return None, None
    end, push = jacobian.linearize()
    steep = slope(end) if lossy else jnp.zeros_like(end)

    def step(i, carry):
        v, gradient = carry
        first = i == 0
        pulled = jacobian.rmatvec(jnp.where(first, steep, push(v)))
        return jnp.where(first, v, unit(pulled)), jnp.where(first, pulled, gradient)

    rounds = (0 if lossy else 1, POWER + 1 if singular else 1)
    v, gradient = jax.lax.fori_loop(*rounds, step, (start, jnp.zeros_like(start)))
    return gradient if lossy else None, v if singular else None


@eqx.filter_jit
def _medians(responses: dict[str, tuple], key: PRNGKeyArray, level: float, resamples: int):
    """Medians of every kind over sequences (or directions) and the two ratios, from the same draws."""
    b = next(iter(responses.values()))[0].shape[0]
    samples = b if b > 1 else max(value[0].shape[1] for value in responses.values())
    k = next(iter(responses.values()))[0].shape[2]

    def columns(entry):
        """State answers, state limit, loss answers, loss limit: `(b·r, 2k + 2)`, or half of them without a loss."""
        parts = [entry[0], entry[4][..., None]]
        if len(entry) > 5:
            parts += [jnp.abs(entry[5]).astype(entry[0].dtype), entry[9][..., None].astype(entry[0].dtype)]
        joined = jnp.concatenate(parts, axis=-1)
        return joined.reshape(-1, joined.shape[-1])

    medians = {kind: (medians_of(columns(entry)), entry[0].shape[1]) for kind, entry in responses.items()}

    def figures(weights):
        def counted(r):
            """Weights of all directions: those of their sequences, or of a single sequence's directions themselves."""
            if b > 1:
                return jnp.repeat(weights, r)
            return weights if weights.shape[0] == r else jnp.full(r, jnp.sum(weights) / r)

        rows = {kind: median(counted(r)) for kind, (median, r) in medians.items()}
        ratio = rows["singular"][:k] / rows["random"][:k] if {"random", "singular"} <= rows.keys() else None
        loss = slice(k + 1, 2 * k + 1)
        loss_ratio = rows["gradient"][loss] / rows["random"][loss] if {"random", "gradient"} <= rows.keys() else None
        split = {
            kind: (row[:k], row[k], row[loss], row[-1]) if row.shape[0] > k + 1 else (row[:k], row[k])
            for kind, row in rows.items()
        }
        return split, (ratio, loss_ratio)

    dtype = next(iter(responses.values()))[0].dtype
    return bootstrap(figures, samples, key=key, level=level, resamples=resamples, dtype=dtype)


def _response(raw: tuple, medians: tuple) -> Response:
    state = (*raw[:5], medians[0], medians[1])
    loss = (*raw[5:], medians[2], medians[3]) if len(raw) > 5 else (None,) * 7
    return Response(*state, *loss)  # pyright: ignore[reportCallIssue]
