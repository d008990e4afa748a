"""Refine a Transformer's depth: the network is one step per layer, and smaller steps lead to its continuous sibling.

    python examples/01_refine_depth.py [--out DIR]

Run in float64, so that the identity in the first line is visible to rounding.
"""

import argparse
import pathlib

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
from flax import nnx
from matplotlib.figure import Figure

import pdejax as pj

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out

# A pre-LN Transformer and a real expression: [MAX 4 [SM 7 9 ] ... ]
config = pj.Architecture(
    vocab=16, dim=32, heads=4, layers=6, ffn=128, residual_scale=0.25, dtype="float64", param_dtype="float64"
)
model = pj.Transformer(config, rngs=nnx.Rngs(0))
expressions = pj.data.listops.generate(1, min_length=30, max_length=48, seed=0)
tokens, mask = jnp.asarray(expressions.tokens[0]), jnp.asarray(expressions.mask[0])
print(pj.data.listops.to_text(expressions.tokens[0]), "=", expressions.labels[0])

u0 = model.embed(tokens)  # (n, d): the initial field, v2 (2)
equation = pj.lift(model)  # the master equation with the model's weights, depth t in [0, 6]


def solve(**how):
    return pj.simulate(equation, u0, t1=equation.t1, mask=mask, **how)


def distance(a, b):
    return float(jnp.max(pj.analysis.mesh_norm(a - b, mask) / pj.analysis.mesh_norm(b, mask)))


network = solve(steps=6, solver=pj.lift(model).solver)
gap = distance(network.us, model.hidden_states(tokens, mask))
print(f"Lie-Trotter, one Euler step per layer, against the Flax model: {gap:.1e}")

limit = solve(rtol=1e-11, atol=1e-11, solver="dopri8")
away = distance(network.us, limit.us)
print(f"continuous limit: {int(limit.stats.evaluations)} field evaluations; the network is {away:.1%} away\n")

print(f"{'steps per layer':>15} {'network scheme':>15} {'rk4':>10}")
per_layer, errors = (1, 2, 4, 8, 16, 32), {"native": [], "rk4": []}
for m in per_layer:
    for name, solver in (("native", pj.lift(model).solver), ("rk4", "rk4")):
        errors[name].append(distance(solve(steps=6 * m, solver=solver).us, limit.us))
    print(f"{m:>15} {errors['native'][-1]:>15.2e} {errors['rk4'][-1]:>10.2e}")

figure = Figure(figsize=(6, 4.2), layout="constrained")
axes = figure.add_subplot()
axes.loglog(per_layer, errors["native"], "o-", color="#0072B2", label="the network's own scheme (Lie-Trotter)")
axes.loglog(per_layer, errors["rk4"], "s-", color="#D55E00", label="RK4")
axes.set_xlabel("steps per layer")
axes.set_ylabel("largest relative distance to the continuous limit")
axes.set_title("One Transformer, refined in depth")
axes.legend(frameon=False)
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "01_refine_depth.png", dpi=150)
print(f"\nsaved {out / '01_refine_depth.png'}")
