r"""Correlation of layers: with the input, with the layer before, with another system's (v1 Tables 2–3, v2 §4.3.1)."""

import equinox as eqx
import jax
from jaxtyping import Array, ArrayLike, Bool, PRNGKeyArray

from pdejax._bootstrap import check_bootstrap
from pdejax._figure import AbstractRecord, Figure
from pdejax._trajectory import Trajectory
from pdejax.analysis._states import hidden_states, paired_states
from pdejax.analysis.similarity._layers import compare_layers
from pdejax.analysis.similarity._trajectory import check_tokens, in_one_type

_MEASURES = ("pearson", "spearman", "cosine", "cka_debiased")


class LayerCorrelation(AbstractRecord):
    """Correlation of pairs of layers, arrays `(pairs,)`, each with its interval and the nulls
    `"tokens shuffled"` and, where given, `"untrained"`.

    - `pearson`, `spearman` over all entries of all real tokens; `cosine` of each token, averaged; `cka_debiased` with tokens
      as samples.
    - `pairs`: which layers were paired, (tested, reference), numbered from 0. `degenerate`: one of them holds the same token
      everywhere; CKA is 0 there by definition, and correlations where all entries are the same.
    """

    pearson: Figure
    spearman: Figure
    cosine: Figure
    cka_debiased: Figure
    degenerate: Bool[Array, " pairs"]
    pairs: tuple[tuple[int, int], ...] = eqx.field(static=True)


def input_correlation(
    states: Trajectory | ArrayLike,
    mask: ArrayLike | None = None,
    *,
    untrained: Trajectory | ArrayLike | None = None,
    key: PRNGKeyArray | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> LayerCorrelation:
    r"""Correlation of every layer `u_l` with the first, `u_0`, pairs (0, 0), (1, 0), … (layers − 1, 0).

    `states (layers, [batch], n, d)`, `mask (n,)` or `(batch, n)`. Nulls: `u_l` with the tokens of each sequence shuffled (what
    is left is what all tokens of a sequence share, not which token is which), and the same figure of an `untrained` system.
    Intervals, options, errors and cost as in [`trajectory_fidelity`][pdejax.analysis.trajectory_fidelity], without its SVD.
    Source: v2 §4.3.1 and Fig. 4 (which correlation is not said there; a cosine for its Thm 3.4, Pearson's for its Table 2).
    """
    return _correlation("input_correlation", states, None, mask, untrained, None, key, level, resamples)


def adjacent_correlation(
    states: Trajectory | ArrayLike,
    mask: ArrayLike | None = None,
    *,
    untrained: Trajectory | ArrayLike | None = None,
    key: PRNGKeyArray | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> LayerCorrelation:
    r"""Correlation of every layer with the one before, pairs (1, 0), (2, 1), … A smaller step alone brings it nearer to 1, so
    it compares systems at equal steps only. Otherwise as [`input_correlation`][pdejax.analysis.input_correlation].

    Raises `ValueError` for a single layer too. Source: v1 §3.1, Table 2.
    """
    return _correlation("adjacent_correlation", states, None, mask, untrained, None, key, level, resamples)


def layer_correlation(
    a: Trajectory | ArrayLike,
    b: Trajectory | ArrayLike,
    mask: ArrayLike | None = None,
    *,
    untrained: Trajectory | ArrayLike | None = None,
    key: PRNGKeyArray | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> LayerCorrelation:
    r"""Correlation of the same layers of two systems with equally many features, pairs (0, 0), (1, 1), … `untrained` stands in
    the place of a. Otherwise as [`input_correlation`][pdejax.analysis.input_correlation]. Source: v1 §3.1, Table 3."""
    return _correlation("layer_correlation", a, b, mask, untrained, b, key, level, resamples)


def _correlation(owner, a, b, mask, untrained, beside, key, level, resamples) -> LayerCorrelation:
    check_bootstrap(owner, level, resamples)
    if b is None:
        first = hidden_states(owner, "states", a, mask)
        second = first
    else:
        first, second = paired_states(owner, ("a", "b"), a, b, mask)
        if first.u.shape != second.u.shape:
            raise ValueError(
                f"{owner}: a has {first.u.shape[-1]} features and b {second.u.shape[-1]}; a correlation of entries needs "
                "equally many. trajectory_fidelity gives CKA and Procrustes distance."
            )
    layers = first.u.shape[0]
    if owner == "adjacent_correlation" and layers < 2:
        raise ValueError(f"{owner}: states has one layer; at least two are needed.")
    check_tokens(owner, first.mask)
    systems = [(first.u, second.u)]
    if untrained is not None:
        null = hidden_states(owner, "untrained", untrained, mask)
        if null.u.shape != first.u.shape:
            raise ValueError(
                f"{owner}: untrained has shape {null.u.shape}; it must have that of the states, {first.u.shape}."
            )
        systems.append((null.u, null.u if beside is None else second.u))
    pairs = {
        "input_correlation": tuple((i, 0) for i in range(layers)),
        "adjacent_correlation": tuple((i + 1, i) for i in range(layers - 1)),
        "layer_correlation": tuple((i, i) for i in range(layers)),
    }[owner]
    key = jax.random.key(0) if key is None else key
    found, _, degenerate = compare_layers(
        in_one_type(systems), pairs, first.mask, key, _MEASURES, False, level, resamples
    )
    return LayerCorrelation(**found, degenerate=degenerate, pairs=pairs)
