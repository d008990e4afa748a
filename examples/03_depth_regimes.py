"""Find the continuum limit, if there is one.

    python examples/03_depth_regimes.py [--out DIR]

v2 Thm 3.2 sends the number of layers L to infinity. With weights smooth in depth the networks converge to an ODE at
the rate 1/L. Independent layers at residual scale 1/L converge too, more slowly, to the ODE of the averaged field; at 1/√L
every draw keeps its own path, as a stochastic differential equation does.
"""

# %% A layer, and a distance between fields.
import argparse
import pathlib

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
from matplotlib.figure import Figure

import pdejax as pj

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out

n, dim, draws, layers = 24, 16, 16, (4, 16, 64)


def layer(key):
    ka, kr = jax.random.split(key)
    return pj.MasterEquation(
        interaction=pj.Attention(dim, 2, norm=pj.LayerNorm(dim), key=ka),
        reaction=pj.FeedForward(dim, 4 * dim, norm=pj.LayerNorm(dim), key=kr),
    )


u0 = jax.random.normal(jax.random.key(1), (n, dim))
norm = pj.analysis.mesh_norm

# %% Weights smooth in depth: networks of L layers approach the ODE's solution.
smooth = pj.smooth_random(layer(jax.random.key(2)), 1.0, key=jax.random.key(3))
exact = pj.Discretization(smooth, "dopri8", t1=1.0, rtol=1e-11, atol=1e-11)
truth = pj.simulate(exact, u0).us[-1]
gaps = []
for count in layers:
    network = pj.Discretization(smooth, "euler", t1=1.0, steps=count)
    gaps.append(float(norm(pj.simulate(network, u0).us[-1] - truth) / norm(truth)))
found = {"smooth weights: distance to the ODE": gaps}

# %% Independent layers: how far apart are the ends of sixteen draws?
for scaling in ("1/L", "1/sqrt(L)"):
    spreads = []
    for count in layers:

        @jax.jit
        def ends(keys, scaling=scaling, count=count):
            def one(key):
                field = pj.iid(layer, count, key=key, scaling=scaling)
                network = pj.Discretization(field, "euler", t1=1.0, steps=count)
                return pj.simulate(network, u0, save="end").us[-1]

            return jax.vmap(one)(keys)

        states = ends(jax.random.split(jax.random.key(4), draws))
        mean = jnp.mean(states, axis=0)
        spread = jnp.sqrt(jnp.mean(norm(states - mean) ** 2)) / norm(mean)
        spreads.append(float(spread))
    found[f"independent, scale {scaling}: spread of draws"] = spreads

print(f"{'':<42}" + "".join(f"L = {count:<6}" for count in layers) + "exponent")
for label, values in found.items():
    fit = pj.analysis.fit_order([1 / count for count in layers], values)
    row = "".join(f"{value:<10.4f}" for value in values)
    print(f"{label:<42}{row}{-fit.order:+.2f}")

# %% Only the first two fall.
figure = Figure(figsize=(6.4, 4.4), layout="constrained")
axes = figure.add_subplot()
for (label, values), marker in zip(found.items(), "osD", strict=True):
    axes.loglog(layers, values, marker=marker, label=label)
axes.set_xlabel("number of layers L")
axes.set_ylabel("relative distance or spread")
axes.set_title("Smooth weights have an ODE limit; independent layers at 1/√L do not")
axes.legend(frameon=False, fontsize=9)
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "03_depth_regimes.png", dpi=150)
