"""The information plane: I(X; T_l) against I(T_l; Y), by layer and over training."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from pdejax._figure import AbstractRecord, Figure
from pdejax._trajectory import Trajectory
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
from pdejax.analysis.information._samples import is_labels


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
