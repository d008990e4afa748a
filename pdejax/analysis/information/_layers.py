"""Estimates for every layer, and the size of the differences between representations."""

from functools import partial
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray
from scipy.special import stdtrit

from pdejax._arguments import checked
from pdejax._check import choice, integer, number, probability, traced
from pdejax._figure import Figure
from pdejax._trajectory import Trajectory
from pdejax.analysis._states import hidden_states
from pdejax.analysis.information._counting import checked_noise
from pdejax.analysis.information._measures import check_options, entropy, mutual_information
from pdejax.analysis.information._samples import continuous, is_labels, repeated_share, sample
from pdejax.analysis.information.trained._fit import TRAINED

Pool = Literal["mean", "last", "flatten"]


class Layered(eqx.Module):
    """Estimates per layer: `value`, `limit` (nats), `saturated`, each `(layers,)`, or of one layer."""

    value: Float[Array, "*layers"]
    limit: Float[Array, "*layers"]
    saturated: Bool[Array, "*layers"]


def pooled(
    owner: str, states: Trajectory | ArrayLike, mask: ArrayLike | None, pool: str | None
) -> tuple[Float[Array, "layers N D"], Bool[Array, "N n"] | None]:
    """One representation per sequence and layer, and the tokens' mask.

    `"mean"` over real tokens (D = d); `"last"`: the last real token; `"flatten"`: all tokens' features in a row, 0 at
    padding (D = n·d); None: `states (layers, N, D)` are such representations already.
    """
    if pool is None:
        if mask is not None:
            raise ValueError(
                f"{owner}: pool=None takes one row per sample, so that mask has no tokens to hide; leave it out."
            )
        given = hidden_states(owner, "states", states)
        if given.batched:
            raise ValueError(
                f"{owner}: states has shape {given.u.shape}; pool=None takes one row per sample, (layers, N, D). Choose one of "
                f"{get_args(Pool)} for (layers, batch, n, d)."
            )
        return given.u[:, 0], None
    choice(owner, "pool", pool, (*get_args(Pool), None), "None takes states that are pooled already")
    u, real, batched = hidden_states(owner, "states", states, mask)
    if not batched:
        raise ValueError(
            f"{owner}: states has shape {(u.shape[0], *u.shape[2:])}, one sequence, which is one sample; give "
            "(layers, batch, n, d), or "
            "pool=None if its rows are samples."
        )
    return over_tokens(u, real, pool), real


@partial(jax.jit, static_argnames="pool")
def over_tokens(u: Float[Array, "layers b n d"], real: Bool[Array, "b n"], pool: str) -> Float[Array, "layers b D"]:
    kept = jnp.where(real[None, :, :, None], u, 0)
    if pool == "flatten":
        return kept.reshape(*u.shape[:2], -1)
    if pool == "mean":
        counts = jnp.sum(real, axis=1).astype(u.dtype)
        return jnp.sum(kept, axis=2) / counts[None, :, None]
    last = u.shape[2] - 1 - jnp.argmax(real[:, ::-1], axis=1)
    return jnp.take_along_axis(kept, last[None, :, None, None], axis=2)[:, :, 0]


def checked_other(
    owner: str, name: str, value: ArrayLike, count: int, real: Bool[Array, "N n"] | None, pool: str | None
) -> Array:
    """The variable beside the representation: labels `(N,)`, floats `(N,)`, `(N, d)`, or tokens' `(N, n, d)`, pooled as
    the states are."""
    if not is_labels(value) and jnp.ndim(value) == 3 and real is not None:
        tokens = jnp.asarray(value)
        if tokens.shape[:2] != real.shape:
            raise ValueError(f"{owner}: {name} has shape {tokens.shape}; tokens must be {real.shape} as in states.")
        value = over_tokens(tokens[None], real, pool or "mean")[0]
    found = sample(owner, name, value)
    if found.shape[0] != count:
        raise ValueError(f"{owner}: {name} has {found.shape[0]} samples, states {count}; they must be pairs.")
    return found


def checked_estimation(
    owner: str, estimator: str, options: dict, noise, t: Float[Array, "layers N D"], name: str, other: Array, key
) -> tuple[Array | None, dict]:
    """σ and the estimator's options; raises what it would raise for these data, before anything compiles."""
    check_options(owner, estimator, options)
    sigma = None if noise is None else checked_noise(owner, noise, t.dtype)
    if estimator == "kde":
        checked_noise(f'{owner} with "kde"', noise, t.dtype)
        options = {"bound": "neither", **options}
    if key is None:
        raise ValueError(f"{owner}: key is missing; noise and subsamples are random. Give key=jax.random.key(...).")
    if estimator == "gaussian" and is_labels(other):
        raise TypeError(f'{owner}: "gaussian" has no use for labels; take "kde", "ksg" or "binned".')
    if estimator in TRAINED and is_labels(other) and "classes" not in options:
        if traced(other):
            raise ValueError(f"{owner}: labels are traced; give classes=, their number, with labels below it.")
        options = {**options, "classes": int(np.max(np.asarray(other))) + 1}
    if estimator == "ksg" and options.get("variant") != "mixed" and not is_labels(other):
        continuous(owner, name, other, repeats=False)
    if estimator == "ksg" and sigma is None and options.get("variant") != "mixed" and not traced(t):
        shares = jax.vmap(repeated_share)(t)
        if np.any(np.asarray(shares) > 0.01):
            layer = int(jnp.argmax(shares > 0.01))
            raise ValueError(
                f"{owner}: {float(shares[layer]):.0%} of the representations of layer {layer} occur more than once, "
                "which have no density; "
                'say noise=, take variant="mixed", or estimator="binned".'
            )
    return sigma, options


@eqx.filter_jit
def over_layers(
    other: Array | None,
    t: Float[Array, "layers N D"],
    sigma: Array | None,
    key: PRNGKeyArray,
    estimator: str,
    options: dict,
) -> Layered:
    """I(other; T_l + σξ), or the entropy of T_l + σξ, for every l, the same ξ for all: one layer after another."""

    def one(rows):
        if other is None:
            found = entropy(rows, estimator, noise=sigma, key=key, **options)
        else:
            found = mutual_information(other, rows, estimator, noise=sigma, key=key, **options)
        return Layered(found.value, found.limit, found.saturated)

    return lax.map(one, t)


@eqx.filter_jit
def half_samples(
    other: Array | None,
    t: Float[Array, "layers N D"],
    sigma: Array | None,
    key: PRNGKeyArray,
    estimator: str,
    options: dict,
    resamples: int,
) -> Float[Array, "resamples layers"]:
    """The estimates from `resamples` random halves of the samples, the same halves for all layers."""
    count = t.shape[1]

    def one(key):
        rows = jax.random.permutation(key, count)[: count // 2]
        return over_layers(None if other is None else other[rows], t[:, rows], sigma, key, estimator, options).value

    return lax.map(one, jax.random.split(key, resamples))


@eqx.filter_jit
def permuted(
    other: Array,
    t: Float[Array, "layers N D"],
    sigma: Array | None,
    key: PRNGKeyArray,
    estimator: str,
    options: dict,
    permutations: int,
) -> Float[Array, "permutations layers"]:
    """The estimates with the pairs broken: the other variable in random order."""

    def one(key):
        order = jax.random.permutation(key, t.shape[1])
        return over_layers(other[order], t, sigma, key, estimator, options).value

    return lax.map(one, jax.random.split(key, permutations))


@partial(jax.jit, static_argnames="level")
def around(value: Array, halves: Array, level: float) -> Figure:
    r"""value ± t·s with s the standard deviation over halves, $\mathrm{Var}(\hat\theta_{N/2} - \hat\theta_N) =
    \sigma^2(\tfrac2N - \tfrac1N)$, the variance of the full estimate, and Student's t for as many halves. Without
    halves NaN."""
    if halves.shape[0] < 2:
        return Figure(value, level=level)
    wide = float(stdtrit(halves.shape[0] - 1, (1 + level) / 2)) * jnp.std(halves, axis=0, ddof=1)
    return Figure(value, value - wide, value + wide, level=level)


def beside_draws(figure: Figure, null: str, draws: Float[Array, "draws layers"]) -> Figure:
    """The figure with the `middle` of these draws as its null, if there are any."""
    nulls = {null: middle(draws, figure.level)} if draws.shape[0] else {}
    return figure.beside(nulls)


@partial(jax.jit, static_argnames="level")
def middle(draws: Float[Array, "draws layers"], level: float) -> Figure:
    """The mean of draws from a null model, with the range of the middle `level` of them."""
    low, high = jnp.quantile(draws, jnp.asarray([(1 - level) / 2, (1 + level) / 2], draws.dtype), axis=0)
    return Figure(jnp.mean(draws, axis=0), low, high, level=level)


def checked_resamples(owner: str, level: float, **counts: int) -> None:
    """`ValueError` unless the level is inside (0, 1) and each count is 0 or at least 8."""
    probability(owner, "level", level, "0.95 is usual")
    for name, value in counts.items():
        if value != 0 or isinstance(value, bool):
            integer(owner, name, value, 8, advice="0 is for none")


def refuse_nan(owner: str, estimator: str, value: Array) -> None:
    """`ValueError` where a layer has no estimate."""
    if not traced(value) and bool(jnp.any(jnp.isnan(value))):
        layer = int(jnp.argmax(jnp.isnan(value)))
        raise ValueError(
            f'{owner}: "{estimator}" has no value for layer {layer}: its features are constant or linearly '
            "dependent, or there are too few "
            "samples for them. Say noise=, project to fewer features, or take another estimator."
        )


@checked
def layer_spread(
    states: Trajectory | ArrayLike, *, mask: ArrayLike | None = None, pool: str | None = "mean"
) -> Float[Array, " layers"]:
    r"""$\sqrt{\mathrm{tr}\,\mathrm{Cov}(T_l)}$ of the pooled representation T_l over samples, in units of u, one per layer.

    Two samples are about √2 of it apart, whatever the width d. A noise σ per feature hides their difference where σ is of this
    size; the noise estimates of [`information_plane`][pdejax.analysis.information.information_plane] and
    [`layer_entropy`][pdejax.analysis.information.layer_entropy] saturate at ln N where σ is a small part of it, such as the
    root mean square of a feature, which is 1/√d of it.

    - `states (layers, b, n, d)`, `mask`, `pool`: as there; pool=None for rows `(layers, N, d)`.

    Raises as [`data_processing`][pdejax.analysis.information.data_processing] for bad states.
    """
    t, _ = pooled("layer_spread", states, mask, pool)
    return jnp.sqrt(jnp.sum(jnp.var(t, axis=1), axis=-1))


@checked
def unit_spread(
    states: Trajectory | ArrayLike, *, mask: ArrayLike | None = None, pool: str | None = "mean", least: float = 1e-3
) -> Float[Array, "layers *shape"]:
    """The states with every layer divided by its spread: the same noise σ then means the same in all layers and models.

    - `least`: a layer whose spread is a smaller part of its pooled states' size has collapsed, and is divided by this part of the
      size instead: what tells its samples apart is next to rounding, and counts for little against any σ.

    Otherwise as [`layer_spread`][pdejax.analysis.information.layer_spread], errors included; `ValueError` for a `least` that is
    not a number from 0 to 1.
    """
    number("unit_spread", "least", least, least=0, most=1, advice="it is a share of the states' size")
    t, _ = pooled("unit_spread", states, mask, pool)
    size = jnp.sqrt(jnp.mean(jnp.sum(t**2, axis=-1), axis=1))
    by = jnp.maximum(layer_spread(states, mask=mask, pool=pool), least * size)
    given = hidden_states("unit_spread", "states", states, mask)
    u = given.u if given.batched else given.u[:, 0]
    return u / jnp.where(by > 0, by, 1).reshape(-1, *(1,) * (u.ndim - 1))
