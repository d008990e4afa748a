"""The sign of the emergent diffusivity v2 (8), and the growth that follows from a negative one (claim C7)."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.linalg import eigh_tridiagonal

from pdejax._arguments import checked
from pdejax._check import integer, on_numbers, real_array, spoken_by
from pdejax._figure import AbstractRecord
from pdejax.solvers import Grid
from pdejax.terms import EffectiveDiffusion, FeedForward

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class NegativeFraction(AbstractRecord):
    """How often a diffusivity is negative.

    - `fraction`: share of all tokens; `per_field (k,)`: share of each field's (or draw's) tokens.
    - `quantiles {level: value}` of `per_field`, levels 0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.
    - `lowest`, `highest`: extreme values of what was tested: D_eff, or the trace where no geometry was given.
    """

    fraction: float
    per_field: Array
    quantiles: dict[float, float]
    lowest: float
    highest: float


class AntiDiffusion(AbstractRecord):
    r"""The fastest mode of the divergence form ∂x(D ∂x u) with D frozen.

    - `rate`: its largest eigenvalue, per unit depth; 0 (Neumann, periodic) or negative if D ≥ 0.
    - `mode (n,)`: the eigenvector, of Euclidean length 1. - `most_negative`: min(0, min D) over the faces.
    - `bound`: 4·|most_negative|/Δx², which no eigenvalue exceeds and which a stretch of constant D approaches.
    """

    rate: float
    mode: np.ndarray
    most_negative: float
    bound: float


@checked
@on_numbers
def negative_fraction(source, us: Array, mask: Array | None = None) -> NegativeFraction:
    r"""Find the share of tokens at which v2 (8) is negative, over the fields `us (k, n, d)` or `(n, d)`.

    `source` is a term with a `coefficient(u, mask)` per token: an `EffectiveDiffusion`, a `FeedForward` of a random or a trained
    network alike, or one of your own; or a field with such a diffusion. The other factors of v2 (8) are squares, so D_eff
    has the sign of $\mathrm{Tr}(\partial\mathrm{FFN}/\partial u)$; with a `FeedForward` the trace itself is tested. Tokens
    where D_eff is exactly 0 count as not negative. `mask (n,)`: only real tokens count.

    Flipping the sign of W₂ flips that of the trace: for weights drawn from a symmetric law a token is negative with
    probability exactly ½. But all tokens of one draw share its Tr(W₁W₂), so that single draws range from a few to almost
    100 %, and the share in a few draws says little: look at `quantiles`.

    Raises `TypeError` for another source, `ValueError` for fields that do not fit or hold NaN.
    """
    source = _source(source)
    fields = us[None] if jnp.ndim(us) == 2 else us
    if jnp.ndim(fields) != 3 or 0 in fields.shape:
        raise ValueError(
            f"negative_fraction: us has shape {jnp.shape(us)}; it must be (k, n, d) or (n, d), with at least one token."
        )
    real_array("negative_fraction", "us", fields)
    with spoken_by("negative_fraction"):
        source.check(*fields.shape[1:])
    values = _values(source, fields, mask)
    real = np.ones(fields.shape[1], bool) if mask is None else np.asarray(mask)
    if real.shape != (fields.shape[1],) or not real.any():
        raise ValueError(
            f"negative_fraction: mask must be ({fields.shape[1]},) with at least one real token; it has shape {real.shape}."
        )
    return _share(np.asarray(values)[:, real])


@checked
@on_numbers
def random_negative_fraction(
    *, key: PRNGKeyArray, draws: int = 100, tokens: int = 64, dim: int = 16, hidden: int = 64, activation: str = "gelu"
) -> NegativeFraction:
    """[`negative_fraction`][pdejax.analysis.growth.negative_fraction] of the trace over `draws` random feed-forward networks
    (N(0, 1/fan-in) weights, no biases), each at `tokens` standard normal tokens. One compilation."""
    for name, value in (("draws", draws), ("tokens", tokens), ("dim", dim), ("hidden", hidden)):
        integer("random_negative_fraction", name, value)
    return _share(np.asarray(_random_traces(key, draws, tokens, dim, hidden, activation)))


@checked
@on_numbers
def anti_diffusion(
    source: Grid | EffectiveDiffusion, values: Float[Array, "n *d"], mask: Array | None = None
) -> AntiDiffusion:
    r"""Find the growth rate of $\partial_tu = \partial_x(D\,\partial_xu)$ with D frozen, exactly.

    - `source`, `values`: a `Grid` and D `(n,)` on it; or an `EffectiveDiffusion` and the field `(n, d)` at which D_eff is taken.

    The operator of [`divergence`][pdejax.solvers.divergence] is a symmetric matrix: tridiagonal, whose largest eigenpair
    costs O(n) by `scipy.linalg.eigh_tridiagonal`, or, on a periodic grid, dense with O(n³). On a stretch of several
    tokens with D ≈ −|D|, neighbours of opposite sign grow at up to 4|D|/Δx²: refining the grid makes it worse without
    end, which is what ill-posed means (v2 (7)–(8) as written; claim C7). For D ≥ 0 no eigenvalue is positive.

    `mask (n,)`: no flux crosses a face that touches a padded token. Raises `ValueError` for a shape that does not fit, a
    diffusivity that is not finite, or a periodic grid of more than 4,096 tokens.
    """
    if isinstance(source, Grid):
        grid, d = source, np.asarray(values, np.float64)
    else:
        source.check(*values.shape)
        grid, d = source.grid, np.asarray(_values(source, values[None], mask)[0], np.float64)
    n = grid.n
    if d.shape != (n,) or not np.all(np.isfinite(d)):
        raise ValueError(
            f"anti_diffusion: values must be finite and of shape ({n},), one value per token; it has shape {d.shape}."
        )
    if n < 2:
        raise ValueError("anti_diffusion: diffusion needs at least 2 tokens; the grid has 1.")
    real = np.ones(n, bool) if mask is None else np.asarray(mask, bool)
    if real.shape != (n,):
        raise ValueError(f"anti_diffusion: mask has shape {real.shape}; it must be ({n},), one entry per token.")
    faces = _faces(grid, d, real) / float(np.asarray(grid.spacing)) ** 2
    most_negative = min(0.0, float(faces.min()))
    diagonal, side = -(faces[:-1] + faces[1:]), faces[1:-1]
    if grid.boundary != "periodic":
        rates, vectors = eigh_tridiagonal(diagonal, side, select="i", select_range=(n - 1, n - 1))
    elif n > 4096:
        raise ValueError(
            f"anti_diffusion: a periodic grid needs a dense matrix, and n={n} is above 4096; take a coarser grid."
        )
    else:
        matrix = np.diag(diagonal) + np.diag(side, 1) + np.diag(side, -1)
        # Both faces between two tokens, if there are no more, add up in one entry.
        matrix[0, -1] += faces[0]
        matrix[-1, 0] += faces[0]
        rates, vectors = np.linalg.eigh(matrix)
    return AntiDiffusion(
        float(rates[-1]), vectors[:, -1], most_negative * float(np.asarray(grid.spacing)) ** 2, 4 * abs(most_negative)
    )


def _faces(grid: Grid, d: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Diffusivity at the n + 1 faces, 0 where no flux crosses."""
    mode = "wrap" if grid.boundary == "periodic" else "edge"
    extended, open_ = np.pad(d, 1, mode=mode), np.pad(real, 1, mode=mode)
    faces = np.where(open_[1:] & open_[:-1], 0.5 * (extended[1:] + extended[:-1]), 0.0)
    if grid.boundary == "neumann":
        faces[[0, -1]] = 0.0
    return faces


def _source(source):
    term = getattr(source, "diffusion", source)
    if not callable(getattr(term, "coefficient", None)):
        raise TypeError(
            f"negative_fraction: source is a {type(term).__name__}, which has no coefficient(u, mask); pass an "
            "EffectiveDiffusion, a MasterEquation whose diffusion is one, or a FeedForward."
        )
    return term


def _share(values: np.ndarray) -> NegativeFraction:
    if not np.all(np.isfinite(values)):
        raise ValueError(
            "negative_fraction: the diffusivity is NaN or infinite at some tokens: the fields or the weights are not finite."
        )
    per_field = np.mean(values < 0, axis=1)
    quantiles = {q: float(np.quantile(per_field, q)) for q in QUANTILES}
    return NegativeFraction(
        math.fsum(per_field) / len(per_field),
        jnp.asarray(per_field),
        quantiles,
        float(values.min()),
        float(values.max()),
    )


@eqx.filter_jit
def _values(source, fields, mask):
    return jax.vmap(lambda u: source.coefficient(u, mask))(fields)


@eqx.filter_jit
def _random_traces(key, draws: int, tokens: int, dim: int, hidden: int, activation: str):
    def draw(k):
        weights, states = jax.random.split(k)
        network = FeedForward(dim, hidden, key=weights, activation=activation)
        return network.jacobian_trace(jax.random.normal(states, (tokens, dim)))

    return jax.lax.map(draw, jax.random.split(key, draws))
