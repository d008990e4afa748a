"""The Jacobian of one layer, I + h ∂F/∂u of v1 (23), known by its products: extreme singular values and eigenvalues."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Complex, Float, PRNGKeyArray

from pdejax._check import token_mask, traced
from pdejax._depth import DepthVarying, take_layer
from pdejax._equation import AbstractEquation
from pdejax._types import Mask
from pdejax.analysis.jacobian._krylov import arnoldi, golub_kahan
from pdejax.analysis.jacobian._step_maps import (
    AbstractMaps,
    FunctionMaps,
    block_maps,
    equation_maps,
    ready,
    real_count,
    real_entries,
    simulator_maps,
    without_padding,
)
from pdejax.models import Simulator, Transformer

DENSE = 4096  # entries of a state up to which `matrix` is formed


class SingularValues(eqx.Module):
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


class Eigenvalues(eqx.Module):
    """What Arnoldi iterations know of the eigenvalues of J: Ritz `values (m,)`, by falling modulus, and `residuals (m,)`
    ‖J x − λx‖ of unit x: λ is an eigenvalue of a matrix that near to J, which says little of J's own where J is far from
    normal. `radius`: the largest modulus, `converged` whether its residual is below the tolerance times it."""

    values: Complex[Array, "..."]
    residuals: Float[Array, "..."]
    radius: Float[Array, "..."]
    converged: Bool[Array, "..."]


class LayerJacobian(eqx.Module):
    r"""$J = \partial\Phi/\partial u$ of one layer map Φ at the state `u (n, d)`, restricted to real tokens.

    `matvec(v)` and `rmatvec(v)` take and give states. Made by [`layer_jacobian`][pdejax.analysis.layer_jacobian].
    """

    maps: AbstractMaps
    index: Array
    u: Array
    mask: Mask | None

    def apply(self, u: Array) -> Array:
        """Φ(u), zeros at padding."""
        return without_padding(self.maps(self.index, without_padding(u, self.mask)), self.mask)

    def matvec(self, v: Array) -> Array:
        """J v: one forward-mode product, the cost of about two evaluations."""
        return _forward(self, v)

    def rmatvec(self, v: Array) -> Array:
        """Jᵀ v: one reverse-mode product, the cost of about three evaluations."""
        return _backward(self, v)

    def matrix(self) -> Float[Array, "N N"]:
        """J itself on the flattened state, rows and columns of padding zero. Raises `ValueError` beyond 4,096 entries."""
        if self.u.size > DENSE:
            raise ValueError(
                f"LayerJacobian.matrix: the state has {self.u.size} entries, whose matrix would have {self.u.size**2}; use "
                "singular_values, eigenvalues or the products."
            )
        return _dense(self)

    def singular_values(
        self, *, key: PRNGKeyArray, iterations: int = 40, tolerance: float = 1e-3, probes: int = 8
    ) -> SingularValues:
        """Extreme singular values by Golub–Kahan bidiagonalization with full reorthogonalization (Golub & Kahan 1965, DOI
        10.1137/0702016), and the Frobenius norm by random signs (Hutchinson 1989, DOI 10.1080/03610918908812806).

        2·`iterations` + `probes` products and 2·`iterations` states of memory, which is more than a trajectory: 80 states by
        default, 41 MB for N = 1000, d = 128 in float32. In float32 residuals below 1e-6 σ_max are not reached.
        Raises `ValueError` for counts below 1 (2 iterations) or a tolerance outside (0, 1).
        """
        m = self._count("singular_values", iterations, tolerance)
        if probes < 2:
            raise ValueError(f"singular_values: probes={probes} must be at least 2, for a standard error.")
        return _singular(self, key, m, float(tolerance), probes)

    def eigenvalues(self, *, key: PRNGKeyArray, iterations: int = 40, tolerance: float = 1e-3) -> Eigenvalues:
        """Extreme eigenvalues by the Arnoldi iteration with full reorthogonalization (Saad, Numerical Methods for Large
        Eigenvalue Problems, ch. 6). `iterations` products and states of memory. The small eigenvalue problem runs on the CPU
        on platforms where JAX has none. Raises as `singular_values`."""
        return _eigen(self, key, self._count("eigenvalues", iterations, tolerance), float(tolerance))

    def _count(self, name: str, iterations: int, tolerance: float) -> int:
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 2:
            raise ValueError(f"{name}: iterations={iterations!r} must be a whole number of at least 2; 40 is usual.")
        if not 0 < tolerance < 1:
            raise ValueError(f"{name}: tolerance={tolerance} must lie in (0, 1), such as 1e-3.")
        return min(iterations, real_count(self.u.shape, self.mask))


def layer_jacobian(
    system: Any,
    u: ArrayLike,
    h: ArrayLike | None = None,
    t: ArrayLike = 0.0,
    *,
    layer: ArrayLike | None = None,
    solver: str | diffrax.AbstractSolver = "euler",
    split: Any = None,
    mask: ArrayLike | None = None,
) -> LayerJacobian:
    r"""The Jacobian of a layer at `u (n, d)`, as an operator that is never formed.

    - An equation, with the step `h` at depth `t`: $I + h\,\partial F/\partial u$, v1 (23), for the default solver "euler"; of one
      step of any other solver by its name. Of piecewise-constant weights the layer at t is taken.
    - A `Transformer` or `Simulator`, with `layer` 0 … L − 1: its actual layer map, normalizations and splitting included. `layer`
      may be traced, so that `eqx.filter_vmap` runs over layers and their states.
    - Any function u -> u (neither h nor layer): its Jacobian. A field f(t, u, args) is `lambda u: u + h * f(t, u, None)`.

    Padded tokens (`mask (n,)` False) count neither as inputs nor as outputs: J is that of the real tokens.

    Raises `TypeError`/`ValueError` for states, steps, layers or masks that do not fit.
    """
    u = jnp.asarray(u)
    if not jnp.issubdtype(u.dtype, jnp.floating) or not u.ndim or not u.size:
        raise ValueError(
            f"layer_jacobian: u has shape {u.shape} and type {u.dtype}; give a non-empty real state (n, d)."
        )
    if mask is not None and u.ndim < 2:
        raise ValueError(f"layer_jacobian: mask needs a state (n, d) with an axis of tokens; u has shape {u.shape}.")
    real = None if mask is None else token_mask("layer_jacobian", mask, u.shape[-2])
    u = without_padding(u, real)
    if not traced(u) and not np.isfinite(np.asarray(u)).all():
        raise ValueError("layer_jacobian: u has values at real tokens that are not finite.")
    if isinstance(system, Transformer | Simulator):
        if h is not None or layer is None:
            raise ValueError("layer_jacobian: a model has its own steps; give layer=0 … L − 1 and no h.")
        if u.ndim != 2 or u.shape[1] != system.architecture.dim:
            raise ValueError(
                f"layer_jacobian: u has shape {u.shape}; the model's states are (n, {system.architecture.dim})."
            )
        if not traced(layer) and not 0 <= int(layer) < system.architecture.layers:
            raise ValueError(f"layer_jacobian: layer={layer} must lie in 0 … {system.architecture.layers - 1}.")
        if isinstance(system, Transformer):
            u = u.astype(system.architecture.dtype)
            return LayerJacobian(block_maps(system, real), jnp.asarray(layer), u, real)
        u = u.astype(system.architecture.state_dtype)
        return LayerJacobian(ready(simulator_maps(system, u, real), u), jnp.asarray(layer), u, real)
    if layer is not None:
        raise ValueError("layer_jacobian: layer belongs to a model; for an equation give the step h and the depth t.")
    zero = jnp.asarray(0)
    if not isinstance(system, AbstractEquation):
        if h is not None or not callable(system):
            raise TypeError(
                f"layer_jacobian: the system is a {type(system).__name__}; give an equation and h, a model and a layer, or a "
                "function u -> u without h."
            )
        found = jax.eval_shape(system, u)
        if getattr(found, "shape", None) != u.shape:
            raise ValueError(f"layer_jacobian: the function gives {found} for shape {u.shape}; it must keep the shape.")
        return LayerJacobian(
            FunctionMaps(step=_Once(system), matrices=None, spacing=jnp.ones(()), count=1), zero, u, real
        )
    if h is None or (not traced(h) and not (np.ndim(h) == 0 and np.isfinite(h) and h != 0)):
        raise ValueError(f"layer_jacobian: h={h} must be one finite step, not 0.")
    if isinstance(system, DepthVarying) and system.kind == "constant":
        index = jnp.clip(jnp.floor(jnp.asarray(t, u.dtype) / system.t1 * system.size), 0, system.size - 1).astype(int)
        system = system.layer(index)
        solver = solver if isinstance(solver, str) else take_layer(solver, index)
    # Depths are set after the checks, which want to see them increase; h may be negative or traced.
    maps, u = equation_maps(
        "layer_jacobian", system, u, t0=0.0, t1=1.0, steps=1, solver=solver, mask=real, split=split, maps=None
    )
    start = jnp.asarray(t, u.dtype)
    maps = eqx.tree_at(lambda m: (m.t0, m.t1), maps, (start, start + jnp.asarray(h, u.dtype)))
    return LayerJacobian(ready(maps, u), zero, u, real)


def marchenko_pastur_cdf(x: ArrayLike, edge: ArrayLike) -> Array:
    r"""Share of the singular values of a square Gaussian matrix below `x`, with largest value `edge`: the quarter circle
    $F(x) = \tfrac2\pi(\arcsin s + s\sqrt{1-s^2})$, s = x/edge in [0, 1]. Source: Marchenko & Pastur (1967), ratio 1."""
    s = jnp.clip(jnp.asarray(x) / jnp.asarray(edge), 0, 1)
    return 2 / np.pi * (jnp.arcsin(s) + s * jnp.sqrt(1 - s**2))


class _Once(eqx.Module):
    """A function of the state alone, as the only map."""

    function: Any

    def __call__(self, k, u: Array) -> Array:
        return self.function(u)


@eqx.filter_jit
def _forward(jacobian: LayerJacobian, v: Array) -> Array:
    return jax.jvp(jacobian.apply, (jacobian.u,), (v,))[1]


@eqx.filter_jit
def _backward(jacobian: LayerJacobian, v: Array) -> Array:
    return jax.vjp(jacobian.apply, jacobian.u)[1](v)[0]


@eqx.filter_jit
def _dense(jacobian: LayerJacobian) -> Array:
    size = jacobian.u.size
    basis = jnp.eye(size, dtype=jacobian.u.dtype).reshape(size, *jacobian.u.shape)
    return jax.lax.map(lambda v: _forward(jacobian, v).ravel(), basis, batch_size=min(size, 64)).T


def _products(jacobian: LayerJacobian):
    u = jacobian.u
    # Linearized once: what a product needs of the state is kept, about one layer's activations.
    _, push = jax.linearize(jacobian.apply, u)
    _, pull = jax.vjp(jacobian.apply, u)
    return (lambda v: push(v.reshape(u.shape)).ravel()), (lambda v: pull(v.reshape(u.shape))[0].ravel())


@eqx.filter_jit
def _singular(jacobian: LayerJacobian, key: PRNGKeyArray, m: int, tolerance: float, probes: int) -> SingularValues:
    u, (product, transposed) = jacobian.u, _products(jacobian)
    real = real_entries(u.shape, jacobian.mask).ravel()
    one, two = jax.random.split(key)
    found = golub_kahan(product, transposed, real, m, one, u.dtype)
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
def _eigen(jacobian: LayerJacobian, key: PRNGKeyArray, m: int, tolerance: float) -> Eigenvalues:
    u, (product, _) = jacobian.u, _products(jacobian)
    real = real_entries(u.shape, jacobian.mask).ravel()
    matrix, beyond, _ = arnoldi(product, real, m, key, u.dtype)
    values, vectors = jnp.linalg.eig(matrix)
    order = jnp.argsort(-jnp.abs(values))
    values, vectors = values[order], vectors[:, order]
    residuals = beyond * jnp.abs(vectors[-1]) / jnp.sqrt(jnp.sum(jnp.abs(vectors) ** 2, axis=0))
    radius = jnp.abs(values[0])
    return Eigenvalues(values, residuals, radius, residuals[0] <= tolerance * radius)
