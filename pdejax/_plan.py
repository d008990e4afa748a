"""Turning `simulate`'s arguments into a plan, with clear errors before anything compiles."""

import math
import operator
from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike

from pdejax._check import traced
from pdejax._depth import DepthVarying
from pdejax._equation import AbstractEquation
from pdejax._integrate import Plan, Save, Split


def check_steps(steps, rtol, atol) -> int | None:
    """Exactly one of a number of steps or tolerances; the number of steps as an int."""
    if steps is None and rtol is None and atol is None:
        raise ValueError(
            "simulate: give either steps (a fixed number of equal steps) or rtol and atol (adaptive); neither was given."
        )
    if steps is not None and not (rtol is None and atol is None):
        raise ValueError(
            f"simulate: steps={steps} fixes the step, rtol={rtol}, atol={atol} ask for adaptive steps; give one or the other."
        )
    if steps is None:
        for name, value in (("rtol", rtol), ("atol", atol)):
            if value is None:
                raise ValueError(
                    f"simulate: adaptive steps need both tolerances, but {name} is missing; try {name}=1e-6."
                )
            if not traced(value) and not (_number(name, value) >= 0 and math.isfinite(value)):
                raise ValueError(f"simulate: {name}={value} must be finite and not negative.")
        if not traced(rtol, atol) and rtol == 0 and atol == 0:
            raise ValueError("simulate: rtol and atol are both 0, which no step can meet; make one of them positive.")
        return None
    if traced(steps):
        raise TypeError(
            "simulate: steps is traced; it must be a Python integer (the step size itself is traced for you)."
        )
    try:
        number = operator.index(steps)
    except TypeError:
        raise TypeError(
            f"simulate: steps={steps!r} is a {type(steps).__name__}; it must be an integer. "
            "For a step size h pass steps=round((t1 - t0) / h)."
        ) from None
    if isinstance(steps, bool) or number < 1:
        raise ValueError(f"simulate: steps={steps} must be an integer of at least 1.")
    return number


def check_resolvable(rtol, atol, u0) -> None:
    """Refuse tolerances that lie below the rounding of the field: no step, however short, would meet them."""
    if rtol is None or traced(rtol, atol, u0):
        return
    eps = float(np.finfo(u0.dtype).eps)
    size = float(np.max(np.abs(np.asarray(u0))))
    if float(rtol) < eps and float(atol) < eps * size:
        raise ValueError(
            f"simulate: rtol={rtol} and atol={atol} lie below the rounding of a {u0.dtype} field of size {size:.3g}; use "
            f"rtol ≥ {10 * eps:.1g}" + (", or a float64 field." if u0.dtype == np.float32 else ".")
        )


def check_max_steps(max_steps, steps: int | None) -> None:
    if max_steps is None:
        return
    if steps is not None:
        raise ValueError(
            f"simulate: max_steps={max_steps} limits adaptive steps, but steps={steps} says how many there are; leave one out."
        )
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"simulate: max_steps={max_steps!r} must be an integer of at least 1.")


def check_depths(t0, t1) -> None:
    for name, value in (("t0", t0), ("t1", t1)):
        if not traced(value) and not math.isfinite(_number(name, value)):
            raise ValueError(f"simulate: {name}={value} must be one finite depth.")
    if not traced(t0, t1) and not float(t1) > float(t0):
        hint = "t1 must be positive" if float(t0) == 0 else f"t1 must be greater than t0={t0}"
        raise ValueError(f"simulate: t1={t1}: {hint}; depth runs forwards.")


def _number(name: str, value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"simulate: {name}={value!r} must be a single number.") from None


def crossed_layers(equation: AbstractEquation, t0, t1, steps: int | None) -> tuple[int, ...]:
    """The layers a piecewise-constant equation crosses, or () where the weights are smooth in depth."""
    if not (isinstance(equation, DepthVarying) and equation.kind == "constant"):
        return ()
    if traced(t0, t1):
        raise TypeError(
            "simulate: t0 and t1 must be plain numbers for piecewise-constant weights, which are taken layer by layer."
        )
    ends = []
    for name, value in (("t0", t0), ("t1", t1)):
        position = float(value) * equation.size / equation.t1
        if abs(position - round(position)) > 1e-6 or not 0 <= round(position) <= equation.size:
            raise ValueError(
                f"simulate: {name}={value} is not a layer boundary of this equation of {equation.size} layers over "
                f"[0, {equation.t1}]; use a multiple of {equation.t1 / equation.size:g} in that range."
            )
        ends.append(round(position))
    layers = tuple(range(*ends))
    if steps is not None and steps % len(layers):
        lower = max(steps // len(layers), 1) * len(layers)
        raise ValueError(
            f"simulate: steps={steps} cannot be shared equally by the {len(layers)} layers from t0 to t1, and a step across two "
            f"layers would fall to order 1; use a multiple, such as {lower} or {lower + len(layers)}."
        )
    return layers


def make_plan(
    equation: AbstractEquation,
    t0,
    t1,
    steps: int | None,
    save: str | ArrayLike | Sequence[float] | None,
    split: Split,
    limit: float,
    progress: bool,
    cost: tuple[int, int, int] | None,
) -> tuple[Plan, np.ndarray | None]:
    """The plan and the saved depths if they are known before the solve (else None)."""
    layers = crossed_layers(equation, t0, t1, steps)
    unknown = traced(t0, t1)
    if save is None:
        save = "layers" if layers else "end"
    if isinstance(save, str):
        kind: Save
        if save not in ("end", "steps", "layers"):
            raise ValueError(
                f"simulate: save={save!r} is unknown; choose 'end', 'steps', 'layers' or give an array of depths."
            )
        kind = save  # pyright: ignore[reportAssignmentType]
        if save == "layers" and not isinstance(equation, DepthVarying):
            raise ValueError(
                "simulate: save='layers' needs an equation with layers (a DepthVarying, or pdejax.lift(model)); "
                "give an array of depths instead."
            )
        if save == "layers" and not layers:
            assert isinstance(equation, DepthVarying)
            edges = equation.edges()
            return make_plan(
                equation,
                t0,
                t1,
                steps,
                edges[(edges >= float(t0)) & (edges <= float(t1))],
                split,
                limit,
                progress,
                cost,
            )
        if save == "steps" and layers and steps is None:
            raise ValueError(
                "simulate: save='steps' with adaptive steps is not defined across layers of different numbers of steps; "
                "give save='layers' or an array of depths."
            )
        plan = Plan(kind, split, layers, limit, progress, cost)
        if unknown:
            return plan, None
        if kind == "end":
            return plan, np.asarray([float(t1)])
        if kind == "layers":
            return plan, np.linspace(float(t0), float(t1), len(layers) + 1)
        return plan, None
    if unknown or traced(save):
        raise TypeError(
            "simulate: saving at given depths needs t0, t1 and the depths as plain numbers, not traced values."
        )
    depths = np.atleast_1d(np.asarray(save, dtype=float))
    start, stop = float(t0), float(t1)
    if depths.ndim != 1 or depths.size == 0:
        raise ValueError(f"simulate: save must be a non-empty 1-D array of depths, got shape {np.shape(save)}.")
    slack = 1e-9 * (stop - start)
    if not np.all(np.isfinite(depths)) or depths.min() < start - slack or depths.max() > stop + slack:
        raise ValueError(
            f"simulate: the depths to save must lie in [t0, t1] = [{start}, {stop}], got {depths.tolist()}."
        )
    if np.any(np.diff(depths) < 0):
        raise ValueError("simulate: the depths to save must be in increasing order.")
    depths = np.clip(depths, start, stop)
    inside, gather = _by_segment(depths, np.linspace(start, stop, max(len(layers), 1) + 1))
    slots = where = None
    if steps is not None:
        slots, where = _by_step(inside, np.linspace(start, stop, max(len(layers), 1) + 1), steps // max(len(layers), 1))
    return Plan("depths", split, layers, limit, progress, cost, inside, slots, where, gather), depths


def _by_segment(depths: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depths sorted into segments `(segments, m)`, padded with the segment's end, and where each one went."""
    segment = np.clip(np.searchsorted(edges, depths, side="left") - 1, 0, len(edges) - 2)
    counts = np.bincount(segment, minlength=len(edges) - 1)
    inside = np.repeat(edges[1:, None], max(int(counts.max()), 1), axis=1)
    column = np.concatenate([np.arange(c) for c in counts])
    inside[segment, column] = depths
    return inside, segment * inside.shape[1] + column


def _by_step(inside: np.ndarray, edges: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """For each segment and step the columns of `inside` that lie in it `(segments, n, j)`, and their place `(segments, m)`."""
    width = (edges[1:] - edges[:-1])[:, None] / n
    step = np.clip(np.ceil((inside - edges[:-1, None]) / width - 1e-9).astype(int) - 1, 0, n - 1)
    per_step = max(int(np.bincount(row, minlength=n).max()) for row in step)
    slots = np.zeros((len(step), n, per_step), int)
    where = np.zeros(inside.shape, int)
    for s, row in enumerate(step):
        filled = np.zeros(n, int)
        for column, k in enumerate(row):
            slots[s, k, filled[k]] = column
            where[s, column] = k * per_step + filled[k]
            filled[k] += 1
    return slots, where


def check_split(
    equation: AbstractEquation, split: Sequence[Sequence[str]] | None, parts: int | None, solver: str
) -> Split:
    """One group of term names per part of a splitting solver, or None for a solver that takes the whole field."""
    if parts is None:
        if split is not None:
            raise ValueError(
                f"simulate: split={split} was given, but {solver} integrates the whole field at once; leave split out or use "
                "LieTrotter or Strang."
            )
        return None
    if split is not None and any(isinstance(group, str) for group in split):
        raise TypeError(
            f"simulate: split={split!r} must be groups of term names, such as "
            '(("interaction",), ("reaction", "diffusion")).'
        )
    groups = tuple((name,) for name in equation.names()) if split is None else tuple(tuple(group) for group in split)
    equation.multiterm(groups)
    if len(groups) != parts:
        raise ValueError(
            f"simulate: {solver} has {parts} sub-solvers, but the equation is split into {len(groups)} parts "
            f"{groups}. Give {len(groups)} sub-solvers, or split=(('interaction',), ('reaction', 'diffusion')) and the like."
        )
    return groups
