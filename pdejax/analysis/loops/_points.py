"""Fixed points and cycles of a loop by Newton–Krylov, the spectrum there, and the exponents of the loop."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Complex, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._check import finite, integer, number, on_numbers, real_array, spoken_by
from pdejax._figure import AbstractRecord
from pdejax.analysis.jacobian._krylov import eigenpairs
from pdejax.analysis.jacobian._lyapunov import LyapunovExponents, lyapunov_of_maps
from pdejax.analysis.jacobian._operator import Jacobian
from pdejax.analysis.loops._loop import Loop, entries, repeated

HALVINGS = 12  # of a damped step, then Newton has stopped
PATIENCE = 6  # steps in which the residual must halve: far from a root damped steps creep
KRYLOV = 60  # vectors of GMRES before it starts again


class FixedPoint(AbstractRecord):
    r"""A point u* with $G^p(u^*) = u^*$ as Newton–Krylov left it.

    - `state (n, d)`: u*. `period` p.
    - `residual`: $\|G^p(u^*) - u^*\|$, Euclidean over real tokens, of the state itself: nothing is assumed. `relative`: over
      ‖u*‖, or over the length of the state it began with where u* is shorter.
    - `correction`: length of the last Newton step, the distance to the exact point to first order.
    - `steps`: of Newton; `converged`: residual and correction both at most the tolerance, relative, or the residual at rounding:
      where $DG^p - I$ is singular (a line of fixed points, a degenerate one) corrections say nothing, and are NaN if none was
      taken.
    """

    state: Float[Array, "..."]
    residual: float = eqx.field(static=True)
    relative: float = eqx.field(static=True)
    correction: float = eqx.field(static=True)
    period: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    converged: bool = eqx.field(static=True)


class LoopSpectrum(AbstractRecord):
    r"""Dominant eigenvalues of $D(G^p)$ at a state.

    - `values (k,)`: by falling modulus, both of every complex pair; per pass they are $\lambda^{1/p}$ in modulus.
    - `residuals (k,)`: ‖J x − λx‖ of unit x, from products with J.
    - `radius`: the largest modulus. `vector (n, d)`: its eigenvector, of length 1.
    - `complete`: whether all eigenvalues were computed, from the matrix; `converged`: whether the iteration ended as asked.
    """

    values: Complex[np.ndarray, "..."]
    residuals: Float[np.ndarray, "..."]
    vector: Complex[np.ndarray, "..."]
    radius: float = eqx.field(static=True)
    complete: bool = eqx.field(static=True)
    converged: bool = eqx.field(static=True)


@checked
@on_numbers
def fixed_point(
    loop: Loop,
    u: ArrayLike | None = None,
    *,
    period: int = 1,
    tolerance: float = 1e-11,
    steps: int = 40,
) -> FixedPoint:
    r"""Find a fixed point of $G^p$ near `u` by damped Newton steps, each by GMRES on products with $DG^p - I$: no matrix.

    - `loop`: of `loop_of`. `u`: where to begin, by default the loop's first state. `period` p: 1 for a fixed point of G itself.
    - `tolerance`: on residual and last step, relative to the larger of ‖u*‖ and ‖u‖; `steps`: most steps of Newton.

    A step is halved until the residual falls; where it does not halve in six steps there is no point near, and Newton stops. A
    point may be found that the loop itself does not come to, or that repels: `classify_loop` says which. In float32 residuals
    below 1e-6 are not reached. Raises `ValueError` for states that do not fit.
    Sources: Saad & Schultz 1986, DOI 10.1137/0907058; Knoll & Keyes 2004, DOI 10.1016/j.jcp.2003.08.010.
    """
    owner = "fixed_point"
    integer(owner, "period", period)
    integer(owner, "steps", steps)
    small = number(owner, "tolerance", tolerance, above=0, below=1)
    x = state_of(owner, loop, u)
    return _newton(loop, x, period, small, steps)


def _newton(loop: Loop, x: Array, period: int, tolerance: float, most: int) -> FixedPoint:
    from scipy.sparse.linalg import LinearOperator, gmres

    g, real = repeated(loop, period), entries(loop)
    size, shape = int(real.sum()), loop.start.shape
    reference = float(jnp.linalg.norm(x))
    change = np.asarray(_difference(g, x)).ravel()[real]
    residual, correction, taken = float(np.linalg.norm(change)), np.inf, 0
    history = [residual]
    rounding = 20 * float(np.finfo(change.dtype).eps)

    def scale() -> float:
        return max(float(jnp.linalg.norm(x)), reference, 1e-300)

    def near() -> bool:
        return residual <= rounding * scale() or max(residual, correction) <= tolerance * scale()

    while taken < most and np.isfinite(residual) and not near():
        jacobian = Jacobian(g, x, loop.mask)

        def product(v, jacobian=jacobian):
            return jacobian.product(v) - v

        operator = LinearOperator(shape=(size, size), matvec=product, dtype=change.dtype)  # pyright: ignore[reportCallIssue]
        # As exact as the step deserves: the residual is about to be squared.
        forcing = float(np.clip(residual / scale(), 1e-12, 1e-2))
        try:
            step, _ = gmres(operator, -change, rtol=forcing, restart=min(size, KRYLOV), maxiter=4)
        except ValueError:  # a derivative that is not finite
            break
        if not np.all(np.isfinite(step)):
            break
        move = np.zeros(real.size, change.dtype)
        move[real] = step
        moved = _damped(g, x, jnp.asarray(move.reshape(shape), x.dtype), residual, real, tolerance * scale())
        if moved is None:
            # No better point in floating point: what is left of the step is rounding, or Newton fails.
            correction = float(np.linalg.norm(step))
            break
        x, change, length = moved
        residual, correction, taken = float(np.linalg.norm(change)), length * float(np.linalg.norm(step)), taken + 1
        history.append(residual)
        if taken >= PATIENCE and residual > 0.5 * history[-1 - PATIENCE] and not near():
            break
    last = correction if np.isfinite(correction) else float("nan")
    return FixedPoint(x, residual, residual / scale(), last, period, taken, bool(near()))


def _damped(g: Any, x: Array, move: Array, residual: float, real: np.ndarray, enough: float) -> Any:
    """The state after a step that is halved until the residual falls, its residual's vector, and the share of the step."""
    share = 1.0
    for _ in range(HALVINGS):
        new = x + share * move
        change = np.asarray(_difference(g, new)).ravel()[real]
        length = float(np.linalg.norm(change))
        # Below the tolerance rounding moves it up and down.
        if np.isfinite(length) and (length <= (1 - 1e-4 * share) * residual or length <= enough):
            return new, change, share
        share /= 2
    return None


@eqx.filter_jit
def _difference(g: Any, x: Array) -> Array:
    return g(x) - x


@checked
@on_numbers
def loop_eigenvalues(
    loop: Loop, u: ArrayLike, *, count: int = 6, period: int = 1, tolerance: float = 1e-9
) -> LoopSpectrum:
    r"""Find the `count` largest eigenvalues of $D(G^p)$ at `u (n, d)` by restarted Arnoldi on products (ARPACK), complex pairs
    whole; of a state with at most 400 real entries from its matrix.

    At a fixed point or on a cycle of period p they decide: all inside the unit circle, the loop comes back. Residuals are
    computed afresh from products with each eigenvector. Raises `ValueError` for what does not fit, and where the derivative is
    not finite.
    """
    owner = "loop_eigenvalues"
    integer(owner, "count", count)
    integer(owner, "period", period)
    small = number(owner, "tolerance", tolerance, above=0, below=1)
    jacobian = jacobian_at(loop, state_of(owner, loop, u), period)
    found = eigenpairs(jacobian, count, small)
    real = entries(loop)
    vector = np.zeros(real.size, complex)
    radius = float(abs(found.values[0])) if len(found.values) else float("nan")
    if len(found.values):
        vector[real] = found.vectors[:, 0]
    return LoopSpectrum(
        found.values, found.residuals, vector.reshape(loop.start.shape), radius, jacobian.complete, found.converged
    )


@checked
def loop_exponents(
    loop: Loop,
    *,
    k: int = 1,
    loops: int = 512,
    discard: int = 0,
    key: PRNGKeyArray | None = None,
    qr_every: int = 1,
) -> LyapunovExponents:
    r"""Find the `k` largest Lyapunov exponents of the loop on its whole state, per pass, over `loops` passes of which the first
    `discard` are left out: [`lyapunov_of_maps`][pdejax.analysis.jacobian.lyapunov_of_maps] of G from `loop.start`.

    At an attracting fixed point they tend to the $\log|\lambda_i|$, error O(1/loops). The interval is over parts of the
    passes; one over inputs comes from `pdejax.over_seeds` of several loops. Raises as that function.
    """
    owner = "loop_exponents"
    integer(owner, "discard", discard, 0, integer(owner, "loops", loops) - 1)
    with spoken_by(owner):
        return lyapunov_of_maps(
            Indexed(loop), loop.start, key=key, k=k, steps=loops, qr_every=qr_every, discard=float(discard)
        )


class Indexed(eqx.Module):
    """G as a map that is told how often it was applied."""

    loop: Loop

    def __call__(self, i: Any, u: Array) -> Array:
        del i
        return self.loop(u)


def state_of(owner: str, loop: Loop, u: Any) -> Array:
    """`u` as a state of the loop, by default its first; refusals name `owner`."""
    x = loop.start if u is None else real_array(owner, "u", u, "a state of the loop")
    if x.shape != loop.start.shape:
        raise ValueError(f"{owner}: u has shape {x.shape}; states of this loop have shape {loop.start.shape}.")
    finite(owner, "u", x, "a loop that has left the finite numbers has no state to go on from")
    return jnp.asarray(x, loop.start.dtype)


def jacobian_at(loop: Loop, u: Array, period: int = 1) -> Jacobian:
    """The Jacobian of p passes at a state."""
    return Jacobian(repeated(loop, period), u, loop.mask)
