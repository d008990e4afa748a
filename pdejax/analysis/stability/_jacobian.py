"""The Jacobian of a field at one point: products both ways, its matrix when small, and eigenvalues by ARPACK."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigs, eigsh

from pdejax._equation import AbstractEquation
from pdejax.terms import FieldArgs

DENSE = 400  # entries of a field up to which its Jacobian is formed, so that every eigenvalue is known
TOLERANCE = 1e-3  # of ARPACK's residual relative to the eigenvalue
RESTARTS = 40  # then an iteration counts as not converged: about a thousand products

# Both products wait for their point: they compile once for an equation's structure, whatever its weights.


@eqx.filter_jit
def _forward(equation: AbstractEquation, t: Array, u: Array, args: FieldArgs | None, v: Array) -> Array:
    return jax.jvp(lambda w: equation(t, w, args), (u,), (v,))[1]


@eqx.filter_jit
def _backward(equation: AbstractEquation, t: Array, u: Array, args: FieldArgs | None, v: Array) -> Array:
    return jax.vjp(lambda w: equation(t, w, args), u)[1](v)[0]


@eqx.filter_jit
def _columns(equation: AbstractEquation, t: Array, u: Array, args: FieldArgs | None) -> Array:
    basis = jnp.eye(u.size, dtype=u.dtype).reshape(u.size, *u.shape)
    return jax.vmap(lambda v: jax.jvp(lambda w: equation(t, w, args), (u,), (v,))[1])(basis)


@dataclasses.dataclass(frozen=True)
class Found:
    """Eigenvalues from an iteration, and whether it converged."""

    values: np.ndarray
    converged: bool


@dataclasses.dataclass(frozen=True)
class Jacobian:
    """∂F/∂u of an equation at `(t, u)`, a real square matrix on the flattened field, known by its products."""

    equation: AbstractEquation
    t: Array
    u: Array
    args: FieldArgs | None

    @property
    def size(self) -> int:
        return self.u.size

    def product(self, v: np.ndarray) -> np.ndarray:
        """J v for a real vector."""
        return self._apply(_forward, v)

    def transposed(self, v: np.ndarray) -> np.ndarray:
        """Jᵀ v for a real vector."""
        return self._apply(_backward, v)

    def matrix(self) -> np.ndarray:
        """J itself, (n·d, n·d), from n·d forward-mode products at once."""
        columns = np.asarray(_columns(self.equation, self.t, self.u, self.args))
        return _finite(columns.reshape(self.size, self.size).T)

    def eigenvalues(self, which: Literal["LM", "LR", "SR", "LI"], count: int = 4) -> Found:
        """Extreme eigenvalues in one direction: largest modulus, rightmost, leftmost, largest imaginary part."""
        operator = self._operator(self.product)
        return _arpack(
            lambda **options: eigs(operator, which=which, return_eigenvectors=False, **options), self.size, count
        )

    def largest(self, matvec: Callable[[np.ndarray], np.ndarray], size: int | None = None) -> Found:
        """Largest eigenvalue of a symmetric operator made of products."""
        operator = self._operator(matvec, size)
        return _arpack(
            lambda **options: eigsh(operator, which="LA", return_eigenvectors=False, **options),
            operator.shape[0],
            1,
        )

    def support(self, angle: float) -> Found:
        r"""Largest eigenvalue of the Hermitian part of $e^{i\theta}J$: the support function of the field of values.

        $\cos\theta\,S + i\sin\theta\,K$ with the symmetric and skew parts of J is Hermitian; on (Re v, Im v) it is the
        real symmetric matrix [[cos θ S, −sin θ K], [sin θ K, cos θ S]].
        """
        c, s, n = np.cos(angle), np.sin(angle), self.size
        if abs(s) < 1e-15:
            return self.largest(lambda v: 0.5 * c * (self.product(v) + self.transposed(v)))

        def matvec(x):
            a, b = x[:n], x[n:]
            ja, ta, jb, tb = self.product(a), self.transposed(a), self.product(b), self.transposed(b)
            symmetric_a, skew_a = 0.5 * (ja + ta), 0.5 * (ja - ta)
            symmetric_b, skew_b = 0.5 * (jb + tb), 0.5 * (jb - tb)
            return np.concatenate([c * symmetric_a - s * skew_b, s * skew_a + c * symmetric_b])

        return self.largest(matvec, 2 * n)

    def _apply(self, function: Any, v: np.ndarray) -> np.ndarray:
        direction = jnp.asarray(v, self.u.dtype).reshape(self.u.shape)
        return _finite(np.asarray(function(self.equation, self.t, self.u, self.args, direction)).ravel())

    def _operator(self, matvec: Callable[[np.ndarray], np.ndarray], size: int | None = None) -> LinearOperator:
        n = self.size if size is None else size
        return LinearOperator(shape=(n, n), matvec=matvec, dtype=np.dtype(self.u.dtype))  # pyright: ignore[reportCallIssue]


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.all(np.isfinite(values)):
        raise ValueError(
            "the field's derivative at u is not finite; look for overflow or a singular term of the equation at this u."
        )
    return values


def _arpack(run: Callable[..., Any], size: int, count: int) -> Found:
    """ARPACK from a fixed start, so that reruns agree. What did not converge is said, with what is known."""
    start = np.random.default_rng(0).standard_normal(size)
    options: dict[str, Any] = {"v0": start, "tol": TOLERANCE, "ncv": min(size, max(40, 8 * count)), "maxiter": RESTARTS}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scipy, about sizes it would rather see dense
            return Found(np.asarray(run(k=count, **options)), True)
    except ArpackNoConvergence as error:
        return Found(np.asarray(error.eigenvalues), False)
    except ArpackError:
        return Found(np.zeros(0), False)
