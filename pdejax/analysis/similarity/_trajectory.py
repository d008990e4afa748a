"""Correlation of layers, and how well one system's hidden states follow another's (v1 Tables 2–3, v2 §4.3.1)."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._bootstrap import check_bootstrap
from pdejax._check import choice, traced
from pdejax._figure import AbstractRecord, Figure
from pdejax._trajectory import Trajectory
from pdejax.analysis._states import hidden_states, paired_states
from pdejax.analysis.similarity._layers import MEASURES, SHAPE_MEASURES, compare_layers

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


@checked
def layer_correlation(
    states: Trajectory | ArrayLike,
    reference: Literal["input", "previous"] | Trajectory | ArrayLike = "input",
    mask: ArrayLike | None = None,
    *,
    untrained: Trajectory | ArrayLike | None = None,
    key: PRNGKeyArray | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> LayerCorrelation:
    r"""Correlation of every layer $u_l$ of `states (layers, [batch], n, d)` with a `reference`:

    - `"input"`: the first layer, pairs (0, 0), (1, 0), … (layers − 1, 0). Source: v2 §4.3.1 and Fig. 4 (which correlation is
      not said there; a cosine for its Thm 3.4, Pearson's for its Table 2).
    - `"previous"`: the layer before, pairs (1, 0), (2, 1), … A smaller step alone brings it nearer to 1, so it compares systems
      at equal steps only. Source: v1 §3.1, Table 2.
    - states of another system with equally many features: the same layer there, pairs (0, 0), (1, 1), … Source: v1 §3.1, Table 3.

    `mask (n,)` or `(batch, n)`. Nulls: $u_l$ with the tokens of each sequence shuffled (what is left is what all tokens of a
    sequence share, not which token is which), and the same figure of an `untrained` system in the place of `states`.
    Intervals, options, errors and cost as in [`trajectory_fidelity`][pdejax.analysis.similarity.trajectory_fidelity], without
    its SVD; `ValueError` for a single layer with `"previous"` too.
    """
    owner = "layer_correlation"
    check_bootstrap(owner, level, resamples)
    named = isinstance(reference, str)
    if named:
        choice(owner, "reference", reference, ("input", "previous"), "or give another system's states")
        first = second = hidden_states(owner, "states", states, mask)
    else:
        first, second = paired_states(owner, ("states", "reference"), states, reference, mask)
        if first.u.shape != second.u.shape:
            raise ValueError(
                f"{owner}: states has {first.u.shape[-1]} features and reference {second.u.shape[-1]}; a correlation of "
                "entries needs equally many. trajectory_fidelity gives CKA and Procrustes distance."
            )
    layers = first.u.shape[0]
    if named and reference == "previous" and layers < 2:
        raise ValueError(f"{owner}: states has one layer; at least two are needed.")
    check_tokens(owner, first.mask)
    systems = [(first.u, second.u)]
    if untrained is not None:
        null = hidden_states(owner, "untrained", untrained, mask)
        if null.u.shape != first.u.shape:
            raise ValueError(
                f"{owner}: untrained has shape {null.u.shape}; it must have that of the states, {first.u.shape}."
            )
        systems.append((null.u, null.u if named else second.u))
    if not named:
        pairs = tuple((i, i) for i in range(layers))
    elif reference == "input":
        pairs = tuple((i, 0) for i in range(layers))
    else:
        pairs = tuple((i + 1, i) for i in range(layers - 1))
    key = jax.random.key(0) if key is None else key
    found, _, degenerate = compare_layers(
        in_one_type(systems), pairs, first.mask, key, _MEASURES, False, level, resamples
    )
    return LayerCorrelation(**found, degenerate=degenerate, pairs=pairs)


class TrajectoryFidelity(AbstractRecord):
    r"""Agreement of a (tested) with b (reference): `layers`, figures `(layers,)` by the name of the measure, and `overall`, their
    means over the layers.

    - `"mse"`: ‖a − b‖² per entry; `"relative_error"`: ‖a − b‖/‖b‖ of a sequence (not squared);
    - `"cosine"` of each token, `"sequence_cosine"` of each sequence's whole field. These four are means over sequences.
    - `"pearson"`, `"spearman"` over all entries of all real tokens;
    - `"cka"`, `"cka_debiased"`, `"procrustes"`: [`linear_cka`][pdejax.analysis.similarity.linear_cka] and
      [`procrustes_distance`][pdejax.analysis.similarity.procrustes_distance] with all real tokens as samples. The others
      need equal numbers of features.

    Nulls: `"tokens shuffled"`, `"features shuffled"` (not of the last three, which do not see the order of features),
    `"untrained"` where given. `degenerate (layers,)`: all tokens of one system are the same there (rank collapse), so that CKA
    is 0 and the Procrustes distance √2 by definition; correlations are 0 too where all entries are the same.
    """

    layers: dict[str, Figure]
    overall: dict[str, Figure]
    degenerate: Bool[Array, " layers"]


@checked
def trajectory_fidelity(
    a: Trajectory | ArrayLike,
    b: Trajectory | ArrayLike,
    *,
    mask: ArrayLike | None = None,
    reference_null: Trajectory | ArrayLike | None = None,
    key: PRNGKeyArray | None = None,
    level: float = 0.95,
    resamples: int = 500,
) -> TrajectoryFidelity:
    r"""Agreement of the states `a` of the system under test with the states `b` of a reference, layer by layer.

    - `a`, `b`: trajectories or arrays `(layers, [batch], n, d)` at the same layers, sequences and tokens. With different
      numbers of features only CKA and Procrustes exist.
    - `mask (n,)` or `(batch, n)`: True at real tokens; what stands at others changes nothing.
    - `reference_null`: states like `a` of an untrained system.
    - `key`: of the shuffles and the bootstrap (default `jax.random.key(0)`).

    Nulls, in place of `a`: its real tokens shuffled within each sequence, its features shuffled (both one order for all
    layers), and `reference_null`. If a measure does not tell a from them, its value says nothing about fidelity. A sequence of
    one token cannot be shuffled: figure and null agree.

    Intervals are percentile bootstraps over sequences, NaN for one sequence. Each resample reweights sums over sequences,
    which is exact for all but three: Spearman keeps the ranks of the whole sample, Procrustes its best rotation, and CKA,
    debiased or not, does not count two copies of a token as a pair. `overall` is the mean over the layers given; where the
    first is an embedding that both systems share, it is flattered: leave it out (`us[1:]`).

    Cost, per layer, with N real tokens: two sorts of N·d entries (Spearman; the largest part on a CPU), O(N d²) for CKA, one
    d×d SVD per null, and `resamples`·batch·d². Layers come one after another: beside the states it holds about 20 copies of
    one layer (32 with `reference_null`; measured) and 6 (8) d×d matrices per sequence of one layer, so it passes 4× the
    trajectory for few layers or where d is large beside n. In float32 figures are good to about 1e-5; a Procrustes distance
    below 1e-3 is rounding.

    Raises `TypeError`/`ValueError` for states that do not match or are not finite, a sequence without a real token, fewer than
    4 real tokens in all, or options out of range. Under `jit`, where values are not looked at, states without variation give
    what `degenerate` says, and NaN only comes from NaN at real tokens.
    Sources: v1 §3.1 and Table 3; v2 §4.2 and Table 2.
    """
    check_bootstrap("trajectory_fidelity", level, resamples)
    first, second = paired_states("trajectory_fidelity", ("a", "b"), a, b, mask)
    systems = [(first.u, second.u)]
    if reference_null is not None:
        null, _ = paired_states("trajectory_fidelity", ("reference_null", "b"), reference_null, b, mask)
        if null.u.shape != first.u.shape:
            raise ValueError(
                f"trajectory_fidelity: reference_null has {null.u.shape[-1]} features and a {first.u.shape[-1]}; the null "
                "stands in the place of a and must have as many."
            )
        systems.append((null.u, second.u))
    check_tokens("trajectory_fidelity", first.mask)
    measures = MEASURES if first.u.shape == second.u.shape else SHAPE_MEASURES
    same = tuple((i, i) for i in range(first.u.shape[0]))
    key = jax.random.key(0) if key is None else key
    layers, overall, degenerate = compare_layers(
        in_one_type(systems), same, first.mask, key, measures, measures == MEASURES, level, resamples
    )
    return TrajectoryFidelity(layers, overall, degenerate)


def check_tokens(owner: str, mask: Bool[Array, "b n"]) -> None:
    """Raise `ValueError` for fewer than 4 tokens in all, which the unbiased estimate of HSIC divides by."""
    tokens = mask.size if traced(mask) else int(np.sum(np.asarray(mask)))
    if tokens < 4:
        raise ValueError(f"{owner}: {tokens} real tokens in all are too few; debiased CKA needs at least 4.")


def in_one_type(systems: list[tuple[Array, Array]]) -> list[tuple[Array, Array]]:
    """All states in float64 if any are, else in float32."""
    wide = any(u.dtype == jnp.float64 for pair in systems for u in pair)
    dtype = jnp.float64 if wide else jnp.float32
    return [(x.astype(dtype), y.astype(dtype)) for x, y in systems]
