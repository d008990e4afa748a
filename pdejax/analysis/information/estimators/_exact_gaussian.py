"""Information of jointly Gaussian data from sample covariances, without the bias of few samples."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from scipy.special import digamma

from pdejax._check import traced
from pdejax.analysis.information._estimate import Estimate, record
from pdejax.analysis.information._samples import continuous, paired, poisoned, standard

_OWNER = "gaussian_information"


def gaussian_information(x: ArrayLike, y: ArrayLike) -> Estimate:
    r"""$I = \tfrac12\ln\frac{\det\Sigma_x\det\Sigma_y}{\det\Sigma} = -\tfrac12\sum_i\ln(1 - \rho_i^2)$ nats, ρ_i the
    canonical correlations, from `x (N, dx)`, `y (N, dy)` as if they were jointly Gaussian.

    The plug-in value is too high by about dx·dy/2N. Its mean for Gaussian data is known, as $E\ln\det S_d =
    \ln\det\Sigma_d + \sum_{k=1}^d\psi(\tfrac{N-k}2) - d\ln\tfrac{N-1}2$, and is taken off: unbiased for them, for every
    N > dx + dy. For other data it is the information of no distribution in particular (Gaussian marginals: a lower
    bound).

    `limit` is inf. If one variable is a linear function of the other the value is inf, or what rounding leaves of it;
    `saturated` then: some 1 − ρ² is below 100 machine epsilons. Constant or linearly dependent features within x or y
    have no density: an error, or NaN under tracing.

    By QR of both centred arrays and the singular values of Q_xᵀQ_y: O(N (dx + dy)²) time, O(N (dx + dy)) memory; no
    covariance is formed, so float32 loses ε/(1 − ρ²) only. Raises `TypeError`/`ValueError` for bad samples, labels, N ≤
    dx + dy, or a singular marginal covariance. Source: Misra, Singh and Demchuk, DOI 10.1016/j.jmva.2003.10.003; Cover
    and Thomas §8.5.
    """
    x, y = continuous(_OWNER, "x", x), continuous(_OWNER, "y", y)
    count, dims = paired(_OWNER, x, y), x.shape[1] + y.shape[1]
    if count <= dims:
        raise ValueError(
            f"{_OWNER}: {count} samples are too few for {dims} features together; it needs more samples than features. "
            "Project to fewer."
        )
    found = _information(x, y.astype(x.dtype))
    if not traced(found.value) and bool(jnp.isnan(found.value)):
        raise ValueError(
            f"{_OWNER}: x or y has constant or linearly dependent features, whose covariance is singular; leave them "
            "out, "
            "project to fewer (principal components), or add noise."
        )
    return found


@eqx.filter_jit
def _information(x: Float[Array, "N dx"], y: Float[Array, "N dy"]) -> Estimate:
    count, dx, dy = x.shape[0], x.shape[1], y.shape[1]
    (qx, full_x), (qy, full_y) = _basis(x), _basis(y)
    rho = jnp.clip(jnp.linalg.svd(qx.T @ qy, compute_uv=False), 0.0, 1.0)
    left = (1 - rho) * (1 + rho)
    bias = 0.5 * (_bias(count, dx) + _bias(count, dy) - _bias(count, dx + dy))
    value = jnp.where(full_x & full_y, -0.5 * jnp.sum(jnp.log(left)) - bias, jnp.nan)
    sharp = jnp.min(left) < 100 * jnp.finfo(x.dtype).eps
    return record(poisoned(value, x, y), jnp.inf, sharp, "neither", count, None)


def _basis(x: Array) -> tuple[Array, Array]:
    """An orthonormal basis of the centred, scaled features, and whether they are independent."""
    q, r = jnp.linalg.qr(standard(x))
    diagonal = jnp.abs(jnp.diagonal(r))
    tolerance = 10 * x.shape[1] * float(jnp.finfo(x.dtype).eps)
    return q, jnp.min(diagonal) > tolerance * jnp.sqrt(jnp.asarray(x.shape[0], x.dtype))


def _bias(count: int, dims: int) -> float:
    """E ln det S − ln det Σ of a sample covariance of `dims` features."""
    return float(np.sum(digamma(0.5 * (count - np.arange(1, dims + 1)))) - dims * np.log(0.5 * (count - 1)))


def gaussian_entropy(x: Float[Array, "b d"]) -> Float[Array, ""]:
    r"""Differential entropy $\tfrac12\ln\det(2\pi e\Sigma)$ in nats from samples `x (b, d)`, as if they were Gaussian.

    Unbiased for Gaussian samples: $E\ln\det S = \ln\det\Sigma + \sum_{k=1}^d\psi\big(\tfrac{b-k}2\big) - d\ln\tfrac{b-1}2$
    for the sample covariance S. For any other distribution it lies *above* the entropy, since the Gaussian has the most for
    its covariance. Features that are constant or linearly dependent have no density: NaN.

    Raises `ValueError` unless b > d. Source: Misra, Singh and Demchuk 2005, DOI 10.1016/j.jmva.2003.10.003.
    """
    shape = jnp.shape(x)
    if len(shape) != 2 or shape[0] <= shape[1]:
        raise ValueError(
            f"gaussian_entropy: x has shape {shape}; it must be (b, d) with more rows than features, else the covariance "
            "is singular. Take a larger batch or project to fewer features."
        )
    b, d = shape
    off = x - jnp.mean(x, axis=0, keepdims=True)
    factor = jnp.linalg.cholesky(off.T @ off / (b - 1))
    bias = sum(float(digamma(0.5 * (b - k))) for k in range(1, d + 1)) - d * math.log(0.5 * (b - 1))
    return jnp.sum(jnp.log(jnp.diagonal(factor))) + 0.5 * (d * math.log(2 * math.pi * math.e) - bias)
