"""`Discretization`: a field, a solver and a step, checked when it is made."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, SupportsIndex

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from pdejax import _check
from pdejax._arguments import checked
from pdejax._check import traced
from pdejax._choose import Choice, choose_solver
from pdejax._depth import DepthVarying, LayerStack
from pdejax._equation import AbstractEquation, FunctionField, as_field
from pdejax._linear import one_depth, split_linear
from pdejax.solvers import SOLVERS, Retract, get_solver, linear_part
from pdejax.solvers._retract import retractions
from pdejax.solvers._terms import parts_of, takes_fields
from pdejax.terms import FieldArgs

AdjointName = Literal["recursive", "direct", "forward", "backsolve"]
Groups = tuple[tuple[str, ...], ...]
BACKSOLVE_LIMIT = 5.0  # e-foldings of damping after which integrating backwards loses the gradient (measured)
MOST_STEPS = 2**31 - 1
_OWNER = "Discretization"
_ADJOINTS = {
    "recursive": diffrax.RecursiveCheckpointAdjoint,
    "direct": diffrax.DirectAdjoint,
    "forward": diffrax.ForwardMode,
    "backsolve": diffrax.BacksolveAdjoint,
}


class _Known(eqx.Module):
    """A plain number, static, so that it can be looked at inside every transformation."""

    value: float | int = eqx.field(static=True)


class Discretization(eqx.Module):
    r"""Hold what a Transformer is: a field $\partial_t u = f(t, u)$, a solver and a step, over depths $t \in [t_0, t_1]$.

    Give **`steps`**, an integer number of equal steps (h = (t1 − t0)/steps), or **`rtol` and `atol`** for adaptive steps.

    - `field`: a `MasterEquation`, `DepthVarying` or `MultilayerEquation`, or any JAX function `f(t, u, args)` or `f(t, u)` that
      gives `∂u/∂t` of the shape of `u`; `args` is a `FieldArgs` with the mask. Piecewise-constant weights are integrated layer by
      layer, `steps` shared equally among the layers; smooth ones in one go.
    - `solver`: a name from `pdejax.solvers.SOLVERS` or any diffrax solver; `"auto"` picks one from the stiffness when it is
      used, and says why in `trajectory.choice`. A splitting (`LieTrotter`, `Strang`) gets one term per sub-solver; `split`
      regroups them, e.g. `split=(("interaction",), ("reaction", "diffusion"))`. Exponential and implicit-explicit solvers get
      the linear part (diffusion, damping, leaks) apart from the rest by themselves.
    - `t0`, `t1`: depths, t0 < t1.
    - `steps` may be a traced integer, so that a sweep inside your own `jit` or `vmap` compiles once. Derivatives are
      forward-mode then: reverse mode needs a Python integer. With piecewise-constant weights a traced number that the layers
      do not share equally gives NaN, for it cannot be refused.
    - `adjoint`: how gradients are taken. Default: for fixed steps one rule that serves forward- and reverse-mode, a scan with
      one checkpoint per step; for adaptive steps diffrax's recursive checkpointing (reverse-mode). Override by `"forward"`
      (forward-mode, any number of inputs), `"direct"` (both, more memory), `"recursive"`, `"backsolve"` (refused where the
      field damps: it would integrate the damping backwards), or a diffrax adjoint.
    - `max_steps`: ceiling for adaptive steps (default 65,536; 4,096 when every step is saved).

    Immutable; `replace` and `refine` make others. Passes through `jit`, `vmap` and `grad` as an argument; plain numbers are
    static there, arrays are leaves.

    Raises `ValueError`/`TypeError`, before anything compiles, for what does not fit together."""

    field: Any  # an AbstractEquation
    solver: Any  # a diffrax solver; None for "auto" until it is settled
    adjoint: diffrax.AbstractAdjoint | None
    split: Groups | None = eqx.field(static=True)
    max_steps: int | None = eqx.field(static=True)
    layers: tuple[int, ...] = eqx.field(static=True)
    name: str | None = eqx.field(static=True)
    _numbers: dict[str, Any]

    @checked
    def __init__(
        self,
        field: AbstractEquation | Callable[..., Any],
        solver: str | diffrax.AbstractSolver = "tsit5",
        *,
        t1: ArrayLike,
        steps: Any = None,
        rtol: ArrayLike | None = None,
        atol: ArrayLike | None = None,
        t0: ArrayLike = 0.0,
        split: Sequence[Sequence[str]] | None = None,
        adjoint: AdjointName | diffrax.AbstractAdjoint | None = None,
        max_steps: SupportsIndex | None = None,
    ):
        self.field = as_field(_OWNER, field)
        steps = _check_steps(steps, rtol, atol)
        _check_depths(t0, t1)
        if max_steps is not None and steps is not None:
            raise ValueError(
                f"{_OWNER}: max_steps={max_steps} limits adaptive steps, but steps={steps} says how many there are; leave "
                "one out."
            )
        self.max_steps = None if max_steps is None else _check.integer(_OWNER, "max_steps", max_steps)
        self.layers = crossed_layers(self.field, t0, t1, steps)
        self.name = solver if isinstance(solver, str) else None
        given = {"t0": t0, "t1": t1, "steps": steps, "rtol": rtol, "atol": atol}
        self._numbers = {name: _held(value) for name, value in given.items() if value is not None}
        self.solver, self.split = None, None
        if self.name == "auto":
            if split is not None:
                raise ValueError(f"{_OWNER}: split={split} was given, but solver='auto' chooses it; leave split out.")
        else:
            self.solver = _solver(solver, len(split) if split else len(self.field.names()))
            self.split = _check_solver(self.field, self.solver, split, adaptive=steps is None)
        self.adjoint = _check_adjoint(adjoint, self)

    @property
    def t0(self) -> Any:
        """First depth."""
        return self._number("t0")

    @property
    def t1(self) -> Any:
        """Last depth."""
        return self._number("t1")

    @property
    def steps(self) -> Any:
        """Number of steps, or None where they are adaptive."""
        return self._number("steps")

    @property
    def rtol(self) -> Any:
        """Relative tolerance of adaptive steps, or None."""
        return self._number("rtol")

    @property
    def atol(self) -> Any:
        """Absolute tolerance of adaptive steps, or None."""
        return self._number("atol")

    @property
    def adaptive(self) -> bool:
        """Whether steps are chosen by tolerances."""
        return "steps" not in self._numbers

    @property
    def step(self) -> Any:
        """Step size h = (t1 − t0)/steps, or None where steps are adaptive."""
        return None if self.adaptive else (self.t1 - self.t0) / self.steps

    def replace(self, **changes: Any) -> "Discretization":
        """Return another discretization with some arguments of the constructor changed.

        Another solver drops `split` and `adjoint`, `steps` drop the tolerances and `max_steps`, and tolerances drop the steps,
        unless they are given too. Raises as the constructor, `TypeError` for an unknown argument.
        """
        kept = {"field": self.field, "solver": self.solver if self.name is None else self.name}
        kept |= {"split": self.split, "adjoint": self.adjoint, "max_steps": self.max_steps}
        kept |= {name: self._number(name) for name in ("t0", "t1", "steps", "rtol", "atol")}
        unknown = sorted(set(changes) - set(kept))
        if unknown:
            raise TypeError(f"Discretization.replace: {unknown} are no arguments; there are {', '.join(kept)}.")
        dropped: tuple[str, ...] = ()
        if "solver" in changes:
            dropped += ("split", "adjoint")
        if changes.get("steps") is not None:
            dropped += ("rtol", "atol", "max_steps")
        if changes.get("rtol") is not None or changes.get("atol") is not None:
            dropped += ("steps",)
        return Discretization(**{name: value for name, value in kept.items() if name not in dropped} | changes)

    def refine(self, k: Any) -> "Discretization":
        """Return the same field and solver with `k` times as many steps; `k` may be traced.

        Raises `ValueError` for adaptive steps: there, `replace(rtol=…, atol=…)` asks for more accuracy."""
        if self.adaptive:
            raise ValueError(
                "Discretization.refine: steps are adaptive; use replace(rtol=…, atol=…) for more accuracy, or replace(steps=…)."
            )
        k = k if traced(k) or isinstance(k, Array) else _check.integer("Discretization.refine", "k", k)
        return self.replace(steps=self.steps * k)

    def given(self, start: ArrayLike) -> "Discretization":
        """Return the discretization whose field adds the state `start (n, d)` before every pass (`injection="add"`), any other as
        it is. Of a model: `model.hidden_states(tokens, mask)[prelude]`, which `simulate` and a `Network` find by themselves."""
        if not self.field.needs_start:
            return self
        value = _check.real_array("Discretization.given", "start", start, "(n, d)", 2)
        _check.finite("Discretization.given", "start", value)
        return eqx.tree_at(lambda d: d.field, self, self.field.given(value))

    def check_state(self, owner: str, u0: Any, mask: Any = None) -> tuple[Array, FieldArgs]:
        """Return the initial state as an array and the field's arguments; errors name `owner`.

        Raises `TypeError`/`ValueError` for a state that is not float32 or float64, empty, not finite, or of a shape that a term
        does not take, and for a mask that is not one boolean per token with a real one among them.
        """
        # Looked at in NumPy: under an outer jit even a concrete field gives traced results.
        known = None if traced(u0) else np.asarray(u0)
        u = jnp.asarray(u0)
        if u.dtype not in (jnp.float32, jnp.float64):
            raise TypeError(
                f"{owner}: the field has dtype {u.dtype}; integrate in float32 or float64 (u0.astype('float32')), since "
                "round-off accumulates over steps."
            )
        if u.size == 0:
            raise ValueError(
                f"{owner}: the field of shape {u.shape} is empty; it needs at least one token and one feature."
            )
        try:
            self.field.check(u.shape)
        except ValueError as error:
            raise ValueError(f"{owner}: {error}") from None
        if known is not None:
            _check.finite(owner, "the initial field", known)
        if mask is not None and u.ndim < 2:
            raise ValueError(f"{owner}: mask needs a state (n, d) with an axis of tokens, got shape {u.shape}.")
        found = None if mask is None else _check.token_mask(owner, mask, u.shape[-2])
        return u, FieldArgs(found)

    def settled(self, owner: str, u0: Array, args: FieldArgs) -> tuple["Discretization", Choice | None]:
        """Return the discretization for this state: with `"auto"` resolved, and the linear part it needs looked at.

        Raises `ValueError`, naming `owner`, where the field's linear part has not the structure that the solver needs.
        """
        d, choice = self, None
        if self.name == "auto":
            steps = None if traced(self.steps) else self.steps
            tokens = u0.shape[-2] if u0.ndim > 1 else 1
            choice = choose_solver(self.field, args, n=tokens, t0=self.t0, t1=self.t1, steps=steps)
            d = self.replace(solver=choice.name, adjoint=self.adjoint)
        wanted = linear_part(d.solver)
        if wanted is not None:
            _check_linear(owner, d, wanted, u0.shape, args)
            d = eqx.tree_at(lambda x: x.field, d, d.field.looked_at())
        return d, choice

    def _number(self, name: str) -> Any:
        held = self._numbers.get(name)
        return held.value if isinstance(held, _Known) else held

    def __repr__(self) -> str:
        layers = len(self.layers)
        what = f"{layers} layers: {self.field.describe()}" if layers else self.field.describe()
        if self.adaptive:
            how = f"adaptive steps (rtol {_shown(self.rtol)}, atol {_shown(self.atol)})"
        else:
            how = f"{_shown(self.steps)} steps"
        solver = "solver chosen from the stiffness" if self.solver is None else describe_solver(self.solver)
        return f"{what} | {solver} | {how} over t in [{_shown(self.t0)}, {_shown(self.t1)}]"


def describe_solver(solver: Any) -> str:
    """A solver's name in words, with its sub-solvers: `Lie–Trotter (Euler, Euler)`."""
    kind = type(solver).__name__
    if isinstance(solver, Retract):
        then = solver.retraction
        then = getattr(then, "value", then)
        return f"{describe_solver(solver.solver)} then {type(then).__name__}"
    inner = getattr(solver, "solvers", None)
    if inner is None and isinstance(getattr(solver, "solver", None), diffrax.AbstractSolver):
        inner = (solver.solver,)
    name = {"LieTrotter": "Lie–Trotter"}.get(kind, kind)
    return f"{name} ({', '.join(map(describe_solver, inner))})" if inner else name


def crossed_layers(field: AbstractEquation, t0: Any, t1: Any, steps: Any) -> tuple[int, ...]:
    """The layers that piecewise-constant weights have between t0 and t1, or () where weights are smooth in depth."""
    if not (isinstance(field, DepthVarying) and field.kind == "constant"):
        return ()
    if traced(t0, t1):
        raise TypeError(
            f"{_OWNER}: t0 and t1 must be plain numbers for piecewise-constant weights, which are taken layer by layer."
        )
    ends = []
    for name, value in (("t0", t0), ("t1", t1)):
        position = float(value) * field.size / field.t1
        if abs(position - round(position)) > 1e-6 or not 0 <= round(position) <= field.size:
            raise ValueError(
                f"{_OWNER}: {name}={value} is not a layer boundary of this equation of {field.size} layers over "
                f"[0, {field.t1}]; use a multiple of {field.t1 / field.size:g} in that range."
            )
        ends.append(round(position))
    layers = tuple(range(*ends))
    if not layers:
        raise ValueError(
            f"{_OWNER}: t0={t0} and t1={t1} are the same layer boundary to rounding; take at least one layer, "
            f"{field.t1 / field.size:g}."
        )
    if steps is not None and not traced(steps) and int(steps) % len(layers):
        lower = max(int(steps) // len(layers), 1) * len(layers)
        raise ValueError(
            f"{_OWNER}: steps={steps} cannot be shared equally by the {len(layers)} layers from t0 to t1, and a step across two "
            f"layers would fall to order 1; use a multiple, such as {lower} or {lower + len(layers)}."
        )
    return layers


def _held(value: Any) -> Any:
    """Plain numbers as static ones, arrays and traced values as leaves."""
    if isinstance(value, Array):
        return value
    return _Known(value.item() if isinstance(value, np.ndarray | np.generic) else value)


def _shown(value: Any) -> str:
    if traced(value):
        return "traced"
    return f"{value:g}" if isinstance(value, int | float) else f"{np.asarray(value).item():g}"


def _check_steps(steps: Any, rtol: Any, atol: Any) -> Any:
    """Exactly one of a number of steps or tolerances; the number of steps as an int, an integer array or a traced integer."""
    if steps is None and rtol is None and atol is None:
        raise ValueError(
            f"{_OWNER}: give either steps (a fixed number of equal steps) or rtol and atol (adaptive); neither was given."
        )
    if steps is not None and not (rtol is None and atol is None):
        raise ValueError(
            f"{_OWNER}: steps={steps} fixes the step, rtol={rtol}, atol={atol} ask for adaptive steps; give one or the other."
        )
    if steps is not None:
        return _check_number_of_steps(steps)
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is None:
            raise ValueError(f"{_OWNER}: adaptive steps need both tolerances, but {name} is missing; try {name}=1e-6.")
        if not traced(value):
            _check.number(_OWNER, name, value, least=0)
    if not traced(rtol, atol) and rtol == 0 and atol == 0:
        raise ValueError(f"{_OWNER}: rtol and atol are both 0, which no step can meet; make one of them positive.")
    return None


def _check_number_of_steps(steps: Any) -> Any:
    if isinstance(steps, Array):
        if steps.ndim or not jnp.issubdtype(steps.dtype, jnp.integer):
            raise TypeError(f"{_OWNER}: steps has shape {steps.shape} and type {steps.dtype}; it must be one integer.")
        if not traced(steps):
            _check.integer(_OWNER, "steps", np.asarray(steps).item(), 1, MOST_STEPS)
        return steps
    number = _check.integer(_OWNER, "steps", steps, advice="for a step size h pass steps=round((t1 - t0) / h)")
    return _check.integer(_OWNER, "steps", number, 1, MOST_STEPS, advice="steps are counted in int32")


def _check_depths(t0: Any, t1: Any) -> None:
    for name, value in (("t0", t0), ("t1", t1)):
        if not traced(value):
            _check.number(_OWNER, name, value, advice="it is a depth")
    if not traced(t0, t1) and not float(t1) > float(t0):
        hint = "t1 must be positive" if float(t0) == 0 else f"t1 must be greater than t0={t0}"
        raise ValueError(f"{_OWNER}: t1={t1}: {hint}; depth runs forwards.")


def _solver(solver: Any, terms: int) -> diffrax.AbstractSolver:
    try:
        return get_solver(solver, terms=terms)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{_OWNER}: {error}") from None


def _check_solver(
    field: AbstractEquation, solver: diffrax.AbstractSolver, split: Any, *, adaptive: bool
) -> Groups | None:
    """The groups of term names of a splitting, or None."""
    name = type(solver).__name__
    if not takes_fields(solver):
        raise ValueError(
            f"{_OWNER}: {name} is no solver of ∂u/∂t = f(t, u): it wants noise, momenta or a state in two halves. Take one of "
            "pdejax.solvers.SOLVERS, or another solver of diffrax for ordinary differential equations."
        )
    parts = parts_of(solver)
    groups = None
    if linear_part(solver) is None:
        groups = _check_split(field, split, parts, name)
    else:
        if split is not None:
            raise ValueError(
                f"{_OWNER}: split={split} was given, but {name} splits the field itself, into its linear part and the rest; "
                "leave split out."
            )
        if parts not in (None, 2):
            raise ValueError(
                f"{_OWNER}: {name} has {parts} sub-solvers, but a LinearFlow goes with exactly one other, for the rest of the "
                "field: Strang((Midpoint(), LinearFlow()))."
            )
        if isinstance(field, DepthVarying) and field.kind == "constant":
            field = field.layer(0)
        try:
            one_depth(field)
        except ValueError as error:
            raise ValueError(f"{_OWNER}: {name} needs the linear part of the field, but {error}") from None
    _check_stacks(field, solver, name)
    if adaptive and not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        names = ", ".join(row.name for row in SOLVERS.values() if row.adaptive)
        raise ValueError(
            f"{_OWNER}: {name} has no error estimate, so it cannot choose steps by rtol and atol. Give steps=…, use an adaptive "
            f"solver ({names}), or step doubling: diffrax.HalfSolver({name}(...))."
        )
    return groups


def _check_stacks(field: AbstractEquation, solver: Any, name: str) -> None:
    """Raise unless what the solver holds per layer is of as many layers as the field has."""
    layers = field.size if isinstance(field, DepthVarying) and field.kind == "constant" else 1
    for part in jax.tree.leaves(solver, is_leaf=lambda node: isinstance(node, LayerStack)):
        if not isinstance(part, LayerStack):
            continue
        sizes = {leaf.shape[0] for leaf in jax.tree.leaves(eqx.filter(part, eqx.is_array))}
        if sizes - {layers}:
            raise ValueError(
                f"{_OWNER}: {name} was made for a model of {max(sizes)} layers, but the field has {layers}; use the solver of "
                "the same model, pdejax.lift(model).solver."
            )


def _check_split(field: AbstractEquation, split: Any, parts: int | None, solver: str) -> Groups | None:
    """One group of term names per part of a splitting solver, or None for a solver that takes the whole field."""
    if parts is None:
        if split is not None:
            raise ValueError(
                f"{_OWNER}: split={split} was given, but {solver} integrates the whole field at once; leave split out or use "
                "LieTrotter or Strang."
            )
        return None
    if split is not None and any(isinstance(group, str) for group in split):
        raise TypeError(
            f"{_OWNER}: split={split!r} must be groups of term names, such as "
            '(("interaction",), ("reaction", "diffusion")).'
        )
    if isinstance(field, FunctionField):
        raise ValueError(
            f"{_OWNER}: {solver} is a splitting, and a plain function has no terms to split; give a MasterEquation, or use a "
            "solver that takes the whole field."
        )
    groups = tuple((name,) for name in field.names()) if split is None else tuple(tuple(group) for group in split)
    try:
        field.multiterm(groups)
    except ValueError as error:
        raise ValueError(f"{_OWNER}: {error}") from None
    if len(groups) != parts:
        raise ValueError(
            f"{_OWNER}: {solver} has {parts} sub-solvers, but the equation is split into {len(groups)} parts "
            f"{groups}. Give {len(groups)} sub-solvers, or split=(('interaction',), ('reaction', 'diffusion')) and the like."
        )
    return groups


def _check_linear(owner: str, d: Discretization, wanted: type, shape: tuple[int, ...], args: FieldArgs) -> None:
    """Raise unless the field's linear part, on states of this shape, has the structure that the solver needs."""
    name = type(d.solver).__name__
    field = d.field.layer(0) if d.layers and isinstance(d.field, DepthVarying) else d.field
    try:
        operator, _ = split_linear(field, shape[0], args)
        operator.check(shape)
    except ValueError as error:
        raise ValueError(f"{owner}: {name} needs the linear part of the field, but {error}") from None
    if not isinstance(operator, wanted):
        raise ValueError(
            f"{owner}: {name} takes the diffusion exactly, and a padding mask makes it variable; use solver='ark4' (solves it "
            "implicitly) or 'rkc2' (explicit)."
        )


def _check_adjoint(adjoint: Any, d: Discretization) -> diffrax.AbstractAdjoint | None:
    if isinstance(adjoint, str):
        adjoint = _ADJOINTS[_check.choice(_OWNER, "adjoint", adjoint, _ADJOINTS)]()
    if adjoint is not None and not isinstance(adjoint, diffrax.AbstractAdjoint):
        raise TypeError(
            f"{_OWNER}: adjoint is a {type(adjoint).__name__}; give one of {tuple(_ADJOINTS)} or a diffrax adjoint."
        )
    if isinstance(adjoint, diffrax.BacksolveAdjoint):
        _check_backsolve(d)
    return adjoint


def _check_backsolve(d: Discretization) -> None:
    begin, end = f"{_OWNER}: the backsolve adjoint", "leave adjoint out."
    if d.split is not None or linear_part(d.solver) is not None:
        raise ValueError(f"{begin} cannot differentiate a splitting ({type(d.solver).__name__}); {end}")
    if d.layers:
        raise ValueError(f"{begin} cannot cross layers of piecewise-constant weights; {end}")
    if retractions(d.solver):
        raise ValueError(f"{begin} integrates the field backwards and would miss the retraction of the solver; {end}")
    # Inside jax.grad this uncovers the value; inside jax.jit there is none to see.
    damping, t0, t1 = (jax.lax.stop_gradient(x) for x in (d.field.damping(), d.t0, d.t1))
    if traced(damping, t0, t1):
        if dissipative := {"diffusion", "stabilization"} & set(d.field.names()):
            raise ValueError(
                f"{begin} loses the gradient of a field that damps, and inside jax.jit the size of its "
                f"{' and '.join(sorted(dissipative))} cannot be seen; {end}"
            )
        return
    folds = float(damping) * (float(t1) - float(t0))
    if not math.isfinite(folds) or folds > BACKSOLVE_LIMIT:
        raise ValueError(
            f"{begin} integrates the field's damping backwards ({folds:.3g} e-foldings over this depth, at most "
            f"{BACKSOLVE_LIMIT:g} allowed), which loses the gradient; {end}"
        )
