"""Solve stiff fields.

python examples/05_stiff_fields.py [--out DIR]

How stiff is a field with diffusion, what does an explicit step stand, and what does it cost to do better?
"""

# %% Attention, feed-forward network and diffusion on 64 tokens.
import argparse
import pathlib

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import pdejax as pj
from pdejax.analysis import mesh_norm, stability

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out

n, dim, depth = 64, 4, 0.5
grid = pj.Grid(n, boundary="neumann")
k1, k2 = jax.random.split(jax.random.key(0))
equation = pj.MasterEquation(
    interaction=pj.Attention(dim=dim, heads=2, leak=True, key=k1),
    reaction=pj.FeedForward(dim=dim, hidden=16, leak=True, key=k2),
    diffusion=pj.Diffusion(grid, 0.05),
)
u0 = jnp.cos(jnp.pi * grid.points)[:, None] * jnp.asarray([1.0, -0.5, 0.3, 0.8])

# %% The largest stable step: predicted from the Jacobian's eigenvalues, and measured
# from the growth of a perturbation. A tenth beyond it, the finest waves grow.
for solver in ("euler", "rk4"):
    d = pj.Discretization(equation, solver, t1=depth, steps=1)
    predicted = stability.predict_dt_max(d, u0).dt_max
    measured = stability.measure_dt_max(d, u0).dt_max
    print(f"{solver}: largest step {predicted:.3e}, measured {measured:.3e}")
    for factor in (0.95, 1.10):
        steps = int(np.ceil(depth / (factor * predicted)))
        end = pj.simulate(d.replace(steps=steps), u0)
        rough = float(jnp.abs(jnp.diff(end.us[-1], n=4, axis=0)).max())
        print(f"  at {factor:.2f} of it: fourth differences up to {rough:.1e}")

# %% Let the library choose.
auto = pj.Discretization(equation, "auto", t1=depth, rtol=1e-6, atol=1e-6)
print(pj.simulate(auto, u0).choice)

# %% Compare what accuracy costs.
fine = pj.Discretization(equation, "etdrk4ho", t1=depth, steps=256)
reference = pj.simulate(fine, u0).us[-1]
figure = Figure(figsize=(6.4, 4.4), layout="constrained")
axes = figure.add_subplot()
for solver, style in (
    ("tsit5", "o-"),
    ("rkc2", "s-"),
    ("ark4", "^-"),
    ("etdrk4", "D-"),
):
    work, errors = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        d = pj.Discretization(
            equation, solver, t1=depth, rtol=tolerance, atol=tolerance
        )
        end = pj.simulate(d, u0)
        work.append(int(end.stats.evaluations))
        errors.append(float(mesh_norm(end.us[-1] - reference) / mesh_norm(reference)))
    print(f"{solver:<7} evaluations {work}, errors {[f'{e:.0e}' for e in errors]}")
    axes.loglog(work, errors, style, label=solver)
axes.set_xlabel("field evaluations")
axes.set_ylabel("relative error")
stiffness = float(equation.damping()) * depth
axes.set_title(f"Adaptive solves, spectral radius × T = {stiffness:.0f}", fontsize=11)
axes.legend(title="solver", frameon=False)
axes.grid(True, color="0.9")
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "05_stiff_fields.png", dpi=150)
