"""Which continuum limit? Weights smooth in depth, and independent layers at two residual scales.

    python examples/03_depth_regimes.py [--out DIR]

v2 Thm 3.2 sends the number of layers L to infinity. With weights smooth in depth the networks converge to an ODE. With
independent layers they do not: at residual scale 1/L only the averaged field remains, at 1/sqrt(L) every draw keeps its own
path, as a stochastic differential equation does.
"""

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

n, d, draws, layers = 24, 16, 16, (4, 16, 64)


def layer(key):
    ka, kr = jax.random.split(key)
    return pj.MasterEquation(
        interaction=pj.Attention(d, 2, norm=pj.LayerNorm(d), key=ka),
        reaction=pj.FeedForward(d, 4 * d, norm=pj.LayerNorm(d), key=kr),
    )


u0 = jax.random.normal(jax.random.key(1), (n, d))
norm = pj.analysis.mesh_norm

smooth = pj.smooth_random(layer(jax.random.key(2)), 1.0, key=jax.random.key(3))
truth = pj.simulate(pj.Discretization(smooth, "dopri8", t1=1.0, rtol=1e-11, atol=1e-11), u0).us[-1]
found = {"smooth weights: distance to the ODE": []}
for count in layers:
    network = pj.simulate(pj.Discretization(smooth, "euler", t1=1.0, steps=count), u0).us[-1]
    found["smooth weights: distance to the ODE"].append(float(norm(network - truth) / norm(truth)))

for scaling in ("1/L", "1/sqrt(L)"):
    label = f"independent layers, scale {scaling}: spread between draws"
    found[label] = []
    for count in layers:

        @jax.jit
        def ends(keys, scaling=scaling, count=count):
            def one(key):
                network = pj.iid(layer, count, key=key, scaling=scaling)
                return pj.simulate(pj.Discretization(network, "euler", t1=1.0, steps=count), u0, save="end").us[-1]

            return jax.vmap(one)(keys)

        states = ends(jax.random.split(jax.random.key(4), draws))
        mean = jnp.mean(states, axis=0)
        found[label].append(float(jnp.sqrt(jnp.mean(norm(states - mean) ** 2)) / norm(mean)))

print(f"{'':<58}" + "".join(f"L = {count:<6}" for count in layers) + "exponent of L")
for label, values in found.items():
    fit = pj.analysis.fit_order([1 / count for count in layers], values)
    print(f"{label:<58}" + "".join(f"{value:<10.4f}" for value in values) + f"{-fit.order:+.2f}")

figure = Figure(figsize=(6.4, 4.4), layout="constrained")
axes = figure.add_subplot()
for (label, values), colour, marker in zip(found.items(), ("#0072B2", "#009E73", "#D55E00"), "osD", strict=True):
    axes.loglog(layers, values, color=colour, marker=marker, label=label)
axes.set_xlabel("number of layers L")
axes.set_ylabel("relative distance or spread")
axes.set_title("Smooth weights have an ODE limit; independent layers do not")
axes.legend(frameon=False, fontsize=9)
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "03_depth_regimes.png", dpi=150)
print(f"saved {out / '03_depth_regimes.png'}")
