"""Lower bounds of Lipschitz constants: local Jacobian norms at random states, and maximized over the ball."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._check import integer, on_numbers
from pdejax._equation import as_field
from pdejax._figure import AbstractRecord
from pdejax._step_maps import length
from pdejax._types import Field, Mask
from pdejax.analysis.jacobian._operator import FieldAt, Jacobian
from pdejax.analysis.numerics._norms import token_max_norm
from pdejax.terms import FieldArgs
from pdejax.terms._constants import check_domain

Function = Callable[[Any, Array, Any], Array]


class LipschitzEstimate(AbstractRecord):
    """A lower bound of a Lipschitz constant: `value` = ‖J δ‖/‖δ‖ in `norm`, J the Jacobian at `state (n, d)` and δ the
    `direction (n, d)`, so that it can be checked with one product. `values`: what each sample or start reached."""

    value: float
    norm: str
    state: Array
    direction: Array
    values: Array


@checked
@on_numbers
def sampled_lipschitz(
    field: Function,
    shape: tuple[int, int],
    radius: float,
    *,
    key: PRNGKeyArray,
    norm: str = "token_max",
    samples: int = 32,
    iterations: int = 30,
    spread: float = 0.0,
    t: float = 0.0,
    mask: Mask | None = None,
) -> LipschitzEstimate:
    r"""Find the largest local Jacobian norm of `field(t, u, args)` over random states with ‖u_i‖₂ ≤ R, matrix-free.

    `field` is an equation, a term or a function f(t, u, args), `shape` (n, d). States
    range from independent tokens to clusters, from 0 to R.
    `"frobenius"`: power iteration with JᵀJ, which converges to ‖J‖₂. `"token_max"`: the dual iteration for mixed norms
    (Boyd, Linear Algebra Appl. 9 (1974)), δ ← the unit tokens that maximize the token reached last; monotone, to a local
    maximum. Either way the value is attained by the direction returned, a true lower bound whatever the convergence.

    `spread`: keep every token's standard deviation over its features at least this large. Cost: 2·samples·iterations
    products, all in one `vmap`. In float32 values are good to about 1e-6. Raises `ValueError` for sizes or norms that
    do not fit.
    """
    _check("sampled_lipschitz", shape, radius, norm, spread, samples=samples, iterations=iterations)
    n, d = shape
    field = as_field("sampled_lipschitz", field)
    args = None if mask is None else FieldArgs(mask)
    drawn, directed = jax.random.split(key)
    states = random_states(drawn, samples, n, d, radius, spread)
    directions = jax.random.normal(directed, states.shape)
    values, directions = _local_norms(field, jnp.asarray(t, states.dtype), states, directions, args, norm, iterations)
    return _best(norm, states, directions, values)


@checked
@on_numbers
def adversarial_lipschitz(
    field: Function,
    shape: tuple[int, int],
    radius: float,
    *,
    key: PRNGKeyArray,
    norm: str = "token_max",
    starts: int = 8,
    steps: int = 100,
    iterations: int = 2,
    spread: float = 0.0,
    t: float = 0.0,
    mask: Mask | None = None,
) -> LipschitzEstimate:
    r"""Find the local Jacobian norm of `field` maximized over states with ‖u_i‖₂ ≤ R by projected gradient ascent.

    From each of `starts` random states: `iterations` steps of the norm's own iteration for δ, then u moves along
    $\nabla_u\log\|J(u)\delta\|$ (the gradient of the norm itself, by Danskin's theorem, once δ has converged) by a length
    that falls from 0.3 R to 0.01 R, and is projected on the ball. The best state met is returned. A lower bound of the
    Lipschitz constant: ascent stalls where softmax saturates (large ‖B‖R²) or ReLU leaves no gradient.

    Arguments, norms and errors as in [`sampled_lipschitz`][pdejax.analysis.stability.sampled_lipschitz].
    """
    _check("adversarial_lipschitz", shape, radius, norm, spread, starts=starts, steps=steps, iterations=iterations)
    n, d = shape
    field = as_field("adversarial_lipschitz", field)
    args = None if mask is None else FieldArgs(mask)
    drawn, directed = jax.random.split(key)
    states = random_states(drawn, starts, n, d, radius, spread)
    directions = jax.random.normal(directed, states.shape)
    depth, ball, deviation = (jnp.asarray(x, states.dtype) for x in (t, radius, spread))
    values, states, directions = _ascend(
        field, depth, ball, deviation, states, directions, args, norm, steps, iterations
    )
    return _best(norm, states, directions, values)


def random_states(
    key: PRNGKeyArray, samples: int, n: int, d: int, radius: float, spread: float = 0.0
) -> Float[Array, "samples n d"]:
    """Random fields of the domain: token norms from 0 to R, tokens from independent to clustered."""
    return _random_states(key, (samples, n, d), jnp.asarray(radius, float), jnp.asarray(spread, float))


@eqx.filter_jit
def _random_states(key: PRNGKeyArray, shape: tuple[int, int, int], radius: Array, spread: Array) -> Array:
    samples, n, d = shape
    tokens, common, mixing, scaling = jax.random.split(key, 4)
    own = jax.random.normal(tokens, shape)
    shared = jax.random.normal(common, (samples, 1, d))
    mix = jax.random.uniform(mixing, (samples, 1, 1))
    scale = jax.random.uniform(scaling, (samples, n, 1)) ** (1.0 - mix)
    u = mix * shared + (1 - mix) * own
    u = u / jnp.linalg.norm(u, axis=-1, keepdims=True) * (scale * radius)
    return jax.vmap(lambda v: _into_domain(v, radius, spread))(u)


def _into_domain(u: Field, radius: Array, spread: Array) -> Field:
    """Every token into ‖u_i‖ ≤ R with standard deviation ≥ spread: the deviation first, then the mean."""
    d = u.shape[-1]
    mean = jnp.mean(u, axis=-1, keepdims=True)
    centred = u - mean
    size = _length(centred)
    centred = centred * (jnp.clip(size, spread * d**0.5, radius) / size)
    room = jnp.sqrt(jnp.maximum(radius**2 - jnp.sum(centred**2, axis=-1, keepdims=True), 0) / d)
    kept = centred + jnp.clip(mean, -room, room)
    plain = u * jnp.minimum(1.0, radius / _length(u))
    return jnp.where(spread > 0, kept, plain)


def _length(u: Field) -> Array:
    """Token lengths `(n, 1)`, bounded away from 0 so that they can be divided by."""
    return jnp.sqrt(jnp.maximum(jnp.sum(u**2, axis=-1, keepdims=True), jnp.finfo(u.dtype).tiny))


def _norm(u: Field, norm: str) -> Array:
    return length(u) if norm == "frobenius" else token_max_norm(u)


def _improve(jacobian: Jacobian, v: Field, norm: str) -> Field:
    """The next direction of the iteration for ‖J‖, of norm 1."""
    image = jacobian.matvec(v)
    if norm == "frobenius":
        w = jacobian.rmatvec(image)
        size = _norm(w, norm)
        return jnp.where(size > 0, w / jnp.where(size > 0, size, 1), v / _norm(v, norm))
    token = jnp.argmax(jnp.sum(image**2, axis=-1))
    dual = jacobian.rmatvec(jnp.zeros_like(image).at[token].set(image[token]))
    size = jnp.sum(dual**2, axis=-1, keepdims=True)
    # Tokens that do not matter keep a direction of length 1 at most.
    return jnp.where(size > 0, dual / jnp.sqrt(jnp.where(size > 0, size, 1)), v / jnp.maximum(_length(v), 1))


def _local_norm(jacobian: Jacobian, v: Field, norm: str, iterations: int) -> tuple[Array, Field]:
    v = jax.lax.fori_loop(0, iterations, lambda _, w: _improve(jacobian, w, norm), v)
    return _norm(jacobian.matvec(v), norm) / _norm(v, norm), v


@eqx.filter_jit
def _local_norms(field, t, us, vs, args, norm: str, iterations: int):
    return jax.vmap(lambda u, v: _local_norm(Jacobian(FieldAt(field, t, args), u), v, norm, iterations))(us, vs)


@eqx.filter_jit
def _ascend(field, t, radius, spread, us, vs, args, norm: str, steps: int, iterations: int):
    at = FieldAt(field, t, args)

    def objective(u, v):
        size = _norm(Jacobian(at, u).matvec(v), norm) / _norm(v, norm)
        return jnp.log(jnp.maximum(size, jnp.finfo(u.dtype).tiny))

    def step(carry, rate):
        u, v, best = carry
        # Rate 0 marks the last steps: back to the best state, to let its direction converge.
        u, v = (jnp.where(rate > 0, now, kept) for now, kept in zip((u, v), best[1:], strict=True))
        v = jax.lax.fori_loop(0, iterations, lambda _, w: _improve(Jacobian(at, u), w, norm), v)
        log, gradient = jax.value_and_grad(objective)(u, v)
        best = jax.tree.map(lambda new, old: jnp.where(log > best[0], new, old), (log, u, v), best)
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0)
        size = jnp.sqrt(jnp.maximum(jnp.mean(jnp.sum(gradient**2, axis=-1)), jnp.finfo(u.dtype).tiny))
        return (_into_domain(u + rate * radius * gradient / size, radius, spread), v, best), None

    def run(u, v):
        rates = jnp.concatenate([jnp.linspace(0.3, 0.01, steps, dtype=u.dtype), jnp.zeros(10, u.dtype)])
        first = (jnp.asarray(-jnp.inf, u.dtype), u, v)
        (_, _, (log, u, v)), _ = jax.lax.scan(step, (u, v, first), rates)
        return jnp.where(jnp.isfinite(log), jnp.exp(log), jnp.nan), u, v

    return jax.vmap(run)(us, vs)


def _best(norm: str, states: Array, directions: Array, values: Array) -> LipschitzEstimate:
    finite = jnp.where(jnp.isfinite(values), values, -jnp.inf)
    if not bool(jnp.any(jnp.isfinite(values))):
        raise ValueError("the Jacobian is NaN or infinite at every state tried: check the weights, or lower radius.")
    i = int(jnp.argmax(finite))
    return LipschitzEstimate(float(finite[i]), norm, states[i], directions[i], values)


def _check(owner: str, shape, radius, norm, spread, **counts) -> None:
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise ValueError(f"{owner}: shape={shape!r} must be (n, d): tokens and features of the field.")
    check_domain(owner, shape[0], radius, norm, spread)
    integer(owner, "shape[1]", shape[1], advice="it is the number of features")
    if spread * shape[1] ** 0.5 > radius:
        raise ValueError(
            f"{owner}: spread={spread} needs tokens of norm {spread * shape[1] ** 0.5:.3g} at least, above radius={radius}: "
            "raise radius or lower spread."
        )
    for name, count in counts.items():
        integer(owner, name, count)
