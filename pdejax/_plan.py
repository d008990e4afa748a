"""What to save of a solve, decided before anything compiles."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike

from pdejax._check import traced
from pdejax._depth import DepthVarying
from pdejax._discretization import Discretization
from pdejax._integrate import Plan, Save, Split
from pdejax.solvers import linear_part


def make_plan(
    owner: str,
    d: Discretization,
    save: str | ArrayLike | Sequence[float] | None,
    limit: float,
    progress: bool,
    cost: tuple[int, int, int] | None,
) -> tuple[Plan, np.ndarray | None]:
    """The plan and the saved depths if they are known before the solve (else None)."""
    t0, t1, steps, layers = d.t0, d.t1, d.steps, d.layers
    split: Split = "linear" if linear_part(d.solver) is not None else d.split
    unknown = traced(t0, t1)
    if save is None:
        save = "layers" if layers else "end"
    if isinstance(save, str):
        kind: Save
        if save not in ("end", "steps", "layers"):
            raise ValueError(
                f"{owner}: save={save!r} is unknown; choose 'end', 'steps', 'layers' or give an array of depths."
            )
        kind = save  # pyright: ignore[reportAssignmentType]
        if save == "layers" and not isinstance(d.field, DepthVarying):
            raise ValueError(
                f"{owner}: save='layers' needs an equation with layers (a DepthVarying, or pdejax.lift(model)); "
                "give an array of depths instead."
            )
        if save == "layers" and not layers:
            assert isinstance(d.field, DepthVarying)
            edges = d.field.edges()
            inside = edges[(edges >= float(t0)) & (edges <= float(t1))]
            if inside.size == 0:
                raise ValueError(
                    f"{owner}: save='layers', but no layer begins or ends in [t0, t1] = [{float(t0):g}, {float(t1):g}]; the "
                    f"edges are multiples of {d.field.t1 / d.field.size:g}. Give an array of depths instead."
                )
            return make_plan(owner, d, inside, limit, progress, cost)
        if save == "steps" and traced(steps):
            raise TypeError(f"{owner}: save='steps' needs a number of steps that is known, not a traced one.")
        if save == "steps" and layers and steps is None:
            raise ValueError(
                f"{owner}: save='steps' with adaptive steps is not defined across layers of different numbers of steps; "
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
            f"{owner}: saving at given depths needs t0, t1 and the depths as plain numbers, not traced values."
        )
    depths = np.atleast_1d(np.asarray(save, dtype=float))
    start, stop = float(t0), float(t1)
    if depths.ndim != 1 or depths.size == 0:
        raise ValueError(f"{owner}: save must be a non-empty 1-D array of depths, got shape {np.shape(save)}.")
    # Depths that were computed in float32 are as exact as that.
    eps = np.finfo(np.float32 if np.asarray(save).dtype == np.float32 else np.float64).eps
    slack = 1e-9 * (stop - start) + 4 * float(eps) * max(abs(start), abs(stop))
    if not np.all(np.isfinite(depths)) or depths.min() < start - slack or depths.max() > stop + slack:
        raise ValueError(
            f"{owner}: the depths to save must lie in [t0, t1] = [{start}, {stop}], got {depths.tolist()}."
        )
    if np.any(np.diff(depths) < 0):
        raise ValueError(f"{owner}: the depths to save must be in increasing order.")
    depths = np.clip(depths, start, stop)
    inside, gather = _by_segment(depths, np.linspace(start, stop, max(len(layers), 1) + 1))
    slots = where = place = None
    if steps is not None and not traced(steps):
        steps = int(steps)
        slots, where, place = _by_step(
            inside, np.linspace(start, stop, max(len(layers), 1) + 1), steps // max(len(layers), 1)
        )
    return Plan("depths", split, layers, limit, progress, cost, inside, slots, where, place, gather), depths


def _by_segment(depths: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depths sorted into segments `(segments, m)`, padded with the segment's end, and where each one went."""
    segment = np.clip(np.searchsorted(edges, depths, side="left") - 1, 0, len(edges) - 2)
    counts = np.bincount(segment, minlength=len(edges) - 1)
    inside = np.repeat(edges[1:, None], max(int(counts.max()), 1), axis=1)
    column = np.concatenate([np.arange(c) for c in counts])
    inside[segment, column] = depths
    return inside, segment * inside.shape[1] + column


def _by_step(inside: np.ndarray, edges: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each segment and step the columns of `inside` that lie in it `(segments, n, j)`, their place there
    `(segments, m)`, and the step of each `(segments, m)`."""
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
    return slots, where, step
