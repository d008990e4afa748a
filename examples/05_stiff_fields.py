"""How stiff is a field with diffusion, what does an explicit step stand, and what does it cost to do better?

python examples/05_stiff_fields.py [--out DIR]
"""

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

n, d, depth = 64, 4, 0.5
grid = pj.Grid(n, boundary="neumann")
k1, k2 = jax.random.split(jax.random.key(0))
equation = pj.MasterEquation(
    interaction=pj.Attention(dim=d, heads=2, leak=True, key=k1),
    reaction=pj.FeedForward(dim=d, hidden=16, leak=True, key=k2),
    diffusion=pj.Diffusion(grid, 0.05),
)
u0 = jnp.cos(jnp.pi * grid.points)[:, None] * jnp.asarray([1.0, -0.5, 0.3, 0.8])

# The largest stable step, from the eigenvalues of the Jacobian and from the growth of a perturbation.
for solver in ("euler", "rk4"):
    predicted = stability.predict_dt_max(equation, u0, solver).dt_max
    measured = stability.measure_dt_max(equation, u0, solver).dt_max
    print(f"{solver:<6} largest stable step: predicted {predicted:.3e}, measured {measured:.3e} layers of depth")
    for factor in (0.95, 1.10):
        end = pj.simulate(
            pj.Discretization(equation, solver, t1=depth, steps=int(np.ceil(depth / (factor * predicted)))), u0
        )
        rough = float(jnp.abs(jnp.diff(end.us[-1], n=4, axis=0)).max())
        print(f"       at {factor:.2f} of it: fourth differences up to {rough:.1e}")

# Let the library choose, and compare.
auto = pj.simulate(pj.Discretization(equation, "auto", t1=depth, rtol=1e-6, atol=1e-6), u0)
print(f"auto   {auto.choice}")
reference = pj.simulate(pj.Discretization(equation, "etdrk4ho", t1=depth, steps=256), u0).us[-1]
figure = Figure(figsize=(6.4, 4.4), layout="constrained")
axes = figure.add_subplot()
for solver, style in (("tsit5", "o-"), ("rkc2", "s-"), ("ark4", "^-"), ("etdrk4", "D-")):
    work, errors = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        end = pj.simulate(pj.Discretization(equation, solver, t1=depth, rtol=tolerance, atol=tolerance), u0)
        work.append(int(end.stats.evaluations))
        errors.append(float(mesh_norm(end.us[-1] - reference) / mesh_norm(reference)))
    print(f"{solver:<6} evaluations {work}, errors {[f'{e:.0e}' for e in errors]} at tolerances 1e-3, 1e-5, 1e-7")
    axes.loglog(work, errors, style, label=solver)
axes.set_xlabel("field evaluations")
axes.set_ylabel("relative error")
axes.set_title(f"Adaptive solves, spectral radius × T = {float(equation.damping()) * depth:.0f}", fontsize=11)
axes.legend(title="solver", frameon=False)
axes.grid(True, color="0.9")
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "05_stiff_fields.png", dpi=150)
print(f"saved {out / '05_stiff_fields.png'}")
