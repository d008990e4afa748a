"""Does information fall along depth, and must it? The data-processing inequality against estimates."""

from typing import Literal

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
        t = t / layer_spread(t)
    own, sampled, broken = jax.random.split(key, 3)
    empty = jnp.zeros((0, t.shape[0]), t.dtype)
    found = over_layers(other, t, sigma, own, estimator, options)
    refuse_nan(owner, estimator, found.value)
    halves = half_samples(other, t, sigma, sampled, estimator, options, resamples) if resamples else empty
    shuffle = permutations and (estimator != "kde" or is_labels(other))
    orders = permuted(other, t, sigma, broken, estimator, options, permutations) if shuffle else empty
    joint = 1 - (1 - level) / (t.shape[0] - 1)
    change = around(jnp.diff(found.value), jnp.diff(halves, axis=1), joint)
    change = Figure(change.value, change.low, change.high, level=level)
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


def layer_spread(t: Float[Array, "layers N D"]) -> Float[Array, "layers 1 1"]:
    """Root mean square deviation of each layer's representations from their mean over samples, per feature."""
    off = t - jnp.mean(t, axis=1, keepdims=True)
    return jnp.sqrt(jnp.mean(off**2, axis=(1, 2), keepdims=True))
