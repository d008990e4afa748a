"""The result of a simulation."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from pdejax._check import known, traced


class Stats(eqx.Module):
    """What a solve cost: accepted `steps`, `rejected` steps, and `evaluations` of the whole field. A splitting evaluates single
    terms: k evaluations of one of k terms count as one. Stabilized solvers count their own, those of refused steps at the mean
    rate. −1 for implicit solvers, where the nonlinear solver decides."""

    steps: Int[Array, "..."]
    rejected: Int[Array, "..."]
    evaluations: Int[Array, "..."]

    def __repr__(self) -> str:
        return f"{_shown(self.steps)} steps, {_shown(self.rejected)} rejected, {_evaluations(self.evaluations)}"


class Trajectory(eqx.Module):
    """A simulated trajectory.

    - `ts (k,)`: depths; `us (k, n, d)`: the field there (or what `reduce` made of it, in its type, stacked over the k depths).
    - `stats`: steps, rejected steps, field evaluations.
    - `diverged`: whether the field became non-finite or exceeded the blow-up limit; then `blowup_time` is the depth at which
      the solve ended (else ∞) and everything saved beyond it is NaN (the smallest integer or False, for types without NaN).
      Gradients of what is NaN are not finite, except where they are multiplied by 0, as by a loss that leaves the lane out.
    - `complete`: whether the solve reached t1. False with `diverged` False means that `max_steps` ran out, or that the
      nonlinear solver of an implicit scheme did not converge. What was not reached is NaN.
    - `choice`: with `solver="auto"`, the solver that was taken and why; else None.

    Under `jax.vmap` every entry gains the batch axis in front.
    """

    ts: Float[Array, "..."]
    us: PyTree[Array]
    stats: Stats
    diverged: Bool[Array, "..."]
    blowup_time: Float[Array, "..."]
    complete: Bool[Array, "..."]
    choice: str | None = eqx.field(static=True, default=None)

    def __repr__(self) -> str:
        what = " and ".join(str(tuple(np.shape(x))) for x in jax.tree.leaves(self.us))
        lines = [f"Trajectory of states {what}, depth first" if np.ndim(self.ts) == 1 else f"Trajectories {what}"]
        if not all(map(known, (self.ts, self.diverged, self.complete, self.blowup_time))):
            traces = traced(self.ts, self.diverged, self.stats.steps)
            return f"{lines[0]} ({'traced' if traces else 'without its numbers'})"
        ts = np.asarray(self.ts)
        lines.append(f"t        {ts.size} depths in [{ts.min():g}, {ts.max():g}]")
        lines.append(f"solve    {self.stats!r}")
        if np.any(self.diverged):
            lines.append(f"diverged at t = {_shown(self.blowup_time)}")
        else:
            lines.append("complete" if np.all(self.complete) else "ended before t1: the steps ran out")
        if self.choice is not None:
            lines.append(f"solver   {self.choice}")
        return "\n".join(lines)

    def _repr_html_(self) -> str | None:
        if traced(self.ts) or np.ndim(self.ts) != 1 or len(jax.tree.leaves(self.us)) != 1:
            return None
        return self.to_xarray()._repr_html_()

    def to_xarray(self):
        """An `xarray.Dataset` with dimensions depth, token and feature (single trajectories with array states)."""
        import xarray as xr

        leaves = jax.tree.leaves(self.us)
        if len(leaves) != 1 or np.ndim(self.ts) != 1:
            raise ValueError(
                "to_xarray: the trajectory must hold one array over one depth axis; convert batched or reduced trajectories "
                "one by one (jax.tree.map(lambda x: x[i], trajectory))."
            )
        us = np.asarray(leaves[0])
        named = {4: ("depth", "layer", "token", "feature"), 3: ("depth", "token", "feature")}
        dims = named.get(us.ndim, ("depth", *(f"axis_{i}" for i in range(1, us.ndim))))
        return xr.Dataset(
            {"u": (dims, us)},
            coords={"depth": ("depth", np.asarray(self.ts), {"long_name": "depth t", "units": "layers"})},
            attrs={
                "steps": int(self.stats.steps),
                "rejected": int(self.stats.rejected),
                "evaluations": int(self.stats.evaluations),
                "diverged": int(self.diverged),
                "blowup_time": float(self.blowup_time),
                "complete": int(self.complete),
            },
        )


def _shown(value: Any) -> str:
    """One number, or the range of several."""
    if not known(value):
        return "traced" if traced(value) else "?"
    numbers = np.asarray(value)
    return f"{numbers.item():g}" if numbers.size == 1 else f"{np.nanmin(numbers):g}–{np.nanmax(numbers):g}"


def _evaluations(count: Any) -> str:
    counted = not known(count) or bool(np.all(np.asarray(count) >= 0))
    return f"{_shown(count)} field evaluations" if counted else "field evaluations not counted"
