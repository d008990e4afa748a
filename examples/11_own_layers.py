"""Bring layers of your own.

python examples/11_own_layers.py [--out DIR]

A stack of Flax blocks, written without pdejax, becomes a field, a solver and a step.
"""

# %% A block of depthwise convolution and a feed-forward network, as one would write it.
import argparse
import pathlib

import jax
import jax.numpy as jnp
from flax import nnx
from matplotlib.figure import Figure

import pdejax as pj

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out


class Block(nnx.Module):
    def __init__(self, dim, *, rngs):
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.mix = nnx.Conv(dim, dim, (3,), feature_group_count=dim, rngs=rngs)
        self.up = nnx.Linear(dim, 4 * dim, rngs=rngs)
        self.down = nnx.Linear(4 * dim, dim, rngs=rngs)

    def __call__(self, u):
        u = u + 0.2 * self.mix(u)
        return u + 0.2 * self.down(nnx.gelu(self.up(self.norm(u))))


layers, dim = 6, 16
blocks = [Block(dim, rngs=nnx.Rngs(i)) for i in range(layers)]
table = nnx.Embed(10, dim, rngs=nnx.Rngs(layers))

# %% Each layer maps a state to the next. The field is G_l(u) − u, the solver Euler, the
# step one layer.
net = pj.network(blocks, embed=table, head=lambda u, mask: table.attend(u))
print(net.discretization)
tokens = jnp.arange(12) % 10
u = table(tokens)
for block in blocks:
    u = block(u)
gap = jnp.abs(net.hidden_states(tokens)[-1] - u).max()
print(f"largest difference from the blocks, one after the other: {float(gap):.0e}")

# %% Refine it: is the network near its continuous limit?
d, u0 = net.discretization, table(tokens)
exact = d.replace(solver="dopri5", rtol=1e-5, atol=1e-5)
limit = pj.simulate(exact, u0).us[-1]
per_layer = (1, 2, 4, 8, 16)
norm = pj.analysis.mesh_norm
gaps = []
for k in per_layer:
    end = pj.simulate(d.refine(k), u0).us[-1]
    gaps.append(float(norm(end - limit) / norm(limit)))
    print(f"{k:>2} steps per layer: {gaps[-1]:.1%} from the limit")

# %% Ask what one would ask of an equation: the largest stable step, and how fast
# neighbouring states part.
step = pj.analysis.stability.predict_dt_max(d, u0).dt_max
print(f"largest stable step of Euler: {float(step):.2f} layers")
found = pj.analysis.lyapunov_exponents(d.refine(4), u0, k=3, key=jax.random.key(0))
print(found.exponents)

# %% First order, as Euler is.
figure = Figure(figsize=(6, 3.6), layout="constrained")
axes = figure.add_subplot()
axes.loglog(per_layer, gaps, "o-", label="the blocks")
axes.loglog(per_layer, [gaps[0] / k for k in per_layer], "--", color="0.6", label="1/k")
axes.set_xlabel("steps per layer")
axes.set_ylabel("relative distance to the limit")
axes.set_title("Six Flax blocks, refined in depth")
axes.legend(frameon=False)
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "own_layers.png", dpi=150)
