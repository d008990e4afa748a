"""Refine the depth.

    python examples/01_refine_depth.py [--out DIR]

A Transformer takes one step per layer. Smaller steps lead to its continuous sibling.
"""

# %% Compute in float64, so that the identity below is visible to rounding.
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

# %% Take a pre-LN Transformer and a real expression.
config = pj.Architecture(
    vocab=16,
    dim=32,
    heads=4,
    layers=6,
    ffn=128,
    residual_scale=0.25,
    dtype="float64",
    param_dtype="float64",
)
model = pj.Transformer(config, rngs=nnx.Rngs(0))
found = pj.data.listops.generate(1, min_length=30, max_length=48, seed=0)
tokens, mask = jnp.asarray(found.tokens[0]), jnp.asarray(found.mask[0])
print(pj.data.listops.to_text(found.tokens[0]), "=", found.labels[0])

# %% Read it as a field, a solver and a step. The embedding is the initial field, v2 (2).
d = pj.lift(model)
print(d)
u0 = model.embed(tokens)
network = pj.simulate(d, u0, mask=mask)


def distance(a, b):
    norm = pj.analysis.mesh_norm
    return float(jnp.max(norm(a - b, mask) / norm(b, mask)))


gap = distance(network.us, model.hidden_states(tokens, mask))
print(f"against the Flax model: {gap:.1e}")

# %% Solve the same field adaptively: how far is the network from its continuous limit?
exact = d.replace(solver="dopri8", rtol=1e-11, atol=1e-11)
limit = pj.simulate(exact, u0, mask=mask)
away = distance(network.us, limit.us)
print(f"{int(limit.stats.evaluations)} field evaluations; {away:.1%} away")

# %% Refine the step, with the network's own scheme and with RK4.
per_layer = (1, 2, 4, 8, 16, 32)
errors = {"the network's scheme": [], "rk4": []}
schemes = {"the network's scheme": d, "rk4": d.replace(solver="rk4")}
print(f"{'steps per layer':>15}", *(f"{name:>21}" for name in schemes))
for k in per_layer:
    for name, scheme in schemes.items():
        refined = pj.simulate(scheme.refine(k), u0, mask=mask, save=limit.ts)
        errors[name].append(distance(refined.us, limit.us))
    print(f"{k:>15}", *(f"{errors[name][-1]:>21.2e}" for name in schemes))

# %% The network's scheme is of order 1, RK4 of order 4.
figure = Figure(figsize=(6, 4.2), layout="constrained")
axes = figure.add_subplot()
for (name, values), style in zip(errors.items(), ("o-", "s-"), strict=True):
    axes.loglog(per_layer, values, style, label=name)
axes.set_xlabel("steps per layer")
axes.set_ylabel("largest relative distance to the limit")
axes.set_title("One Transformer, refined in depth")
axes.legend(frameon=False)
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "01_refine_depth.png", dpi=150)
