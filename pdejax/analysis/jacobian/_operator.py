"""The Jacobian of a layer as an operator: its singular values and eigenvalues."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Complex, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._check import finite, integer, known, probability, real_array, token_mask, traced
from pdejax._figure import AbstractRecord
from pdejax._nnx import is_nnx
from pdejax._simulate import check_start
from pdejax._step_maps import OneMap, in_batches, real_count, real_entries, steps_of, without_padding
from pdejax._types import Mask
from pdejax.analysis.jacobian._krylov import Found, arnoldi, golub_kahan, implicit_arnoldi, implicit_lanczos
from pdejax.analysis.jacobian._systems import discretization_of, is_system, layers_of

FORMED = 4096  # entries of a state up to which `matrix` is formed
COMPLETE = 400  # entries up to which bounds come from the matrix itself, so that every eigenvalue is known


class SingularValues(AbstractRecord):
    r"""What Golub–Kahan iterations know of the singular values of J, with N real entries.

    - `values (m,)`: Ritz values, descending; `residuals (m,)`: $\|J^\top u - \sigma v\|$ of each (J v = σu holds to rounding): a
      singular value of J lies that near. Inner ones are rough.
    - `weights (m,)`: how much of the random start lies along each, summing to 1: an estimate of the spectral measure of all N
      singular values, exact for its first 2m − 1 moments about the start vector (Gauss quadrature).
    - `largest`, `smallest`: σ_max from below and σ_min from above, attained by `right (2, ...)`, unit states (largest first).
      `converged (2,)`: whether their residual is below the tolerance times σ_max. σ_min usually needs many iterations.
    - `frobenius`: ‖J‖_F estimated from `probes` random signs, `frobenius_error` its standard error.
    - `edge`: $2\|J\|_F/\sqrt N$, null model: the largest singular value of a Gaussian N × N matrix of that Frobenius norm
      (Marchenko & Pastur 1967; a square one's smallest tends to 0).
    """

    values: Float[Array, "..."]
    residuals: Float[Array, "..."]
    weights: Float[Array, "..."]
    largest: Float[Array, "..."]
    smallest: Float[Array, "..."]
    converged: Bool[Array, "..."]
    right: Float[Array, "..."]
    frobenius: Float[Array, "..."]
    frobenius_error: Float[Array, "..."]
    edge: Float[Array, "..."]

    @property
    def condition(self) -> Float[Array, "..."]:
        """σ_max/σ_min, a lower bound until both have converged; inf for a singular J."""
        return self.largest / self.smallest


class Eigenvalues(AbstractRecord):
    """What Arnoldi iterations know of the eigenvalues of J: Ritz `values (m,)`, by falling modulus, and `residuals (m,)`
    ‖J x − λx‖ of unit x: λ is an eigenvalue of a matrix that near to J, which says little of J's own where J is far from
    normal. `radius`: the largest modulus, `converged` whether its residual is below the tolerance times it."""

    values: Complex[Array, "..."]
    residuals: Float[Array, "..."]
    radius: Float[Array, "..."]
    converged: Bool[Array, "..."]


class FieldAt(eqx.Module):
    """A field at one depth, as a function of the state."""

    field: Callable[..., Array]
    t: Any
    args: Any

    def __call__(self, u: Array) -> Array:
        return self.field(self.t, u, self.args)


class Jacobian(eqx.Module):
    r"""$J = \partial F/\partial u$ of a function F of the state, at the state `u`, known by its products and never formed.

    - `function`: F, a layer's map or a field at one depth, that keeps the shape of the state; `u`: such as `(n, d)`.
    - `mask (n,)`: J is restricted to real tokens. Padded ones count neither as inputs nor as outputs.

    Products wait for their state: they compile once for the structure of F, whatever its weights. Passes through `jit` and
    `vmap`.
    """

    function: Callable[[Array], Array]
    u: Array
    mask: Mask | None = None

    def __repr__(self) -> str:
        hidden = "" if self.mask is None else ", padding left out"
        # Between transformations the leaves of a module may be anything: None after `eqx.partition`, axes of a `vmap`.
        shape = getattr(self.u, "shape", None)
        state = "a state" if shape is None else f"a state {tuple(shape)}"
        return f"Jacobian of {_name(self.function)} at {state}{hidden}, known by its products"

    @property
    def size(self) -> int:
        """Number of entries of the state, padding included."""
        return self.u.size

    @property
    def complete(self) -> bool:
        """Whether the state is small enough for bounds to come from the matrix itself, so that every eigenvalue is known."""
        return real_count(self.u.shape, self.mask) <= COMPLETE

    def apply(self, u: Array) -> Array:
        """F(u), zeros at padding."""
        return without_padding(self.function(without_padding(u, self.mask)), self.mask)

    def matvec(self, v: Array) -> Array:
        """J v: one forward-mode product, the cost of about two evaluations."""
        return _forward(self, v)

    def rmatvec(self, v: Array) -> Array:
        """Jᵀ v: one reverse-mode product, the cost of about three evaluations."""
        return _backward(self, v)

    def push(self, vs: Array) -> tuple[Array, Array]:
        """F(u), and J v for directions `(k, ...)`; what does not depend on the direction is computed once."""
        return jax.vmap(lambda v: jax.jvp(self.apply, (self.u,), (v,)), out_axes=(None, 0))(vs)

    def linearize(self) -> tuple[Array, Callable[[Array], Array]]:
        """F(u), and v ↦ J v for many v: what a product needs of the state is kept, about the activations of one evaluation."""
        return jax.linearize(self.apply, self.u)

    def gram(self) -> Callable[[Array], Array]:
        """v ↦ JᵀJ v for many v."""
        push, pull = self.linearize()[1], jax.vjp(self.apply, self.u)[1]
        return lambda v: pull(push(v))[0]

    def matrix(self) -> Float[Array, "N N"]:
        """J itself on the flattened state, rows and columns of padding zero. Raises `ValueError` beyond 4,096 entries."""
        if self.size > FORMED:
            raise ValueError(
                f"Jacobian.matrix: the state has {self.size} entries, whose matrix would have {self.size**2}; use "
                "singular_values, eigenvalues or the products."
            )
        return _dense(self)

    def singular_values(
        self, *, key: PRNGKeyArray, iterations: int = 40, tolerance: float = 1e-3, probes: int = 8
    ) -> SingularValues:
        """Find extreme singular values by Golub–Kahan bidiagonalization with full reorthogonalization (Golub & Kahan 1965, DOI
        10.1137/0702016), and the Frobenius norm by random signs (Hutchinson 1989, DOI 10.1080/03610918908812806).

        2·`iterations` + `probes` products and 2·`iterations` states of memory, which is more than a trajectory: 80 states by
        default, 41 MB for N = 1000, d = 128 in float32. In float32 residuals below 1e-6 σ_max are not reached.
        Raises `ValueError` for counts below 1 (2 iterations) or a tolerance outside (0, 1).
        """
        m, tolerance = self._counts("Jacobian.singular_values", iterations, tolerance)
        integer("Jacobian.singular_values", "probes", probes, 2, advice="one probe has no standard error")
        return _singular(self, key, m, tolerance, probes)

    def eigenvalues(self, *, key: PRNGKeyArray, iterations: int = 40, tolerance: float = 1e-3) -> Eigenvalues:
        """Find extreme eigenvalues by the Arnoldi iteration with full reorthogonalization (Saad, Numerical Methods for Large
        Eigenvalue Problems, ch. 6). `iterations` products and states of memory. The small eigenvalue problem runs on the CPU
        on platforms where JAX has none. Raises as `singular_values`."""
        return _eigen(self, key, *self._counts("Jacobian.eigenvalues", iterations, tolerance))

    def extreme(self, which: str, count: int = 4) -> Found:
        """Extreme eigenvalues in one direction: largest modulus "LM", rightmost "LR", leftmost "SR", largest imaginary part "LI".

        ARPACK on products, outside of `jit`, as all that follows. Raises `ValueError` where the derivative is not finite."""
        return implicit_arnoldi(self._product, int(self._real.sum()), self.u.dtype, which, count)

    def support(self, angle: float) -> Found:
        r"""Largest eigenvalue of the Hermitian part of $e^{i\theta}J$: the support function of the field of values. At
        angle 0 it is the logarithmic norm. From the matrix where the state has at most 400 entries.

        $\cos\theta\,S + i\sin\theta\,K$ with the symmetric and skew parts of J is Hermitian; on (Re v, Im v) it is the
        real symmetric matrix [[cos θ S, −sin θ K], [sin θ K, cos θ S]].
        """
        c, s, n = np.cos(angle), np.sin(angle), int(self._real.sum())
        if self.complete:
            rotated = np.exp(1j * angle) * self.known()
            return Found(np.linalg.eigvalsh(0.5 * (rotated + rotated.conj().T))[-1:], True)
        if abs(s) < 1e-15:
            return self._largest(lambda v: 0.5 * c * (self._product(v) + self._transposed(v)), n)

        def matvec(x):
            a, b = x[:n], x[n:]
            ja, ta, jb, tb = self._product(a), self._transposed(a), self._product(b), self._transposed(b)
            symmetric_a, skew_a = 0.5 * (ja + ta), 0.5 * (ja - ta)
            symmetric_b, skew_b = 0.5 * (jb + tb), 0.5 * (jb - tb)
            return np.concatenate([c * symmetric_a - s * skew_b, s * skew_a + c * symmetric_b])

        return self._largest(matvec, 2 * n)

    def norm(self) -> Found:
        """‖J‖₂, the local Lipschitz constant. From the matrix where the state has at most 400 entries."""
        if self.complete:
            return Found(np.asarray([np.linalg.norm(self.known(), 2)]), True)
        found = self._largest(lambda v: self._transposed(self._product(v)), int(self._real.sum()))
        return Found(np.sqrt(np.maximum(found.values, 0.0)), found.converged)

    def scale(self, iterations: int = 12) -> float:
        """A lower estimate of ‖J‖₂ by power iteration, within a factor of two of it for a random start."""
        if self.complete:
            return float(np.linalg.norm(self.known(), 2))
        v = np.random.default_rng(0).standard_normal(int(self._real.sum()))
        size = 0.0
        for _ in range(iterations):
            v = v / np.linalg.norm(v)
            w = self._product(v)
            size = max(size, float(np.linalg.norm(w)))
            v = self._transposed(w)
            if not np.any(v):
                break
        return size

    def known(self) -> np.ndarray:
        """The matrix as a NumPy array, on the entries of real tokens alone: rows and columns of padding would add eigenvalues 0.
        Raises `ValueError` where it is not finite."""
        real = self._real
        if self.size <= COMPLETE:
            return _finite(np.asarray(self.matrix())[np.ix_(real, real)])
        # Much padding: a product for each real entry.
        units = jnp.eye(self.size, dtype=self.u.dtype)[np.flatnonzero(real)].reshape(-1, *self.u.shape)
        columns = np.asarray(self.push(units)[1]).reshape(len(units), -1)
        return _finite(columns[:, real].T)

    @property
    def entries(self) -> int:
        """Number of entries of real tokens."""
        return int(self._real.sum())

    def product(self, v: np.ndarray) -> np.ndarray:
        """J v for a vector of the entries of real tokens, by NumPy. Raises `ValueError` where it is not finite."""
        return self._product(v)

    @property
    def _real(self) -> np.ndarray:
        """Which entries of the flattened state belong to real tokens."""
        return np.asarray(real_entries(self.u.shape, self.mask)).ravel()

    def _product(self, v: np.ndarray) -> np.ndarray:
        return self._on_real(self.matvec, v)

    def _transposed(self, v: np.ndarray) -> np.ndarray:
        return self._on_real(self.rmatvec, v)

    def _on_real(self, product: Callable[[Array], Array], v: np.ndarray) -> np.ndarray:
        whole = np.zeros(self.size, v.dtype)
        whole[self._real] = v
        found = product(jnp.asarray(whole, self.u.dtype).reshape(self.u.shape))
        return _finite(np.asarray(found).ravel()[self._real])

    def _largest(self, matvec: Callable[[np.ndarray], np.ndarray], size: int) -> Found:
        return implicit_lanczos(matvec, size, self.u.dtype)

    def _counts(self, owner: str, iterations: Any, tolerance: Any) -> tuple[int, float]:
        integer(owner, "iterations", iterations, 2, advice="40 is usual")
        small = probability(owner, "tolerance", tolerance, advice="such as 1e-3")
        return min(iterations, real_count(self.u.shape, self.mask)), small


def _name(function: Any) -> str:
    """What a Jacobian is of, in a few words."""
    if isinstance(function, OneMap):
        which = f"map {int(function.index)}" if known(function.index) and np.ndim(function.index) == 0 else "a map"
        return f"{which} of {function.maps.count}"
    if isinstance(function, FieldAt):
        return f"the field {function.field!r}"
    return getattr(function, "__name__", type(function).__name__)


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.all(np.isfinite(values)):
        raise ValueError(
            "the field's derivative at u is not finite; look for overflow or a singular term of the equation at this u."
        )
    return values


@eqx.filter_jit
def _forward(jacobian: Jacobian, v: Array) -> Array:
    return jax.jvp(jacobian.apply, (jacobian.u,), (v,))[1]


@eqx.filter_jit
def _backward(jacobian: Jacobian, v: Array) -> Array:
    return jax.vjp(jacobian.apply, jacobian.u)[1](v)[0]


@eqx.filter_jit
def _dense(jacobian: Jacobian) -> Array:
    size = jacobian.size
    basis = jnp.eye(size, dtype=jacobian.u.dtype).reshape(size, *jacobian.u.shape)
    return in_batches(lambda v: _forward(jacobian, v).ravel(), basis, 64).T


@eqx.filter_jit
def _singular(jacobian: Jacobian, key: PRNGKeyArray, m: int, tolerance: float, probes: int) -> SingularValues:
    u, push, pull = jacobian.u, jacobian.linearize()[1], jax.vjp(jacobian.apply, jacobian.u)[1]

    def product(v):
        return push(v.reshape(u.shape)).ravel()

    real = real_entries(u.shape, jacobian.mask).ravel()
    one, two = jax.random.split(key)
    found = golub_kahan(product, lambda v: pull(v.reshape(u.shape))[0].ravel(), real, m, one, u.dtype)
    left, values, right = jnp.linalg.svd(found.matrix)
    residuals = found.beta * jnp.abs(left[-1])
    ends = jnp.asarray([0, -1])

    def square(key):
        return jnp.sum(product(jnp.where(real, jax.random.rademacher(key, real.shape, u.dtype), 0)) ** 2)

    squares = jax.lax.map(square, jax.random.split(two, probes))
    size = jnp.sum(real.astype(u.dtype))
    frobenius = jnp.sqrt(jnp.mean(squares))
    spread = jnp.std(squares, ddof=1) / probes**0.5
    return SingularValues(
        values,
        residuals,
        right[:, 0] ** 2,
        values[0],
        values[-1],
        residuals[ends] <= tolerance * values[0],
        (right[ends] @ found.right).reshape(2, *u.shape),
        frobenius,
        spread / (2 * jnp.where(frobenius > 0, frobenius, 1)),
        2 * frobenius / jnp.sqrt(size),
    )


@eqx.filter_jit
def _eigen(jacobian: Jacobian, key: PRNGKeyArray, m: int, tolerance: float) -> Eigenvalues:
    u, push = jacobian.u, jacobian.linearize()[1]
    real = real_entries(u.shape, jacobian.mask).ravel()
    matrix, beyond, _ = arnoldi(lambda v: push(v.reshape(u.shape)).ravel(), real, m, key, u.dtype)
    values, vectors = jnp.linalg.eig(matrix)
    order = jnp.argsort(-jnp.abs(values))
    values, vectors = values[order], vectors[:, order]
    residuals = beyond * jnp.abs(vectors[-1]) / jnp.sqrt(jnp.sum(jnp.abs(vectors) ** 2, axis=0))
    radius = jnp.abs(values[0])
    return Eigenvalues(values, residuals, radius, residuals[0] <= tolerance * radius)


@checked
def layer_jacobian(
    system: Any,
    u: ArrayLike,
    *,
    step: ArrayLike | None = None,
    layer: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Jacobian:
    r"""Give the Jacobian of a layer or of a solver's step at `u (n, d)`, as an operator that is never formed.

    - A `Discretization` with `step` k = 0 … steps − 1: of its k-th step. For forward Euler that is $I + h\,\partial
      F/\partial u$, v1 (23). The step at depth t of a field F is `layer_jacobian(Discretization(F, "euler", t0=t, t1=t + h,
      steps=1), u, step=0)`.
    - A `Discretization` with layers, a `Network`, a `Transformer` or a `Simulator`, with `layer` 0 … L − 1: of the actual layer,
      all its steps, normalizations and splitting included.
    - Any function u -> u (neither step nor layer): its Jacobian. Of an nnx module say which: `lambda u: block(u)`, or
      `pdejax.network([block, …])` and a layer.

    `step` and `layer` may be traced, so that `eqx.filter_vmap` runs over layers and their states. Padded tokens (`mask (n,)`
    False) count neither as inputs nor as outputs: J is that of the real tokens.

    Raises `TypeError`/`ValueError` for states, steps, layers or masks that do not fit.
    """
    owner = "layer_jacobian"
    state: Array = real_array(owner, "u", u, "(n, d)")
    if is_nnx(system) and not is_system(system):
        name = type(system).__name__
        raise TypeError(
            f"{owner}: the system is the nnx module {name}, which may be one layer or a whole model. For one map give the "
            f"function lambda u: {name.lower()}(u); for layers pdejax.network([layer, …]) and layer=0 … L − 1."
        )
    if not is_system(system):
        if not callable(system) or step is not None or layer is not None:
            raise TypeError(
                f"{owner}: the system is a {type(system).__name__}; give a Discretization and a step, a model and a layer, or a "
                "function u -> u and neither."
            )
        return _of_function(owner, system, state, mask)
    if (step is None) == (layer is None):
        raise ValueError(f"{owner}: give either step=0 … steps − 1, one step of the solver, or layer=0 … L − 1.")
    d = discretization_of(owner, system, state.shape[-2] if state.ndim > 1 else None)
    check_start(owner, d)
    count = d.steps if step is not None else layers_of(owner, system, d)
    maps, state, real = steps_of(owner, d, state, mask, count=count)
    name, index = ("step", step) if step is not None else ("layer", layer)
    if not traced(index):
        integer(owner, name, np.asarray(index).item(), 0, count - 1)
    return Jacobian(OneMap(maps, jnp.asarray(index)), state, real)


def marchenko_pastur_cdf(x: ArrayLike, edge: ArrayLike) -> Array:
    r"""Give the share of the singular values of a square Gaussian matrix below `x`, with largest value `edge`: the quarter circle
    $F(x) = \tfrac2\pi(\arcsin s + s\sqrt{1-s^2})$, s = x/edge in [0, 1]. Source: Marchenko & Pastur (1967), ratio 1."""
    s = jnp.clip(jnp.asarray(x) / jnp.asarray(edge), 0, 1)
    return 2 / np.pi * (jnp.arcsin(s) + s * jnp.sqrt(1 - s**2))


def _of_function(owner: str, function: Any, u: Array, mask: Any) -> Jacobian:
    if mask is not None and u.ndim < 2:
        raise ValueError(f"{owner}: mask needs a state (n, d) with an axis of tokens; u has shape {u.shape}.")
    real = None if mask is None else token_mask(owner, mask, u.shape[-2])
    u = without_padding(u, real)
    finite(owner, "u", u, "mask the tokens, or take another state")
    found = jax.eval_shape(function, u)
    if getattr(found, "shape", None) != u.shape:
        raise ValueError(f"{owner}: the function gives {found} for shape {u.shape}; it must keep the shape.")
    return Jacobian(function, u, real)
