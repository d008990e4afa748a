"""The result of a simulation."""

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree


class Stats(eqx.Module):
    """What a solve cost: accepted `steps`, `rejected` steps, and `evaluations` of the whole field. A splitting evaluates single
    terms: k evaluations of one of k terms count as one. Stabilized solvers count their own, those of refused steps at the mean
    rate. −1 for implicit solvers, where the nonlinear solver decides."""

    steps: Int[Array, "..."]
    rejected: Int[Array, "..."]
    evaluations: Int[Array, "..."]


class Trajectory(eqx.Module):
    """A simulated trajectory.

    - `ts (k,)`: depths; `us (k, n, d)`: the field there (or what `reduce` made of it, stacked over the k depths).
    - `stats`: steps, rejected steps, field evaluations.
    - `diverged`: whether the field became non-finite or exceeded the blow-up limit; then `blowup_time` is the depth at which
      the solve ended (else NaN) and everything saved beyond it is NaN.
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
