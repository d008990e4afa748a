"""Entropy of representations by layer."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from pdejax._check import traced
from pdejax._figure import AbstractRecord, Figure
from pdejax._trajectory import Trajectory
from pdejax.analysis.information._entropy import entropy
from pdejax.analysis.information._layers import Layered, around, beside_draws, checked_resamples, pooled
from pdejax.analysis.information.estimators._kde import checked_noise


class LayerEntropy(AbstractRecord):
    """Entropy of the pooled representations T_l + σξ of each layer, nats, `(layers,)`.

    - `entropy` with its interval from random halves of the samples. Its null `"features shuffled"`: the same with
      every feature's samples in an order of their own, which keeps the marginals and destroys dependence: mean and range
      over draws. Null − entropy is the total correlation.
    - `limit`, `saturated`: as in [`entropy`][pdejax.analysis.information.entropy]. `noise` σ or None, `estimator`,
      `samples`.
    """

    entropy: Figure
    limit: Float[Array, " layers"]
    saturated: Bool[Array, " layers"]
    noise: Float[Array, ""] | None
    estimator: str = eqx.field(static=True)
    samples: int = eqx.field(static=True)


def layer_entropy(
    states: Trajectory | ArrayLike,
    *,
    noise: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    pool: str | None = "mean",
    estimator: str = "knn",
    key: PRNGKeyArray,
    resamples: int = 20,
    shuffles: int = 10,
    level: float = 0.95,
    **options,
) -> LayerEntropy:
    """[`entropy`][pdejax.analysis.information.entropy] of every layer of `states (layers, b, n, d)` or a `Trajectory`
    of a batch, pooled (`mask`, `pool`) and with noise (`noise` σ, the same for all layers) as in
    [`data_processing`][pdejax.analysis.information.data_processing].

    Differential entropy moves with scale: T → 2T adds d ln 2 without any change of what is told; information does not.
    (1 + resamples/4 + shuffles) times the estimator's cost per layer. Raises `TypeError`/`ValueError` for bad states,
    noise or options, or a layer without density.
    """
    owner = "layer_entropy"
    checked_resamples(owner, level, resamples=resamples, shuffles=shuffles)
    t, _ = pooled(owner, states, mask, pool)
    if key is None:
        raise ValueError(f"{owner}: key is missing; noise and subsamples are random. Give key=jax.random.key(...).")
    sigma = None if noise is None else checked_noise(owner, noise, t.dtype)
    entropy(t[0], estimator, noise=noise, key=key, **options)  # what is wrong with the options shows in the first layer
    own, sampled, broken = jax.random.split(key, 3)
    found = _over_layers(t, sigma, own, estimator, options)
    if not traced(found.value) and not bool(jnp.all(jnp.isfinite(found.value))):
        layer = int(jnp.argmin(jnp.isfinite(found.value)))
        raise ValueError(
            f'{owner}: layer {layer} has no density as far as "{estimator}" can tell: features are constant, '
            "linearly dependent or repeated. "
            "Say noise=, or project to fewer features."
        )
    empty = jnp.zeros((0, t.shape[0]), t.dtype)
    halves = _half_samples(t, sigma, sampled, estimator, options, resamples) if resamples else empty
    apart = _shuffled(t, sigma, broken, estimator, options, shuffles) if shuffles else empty
    figure = beside_draws(around(found.value, halves, level), "features shuffled", apart)
    return LayerEntropy(figure, found.limit, found.saturated, sigma, estimator, t.shape[1])


@eqx.filter_jit
def _over_layers(t: Array, sigma: Array | None, key: PRNGKeyArray, estimator: str, options: dict) -> Layered:
    def one(rows):
        found = entropy(rows, estimator, noise=sigma, key=key, **options)
        return Layered(found.value, found.limit, found.saturated)

    return lax.map(one, t)


@eqx.filter_jit
def _half_samples(t: Array, sigma: Array | None, key: PRNGKeyArray, estimator: str, options: dict, draws: int) -> Array:
    def one(key):
        rows = jax.random.permutation(key, t.shape[1])[: t.shape[1] // 2]
        return _over_layers(t[:, rows], sigma, key, estimator, options).value

    return lax.map(one, jax.random.split(key, draws))


@eqx.filter_jit
def _shuffled(t: Array, sigma: Array | None, key: PRNGKeyArray, estimator: str, options: dict, draws: int) -> Array:
    def one(key):
        # The same orders for all layers, another for every feature.
        orders = jax.vmap(lambda k: jax.random.permutation(k, t.shape[1]), out_axes=1)(
            jax.random.split(key, t.shape[2])
        )
        return _over_layers(jnp.take_along_axis(t, orders[None], axis=1), sigma, key, estimator, options).value

    return lax.map(one, jax.random.split(key, draws))
