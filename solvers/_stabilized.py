"""What stabilized explicit methods share: the choice of the stage number from the spectral radius, the memory between
steps, and the counts.
"""

import abc
import math
import numbers
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, PyTree, Real

from pdejax.solvers._base import Terms, Time, Y
from pdejax.solvers._terms import whole_field
from pdejax.solvers._written import one_line

ScanKind = Literal["lax", "checkpointed", "bounded"] | None
SAFETY = 1.2
"""Factor on the result of the power iteration, which approaches the spectral radius from below."""
FIRST_ITERATIONS = 10
MOST_ITERATIONS = 50


class StabilizedState(eqx.Module):
    """Memory of [`RKC2`][pdejax.solvers.RKC2] and [`ROCK2`][pdejax.solvers.ROCK2] between steps, which
    `diffeqsolve(..., saveat=SaveAt(..., solver_state=True))` returns.

    - `evaluations`: of the vector field up to here, those of the power iteration and of dense output included.
        diffrax restores the state from before a refused step, so refused steps are **not** in it: with a PID
        controller the true count is larger by about the factor `num_steps / num_accepted_steps`.
    - `stages`: of the last step.
    - `spectral_radius`: used in the last step (with its safety factor), per unit of depth; 0 before the first step
        and where nothing asks for it.
    - `unconverged`: steps whose power iteration had not settled within 50 evaluations; they used the largest
        quotient seen.
    - `field`: du/dt at the current depth. `direction`: the last iterate of the power iteration, or None.
    """

    field: PyTree
    direction: PyTree
    spectral_radius: Real[Array, ""]
    stages: Int[Array, ""]
    evaluations: Int[Array, ""]
    unconverged: Int[Array, ""]

    __repr__ = one_line


StepResult = tuple[Y, Y, dict[str, Any], StabilizedState, diffrax.RESULTS]


def real_dtype(y: Y) -> Any:
    """The real type of the widest leaf."""
    return jnp.finfo(jnp.result_type(*(jnp.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(y)))).dtype


def scaled(factor: Any, y: Y) -> Y:
    """factor · y in the precision of y."""
    return jax.tree.map(lambda leaf: jnp.asarray(factor).astype(leaf.dtype) * leaf, y)


def added(*ys: Y) -> Y:
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *ys)


def norm(y: Y, dtype: Any) -> Real[Array, ""]:
    squares = [jnp.sum(jnp.real(leaf) ** 2 + jnp.imag(leaf) ** 2).astype(dtype) for leaf in jax.tree.leaves(y)]
    return jnp.sqrt(sum(squares[1:], squares[0]))


def _noise(y: Y) -> Y:
    """A direction that no symmetry of the field singles out, the same in every solve."""
    leaves, tree = jax.tree.flatten(y)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(
        tree, [jax.random.normal(k, jnp.shape(x), x.dtype) for k, x in zip(keys, leaves, strict=True)]
    )


def power_iteration(
    move: Callable[[Y], Y], y: Y, k: Y, direction: Y, previous: Any, at_least: Any
) -> tuple[Real[Array, ""], Y, Int[Array, ""], Any]:
    """Nonlinear power iteration for the dominant |eigenvalue| of the Jacobian of `move` at y, where `move(y)` is k.

        w = move(y + v) − k,  quotient ‖w‖ / ‖v‖,  v ← w,  with ‖v‖ = √eps ‖y‖

    until two successive quotients agree to 1 % after `at_least` evaluations; the first is compared with
    `previous`. Returns (quotient, last direction, evaluations, converged). Quotients that do not settle, as for a
    dominant pair of complex eigenvalues, return their largest, which is not below their geometric mean.

    Source: Sommeijer, Shampine, Verwer, J. Comput. Appl. Math. 88 (1998) 315.
    """
    dtype = real_dtype(y)
    length = norm(y, dtype)
    length = math.sqrt(float(jnp.finfo(dtype).eps)) * jnp.where(length > 0, length, 1.0)

    def settled(new, old):
        return jnp.abs(new - old) <= 0.01 * new

    def unfinished(carry):
        count, _, new, old, _ = carry
        return (count < MOST_ITERATIONS) & ((count < at_least) | ~settled(new, old))

    def iterate(carry):
        count, v, new, _, largest = carry
        v = scaled(length / norm(v, dtype), v)
        w = jax.tree.map(jnp.subtract, move(added(y, v)), k)
        quotient = norm(w, dtype) / length
        v = jax.tree.map(lambda a, b: jnp.where(quotient > 0, a, b), w, v)
        return count + 1, v, quotient, new, jnp.maximum(largest, quotient)

    zero = jnp.zeros((), dtype)
    start = (jnp.zeros((), jnp.int32), direction, previous.astype(dtype), zero, zero)
    count, v, new, old, largest = jax.lax.while_loop(lambda carry: (carry[0] == 0) | unfinished(carry), iterate, start)
    converged = settled(new, old)
    return jnp.where(converged, new, largest), v, count, converged


def to_stages(stages: Any) -> int | None:
    if stages is None:
        return None
    if isinstance(stages, bool) or not isinstance(stages, numbers.Integral):
        raise TypeError(f"stages must be an integer of at least 2, or None to choose it in every step; got {stages!r}.")
    return int(stages)


def to_max_stages(max_stages: Any) -> int:
    if isinstance(max_stages, bool) or not isinstance(max_stages, numbers.Integral):
        raise TypeError(f"max_stages must be an integer of at least 2; got {max_stages!r}.")
    return int(max_stages)


def to_spectral_radius(value: Any) -> Any:
    if value is None or isinstance(value, Tracer):
        return value
    if isinstance(value, str | bool) or not (callable(value) or (np.ndim(value) == 0 and np.isrealobj(value))):
        raise TypeError(
            "spectral_radius must be None (estimated by power iteration), a number that bounds |eigenvalues| of the "
            f"field's Jacobian, or a function (t, y, args) -> number; got {value!r}."
        )
    if not callable(value) and not (value >= 0 and math.isfinite(value)):
        raise ValueError(
            f"spectral_radius bounds |eigenvalues| and must be non-negative and finite; got {value}. For a field with "
            "eigenvalues in [−ρ, 0] give ρ."
        )
    return value if callable(value) or isinstance(value, jax.Array) else float(value)


def to_scan_kind(scan_kind: Any) -> ScanKind:
    if scan_kind not in (None, "lax", "checkpointed", "bounded"):
        raise ValueError(
            f"scan_kind must be 'checkpointed' (reverse mode; also None), 'lax' (forward mode) or 'bounded' (both); "
            f"got {scan_kind!r}."
        )
    return scan_kind


class AbstractStabilized(diffrax.AbstractAdaptiveSolver[StabilizedState]):
    """An explicit second-order method whose interval of stability on the negative real axis grows with the square of
    its stage number.
    """

    stages: eqx.AbstractVar[int | None]
    spectral_radius: eqx.AbstractVar[Any]
    max_stages: eqx.AbstractVar[int]
    scan_kind: eqx.AbstractVar[ScanKind]

    interpolation_cls: ClassVar[Callable[..., diffrax.ThirdOrderHermitePolynomialInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation
    )
    fewest: ClassVar[int] = 2

    __repr__ = one_line

    @property
    def term_structure(self) -> Any:
        return whole_field(type(self).__name__)

    @abc.abstractmethod
    def stability_limit(self, stages: int) -> float:
        """β(s): |R_s(z)| ≤ 1 on [−β, 0]."""

    @abc.abstractmethod
    def choose(self, z: Real[Array, ""]) -> Int[Array, ""]:
        """The fewest stages that are stable up to z = h ρ, a number that `max_stages` can serve."""

    @abc.abstractmethod
    def advance(
        self, terms: Terms, t0: Time, t1: Time, y0: Y, k0: Y, args: Any, control: PyTree, stages: Any
    ) -> tuple[Y, Y | None]:
        """(y1, error estimate or None if it needs the slope at the end), with k0 = h f(t0, y0)."""

    @abc.abstractmethod
    def estimate(self, y0: Y, y1: Y, k0: Y, k1: Y, error: Y | None) -> Y:
        """The error estimate of a step, O(h²), from its ends, the slopes there and what `advance` returned."""

    def order(self, terms: Terms) -> int:
        return 2

    def check_numbers(self) -> None:
        for name in ("stages", "max_stages"):
            value = getattr(self, name)
            if value is not None and value < self.fewest:
                raise ValueError(
                    f"{name} must be at least {self.fewest}: {type(self).__name__} has no second-order method with "
                    f"fewer stages; got {value}."
                )

    def step_evaluations(self) -> int | None:
        """Evaluations per step; None if the stage number is chosen per step. One more at the start of a solve."""
        return self.stages

    def func(self, terms: Terms, t0: Time, y0: Y, args: Any) -> PyTree:
        return terms.vf(t0, y0, args)

    def init(self, terms: Terms, t0: Time, t1: Time, y0: Y, args: Any) -> StabilizedState:
        none = jnp.zeros((), jnp.int32)
        estimated = self.spectral_radius is None and self.stages is None
        return StabilizedState(
            field=terms.vf(t0, y0, args),
            direction=_noise(y0) if estimated else None,
            spectral_radius=jnp.zeros((), real_dtype(y0)),
            stages=none,
            evaluations=none + 1,
            unconverged=none,
        )

    def _radius(self, terms, t0, t1, y0, args, control, k0, state):
        """ρ, new direction, evaluations, whether it converged; ρ is None if nothing is known."""
        none = jnp.zeros((), jnp.int32)
        dtype = real_dtype(y0)
        given = self.spectral_radius
        if given is None and self.stages is not None:
            return None, None, none, True
        if given is not None:
            # Diffrax mirrors time for backward solves; users' functions see their own.
            rho = given(t0 * getattr(terms, "direction", 1), y0, args) if callable(given) else given
            return jax.lax.stop_gradient(jnp.asarray(rho)).astype(dtype), None, none, True
        h = jnp.abs(t1 - t0).astype(dtype)

        def estimate(y, k, control, direction, previous, args):
            return power_iteration(
                lambda at: terms.vf_prod(t0, at, args, control),
                y,
                k,
                direction,
                previous * h / SAFETY,
                jnp.where(previous > 0, 1, FIRST_ITERATIONS),
            )

        # The stage number is no differentiable function of the state: nothing of this enters derivatives.
        fixed = eqx.filter_closure_convert(estimate, y0, k0, control, state.direction, state.spectral_radius, args)
        inputs = (fixed, (y0, k0, control, state.direction, state.spectral_radius, args))
        arrays, rest = eqx.partition(inputs, eqx.is_inexact_array)
        fixed, inputs = eqx.combine(jax.lax.stop_gradient(arrays), rest)
        z, direction, count, converged = jax.lax.stop_gradient(fixed(*inputs))
        return SAFETY * z / h, direction, count, converged

    def step(
        self, terms: Terms, t0: Time, t1: Time, y0: Y, args: Any, solver_state: StabilizedState, made_jump: Any
    ) -> StepResult:
        state = solver_state
        field, fresh = state.field, jnp.zeros((), jnp.int32)
        if made_jump is not False:
            field = jax.lax.cond(made_jump, lambda: terms.vf(t0, y0, args), lambda: field)
            fresh = jnp.asarray(made_jump).astype(jnp.int32)
        control = terms.contr(t0, t1)
        k0 = terms.prod(field, control)
        rho, direction, iterations, converged = self._radius(terms, t0, t1, y0, args, control, k0, state)
        failed = jnp.asarray(False)
        if rho is not None:
            z = rho * jnp.abs(t1 - t0).astype(rho.dtype)
            failed = ~(z <= self.stability_limit(self.max_stages if self.stages is None else self.stages))
            # An unstable step is not taken at all: its overflow would reach the derivatives of the steps before.
            end = jnp.where(failed, t0, t1)
            control = terms.contr(t0, end)
            k0 = terms.prod(field, control)
            stages = self.choose(jnp.where(failed, 0.0, z)) if self.stages is None else self.stages
        else:
            end, stages = t1, self.stages
        y1, error = self.advance(terms, t0, end, y0, k0, args, control, stages)
        field1 = terms.vf(end, y1, args)
        k1 = terms.prod(field1, control)
        error = self.estimate(y0, y1, k0, k1, error)

        def unless_failed(tree, otherwise):
            return jax.tree.map(lambda x: jnp.where(failed, jnp.asarray(otherwise, x.dtype), x), tree)

        y1, error = unless_failed(y1, jnp.nan), unless_failed(error, jnp.inf)
        count = jnp.asarray(stages, jnp.int32)
        new = StabilizedState(
            field=field1,
            direction=direction,
            spectral_radius=state.spectral_radius if rho is None else rho,
            stages=count,
            evaluations=state.evaluations + count + iterations + fresh,
            unconverged=state.unconverged + jnp.logical_not(converged).astype(jnp.int32),
        )
        # pyright does not see that this member is inherited.
        divergence: Any = diffrax.RESULTS.nonlinear_divergence  # pyright: ignore[reportAttributeAccessIssue]
        result = diffrax.RESULTS.where(failed, divergence, diffrax.RESULTS.successful)
        return y1, error, {"y0": y0, "y1": y1, "k0": k0, "k1": k1}, new, result
