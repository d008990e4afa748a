"""Build the master equation term by term and watch what each term does to the energy of the field.

python examples/02_term_by_term.py [--out DIR]
"""

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

n, d = 64, 32
grid = pj.Grid(n, boundary="neumann")
k1, k2, k3 = jax.random.split(jax.random.key(0), 3)
equation = pj.MasterEquation(
    interaction=pj.Attention(dim=d, heads=4, leak=True, key=k1),
    reaction=pj.FeedForward(dim=d, hidden=4 * d, activation="gelu", leak=True, key=k2),
    diffusion=pj.Diffusion(grid, 2e-3),
    stabilization=pj.SpatialNorm(gamma=0.5),
)
u0 = jax.random.normal(k3, (n, d))


def watch(t, u, args):
    """Energy and its rate from each term: dE/dt = mean <u, term>, exactly split (v2 (13)-(14))."""
    rates = {name: jnp.mean(jnp.sum(u * du, axis=-1)) for name, du in equation.contributions(t, u, args).items()}
    return {"energy": 0.5 * jnp.mean(jnp.sum(u**2, axis=-1)), **rates}


depths = np.linspace(0, 4, 81)
trajectory = pj.simulate(pj.Discretization(equation, t1=4.0, rtol=1e-6, atol=1e-6), u0, save=depths, reduce=watch)
seen = trajectory.us
print(f"{int(trajectory.stats.steps)} steps, {int(trajectory.stats.evaluations)} field evaluations")
print(f"{'depth':>6} {'energy':>9} " + " ".join(f"{name:>13}" for name in equation.names()))
for i in range(0, 81, 10):
    print(
        f"{depths[i]:>6.1f} {seen['energy'][i]:>9.4f} "
        + " ".join(f"{float(seen[name][i]):>13.4f}" for name in equation.names())
    )

split = sum(np.asarray(seen[name]) for name in equation.names())

# Explicit Euler stands the leaks and the diffusion only below h * damping = 2; beyond it the blow-up is a result, not a crash.
coupled = equation.only(("interaction", "reaction", "diffusion"))
rate = float(coupled.damping())
for product in (1.9, 2.4):
    steps = int(np.ceil(4.0 * rate / product))
    end = pj.simulate(pj.Discretization(coupled, "euler", t1=4.0, steps=steps), u0, blowup=1e6)
    state = (
        f"blew up at depth {float(end.blowup_time):.2f}"
        if end.diverged
        else f"largest entry {float(jnp.abs(end.us).max()):.1e}"
    )
    print(f"Euler with {steps} steps, h * damping = {4 / steps * rate:.2f}: {state}")

figure = Figure(figsize=(7, 4.2), layout="constrained")
axes = figure.add_subplot()
for name, colour in zip(equation.names(), ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=True):
    axes.plot(depths, np.asarray(seen[name]), color=colour, label=name)
axes.plot(depths, split, color="black", linestyle="--", label="sum = dE/dt")
axes.set_xlabel("depth t")
axes.set_ylabel("contribution to dE/dt (per unit depth)")
axes.set_yscale("symlog", linthresh=0.01)
axes.set_title("What each term does to the energy of the field")
axes.legend(frameon=False)
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "02_term_by_term.png", dpi=150)
print(f"saved {out / '02_term_by_term.png'}")
