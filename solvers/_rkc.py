"""The second-order Runge–Kutta–Chebyshev method."""

import functools
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree, Real

from pdejax.solvers._base import Terms, Time, Y
from pdejax.solvers._stabilized import (
    AbstractStabilized,
    added,
    norm,
    real_dtype,
    scaled,
    to_max_stages,
    to_scan_kind,
    to_spectral_radius,
    to_stages,
)

DAMPING = 2.0 / 13.0


class _Chebyshev(NamedTuple):
    """T_j, T_j', T_j'' at w0 = 1 + δ, and their differences to j − 1.

    With the differences every term of the recurrence is positive, so that no digits cancel near w0 = 1:
    T_{j+1} − T_j = (T_j − T_{j−1}) + 2δ T_j, and its derivatives. Python floats or traced numbers.
    """

    delta: Any
    t: Any
    dt: Any
    t1: Any
    dt1: Any
    t2: Any
    dt2: Any

    def next(self) -> "_Chebyshev":
        dt = self.dt + 2.0 * self.delta * self.t
        dt1 = self.dt1 + 2.0 * self.delta * self.t1 + 2.0 * self.t
        dt2 = self.dt2 + 2.0 * self.delta * self.t2 + 4.0 * self.t1
        return _Chebyshev(self.delta, self.t + dt, dt, self.t1 + dt1, dt1, self.t2 + dt2, dt2)

    @property
    def b(self) -> Any:
        return self.t2 / self.t1**2


def _first(delta: Any) -> _Chebyshev:
    one, zero = delta * 0.0 + 1.0, delta * 0.0
    return _Chebyshev(delta, one + delta, delta, one, one, zero, zero)


class _Stage(NamedTuple):
    """Coefficients of stage j ≥ 2, see `RKC2`, and the node c_{j−1} and 1 − a_{j−1} of the stage before."""

    mu: Any
    nu: Any
    mu_tilde: Any
    gamma_tilde: Any
    node: Any


def _scale(stages: int) -> float:
    """w1 = T_s'(w0) / T_s''(w0)."""
    chebyshev = _first(DAMPING / stages**2)
    for _ in range(stages - 1):
        chebyshev = chebyshev.next()
    return chebyshev.t1 / chebyshev.t2


class _Recurrence(NamedTuple):
    """What the coefficients of stage j are made of: the polynomials at j − 1, b_{j−1}, b_{j−2}."""

    chebyshev: _Chebyshev
    b1: Any
    b2: Any
    node: Any

    def stage(self, w1: Any) -> tuple[_Stage, "_Recurrence"]:
        w0 = 1.0 + self.chebyshev.delta
        new = self.chebyshev.next()
        b = new.b
        mu_tilde = 2.0 * w1 * b / self.b1
        gamma_tilde = (self.b1 * self.chebyshev.t - 1.0) * mu_tilde
        stage = _Stage(2.0 * w0 * b / self.b1, -b / self.b2, mu_tilde, gamma_tilde, self.node)
        return stage, _Recurrence(new, b, self.b1, w1 * new.t2 / new.t1)


def _start(delta: Any, w1: Any) -> _Recurrence:
    first = _first(delta)
    b = first.next().b  # b_0 = b_1 = b_2
    return _Recurrence(first, b, b, w1 * b)


@functools.cache
def _coefficients(stages: int) -> tuple[float, _Stage]:
    """(μ̃_1, coefficients of the stages 2 … s as arrays) in double precision."""
    w1 = _scale(stages)
    recurrence = _start(DAMPING / stages**2, w1)
    first, rows = recurrence.node, []
    for _ in range(2, stages + 1):
        stage, recurrence = recurrence.stage(w1)
        rows.append(stage)
    return first, _Stage(*(np.array(column) for column in zip(*rows, strict=True)))


class RKC2(AbstractStabilized):
    """Runge–Kutta–Chebyshev method of order 2: s stages are stable on [−β(s), 0] of the **real axis**, with
    β(s) ≈ (2/3)(s² − 1)(1 − 2ε/15) = 0.65 (s² − 1).

        Y_1 = y + μ̃_1 h f_0
        Y_j = (1 − μ_j − ν_j) y + μ_j Y_{j−1} + ν_j Y_{j−2} + μ̃_j h f_{j−1} + γ̃_j h f_0,   j = 2 … s

    y(t + h) ≈ Y_s, f_j = f(t + c_j h, Y_j), with w0 = 1 + ε/s², ε = 2/13, w1 = T_s'(w0)/T_s''(w0),
    b_j = T_j''(w0)/T_j'(w0)², b_0 = b_1 = b_2, a_j = 1 − b_j T_j(w0), and

        μ̃_1 = b_1 w1,  μ_j = 2 w0 b_j/b_{j−1},  ν_j = −b_j/b_{j−2},  μ̃_j = 2 w1 b_j/b_{j−1},
        γ̃_j = −a_{j−1} μ̃_j,  c_j = w1 T_j''(w0)/T_j'(w0),  c_1 = μ̃_1.

    One step multiplies y' = λy by R_s(hλ) = a_s + b_s T_s(w0 + w1 hλ), |R_s| ≤ 1 − ε/3 inside the interval. A step of
    length h costs about √(1.54 h ρ + 1) evaluations, where an explicit method of few stages would need h ρ / 2: no
    structure of the field is used. For fields whose stiffness is diffusion or damping. **Not** for dispersion or
    transport: next to the imaginary axis the region of stability is a strip of width 0.1…1, and imaginary
    eigenvalues are unstable for every h.

    Order 2 in the step, also at Dirichlet walls where the field does not vanish, which reduce the order of splittings.
    The constant depends on s: where the chosen number falls from 8 to 3 as steps are halved, the error falls by
    2^1.8…2^2.0.

    The error estimate is e = (4/5)(y_n − y_{n+1}) + (2/5) h (f_n + f_{n+1}) = O(h³). A controller that holds e at the
    tolerance leaves a global error of the order tol^{2/3}, a hundred times the tolerance at 1e-8. It is therefore given
    e (‖y‖/‖e‖)^{1/3} = O(h²), which makes the global error proportional to the tolerance.

    Dense output is cubic Hermite, of order 2 like the steps and free: the slope at the end is the first stage of the
    next step.

    **Arguments:**

    - `stages`: s ≥ 2 for a fixed number, or None: the fewest stages with h ρ ≤ β(s), chosen in each step.
    - `spectral_radius`: bound ρ of the |eigenvalues| of ∂f/∂y (per unit of depth): a number; a function
        `(t, y, args) -> ρ`; or None. None with fixed `stages`: nothing checks stability. None without: a nonlinear
        power iteration on f, ten evaluations or more at the start, then usually one per step, from the last
        direction on; its result is multiplied by 1.2. Where it does not settle to 1 % within 50 evaluations the
        step takes the largest quotient seen and counts in `state.unconverged`: no guarantee, so read it.
    - `max_stages`: ceiling for s when chosen (default 200). Rounding errors grow as s² eps: in float32 keep it
        below about 50 for relative errors of 1e-4.
    - `scan_kind`: how the loop over a chosen number of stages is differentiated: `"checkpointed"` (reverse mode; None
        means this), `"lax"` (forward mode), `"bounded"` (both; slow under `vmap`). A fixed number serves both.

    A step that would be unstable (h ρ > β, of the fixed or of the largest stage number, or ρ not a number) is not
    taken: y becomes NaN, the result `diffrax.RESULTS.nonlinear_divergence`, the error inf. With constant steps the
    solve ends there; a PID controller refuses the step and tries a shorter one.

    State: [`StabilizedState`][pdejax.solvers.StabilizedState] with the count of evaluations. Takes any term, a
    `MultiTerm` as a whole.

    **Raises:** `TypeError`, `ValueError` for stages below 2, a negative radius, or arguments of another kind.

    Source: Sommeijer, Shampine, Verwer, J. Comput. Appl. Math. 88 (1998) 315, DOI 10.1016/S0377-0427(97)00219-7.
    Tolerance proportionality: Söderlind, Wang, J. Comput. Appl. Math. 185 (2006) 225.
    """

    stages: Any = eqx.field(default=None, converter=to_stages, static=True)
    spectral_radius: Any = eqx.field(default=None, converter=to_spectral_radius)
    max_stages: Any = eqx.field(default=200, converter=to_max_stages, static=True)
    scan_kind: Any = eqx.field(default=None, converter=to_scan_kind)

    fewest: ClassVar[int] = 2

    def __check_init__(self):
        self.check_numbers()

    def stability_limit(self, stages: int) -> float:
        """β(s) = (w0 + 1)/w1: w0 + w1 z stays in [−1, w0] for z in [−β, 0]."""
        return (2.0 + DAMPING / stages**2) / _scale(stages)

    def choose(self, z: Real[Array, ""]) -> Int[Array, ""]:
        # 1/1.54 is a little below the 0.653 of β(s), which is 0.654 already at s = 2.
        stages = 1 + jnp.floor(jnp.sqrt(1.0 + 1.54 * z)).astype(jnp.int32)
        return jnp.clip(stages, 2, self.max_stages)

    def estimate(self, y0: Y, y1: Y, k0: Y, k1: Y, error: Y | None) -> Y:
        error = jax.tree.map(lambda a, b, k, m: 0.8 * (a - b) + 0.4 * (k + m), y0, y1, k0, k1)
        dtype = real_dtype(y0)
        size, large = norm(error, dtype), jnp.maximum(norm(y0, dtype), norm(y1, dtype))
        ratio = large / jnp.where(size > 0, size, 1.0)
        return scaled(jax.lax.stop_gradient(ratio) ** (1.0 / 3.0), error)

    def advance(
        self, terms: Terms, t0: Time, t1: Time, y0: Y, k0: Y, args: Any, control: PyTree, stages: Any
    ) -> tuple[Y, None]:
        # Deviations Y_j − y keep the digits that 1 − μ − ν ≈ 0 would lose.
        def move(stage: _Stage, z1: Y, z2: Y) -> Y:
            t = t0 + jnp.asarray(stage.node).astype(jnp.result_type(t0)) * (t1 - t0)
            k = terms.vf_prod(t, added(y0, z1), args, control)
            return added(
                scaled(stage.mu, z1), scaled(stage.nu, z2), scaled(stage.mu_tilde, k), scaled(stage.gamma_tilde, k0)
            )

        zero = jax.tree.map(jnp.zeros_like, y0)
        dtype = real_dtype(y0)
        if isinstance(stages, int):
            first, rows = _coefficients(stages)
            rows = jax.tree.map(lambda column: jnp.asarray(column, dtype), rows)

            def one(carry, stage):
                return (move(stage, *carry), carry[0]), None

            (z, _), _ = jax.lax.scan(one, (scaled(first, k0), zero), rows)
            return added(y0, z), None

        delta = DAMPING / stages.astype(dtype) ** 2
        last = jax.lax.fori_loop(1, stages, lambda _, chebyshev: chebyshev.next(), _first(delta))
        w1 = last.t1 / last.t2
        recurrence = _start(delta, w1)

        def body(carry):
            j, recurrence, z1, z2 = carry
            stage, recurrence = recurrence.stage(w1)
            return j + 1, recurrence, move(stage, z1, z2), z1

        start = (jnp.asarray(2, jnp.int32), recurrence, scaled(recurrence.node, k0), zero)
        _, _, z, _ = eqxi.while_loop(
            lambda carry: carry[0] <= stages,
            body,
            start,
            max_steps=self.max_stages,
            kind="checkpointed" if self.scan_kind is None else self.scan_kind,
        )
        return added(y0, z), None
