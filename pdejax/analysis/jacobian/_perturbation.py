"""How a model or equation answers to perturbations of its state: loss and final state against their size, v1 §3.5."""

from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from pdejax._check import traced
from pdejax.analysis._bootstrap import bootstrap, check_bootstrap
from pdejax.analysis.jacobian._gradient_flow import Loss, default_loss, medians_of
from pdejax.analysis.jacobian._perturbation_records import PerturbationSensitivity, Response
from pdejax.analysis.jacobian._step_maps import in_batches, real_entries, through, without_padding
from pdejax.analysis.jacobian._systems import AbstractSystem, Examples, as_system

DIRECTIONS = ("random", "adversarial")
EPSILONS = tuple(float(x) for x in np.logspace(-5, 0, 11))
POWER = 20  # iterations for the direction to which the state answers most


def perturbation_sensitivity(
    system: Any,
    inputs: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    key: PRNGKeyArray | None = None,
    loss: Loss | None = None,
    epsilons: ArrayLike = EPSILONS,
    directions: str | Sequence[str] = DIRECTIONS,
    draws: int = 8,
    at: int = 0,
    relative: bool = True,
    tolerance: float = 0.1,
    mask: ArrayLike | None = None,
    t0: float = 0.0,
    t1: float | None = None,
    steps: int | None = None,
    solver: str | diffrax.AbstractSolver | None = None,
    depths: int | None = None,
    split: Any = None,
    batch_size: int = 4,
    level: float = 0.95,
    resamples: int = 500,
) -> PerturbationSensitivity:
    r"""Perturb the state at layer `at` (0: the input, after the embedding) by δ of size ε and follow loss and final state.

    - `system`, `inputs`, `labels`, `loss`, `mask`, `t0` … `split`: as in
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
    key = jax.random.key(0) if key is None else key
    check_bootstrap("perturbation_sensitivity", level, resamples)
    eps = _checked_sizes(epsilons)
    names = (directions,) if isinstance(directions, str) else tuple(directions)
    if not names or any(name not in DIRECTIONS for name in names):
        raise ValueError(f"perturbation_sensitivity: directions={directions!r}; choose from {DIRECTIONS}.")
    for name, value in (("draws", draws), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"perturbation_sensitivity: {name}={value!r} must be a whole number of at least 1.")
    if not 0 < tolerance < 1:
        raise ValueError(f"perturbation_sensitivity: tolerance={tolerance} must lie in (0, 1), such as 0.1.")
    given = {"t0": t0, "t1": t1, "steps": steps, "solver": solver, "split": split, "maps": depths}
    found, examples = as_system("perturbation_sensitivity", system, inputs, labels, mask, **given)
    headed = getattr(getattr(system, "config", None), "head", "none") != "none"
    if loss is not None or (headed and labels is not None):
        loss = default_loss("perturbation_sensitivity", system, loss, examples.labels)
    count = _layers(found, examples)
    if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at < count:
        raise ValueError(
            f"perturbation_sensitivity: at={at!r} must be a depth index in 0 … {count - 1}, before the last state."
        )
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
        eps,
        scale,
        base,
        *(built.get(kind) for kind in ("random", "gradient", "singular")),
        *floors,
        *ratios,
        at,
        float(tolerance),
    )


def _checked_sizes(epsilons) -> Array:
    eps = jnp.asarray(epsilons)
    if eps.ndim != 1 or not eps.size or not jnp.issubdtype(eps.dtype, jnp.floating):
        raise ValueError(
            f"perturbation_sensitivity: epsilons has shape {eps.shape}; give increasing sizes (k,), such as 1e-3."
        )
    if not traced(eps):
        known = np.asarray(eps)
        if not np.all(np.isfinite(known)) or known[0] <= 0 or np.any(np.diff(known) <= 0):
            raise ValueError(f"perturbation_sensitivity: epsilons={known} must be positive, finite and increasing.")
    return eps


def _layers(system: AbstractSystem, examples: Examples) -> int:
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
        u = without_padding(through(maps, u, 0, at), mask)
        real = real_entries(u.shape, mask)
        sizes = eps.astype(u.dtype)
        random_key, start_key = jax.random.split(jax.random.fold_in(key, index))
        scale = _norm(u) if relative else jnp.sqrt(jnp.sum(real.astype(u.dtype)))

        def outcome(u):
            end = through(maps, u, at)
            value = jnp.zeros((), u.dtype) if loss is None else loss(system.end(end, mask), label, mask)
            return without_padding(end, mask), value

        def drawn(key):
            return _unit(jnp.where(real, jax.random.normal(key, u.shape, u.dtype), 0))

        # The last size is for the rounding noise: what it leaves after the linear answer is hardly anything else.
        tiny = 8 * jnp.finfo(u.dtype).eps
        every = jnp.append(sizes, tiny)

        def answer(w):
            """Along w: slopes of state and loss, answers to the sizes and how far they are from linear, loss and end at u."""
            (base, value), (push, slope) = jax.jvp(outcome, (u,), (scale * w,))

            def change(e):
                end, new = outcome(u + e * scale * w)
                moved = end - base
                return _norm(moved), _norm(moved - e * push), new - value

            size, beyond, by = in_batches(change, every, batch_size)
            return (
                _norm(push),
                slope,
                size,
                beyond,
                by,
                jnp.abs(by - every.astype(by.dtype) * slope),
                _norm(base),
                value,
            )

        gradient, leading = _adversaries(outcome, u, drawn(start_key), loss is not None, "singular" in kinds)
        parts = {
            "random": jax.vmap(drawn)(jax.random.split(random_key, draws)),
            "gradient": None if gradient is None else _unit(gradient)[None],
            "singular": None if leading is None else leading[None],
        }
        ways = jnp.concatenate([parts[kind] for kind in kinds])
        push, slope, size, beyond, by, off, end, value = jax.lax.map(answer, ways)
        state_floor = jnp.maximum(jnp.max(beyond[:, -1]), jnp.finfo(u.dtype).eps * end[0])
        loss_floor = jnp.maximum(jnp.max(off[:, -1]), jnp.finfo(value.dtype).eps * jnp.abs(value[0]))
        steep = None if gradient is None else scale * _norm(gradient)
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


def _adversaries(outcome, u: Array, start: Array, lossy: bool, singular: bool) -> tuple[Array | None, Array | None]:
    """The gradient of the loss at u, and the leading right singular direction of the state's Jacobian by power iteration, from
    one compiled product: the loss in the first round, the state in the others."""
    if not (lossy or singular):
        return None, None

    def step(i, carry):
        v, gradient = carry
        (_, value), (change, _) = jax.jvp(outcome, (u,), (v,))
        first = i == 0
        weight = jnp.where(first, 1, 0).astype(value.dtype)
        pulled = jax.vjp(outcome, u)[1]((jnp.where(first, 0, change), weight))[0]
        return jnp.where(first, v, _unit(pulled)), jnp.where(first, pulled, gradient)

    v, gradient = jax.lax.fori_loop(0 if lossy else 1, POWER + 1 if singular else 1, step, (start, jnp.zeros_like(u)))
    return gradient if lossy else None, v if singular else None


@eqx.filter_jit
def _medians(responses: dict[str, tuple], key: PRNGKeyArray, level: float, resamples: int):
    """Medians of every kind over sequences (or directions) and the two ratios, from the same draws."""
    b = next(iter(responses.values()))[0].shape[0]
    samples = b if b > 1 else max(value[0].shape[1] for value in responses.values())
    k = next(iter(responses.values()))[0].shape[2]
    ends = np.cumsum([k, 1, k, 1])

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

        found = {kind: median(counted(r)) for kind, (median, r) in medians.items()}
        if "random" in found and "singular" in found:
            found["ratio"] = found["singular"][:k] / found["random"][:k]
        if "random" in found and "gradient" in found:
            found["loss_ratio"] = found["gradient"][k + 1 : 2 * k + 1] / found["random"][k + 1 : 2 * k + 1]
        return jnp.concatenate(list(found.values())), {name: x.shape[0] for name, x in found.items()}

    dtype = next(iter(responses.values()))[0].dtype
    sizes = figures(jnp.ones(samples, dtype))[1]
    found = bootstrap(lambda w: figures(w)[0], samples, key=key, level=level, resamples=resamples, dtype=dtype)
    tree, start = {}, 0
    for name, size in sizes.items():
        tree[name] = jax.tree.map(lambda x, a=start, z=start + size: x[a:z], found)
        start += size

    def split(joined):
        parts, start = [], 0
        for stop in ends[: 4 if joined.value.shape[0] == ends[-1] else 2]:
            one = jax.tree.map(lambda x, a=start, z=int(stop): x[a:z], joined)
            # Answers have the axis of sizes, limits have none.
            parts.append(jax.tree.map(lambda x: x[0], one) if len(parts) % 2 else one)
            start = int(stop)
        return tuple(parts)

    return {kind: split(tree[kind]) for kind in responses}, (tree.get("ratio"), tree.get("loss_ratio"))


def _response(raw: tuple, medians: tuple) -> Response:
    state = (*raw[:5], medians[0], medians[1])
    loss = (*raw[5:], medians[2], medians[3]) if len(raw) > 5 else (None,) * 7
    return Response(*state, *loss)  # pyright: ignore[reportCallIssue]


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(x**2))


def _unit(x: Array) -> Array:
    size = _norm(x)
    return jnp.where(size > 0, x / jnp.where(size > 0, size, 1), 0)
