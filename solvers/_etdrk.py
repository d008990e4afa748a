"""Exponential time differencing: Runge–Kutta methods for u' = L u + N(t, u) that take the stiff linear part exactly."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Real

from pdejax.solvers._modes import times, weighted
from pdejax.solvers._operator import AbstractModalOperator
from pdejax.solvers._terms import linear_operator_of, with_operator
from pdejax.solvers._written import one_line

Variant = Literal["krogstad", "cox-matthews", "hochbruck-ostermann"]
Phis = tuple[Array, ...]
Rest = Callable[[float, Array], Array]


class ExponentialInterpolation(diffrax.AbstractLocalInterpolation):
    r"""Dense output of an exponential step: the variation-of-constants formula with the step's polynomial for N,

    $$u(t_0 + \theta h) = e^{\theta hL}u_0 + \sum_j j!\,\theta^{j+1}\varphi_{j+1}(\theta hL)\,h q_j,
      \qquad N(t_0 + \theta h) \approx \sum_j q_j\theta^j .$$

    It passes through both ends of the step. A Hermite cubic would not do for a stiff equation: its slopes
    L u + N multiply the error of u in fast modes by hL.
    """

    t0: Real[Array, ""]
    t1: Real[Array, ""]
    start: Array
    forcing: tuple[Array, ...]
    operator: AbstractModalOperator
    step: Array

    def evaluate(self, t0: Any, t1: Any | None = None, left: bool = True) -> PyTree:
        if t1 is not None:
            return self.evaluate(t1, left=left) - self.evaluate(t0, left=left)
        span = self.t1 - self.t0
        theta = jnp.where(span == 0.0, 0.0, (t0 - self.t0) / jnp.where(span == 0.0, 1.0, span))
        theta = theta.astype(jnp.finfo(self.start.dtype).dtype)
        propagator, *weights = self.operator.phis(theta * self.step, len(self.forcing), self.start.dtype)
        out, scale = weighted(propagator, self.start), theta
        for j, (weight, coefficient) in enumerate(zip(weights, self.forcing, strict=True)):
            out = out + times(scale, weighted(weight, coefficient))
            scale = scale * theta * (j + 1.0)
        return self.operator.from_modes(out)


class Memory(eqx.Module):
    """What a step leaves to the next, in mode space: N at its end and at its start, and its signed length (0: none)."""

    slope: Array
    previous: Array
    span: Real[Array, ""]


class AbstractETDRK(diffrax.AbstractAdaptiveSolver[Memory]):
    r"""An exponential Runge–Kutta method on `diffrax.MultiTerm(ODETerm(rest), ODETerm(operator))`.

    The state is one real or complex array (n, d), and `operator` a
    [`DiagonalizableOperator`][pdejax.solvers.DiagonalizableOperator] or a
    [`CoupledOperator`][pdejax.solvers.CoupledOperator] L. The step works on the coefficients û of L's
    modes, with φ-functions of hL at the step's own h. With the rest N = 0 a step of any size is exact.

    The rest is evaluated at the end of each step, as the first stage of the next one (first same as last).
    Error estimates compare the step with the exponential Adams–Moulton formula of order 3 through N at the start of
    the previous step, and at both ends of this one, at no further cost. In the first step, and after a jump, there is
    no previous one, and a formula of lower order takes its place.
    """

    interpolation_cls: ClassVar[Callable[..., ExponentialInterpolation]] = ExponentialInterpolation

    __repr__ = one_line

    @property
    def term_structure(self) -> Any:
        return with_operator(type(self).__name__, AbstractModalOperator)

    @abc.abstractmethod
    def stages(
        self, phis: Phis, half: Callable[[], Phis], u: Array, k: Array, rest: Rest
    ) -> tuple[Array, tuple[Array, ...]]:
        """`rise` = û1 − φ0 û − φ1 k, and h times the coefficients of the polynomial in θ that stands for N in dense
        output.

        `k` is h N̂ at the start, `rest(c, v)` h N̂ at t0 + c h and the field with coefficients v, `phis` are
        φ0 … φ3 of hL, and `half()` those of hL/2, for `weighted`.
        """

    @abc.abstractmethod
    def estimate(self, defect: Array, curvature: Array, rise: Array, known: Array, size: Array) -> Array:
        """The error estimate, in mode space.

        `defect` is û1 minus the formula through N at both ends of the step, `curvature` what the previous step adds
        to that formula, `known` whether there was one, and `size` |h|.
        """

    @abc.abstractmethod
    def step_evaluations(self) -> int:
        """Evaluations of the rest in one step; a solve has one more, at its start."""

    def init(self, terms: Any, t0: Any, t1: Any, y0: PyTree, args: Any) -> Memory:
        operator = _operator(terms, y0)
        slope = operator.to_modes(_field(terms, t0, y0, args))
        return Memory(slope, jnp.zeros_like(slope), jnp.zeros((), jnp.finfo(slope.dtype).dtype))

    def func(self, terms: Any, t0: Any, y0: PyTree, args: Any) -> PyTree:
        return terms.vf(t0, y0, args)

    @jax.named_scope("pdejax.solvers.ETDRK")
    def step(
        self, terms: Any, t0: Any, t1: Any, y0: PyTree, args: Any, solver_state: Memory, made_jump: Any
    ) -> tuple[Array, Array, dict[str, Any], Memory, diffrax.RESULTS]:
        operator = _operator(terms, y0)
        u = operator.to_modes(y0)
        real = jnp.finfo(u.dtype).dtype
        h = jnp.asarray(terms.terms[1].contr(t0, t1), real)
        phis = operator.phis(h, 3, u.dtype)

        def rest(c: float, v: Array) -> Array:
            # t0 + (t1 − t0) may miss t1 by a rounding error, and the field may jump there.
            t = t1 if c == 1.0 else t0 + c * (t1 - t0)
            return operator.to_modes(_field(terms, t, operator.from_modes(v), args))

        memory = solver_state
        if made_jump is not False:
            slope = jax.lax.cond(
                made_jump, lambda: operator.to_modes(_field(terms, t0, y0, args)), lambda: memory.slope
            )
            memory = Memory(slope, memory.previous, jnp.where(made_jump, 0.0, memory.span))

        k = times(h, memory.slope)

        def half() -> Phis:
            return operator.phis(0.5 * h, 3, u.dtype)

        rise, forcing = self.stages(phis, half, u, k, lambda c, v: times(h, rest(c, v)))
        u1 = weighted(phis[0], u) + weighted(phis[1], k) + rise
        y1 = operator.from_modes(u1)
        slope = operator.to_modes(_field(terms, t1, y1, args))

        # Second difference of N through −r, 0 and 1 in units of the step.
        known = (memory.span != 0.0) & (h != 0.0)
        r = jnp.where(known, memory.span, 1.0) / jnp.where(known, h, 1.0)
        forward = times(h, slope - memory.slope)
        backward = times(h / r, memory.slope - memory.previous)
        curvature = weighted(2.0 * phis[3] - phis[2], times(1.0 / (1.0 + r), forward - backward))
        defect = rise - weighted(phis[2], forward)
        error = self.estimate(defect, jnp.where(known, curvature, 0.0), rise, known, jnp.abs(h))

        dense = {"start": u, "forcing": forcing, "operator": operator, "step": h}
        return y1, operator.from_modes(error), dense, Memory(slope, memory.slope, h), diffrax.RESULTS.successful


class ETDRK1(AbstractETDRK):
    r"""Exponential Euler method: order 1, one evaluation of the rest per step,

    $$u_1 = e^{hL}u_0 + h\varphi_1(hL)N(t_0, u_0).$$

    Order 1 in the stiff limit too, at any boundary. With L = 0 it is Euler's method: a rest with rate λ < 0 is
    stable for h|λ| ≤ 2, and further with damping in L. The error estimate is the local error per unit depth (its
    exponential trapezoidal correction divided by h), so that the global error follows the tolerance, and the
    number of steps is inversely proportional to it: for tolerances down to 1e-4.

    Raises `TypeError` unless the second term holds a `DiagonalizableOperator` or a `CoupledOperator` and the state is a
    float32 or float64 array, complex if L is.

    Source: Cox and Matthews, *J. Comput. Phys.* 176 (2002), (4).
    """

    def order(self, terms: Any) -> int:
        return 1

    def step_evaluations(self) -> int:
        return 1

    def stages(
        self, phis: Phis, half: Callable[[], Phis], u: Array, k: Array, rest: Rest
    ) -> tuple[Array, tuple[Array, ...]]:
        return jnp.zeros_like(u), (k,)

    def estimate(self, defect: Array, curvature: Array, rise: Array, known: Array, size: Array) -> Array:
        return times(1.0 / jnp.where(size == 0.0, 1.0, size), defect)


class ETDRK2(AbstractETDRK):
    r"""Exponential Runge–Kutta method of order 2, two evaluations of the rest per step,

    $$a = e^{hL}u_0 + h\varphi_1 N(t_0, u_0),\qquad u_1 = a + h\varphi_2\,\bigl(N(t_1, a) - N(t_0, u_0)\bigr).$$

    Order 2 in the stiff limit too, at any boundary. With L = 0 it is Heun's method (a rest with rate λ < 0 is
    stable for h|λ| ≤ 2). The error estimate is the local error per unit depth, of order h²: an estimate of
    asymptotically the right size, so that the global error follows the tolerance.

    Raises as for [`ETDRK1`][pdejax.solvers.ETDRK1].

    Source: Cox and Matthews, *J. Comput. Phys.* 176 (2002), (22).
    """

    def order(self, terms: Any) -> int:
        return 2

    def step_evaluations(self) -> int:
        return 2

    def stages(
        self, phis: Phis, half: Callable[[], Phis], u: Array, k: Array, rest: Rest
    ) -> tuple[Array, tuple[Array, ...]]:
        change = rest(1.0, weighted(phis[0], u) + weighted(phis[1], k)) - k
        return weighted(phis[2], change), (k, change)

    def estimate(self, defect: Array, curvature: Array, rise: Array, known: Array, size: Array) -> Array:
        per_depth = times(1.0 / jnp.where(size == 0.0, 1.0, size), defect - curvature)
        return jnp.where(known, per_depth, rise)


def _to_variant(variant: Any) -> Any:
    if variant not in get_args(Variant):
        raise ValueError(f"ETDRK4: variant={variant!r} is unknown; choose one of {get_args(Variant)}.")
    return variant


class ETDRK4(AbstractETDRK):
    r"""Exponential Runge–Kutta methods of order 4, with the weights of Simpson's rule under the exponential,

    $$u_1 = e^{hL}u_0 + h(\varphi_1 - 3\varphi_2 + 4\varphi_3)N_0 + h(4\varphi_2 - 8\varphi_3)N_{1/2}
      + h(4\varphi_3 - \varphi_2)N_1 .$$

    | `variant` | evaluations per step | N at the half step | source |
    |---|---|---|---|
    | `"krogstad"` (default) | 4 | mean of stages 2 and 3 | Krogstad (2005), (51) |
    | `"cox-matthews"` | 4 | mean of stages 2 and 3 | Cox and Matthews (2002), (26)–(29) |
    | `"hochbruck-ostermann"` | 5 | stage 5 | Hochbruck and Ostermann (2005), (5.19) |

    All have order 4 where the rest keeps the boundary condition: on Neumann and periodic grids. Where it does not
    vanish at a Dirichlet wall, and the solution is smooth in t, fine grids leave order 2.5 of Cox and Matthews' method
    (2 in theory) and 3.1 of Krogstad's (3 in theory), while Hochbruck and Ostermann's keeps 4. A start that does not
    fit the rest at the wall makes an initial layer, which costs every method order with equal steps; adaptive
    steps resolve it.

    With L = 0 all three have the stability of the classic Runge–Kutta method: a rest with rate λ < 0 is stable for
    h|λ| ≤ 2.785.

    The error estimate is the difference from the Adams–Moulton formula of order 3, of order h⁴; the step goes on with
    the solution of order 4.

    Raises `ValueError` for an unknown variant, `TypeError` as for [`ETDRK1`][pdejax.solvers.ETDRK1].

    Sources: Cox and Matthews, *J. Comput. Phys.* 176 (2002) 430; Krogstad, *J. Comput. Phys.* 203 (2005) 72; Hochbruck and
    Ostermann, *SIAM J. Numer. Anal.* 43 (2005) 1069.
    """

    variant: Variant = eqx.field(static=True, default="krogstad", converter=_to_variant)

    def order(self, terms: Any) -> int:
        return 4

    def step_evaluations(self) -> int:
        return 5 if self.variant == "hochbruck-ostermann" else 4

    def stages(
        self, phis: Phis, half: Callable[[], Phis], u: Array, k: Array, rest: Rest
    ) -> tuple[Array, tuple[Array, ...]]:
        (p0, p1, p2, p3), (q0, q1, q2, q3) = phis, half()
        middle, whole = weighted(q0, u), weighted(p0, u)
        k2 = rest(0.5, middle + 0.5 * weighted(q1, k))
        if self.variant == "cox-matthews":
            k3 = rest(0.5, middle + 0.5 * weighted(q1, k2))
            # e^{hL/2} of the second stage, whose own start was e^{hL/2} u.
            k4 = rest(1.0, weighted(q0, middle + 0.5 * weighted(q1, k)) + 0.5 * weighted(q1, 2.0 * k3 - k))
        else:
            k3 = rest(0.5, middle + 0.5 * weighted(q1, k) + weighted(q2, k2 - k))
            last = 2.0 * k3 if self.variant == "krogstad" else k2 + k3
            k4 = rest(1.0, whole + weighted(p1, k) + weighted(p2, last - 2.0 * k))
        if self.variant == "hochbruck-ostermann":
            a52 = 0.5 * q2 - p3 + 0.25 * p2 - 0.5 * q3
            a54 = 0.25 * q2 - a52
            stage = middle + 0.5 * weighted(q1, k) + weighted(a52, k2 + k3 - 2.0 * k) + weighted(a54, k4 - k)
            centre = rest(0.5, stage)
        else:
            centre = 0.5 * (k2 + k3)
        linear, quadratic = 4.0 * centre - 3.0 * k - k4, 2.0 * (k - 2.0 * centre + k4)
        return weighted(p2, linear) + 2.0 * weighted(p3, quadratic), (k, linear, quadratic)

    def estimate(self, defect: Array, curvature: Array, rise: Array, known: Array, size: Array) -> Array:
        return defect - curvature


def _operator(terms: Any, y0: Any) -> AbstractModalOperator:
    """The linear operator of the second term, after a check that it fits the state."""
    operator = linear_operator_of(terms.terms[1], AbstractModalOperator)
    if not (eqx.is_array(y0) and jnp.issubdtype(y0.dtype, jnp.inexact) and jnp.finfo(y0.dtype).bits >= 32):
        raise TypeError(f"the state must be one float32, float64 or complex array (n, d); got {y0!r}.")
    operator.check(y0.shape)
    if operator.is_complex() and not jnp.iscomplexobj(y0):
        raise TypeError("the linear operator is complex, but the state is real; start from a complex state.")
    return operator


def _field(terms: Any, t: Any, y: Array, args: Any) -> Array:
    """The rest, which may be real where the state is complex, in the type of the state."""
    return terms.terms[0].vf(t, y, args).astype(y.dtype)
