"""Krylov iterations from products alone: Golub–Kahan and Arnoldi in JAX, with full reorthogonalization, and ARPACK outside
of it."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

Product = Callable[[Array], Array]
TOLERANCE = 1e-3  # of ARPACK's residual relative to the eigenvalue
RESTARTS = 40  # then an iteration counts as not converged: about a thousand products


class Found(NamedTuple):
    """Eigenvalues from an iteration, and whether it converged."""

    values: np.ndarray
    converged: bool


class Bidiagonal(NamedTuple):
    r"""$AV = UB$, $A^\top U = VB^\top + \beta v e_m^\top$ with B `(m, m)` upper bidiagonal; rows of `left`, `right` are U, V."""

    matrix: Float[Array, "m m"]
    beta: Float[Array, ""]
    left: Float[Array, "m N"]
    right: Float[Array, "m N"]


def golub_kahan(
    product: Product, transposed: Product, support: Bool[Array, " N"], iterations: int, key: PRNGKeyArray, dtype
) -> Bidiagonal:
    """`iterations` m steps on the coordinates of `support`, from a random start; 2m products, 2mN numbers.

    Where the Krylov space is exhausted it goes on from a fresh random vector with a zero off-diagonal, so that repeated
    singular values are found. Where nothing is left (m above the dimension, possible only with a traced mask) the step repeats
    a value inside the spectrum: extremes stay right.
    """
    size = support.shape[0]
    tiny = 50 * float(jnp.finfo(dtype).eps)

    def advance(x, basis, scale, key):
        """The next basis vector and the coefficient: x without its part in the basis."""
        before = _norm(x)
        x = _orthogonal(x, basis)
        size = _norm(x)
        broken = size <= tiny * jnp.maximum(scale, before)
        safe = jnp.where(broken, 1, size)
        new = jax.lax.cond(broken, lambda: _fresh(key, support, basis), lambda: x / safe)
        return jnp.where(broken, 0, size), new

    def step(carry, j):
        left, right, scale, first = carry
        one, two = jax.random.split(jax.random.fold_in(key, j))
        v = right[j]
        alpha, u = advance(product(v), left, scale, one)
        first = jnp.where(j == 0, alpha, first)
        alpha = jnp.where(_norm(v) > 0.5, alpha, first)
        scale = jnp.maximum(scale, alpha)
        left = left.at[j].set(u)
        beta, v = advance(transposed(u), right, scale, two)
        return (left, right.at[j + 1].set(v), jnp.maximum(scale, beta), first), (alpha, beta)

    start = _fresh(jax.random.fold_in(key, iterations), support, jnp.zeros((1, size), dtype))
    right = jnp.zeros((iterations + 1, size), dtype).at[0].set(start)
    zero = jnp.zeros((), dtype)
    carry = (jnp.zeros((iterations, size), dtype), right, zero, zero)
    (left, right, _, _), (alpha, beta) = jax.lax.scan(step, carry, jnp.arange(iterations))
    return Bidiagonal(jnp.diag(alpha) + jnp.diag(beta[:-1], 1), beta[-1], left, right[:-1])


def arnoldi(
    product: Product, support: Bool[Array, " N"], iterations: int, key: PRNGKeyArray, dtype
) -> tuple[Float[Array, "m m"], Float[Array, ""], Float[Array, "m N"]]:
    r"""$AV = VH + h\,v\,e_m^\top$: H `(m, m)`, h, and V's vectors as rows; m products, mN numbers. Exhausted spaces as in
    `golub_kahan`."""
    size = support.shape[0]
    tiny = 50 * float(jnp.finfo(dtype).eps)

    def step(basis, j):
        v = basis[j]
        x = product(v)
        before = _norm(x)
        along = basis @ x
        x = x - along @ basis
        again = basis @ x
        x = x - again @ basis
        norm = _norm(x)
        broken = norm <= tiny * before
        new = jax.lax.cond(
            broken, lambda: _fresh(jax.random.fold_in(key, j), support, basis), lambda: x / jnp.where(broken, 1, norm)
        )
        return basis.at[j + 1].set(new), (along + again, jnp.where(broken, 0, norm))

    start = _fresh(jax.random.fold_in(key, iterations), support, jnp.zeros((1, size), dtype))
    basis = jnp.zeros((iterations + 1, size), dtype).at[0].set(start)
    basis, (columns, below) = jax.lax.scan(step, basis, jnp.arange(iterations))
    # What was projected out lies above the diagonal (and on it); the norm of the rest is below it.
    upper = jnp.triu(columns[:, :-1].T)
    return upper + jnp.diag(below[:-1], -1), below[-1], basis[:-1]


def _fresh(key: PRNGKeyArray, support: Array, basis: Array) -> Array:
    """A random unit vector on the support, orthogonal to the basis; 0 where the basis leaves no room."""
    x = jnp.where(support, jax.random.normal(key, support.shape, basis.dtype), 0)
    x = _orthogonal(x / _norm(x), basis)
    left = _norm(x)
    return jnp.where(left > 1e-3, x / jnp.where(left > 0, left, 1), 0)


def _orthogonal(x: Array, basis: Array) -> Array:
    """x without its part in the rows of `basis`, twice: once is not enough in floating point."""
    for _ in range(2):
        x = x - (basis @ x) @ basis
    return x


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(x**2))


def implicit_arnoldi(
    matvec: Callable[[np.ndarray], np.ndarray], size: int, dtype: Any, which: str, count: int
) -> Found:
    """`count` extreme eigenvalues of a real matrix by ARPACK's restarted Arnoldi iteration; `which` as in SciPy's `eigs`."""
    from scipy.sparse.linalg import eigs

    return _arpack(eigs, matvec, size, dtype, which, count)


class Pairs(NamedTuple):
    """Eigenvalues by falling modulus, residuals ‖Ax − λx‖ of unit x, and the x as columns."""

    values: np.ndarray
    residuals: np.ndarray
    vectors: np.ndarray
    converged: bool


def eigenpairs(operator: Any, count: int, tolerance: float) -> Pairs:
    """The `count` largest eigenvalues of an operator with `complete`, `known()` and `product(v)`, complex pairs kept whole."""
    complete = operator.complete
    if complete:
        values, vectors = np.linalg.eig(operator.known())
        converged = True
    else:
        values, vectors, converged = _arpack_pairs(operator, count, tolerance)
    order = np.argsort(-np.abs(values), kind="stable")
    values, vectors = values[order].astype(complex), vectors[:, order].astype(complex)
    keep = min(count, len(values))
    if 0 < keep < len(values) and _cuts_a_pair(values, keep):
        keep += 1
    values, vectors = values[:keep], vectors[:, :keep]
    residuals = np.asarray(
        [
            np.linalg.norm(operator.product(x.real) + 1j * operator.product(x.imag) - z * x)
            for z, x in zip(values, vectors.T, strict=True)
        ]
    )
    return Pairs(values, residuals, vectors, converged)


def _cuts_a_pair(values: np.ndarray, keep: int) -> bool:
    """Whether the last eigenvalue kept is the first of a complex pair."""
    last = values[keep - 1].conj()
    first = keep < 2 or not np.isclose(values[keep - 2], last)
    return bool(last.imag != 0 and first and np.isclose(values[keep], last))


def _arpack_pairs(operator: Any, count: int, tolerance: float) -> tuple[np.ndarray, np.ndarray, bool]:
    """Dominant pairs by ARPACK; where not so many converge, the first two, to 1e-6 at least."""
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigs

    size = operator.entries
    matrix = LinearOperator(shape=(size, size), matvec=operator.product, dtype=np.dtype(operator.u.dtype))  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(0).standard_normal(size)
    found: Any
    known: list[Any] = [np.zeros(0), np.zeros((size, 0))]
    for k, small in ((min(count + 1, size - 2), tolerance), (2, max(tolerance, 1e-6))):
        options = {"v0": start, "tol": small, "maxiter": 2 * RESTARTS, "ncv": min(size, max(60, 4 * k))}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of scipy, about sizes it would rather see dense
                found = eigs(matrix, k=k, which="LM", **options)
                return found[0], found[1], True
        except ArpackNoConvergence as error:
            if len(error.eigenvalues) > len(known[0]):
                known = [np.asarray(error.eigenvalues), np.asarray(error.eigenvectors).reshape(size, -1)]
        except ArpackError:
            pass
    return known[0], known[1], False


def implicit_lanczos(matvec: Callable[[np.ndarray], np.ndarray], size: int, dtype: Any) -> Found:
    """The largest eigenvalue of a symmetric matrix by ARPACK's restarted Lanczos iteration."""
    from scipy.sparse.linalg import eigsh

    return _arpack(eigsh, matvec, size, dtype, "LA", 1)


def _arpack(run: Callable[..., Any], matvec, size: int, dtype: Any, which: str, count: int) -> Found:
    """ARPACK from a fixed start, so that reruns agree. What did not converge is said, with what is known."""
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator

    operator = LinearOperator(shape=(size, size), matvec=matvec, dtype=np.dtype(dtype))  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(0).standard_normal(size)
    options = {"v0": start, "tol": TOLERANCE, "ncv": min(size, max(40, 8 * count)), "maxiter": RESTARTS}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scipy, about sizes it would rather see dense
            return Found(np.asarray(run(operator, k=count, which=which, return_eigenvectors=False, **options)), True)
    except ArpackNoConvergence as error:
        return Found(np.asarray(error.eigenvalues), False)
    except ArpackError:
        return Found(np.zeros(0), False)
