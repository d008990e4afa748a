"""Build an equation term by term.

python examples/02_term_by_term.py [--out DIR]

Watch what each term does to the energy of the field, and where explicit Euler breaks.
"""

# %% Four terms: attention, feed-forward network, diffusion, stabilization.
import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import pdejax as pj

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out

n, dim = 64, 32
grid = pj.Grid(n, boundary="neumann")
k1, k2, k3 = jax.random.split(jax.random.key(0), 3)
equation = pj.MasterEquation(
    interaction=pj.Attention(dim=dim, heads=4, leak=True, key=k1),
    reaction=pj.FeedForward(
        dim=dim, hidden=4 * dim, activation="gelu", leak=True, key=k2
    ),
    diffusion=pj.Diffusion(grid, 2e-3),
    stabilization=pj.SpatialNorm(gamma=0.5),
)
print(equation)


# %% The energy's rate splits exactly into the terms' shares, v2 (13)-(14).
# `reduce` saves them instead of the field.
def watch(t, u, args):
    shares = equation.contributions(t, u, args)
    rates = {name: jnp.mean(jnp.sum(u * du, axis=-1)) for name, du in shares.items()}
    return {"energy": 0.5 * jnp.mean(jnp.sum(u**2, axis=-1)), **rates}


u0 = jax.random.normal(k3, (n, dim))
depths = np.linspace(0, 4, 81)
d = pj.Discretization(equation, "tsit5", t1=4.0, rtol=1e-6, atol=1e-6)
trajectory = pj.simulate(d, u0, save=depths, reduce=watch)
seen, names = trajectory.us, equation.names()
print(trajectory.stats)
print(f"{'depth':>6} {'energy':>9} " + " ".join(f"{name:>13}" for name in names))
for i in range(0, 81, 10):
    shares = " ".join(f"{float(seen[name][i]):>13.4f}" for name in names)
    print(f"{depths[i]:>6.1f} {seen['energy'][i]:>9.4f} {shares}")

# %% Explicit Euler stands the leaks and the diffusion below h · damping = 2.
# Beyond it the blow-up is a result, not a crash.
coupled = equation.only(("interaction", "reaction", "diffusion"))
rate = float(coupled.damping())
for product in (1.9, 2.4):
    steps = int(np.ceil(4.0 * rate / product))
    euler = pj.Discretization(coupled, "euler", t1=4.0, steps=steps)
    end = pj.simulate(euler, u0, blowup=1e6)
    how = (
        f"blew up at depth {float(end.blowup_time):.2f}"
        if end.diverged
        else f"largest entry {float(jnp.abs(end.us).max()):.1e}"
    )
    print(f"{steps} steps, h · damping = {4 / steps * rate:.2f}: {how}")

# %% The terms' shares along depth.
figure = Figure(figsize=(7, 4.2), layout="constrained")
axes = figure.add_subplot()
for name in names:
    axes.plot(depths, np.asarray(seen[name]), label=name)
split = sum(np.asarray(seen[name]) for name in names)
axes.plot(depths, split, color="black", linestyle="--", label="sum = dE/dt")
axes.set_xlabel("depth t")
axes.set_ylabel("contribution to dE/dt (per unit depth)")
axes.set_yscale("symlog", linthresh=0.01)
axes.set_title("What each term does to the energy of the field")
axes.legend(frameon=False)
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "02_term_by_term.png", dpi=150)
