r"""How alike two sets of samples are: correlations, cosines, linear CKA, Procrustes distance, each on its own."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from pdejax._arguments import checked
from pdejax._check import traced
from pdejax._figure import Figure


@checked
def linear_cka(a: ArrayLike, b: ArrayLike, *, debiased: bool = False) -> Figure:
    r"""Linear centred kernel alignment of the same N samples seen by two systems, `a (N, d1)` and `b (N, d2)`:

    $$\mathrm{CKA} = \frac{\mathrm{HSIC}(A,B)}{\sqrt{\mathrm{HSIC}(A,A)\,\mathrm{HSIC}(B,B)}},\qquad
      \mathrm{HSIC}(A,B) = \|A_c^\top B_c\|_F^2,$$

    A_c with its feature means removed. In [0, 1]; blind to rotations, permutations and scaling of the features. Unrelated
    samples have a positive one: the null "reordered" is $\mathrm{tr}K\,\mathrm{tr}L/((N-1)\|K\|\|L\|)$, its mean over all
    orders of the samples of one side (K, L the centred Gram matrices), near 1 once features outnumber samples. `debiased`
    takes the unbiased estimate of HSIC instead,
    with $k_i = \|a_i\|^2$, $l_i = \|b_i\|^2$ of centred samples

    $$\mathrm{HSIC}_u = \frac{1}{N(N-3)}\Big[\|A_c^\top B_c\|_F^2 - \frac{N}{N-2}\sum_i k_il_i
      + \frac{\sum_ik_i\sum_il_i}{(N-1)(N-2)}\Big],$$

    whose null is exactly 0; it may be slightly negative. Where one side does not vary there is nothing to compare: the value is
    0 by definition and the null NaN.

    O(N d1 d2 + N d1² + N d2²) through d×d cross-covariances, or O(N²(d1 + d2)) through N×N Gram matrices, each product by
    whichever is smaller. Samples are centred and scaled first, so that float32 gives about 1e-6 (1e-5 debiased, which
    subtracts like numbers).

    Raises `TypeError` for arrays that are not floating-point, `ValueError` for shapes that do not match, fewer than 2 samples
    (4 for `debiased`) or values that are not finite. Sources: Kornblith et al., arXiv 1905.00414, (3)–(4); unbiased: Song et
    al., JMLR 13 (2012) 1393, (4); Nguyen et al., arXiv 2010.15327, (3).
    """
    a, b = _sample_pair("linear_cka", a, b, 4 if debiased else 2)
    value, null, degenerate = _cka(a, b, bool(debiased))
    return _reordered(value, null, degenerate)


@checked
def procrustes_distance(a: ArrayLike, b: ArrayLike) -> Figure:
    r"""Shape distance of the same N samples seen by two systems, `a (N, d1)` and `b (N, d2)`: what remains between them after
    centring, scaling to unit norm and the best rotation or reflection Q,

    $$d = \min_Q\Big\|\frac{A_c}{\|A_c\|}Q - \frac{B_c}{\|B_c\|}\Big\|_F
        = \sqrt{2 - 2\,\|A_c^\top B_c\|_*/(\|A_c\|\|B_c\|)} \in [0, \sqrt2] .$$

    A metric on shapes; with fewer features on one side zeros fill them up. It has no null in closed form: shuffle one side.
    Where one side does not vary it is √2, the largest, by definition. Evaluated from the residual, not from
    2 − 2s, so that equal shapes come out at rounding, not at its root.
    O(N d1 d2) and an SVD of a matrix of at most min(N, d1)×min(N, d2).

    Raises as [`linear_cka`][pdejax.analysis.similarity.linear_cka]. Sources: Williams et al., arXiv 2110.14739, (3); Ding et al.,
    arXiv 2108.01661, §3.1 (its square).
    """
    a, b = _sample_pair("procrustes_distance", a, b, 2)
    return Figure(_procrustes(a, b))


@checked
def pearson(a: ArrayLike, b: ArrayLike) -> Figure:
    r"""Pearson correlation over all entries of two arrays of one shape,
    $r = \sum(a-\bar a)(b-\bar b)/\sqrt{\sum(a-\bar a)^2\sum(b-\bar b)^2}$. The null
    "reordered" is 0, NaN where one side does not vary (the value is then 0). Two passes: a common offset costs no digits
    beyond its own rounding. Raises as [`linear_cka`][pdejax.analysis.similarity.linear_cka]."""
    a, b = _entry_pair("pearson", a, b)
    value, degenerate = _pearson(a, b)
    return _reordered(value, jnp.zeros_like(value), degenerate)


@checked
def spearman(a: ArrayLike, b: ArrayLike) -> Figure:
    r"""Spearman correlation over all entries of two arrays of one shape: Pearson's of the ranks, ties sharing the mean of
    their ranks. Null as for [`pearson`][pdejax.analysis.similarity.pearson]. Two sorts, O(m log m) in the number m of entries.
    Raises as [`linear_cka`][pdejax.analysis.similarity.linear_cka]."""
    a, b = _entry_pair("spearman", a, b)
    value, degenerate = _spearman(a, b)
    return _reordered(value, jnp.zeros_like(value), degenerate)


def _reordered(value: Array, null: Array, degenerate: Array) -> Figure:
    return Figure(value, nulls={"reordered": jnp.where(degenerate, jnp.nan, null)})


@checked
def token_cosine(a: Float[Array, "... n d"], b: Float[Array, "... n d"]) -> Float[Array, "... n"]:
    r"""$\langle a_i, b_i\rangle/(\|a_i\|\|b_i\|)$ of each token; 0 where a token is 0."""
    return _cosine("token_cosine", a, b, None, (-1,))


@checked
def sequence_cosine(
    a: Float[Array, "... n d"], b: Float[Array, "... n d"], mask: Bool[Array, "... n"] | None = None
) -> Float[Array, "..."]:
    r"""$\langle a, b\rangle/(\|a\|\|b\|)$ of whole fields, over real tokens; 0 where a field is 0. `mask` is `(n,)` or has the
    fields' leading axes."""
    return _cosine("sequence_cosine", a, b, mask, (-2, -1))


@checked
def mean_squared_error(
    a: Float[Array, "... n d"], b: Float[Array, "... n d"], mask: Bool[Array, "... n"] | None = None
) -> Float[Array, "..."]:
    r"""$\|a-b\|^2$ per entry of a real token."""
    a, b, real = _fields("mean_squared_error", a, b, mask)
    count = jnp.sum(real, axis=(-2, -1)).astype(a.dtype) * a.shape[-1]
    return jnp.sum((a - b) ** 2, axis=(-2, -1)) / count


@checked
def relative_error(
    a: Float[Array, "... n d"], b: Float[Array, "... n d"], mask: Bool[Array, "... n"] | None = None
) -> Float[Array, "..."]:
    r"""$\|a-b\|/\|b\|$ over real tokens, not squared: 1 is what a = 0 has. Where b is 0 it is $\|a\|$, undivided."""
    a, b, _ = _fields("relative_error", a, b, mask)
    (a, s), (b, t) = _unit(a, (-2, -1)), _unit(b, (-2, -1))
    size = jnp.sqrt(jnp.sum(b**2, axis=(-2, -1))) * t
    # In units of the larger of the two, so that no square overflows.
    unit = jnp.maximum(s, t)
    off = jnp.sqrt(jnp.sum((a * _spread(s / unit, 2) - b * _spread(t / unit, 2)) ** 2, axis=(-2, -1))) * unit
    return off / jnp.where(size > 0, size, 1)


def average_ranks(x: Float[Array, "..."], real: Bool[Array, "..."] | None = None) -> Float[Array, "..."]:
    """Ranks 1…m of all entries, ties sharing the mean of theirs. Entries that are not `real` rank behind, to be ignored."""
    flat = jnp.ravel(x)
    if real is not None:
        flat = jnp.where(jnp.ravel(real), flat, jnp.inf)
    places = jnp.arange(flat.size)
    ordered, order = jax.lax.sort((flat, places), num_keys=1)
    change = ordered[1:] != ordered[:-1]
    edge = jnp.ones(1, bool)
    first = jax.lax.cummax(jnp.where(jnp.concatenate([edge, change]), places, 0))
    last = jax.lax.cummin(jnp.where(jnp.concatenate([change, edge]), places, flat.size - 1), reverse=True)
    ranks = 0.5 * (first.astype(x.dtype) + last.astype(x.dtype)) + 1
    return jnp.zeros_like(ranks).at[order].set(ranks, unique_indices=True).reshape(x.shape)


def rescaled(x: Array, size: Array) -> Array:
    """Centred values divided by the largest, so that no power of them overflows; 0 where they are only the rounding of values
    as large as `size`."""
    most = jnp.max(jnp.abs(x))
    dead = most <= 8 * jnp.finfo(x.dtype).eps * size
    return jnp.where(dead, 0, x / jnp.where(dead, 1, most))


def ratio_or_zero(top: Array, square_a: Array, square_b: Array) -> tuple[Array, Array]:
    """top/√(square_a·square_b), 0 where a square is 0 (or below), and whether it is."""
    dead = (square_a <= 0) | (square_b <= 0)
    scale = jnp.sqrt(jnp.where(dead, 1, square_a)) * jnp.sqrt(jnp.where(dead, 1, square_b))
    return jnp.where(dead, 0, top / scale), dead


@eqx.filter_jit
@jax.default_matmul_precision("highest")
def _cka(a: Array, b: Array, debiased: bool) -> tuple[Array, Array, Array]:
    n = a.shape[0]
    a, b = _centred(a), _centred(b)
    k, l = jnp.sum(a**2, axis=1), jnp.sum(b**2, axis=1)

    def hsic(x, y, kx, ky):
        # Σ_ij K_ij L_ij = ‖XᵀY‖², by the smaller of the two matrices.
        whole = jnp.sum((x.T @ y) ** 2) if x.shape[1] * y.shape[1] <= n * n else jnp.sum((x @ x.T) * (y @ y.T))
        if debiased:
            whole = whole - n / (n - 2) * jnp.dot(kx, ky) + jnp.sum(kx) * jnp.sum(ky) / ((n - 1) * (n - 2))
        return whole

    cross, own_a, own_b = hsic(a, b, k, l), hsic(a, a, k, k), hsic(b, b, l, l)
    if debiased:
        # Rounding of what is subtracted is no variation.
        floor = 8 * jnp.finfo(a.dtype).eps
        own_a, own_b = (jnp.where(x <= floor * jnp.dot(s, s), 0, x) for x, s in ((own_a, k), (own_b, l)))
    value, dead = ratio_or_zero(cross, own_a, own_b)
    if debiased:
        return value, jnp.zeros_like(value), dead
    null, _ = ratio_or_zero(jnp.sum(k) * jnp.sum(l) / (n - 1), own_a, own_b)
    return jnp.clip(value, 0, 1), null, dead


@eqx.filter_jit
@jax.default_matmul_precision("highest")
def _procrustes(a: Array, b: Array) -> Array:
    a, b = _centred(a), _centred(b)
    size_a, size_b = jnp.sqrt(jnp.sum(a**2)), jnp.sqrt(jnp.sum(b**2))
    dead = (size_a <= 0) | (size_b <= 0)
    a, b = a / jnp.where(dead, 1, size_a), b / jnp.where(dead, 1, size_b)
    # With more features than samples both shapes lie in N dimensions, where the triangular factors hold them.
    a, b = (jnp.linalg.qr(x.T, mode="r").T if x.shape[0] < x.shape[1] else x for x in (a, b))
    wide = max(a.shape[1], b.shape[1])
    a, b = (jnp.pad(x, ((0, 0), (0, wide - x.shape[1]))) for x in (a, b))
    u, _, vt = jnp.linalg.svd(a.T @ b, full_matrices=False)
    off = jnp.sqrt(jnp.sum((a @ u @ vt - b) ** 2))
    return jnp.where(dead, math.sqrt(2), jnp.minimum(off, math.sqrt(2)))


@eqx.filter_jit
def _pearson(a: Array, b: Array) -> tuple[Array, Array]:
    a, b = (_centred(jnp.ravel(x)[:, None])[:, 0] for x in (a, b))
    value, dead = ratio_or_zero(jnp.sum(a * b), jnp.sum(a**2), jnp.sum(b**2))
    return jnp.clip(value, -1, 1), dead


@eqx.filter_jit
def _spearman(a: Array, b: Array) -> tuple[Array, Array]:
    return _pearson(average_ranks(a), average_ranks(b))


def _centred(x: Array) -> Array:
    """Features without their means, in units of the largest; exactly 0 for constant ones."""
    shifted = x - x[:1]
    return rescaled(shifted - jnp.mean(shifted, axis=0, keepdims=True), jnp.max(jnp.abs(x)))


def _cosine(owner: str, a, b, mask, axes: tuple[int, ...]) -> Array:
    a, b, _ = _fields(owner, a, b, mask)
    (a, _), (b, _) = _unit(a, axes), _unit(b, axes)
    value, _ = ratio_or_zero(jnp.sum(a * b, axis=axes), jnp.sum(a**2, axis=axes), jnp.sum(b**2, axis=axes))
    return jnp.clip(value, -1, 1)


def _unit(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """x over its largest entry along `axes` (1 where that is 0), and that entry, without those axes."""
    most = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
    most = jnp.where(most > 0, most, 1)
    return x / most, jnp.squeeze(most, axes)


def _spread(x: Array, axes: int) -> Array:
    return x.reshape(x.shape + (1,) * axes)


def _fields(owner: str, a, b, mask) -> tuple[Array, Array, Array]:
    """Fields of one type, 0 at padding, and the mask `(..., n, 1)`."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"{owner}: a has shape {a.shape} and b {b.shape}; both must be (..., n, d) and the same.")
    a, b = _floating(owner, a, b)
    real = jnp.ones(a.shape[:-1], bool) if mask is None else jnp.asarray(mask)
    if real.dtype != jnp.bool_ or real.shape not in (a.shape[-2:-1], a.shape[:-1]):
        raise ValueError(
            f"{owner}: mask has type {real.dtype} and shape {real.shape}; it must be boolean, True at real tokens, of shape "
            f"{a.shape[-2:-1]} or {a.shape[:-1]}."
        )
    # NumPy looks at what is known even inside a trace.
    if not traced(real) and not np.all(np.any(np.asarray(real), axis=-1)):
        raise ValueError(f"{owner}: mask leaves a field without a real token; leave that field out.")
    real = jnp.broadcast_to(real, a.shape[:-1])[..., None]
    return jnp.where(real, a, 0), jnp.where(real, b, 0), real


def _sample_pair(owner: str, a, b, least: int) -> tuple[Array, Array]:
    a, b = jnp.asarray(a), jnp.asarray(b)
    for name, x in (("a", a), ("b", b)):
        if x.ndim != 2 or x.shape[1] < 1:
            raise ValueError(
                f"{owner}: {name} has shape {x.shape}; it must be (samples, features). Tokens are samples: "
                "u.reshape(-1, u.shape[-1]) of the real ones; one feature is x[:, None]."
            )
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"{owner}: a has {a.shape[0]} samples and b {b.shape[0]}; they must be the same samples.")
    if a.shape[0] < least:
        raise ValueError(f"{owner}: {a.shape[0]} samples are too few; at least {least} are needed.")
    return _finite(owner, *_floating(owner, a, b))


def _entry_pair(owner: str, a, b) -> tuple[Array, Array]:
    a, b = jnp.asarray(a), jnp.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"{owner}: a has shape {a.shape} and b {b.shape}; entries are compared one by one.")
    if a.size < 2:
        raise ValueError(f"{owner}: {a.size} entries are too few; at least 2 are needed.")
    return _finite(owner, *_floating(owner, a, b))


def _floating(owner: str, *values: Array) -> tuple[Array, ...]:
    """All in float64 if one is, else in float32."""
    for name, x in zip("ab", values, strict=False):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{owner}: {name} has type {x.dtype}; it must be real and floating-point.")
    dtype = jnp.float64 if any(x.dtype == jnp.float64 for x in values) else jnp.float32
    return tuple(x.astype(dtype) for x in values)


def _finite(owner: str, a: Array, b: Array) -> tuple[Array, Array]:
    for name, x in (("a", a), ("b", b)):
        if not traced(x) and not np.all(np.isfinite(np.asarray(x))):
            raise ValueError(f"{owner}: {name} has values that are not finite; leave those samples out.")
    return a, b
