"""Operator identification: increments of hidden states as a sum of the papers' operators and of the network's own terms."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from pdejax._arguments import checked
from pdejax._equation import unstack_shapes
from pdejax._figure import AbstractRecord
from pdejax.analysis.depth._layers import Layers, batch_of, layers_as_maps, states_of_run
from pdejax.terms import FieldArgs, SpatialNorm

PAPERS = ("heat", "mean attention", "damping", "spatial normalization")
GROUPS = ("the papers' operators", "own terms", "all")
OWN = "own "
_RANK = 1e-9  # directions of the normal equations below this, relative to the largest, count as not there


class OperatorIdentification(AbstractRecord):
    r"""What the operators explain of the increments $(u_{l+1} - u_l)/\Delta$, by layer and held-out sequence.

    - `operators`: the names of the K operators. `groups`: names of the G regressions: every operator alone, then those of the
      papers together, the network's own terms together (where it has terms), and all.
    - `coefficients (G, layers, K)`: fitted, per unit depth; NaN for operators that the group has not.
    - `r2 (G, layers, test)`: $1 - \|y - \hat y\|^2/\|y\|^2$ of the increments y of every held-out sequence: 0 for predicting that
      nothing changes, negative where that would be better. `null (G, layers, test)`: the same where operators are taken of the
      next sequence's state.
    - `rollout (layers + 1, test)`: $\|\tilde u_l - u_l\|/\|u_l\|$ of the states of the papers' operators alone, from $u_0$ with
      the fitted coefficients; `persistence (layers + 1, test)`: of $u_0$ itself.
    - `train`, `test`: places of the sequences.
    """

    operators: tuple[str, ...] = eqx.field(static=True)
    groups: tuple[str, ...] = eqx.field(static=True)
    coefficients: Float[np.ndarray, "G layers K"]
    r2: Float[np.ndarray, "G layers test"]
    null: Float[np.ndarray, "G layers test"]
    rollout: Float[np.ndarray, "layers_1 test"]
    persistence: Float[np.ndarray, "layers_1 test"]
    train: tuple[int, ...] = eqx.field(static=True)
    test: tuple[int, ...] = eqx.field(static=True)


@checked
def paper_operators(
    u: Float[Array, "n d"], *, mask: Bool[Array, " n"] | None = None, causal: bool = False
) -> dict[str, Float[Array, "n d"]]:
    r"""Evaluate the papers' operators on a state `u (n, d)`, without parameters, tokens at unit distance:

    | name | operator |
    |---|---|
    | `"heat"` | $u_{i-1} - 2u_i + u_{i+1}$, no flux at the ends and at padding: D of v2 (4) |
    | `"mean attention"` | $\frac1n\sum_j u_j - u_i$, over the tokens up to i if `causal`: v2 (5) with uniform weights |
    | `"damping"` | $-u_i$ |
    | `"spatial normalization"` | $-(u_i - \mu)/\sqrt{\sigma^2 + \epsilon}$ over tokens: v2 (9) |

    Padding is 0 and counts for nothing.
    """
    real = jnp.ones(u.shape[0], bool) if mask is None else mask
    u = jnp.where(real[:, None], u, jnp.zeros((), u.dtype))
    flux = jnp.where((real[1:] & real[:-1])[:, None], u[1:] - u[:-1], jnp.zeros((), u.dtype))
    heat = jnp.pad(flux, ((0, 1), (0, 0))) - jnp.pad(flux, ((1, 0), (0, 0)))
    weights = real.astype(u.dtype)
    if causal:
        mean = jnp.cumsum(u, axis=0) / jnp.maximum(jnp.cumsum(weights), 1)[:, None]
    else:
        mean = jnp.broadcast_to(jnp.sum(u, axis=0) / jnp.sum(weights), u.shape)
    found = {
        "heat": heat,
        "mean attention": mean - u,
        "damping": -u,
        "spatial normalization": SpatialNorm()(0.0, u, FieldArgs(real)),
    }
    return {name: jnp.where(real[:, None], x, jnp.zeros((), u.dtype)) for name, x in found.items()}


@checked
def identify_operators(system: Any, u0: ArrayLike, *, mask: ArrayLike | None = None) -> OperatorIdentification:
    r"""Regress a network's increments on operators, layer by layer, and predict sequences that were held out:

    $$\frac{u_{l+1} - u_l}{\Delta} \approx \sum_k c_{lk}\,O_k(u_l),$$

    one number $c_{lk}$ per operator and layer, by least squares over all real tokens and features of the even sequences; the
    odd ones are held out. Operators: those of [`paper_operators`][pdejax.analysis.operators.paper_operators] and the terms of
    the network's own field, such as its attention `"own interaction"` and its feed-forward layer `"own reaction"`, at $u_l$.
    If a network's layers were Euler steps of a heat equation with damping, two coefficients would explain all of it.

    - `system`: a `Discretization` with layers, a `Network`, a `Transformer` or a `Simulator`; `u0 (b, n, d)`, b ≥ 4, such as the
      embeddings of a batch; `mask (b, n)`.

    Causal attention in the field makes the mean causal. Operators that coincide on the data share their coefficient (least norm).
    Cost: one run, and the operators at every state. Raises as `run_layers`, and `ValueError` for fewer than four sequences.
    """
    owner = "identify_operators"
    batch = batch_of(owner, u0, mask)
    if batch.u.shape[0] < 4:
        raise ValueError(
            f"{owner}: u0 has {batch.u.shape[0]} sequences; give at least 4, of which every second is held out."
        )
    layers = layers_as_maps(owner, system, batch.u[0], batch.mask[0], len(batch.u))
    places = np.arange(layers.count)
    states = states_of_run(layers, batch, places, np.full(places.shape, layers.native))
    own = _own_names(layers)
    names = (*PAPERS, *own)
    causal = _causal(layers)
    moments = [_moments(layers, states[l], states[l + 1], batch.mask, jnp.asarray(l), own, causal) for l in places]
    here, other = ([{k: np.asarray(v, float) for k, v in pair[i].items()} for pair in moments] for i in (0, 1))
    train, test = np.arange(0, len(batch.u), 2), np.arange(1, len(batch.u), 2)
    groups = _groups(names)
    fits = [_fit(here, members, train) for members in groups.values()]
    nulls = [_fit(other, members, train) for members in groups.values()]
    rollout, persistence = _rollout(
        states[:, test],
        batch.mask[test],
        jnp.asarray(np.nan_to_num(fits[list(groups).index(GROUPS[0])])),
        layers.span,
        causal,
    )
    return OperatorIdentification(
        names,
        tuple(groups),
        np.stack(fits),
        np.stack([_r2(here, fit, test) for fit in fits]),
        np.stack([_r2(other, fit, test) for fit in nulls]),
        np.asarray(rollout, float),
        np.asarray(persistence, float),
        tuple(train.tolist()),
        tuple(test.tolist()),
    )


def _own_names(layers: Layers) -> tuple[str, ...]:
    names = layers.d.field.names()
    return () if names == ("field",) else tuple(f"{OWN}{name}" for name in names)


def _causal(layers: Layers) -> bool:
    field = layers.d.field
    shapes = unstack_shapes(field.stacked) if layers.d.layers else field
    return any(getattr(term, "causal", False) for term in getattr(shapes, "terms", ()))


def _groups(names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """The operators of each regression, by their places."""
    own = tuple(i for i, name in enumerate(names) if name.startswith(OWN))
    papers = tuple(range(len(PAPERS)))
    together = {GROUPS[0]: papers} | ({GROUPS[1]: own, GROUPS[2]: papers + own} if own else {})
    return {name: (i,) for i, name in enumerate(names)} | together


@eqx.filter_jit
def _moments(
    layers: Layers,
    u: Float[Array, "b n d"],
    after: Float[Array, "b n d"],
    mask: Bool[Array, "b n"],
    index: Array,
    own: tuple[str, ...],
    causal: bool,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Products of operators and increments, of every sequence; and with operators of the next sequence's state."""
    d = layers.d

    def operators(u, real):
        found = paper_operators(u, mask=real, causal=causal)
        field = d.field.layer(d.layers[0] + index) if d.layers else d.field
        t = jnp.asarray(d.t0, u.dtype) + jnp.asarray(layers.span, u.dtype) * index.astype(u.dtype)
        parts = field.contributions(t, u, FieldArgs(real)) if own else {}
        stacked = jnp.stack([*found.values(), *(parts[name.removeprefix(OWN)] for name in own)])
        return jnp.where(real[None, :, None], stacked, jnp.zeros((), u.dtype))

    changes = (after - u) / jnp.asarray(layers.span, u.dtype)
    library = jax.vmap(operators)(u, mask)

    def products(x, y):
        return {
            "gram": jnp.einsum("bkij,blij->bkl", x, x),
            "moment": jnp.einsum("bkij,bij->bk", x, y),
            "square": jnp.einsum("bij,bij->b", y, y),
        }

    other = jnp.where(mask[:, None, :, None], jnp.roll(library, -1, axis=0), jnp.zeros((), u.dtype))
    return products(library, changes), products(other, changes)


def _fit(moments: Sequence[Mapping[str, np.ndarray]], members: tuple[int, ...], train: np.ndarray) -> np.ndarray:
    """Coefficients `(layers, K)` by least squares over these sequences, NaN for operators that are not members."""
    found = []
    for layer in moments:
        gram = layer["gram"][train].sum(axis=0)[np.ix_(members, members)]
        moment = layer["moment"][train].sum(axis=0)[list(members)]
        scale = np.sqrt(np.maximum(np.diag(gram), np.finfo(float).tiny))
        c = np.linalg.pinv(gram / scale[:, None] / scale, rcond=_RANK, hermitian=True) @ (moment / scale) / scale
        row = np.full(layer["moment"].shape[1], np.nan)
        row[list(members)] = c
        found.append(row)
    return np.stack(found)


def _r2(moments: Sequence[Mapping[str, np.ndarray]], coefficients: np.ndarray, test: np.ndarray) -> np.ndarray:
    """1 − ‖y − ŷ‖²/‖y‖² `(layers, test)`."""
    found = []
    for layer, row in zip(moments, np.nan_to_num(coefficients), strict=True):
        gram, moment, square = (layer[name][test] for name in ("gram", "moment", "square"))
        explained = 2 * moment @ row - np.einsum("k,bkl,l->b", row, gram, row)
        found.append(explained / np.where(square > 0, square, 1))
    return np.stack(found)


@eqx.filter_jit
def _rollout(
    states: Float[Array, "layers_1 b n d"],
    mask: Bool[Array, "b n"],
    coefficients: Float[Array, "layers K"],
    span: Any,
    causal: bool,
) -> tuple[Float[Array, "layers_1 b"], Float[Array, "layers_1 b"]]:
    """Relative errors of the papers' operators from the first state, and of the first state itself."""

    def layer(u, row):
        def one(u, real):
            parts = jnp.stack(list(paper_operators(u, mask=real, causal=causal).values()))
            return u + jnp.asarray(span, u.dtype) * jnp.tensordot(row[: len(PAPERS)].astype(u.dtype), parts, axes=1)

        u = jax.vmap(one)(u, mask)
        return u, u

    _, us = jax.lax.scan(layer, states[0], coefficients)
    real = mask[None, ..., None]

    def errors(u):
        change, size = (
            jnp.sum(jnp.where(real, x, jnp.zeros((), x.dtype)) ** 2, axis=(2, 3)) for x in (u - states, states)
        )
        return jnp.sqrt(change / size)

    return errors(jnp.concatenate([states[:1], us])), errors(jnp.broadcast_to(states[:1], states.shape))
