"""Information and entropy by layer: the data-processing inequality, the information plane, and the entropy of each layer."""

from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._check import traced
from pdejax._figure import AbstractRecord, Figure
from pdejax._trajectory import Trajectory
from pdejax.analysis.information._counting import checked_noise
from pdejax.analysis.information._layers import (
    around,
    beside_draws,
    checked_estimation,
    checked_other,
    checked_resamples,
    half_samples,
    over_layers,
    permuted,
    pooled,
    refuse_nan,
)
from pdejax.analysis.information._measures import entropy
from pdejax.analysis.information._samples import is_labels

Noise = Literal["none", "at read-out", "in the chain"]


class Processing(AbstractRecord):
    """I(X; T_l) along depth, nats, and whether its changes are allowed.

    - `information`: the estimate per layer `(layers,)` with its interval at `level`. `limit`, `saturated` `(layers,)`.
      Its null `"x permuted"`: the same with x in random order, mean and range of the permutations; none without them
      and for `"kde"`, which assumes that T is a function of x.
    - `change (layers − 1,)`: I of the next layer minus I of this one; all intervals hold together at `level`
      (Bonferroni).
    - `noise`: σ added at read-out, or None. `where`: `"none"`, `"at read-out"` or `"in the chain"`, which decides what
      a change means.
    - `estimator`, `samples`.
    """

    information: Figure
    change: Figure
    limit: Float[Array, " layers"]
    saturated: Bool[Array, " layers"]
    noise: Float[Array, ""] | None
    where: Noise = eqx.field(static=True)
    estimator: str = eqx.field(static=True)
    samples: int = eqx.field(static=True)

    @property
    def rises(self) -> Bool[Array, " changes"]:
        """Whether information rises from this layer to the next by more than its scatter."""
        return jnp.asarray(self.change.low > 0)

    @property
    def falls(self) -> Bool[Array, " changes"]:
        """Whether it falls by more than its scatter."""
        return jnp.asarray(self.change.high < 0)

    @property
    def violations(self) -> Bool[Array, " changes"]:
        """Changes that the theory excludes: rises with noise in the chain, any change without noise, none with noise at
        read-out."""
        if self.where == "in the chain":
            return self.rises
        return self.rises | self.falls if self.where == "none" else jnp.zeros_like(self.rises)

    @property
    def verdict(self) -> str:
        """What follows, in a sentence (needs concrete values)."""
        if not bool(jnp.all(jnp.isfinite(self.change.low))):
            return "no verdict: the scatter is not known, for want of resamples or of finite estimates"
        up, down = int(jnp.sum(self.rises)), int(jnp.sum(self.falls))
        seen = f"{up} rises and {down} falls beyond the scatter in {self.change.value.shape[0]} steps"
        if bool(jnp.any(self.saturated)):
            seen += f"; saturated in {int(jnp.sum(self.saturated))} layers, whose figure is the estimator's limit"
        if self.where == "in the chain":
            return f"{'violated' if up else 'consistent'}: {seen}; a Markov chain allows no rise"
        if self.where == "none":
            start = "estimator artefact, or a map that is not one to one" if up + down else "consistent"
            return f"{start}: {seen}; without noise information is constant"
        return f"nothing excluded: {seen}; noise at read-out forces neither direction"


@checked
def data_processing(
    x: ArrayLike,
    states: Trajectory | ArrayLike,
    *,
    noise: ArrayLike | None = None,
    injected: bool = False,
    relative: bool = False,
    mask: ArrayLike | None = None,
    pool: str | None = "mean",
    estimator: str = "ksg",
    key: PRNGKeyArray,
    resamples: int = 20,
    permutations: int = 10,
    level: float = 0.95,
    **options,
) -> Processing:
    r"""I(X; T_l + σξ) for every layer of `states`, T_l the pooled representation, with its scatter, and what its
    changes prove.

    Three cases, of which only the second is the data-processing inequality along depth:

    - No noise (`noise=None`): T_{l+1} = φ(T_l), φ one to one as every smooth flow is. I(X; T_l) is constant (claim
      C10): infinite for continuous X, H(X) for a finite one. Any change is the estimator's: reported as violations of
      that.
    - `injected=True`: noise was drawn *along* the chain, X → T_1 → T_2 → …, each from the one before with fresh noise.
      Then I(X; T_{l+1}) ≤ I(X; T_l): a rise beyond the scatter is a violation (no Markov chain, or a biased estimator).
      If `noise` is given too, it is added again at read-out and the inequality is lost: not allowed here.
    - `noise` σ alone: fresh noise at *read-out* of each layer. T_l + σξ is a function of T_l, but T_{l+1} + σξ' is not
      made from T_l + σξ: the inequality does not order them. I(X; T_l + σξ) ≤ I(X; T_l) is all it says, and T_{l+1} =
      2T_l raises the left side. A fall shows that differences shrink against σ, no more. It must fall for linear maps
      of 2-norm ≤ 1 (noise A ξ can be filled up to ξ), and for `"kde"` whenever all distances shrink. Diffusion: ½Σ ln(1
      + s_k e^{2λ_k t}/σ²), THEORY §5.11.

    `relative` measures σ in units of each layer's root mean square deviation from the mean over samples (then 2T_l
    changes nothing).

    - `states (layers, b, n, d)` or a `Trajectory` of a batch: b samples; `mask (n,)`/`(b, n)`; `pool` `"mean"` over
      real tokens, `"last"` real token, `"flatten"` (0 at padding), or None: `states (layers, N, d)` are samples
      already. `x`: floats `(b,)`, `(b, d)`, `(b, n, d)` (pooled alike) or labels `(b,)`.
    - `estimator`, `options`: as in [`mutual_information`][pdejax.analysis.information.mutual_information]; for `"kde"`
      `bound` is `"neither"` by default: an upper bound for x of floats, the nearer estimate for labels.
    - The scatter comes from `resamples` random halves of the samples, the same for all layers, so that changes are told
      apart better than their two ends; repeated samples, as in a bootstrap, would ruin neighbour distances. 0: none, no
      verdict. The half-sample values have more bias than the value; it cancels, as only their spread is used. Shao and
      Wu 1989, DOI 10.1214/aos/1176347263.

    (1 + resamples/4 + permutations) times the estimator's cost per layer (O(N² d) for neighbours). Raises
    `TypeError`/`ValueError` for bad states, x, noise, or options, fewer than two layers, or a layer that the estimator
    has no value for.
    """
    owner = "data_processing"
    checked_resamples(owner, level, resamples=resamples, permutations=permutations)
    if injected and noise is not None:
        raise ValueError(
            f"{owner}: injected=True says that states hold noise drawn along the chain; noise={noise} at read-out "
            "would undo the order. Leave "
            "one out."
        )
    t, real = pooled(owner, states, mask, pool)
    if t.shape[0] < 2:
        raise ValueError(f"{owner}: states has one layer; a change needs two.")
    other = checked_other(owner, "x", x, t.shape[1], real, pool)
    sigma, options = checked_estimation(owner, estimator, options, noise, t, "x", other, key)
    if relative and sigma is None:
        raise ValueError(f"{owner}: relative=True is about noise; give noise=, in units of each layer's spread.")
    if relative:
        t = t / _feature_spread(t)
    own, sampled, broken = jax.random.split(key, 3)
    empty = jnp.zeros((0, t.shape[0]), t.dtype)
    found = over_layers(other, t, sigma, own, estimator, options)
    refuse_nan(owner, estimator, found.value)
    halves = half_samples(other, t, sigma, sampled, estimator, options, resamples) if resamples else empty
    shuffle = permutations and (estimator != "kde" or is_labels(other))
    orders = permuted(other, t, sigma, broken, estimator, options, permutations) if shuffle else empty
    joint = 1 - (1 - level) / (t.shape[0] - 1)
    change = around(jnp.diff(found.value), jnp.diff(halves, axis=1), joint)
    change = Figure(change.value, *(change.ends or (None, None)), level=level)
    return Processing(
        beside_draws(around(found.value, halves, level), "x permuted", orders),
        change,
        found.limit,
        found.saturated,
        sigma,
        "in the chain" if injected else "none" if sigma is None else "at read-out",
        estimator,
        t.shape[1],
    )


def _feature_spread(t: Float[Array, "layers N D"]) -> Float[Array, "layers 1 1"]:
    """Root mean square deviation of each layer's representations from their mean over samples, per feature."""
    off = t - jnp.mean(t, axis=1, keepdims=True)
    return jnp.sqrt(jnp.mean(off**2, axis=(1, 2), keepdims=True))


class InformationPlane(AbstractRecord):
    """Both informations of every layer, nats; arrays `(layers,)`, or `(epochs, layers)` for several checkpoints.

    - `input` I(X; T_l + σξ), `target` I(T_l + σξ; Y): intervals from random halves of the samples.
    - Their nulls `"x permuted"`, `"y permuted"`: the same with x, or y, in random order, the mean of the permutations as
      value, the range of the middle `level` of them as ends. None without permutations; none of `input` for `"kde"`, which
      takes it that T is a function of X.
    - `input_limit`, `target_limit`; `input_saturated`, `target_saturated`: of each estimate. `noise` σ, `estimator`,
      `samples`.
    """

    input: Figure
    target: Figure
    input_limit: Float[Array, "..."]
    target_limit: Float[Array, "..."]
    input_saturated: Bool[Array, "..."]
    target_saturated: Bool[Array, "..."]
    noise: Float[Array, ""] | None
    estimator: str = eqx.field(static=True)
    samples: int = eqx.field(static=True)

    @property
    def above_null(self) -> Bool[Array, "..."]:
        """Whether I(T_l; Y) lies above the range of its null: the representation tells something of Y."""
        null = self.target.nulls.get("y permuted")
        return jnp.zeros(self.target.shape, bool) if null is None else jnp.asarray(self.target.value > null.high)


@checked
def information_plane(
    states: Trajectory | ArrayLike | Sequence[Trajectory | ArrayLike],
    x: ArrayLike,
    y: ArrayLike,
    *,
    noise: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    pool: str | None = "mean",
    estimator: str = "kde",
    key: PRNGKeyArray,
    resamples: int = 20,
    permutations: int = 20,
    level: float = 0.95,
    **options,
) -> InformationPlane:
    r"""I(X; T_l + σξ) and I(T_l + σξ; Y) for every layer, T_l the pooled representation.

    - `states (layers, b, n, d)` or a `Trajectory` of a batch of b samples; a list or tuple of them, of one shape, for
      checkpoints in training. `mask`, `pool`, as in [`data_processing`][pdejax.analysis.information.data_processing].
    - `x`: floats `(b,)`, `(b, d)`, `(b, n, d)` (pooled alike) or labels; `y`: labels `(b,)`, or floats (not for `"kde"`).
    - `estimator`, `options`: as in [`mutual_information`][pdejax.analysis.information.mutual_information]; `"kde"`
      needs `noise` σ and looks at the distances in T alone, so that it suits x of any dimension; here its `bound` is
      `"neither"`: an upper bound for X, the nearer estimate for Y.

    Where T is a noiseless function of X, I(X; T) is infinite or ln of the number of samples: what moves along the
    horizontal axis is the size of differences against σ (claim C10), not what a reader of the states could know. σ is
    the same for all layers and epochs. An estimate of I(T; Y) from few samples lies above 0 for labels without meaning:
    compare it with its null.

    2(1 + resamples/4) + 2·permutations times the estimator's cost per layer and epoch (`"kde"`: half the permutations);
    memory one layer's. Raises `TypeError`/`ValueError` for bad states, x, y or options, checkpoints that differ in
    shape, or a layer without a value. Source: Tishby and Zaslavsky, arXiv 1503.02406; Saxe et al. 2018, DOI
    10.1088/1742-5468/ab3985; v2 Fig. 9.
    """
    owner = "information_plane"
    checked_resamples(owner, level, resamples=resamples, permutations=permutations)
    several = isinstance(states, (list, tuple))
    every: list[Any] = list(states) if isinstance(states, (list, tuple)) else [states]
    if not every:
        raise ValueError(f"{owner}: states is empty; give at least one checkpoint's.")
    parts = [pooled(owner, part, mask, pool) for part in every]
    if len({part.shape for part, _ in parts}) > 1:
        raise ValueError(
            f"{owner}: checkpoints have pooled shapes {[part.shape for part, _ in parts]}; they must be equal."
        )
    real, shape = parts[0][1], (len(parts), parts[0][0].shape[0])
    t = jnp.concatenate([part for part, _ in parts])
    x, y = (checked_other(owner, name, value, t.shape[1], real, pool) for name, value in (("x", x), ("y", y)))
    if estimator == "kde" and not is_labels(y):
        raise TypeError(
            f'{owner}: "kde" needs labels y, got {y.dtype}; take "ksg" or "gaussian" for a target of floats.'
        )
    if estimator == "kde" and is_labels(x):
        x = x[:, None].astype(t.dtype)  # only counted: labels would change the question
    args = {
        name: checked_estimation(owner, estimator, options, noise, t, shown, other, key)
        for name, shown, other in (("input", "x", x), ("target", "y", y))
    }
    made, sampled, broken = jax.random.split(key, 3)

    def measured(name: str, null: str, other: Array) -> tuple[Figure, Array, Array]:
        sigma, own = args[name]
        found = over_layers(other, t, sigma, made, estimator, own)
        refuse_nan(owner, estimator, found.value)
        empty = jnp.zeros((0, t.shape[0]), t.dtype)
        halves = half_samples(other, t, sigma, sampled, estimator, own, resamples) if resamples else empty
        blind = estimator == "kde" and name == "input"
        orders = (
            permuted(other, t, sigma, broken, estimator, own, permutations) if permutations and not blind else empty
        )
        return beside_draws(around(found.value, halves, level), null, orders), found.limit, found.saturated

    results = [measured("input", "x permuted", x), measured("target", "y permuted", y)]
    if several:
        results = jax.tree.map(lambda a: a.reshape(shape), results)
    (value, limit, full), (target, target_limit, target_full) = results
    sigma = args["input"][0]
    return InformationPlane(value, target, limit, target_limit, full, target_full, sigma, estimator, t.shape[1])


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


@checked
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
    found = over_layers(None, t, sigma, own, estimator, options)
    if not traced(found.value) and not bool(jnp.all(jnp.isfinite(found.value))):
        layer = int(jnp.argmin(jnp.isfinite(found.value)))
        raise ValueError(
            f'{owner}: layer {layer} has no density as far as "{estimator}" can tell: features are constant, '
            "linearly dependent or repeated. "
            "Say noise=, or project to fewer features."
        )
    empty = jnp.zeros((0, t.shape[0]), t.dtype)
    halves = half_samples(None, t, sigma, sampled, estimator, options, resamples) if resamples else empty
    apart = _shuffled(t, sigma, broken, estimator, options, shuffles) if shuffles else empty
    figure = beside_draws(around(found.value, halves, level), "features shuffled", apart)
    return LayerEntropy(figure, found.limit, found.saturated, sigma, estimator, t.shape[1])


@eqx.filter_jit
def _shuffled(t: Array, sigma: Array | None, key: PRNGKeyArray, estimator: str, options: dict, draws: int) -> Array:
    def one(key):
        # The same orders for all layers, another for every feature.
        orders = jax.vmap(lambda k: jax.random.permutation(k, t.shape[1]), out_axes=1)(
            jax.random.split(key, t.shape[2])
        )
        return over_layers(None, jnp.take_along_axis(t, orders[None], axis=1), sigma, key, estimator, options).value

    return lax.map(one, jax.random.split(key, draws))
