"""Ask which limit depth has.

python examples/13_which_limit.py [--out DIR]

Recipes of deep networks and their limits; two tokens under common noise; clusters that
wait.
"""

# %% A recipe makes a network of any number of layers. Does it tend to an ODE, an SDE, or
# to nothing as layers are added? Sixty-four networks of each size say so.
import argparse
import pathlib

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import pdejax as pj
from pdejax import exact
from pdejax.analysis import limits

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out

key = jax.random.key(0)
layer = pj.MasterEquation(pj.FeedForward(8, 8, key=key, activation="tanh"))
u0 = jax.random.normal(key, (4, 8))
sizes = (8, 16, 32, 64, 128)
for weights, alpha in (("tied", 1.0), ("iid", 0.5), ("iid", 0.25)):
    found = limits.depth_check(
        limits.Recipe(layer, weights, alpha),
        u0,
        layers=sizes,
        draws=64,
        gradients=False,
    )
    name = f"{weights} layers at L^-{alpha:g}"
    print(f"{name}: {found.verdict} (power {found.power:.2f})")
    print(f"    {found.reason}")

# %% Independent layers at 1/√L share their noise between tokens. Two tokens on the
# sphere: nearly opposite ones stay opposite beyond a critical β; below it they meet.
figure = Figure(figsize=(11, 3.6), layout="constrained")
left, middle, right = figure.subplots(1, 3)
betas = np.linspace(0, 3, 61)
for d in (4, 8, 16):
    rate = exact.two_token_exponents(jnp.asarray(betas), d)[1]
    left.plot(betas, rate, label=f"d = {d}")
    left.plot(exact.two_token_critical_beta(d), 0, "ko", markersize=4)
left.axhline(0, color="0.7", linewidth=1)
left.set(xlabel="β", ylabel="rate of the angle to the antipode", ylim=(-1.2, 4))
left.legend(frameon=False)

system = limits.CommonNoise(limits.attention_means(2.0), sphere=True)
pair = jnp.eye(4)[:2]
ends = limits.network_ends(system, pair, layers=32, draws=1000, key=key, t1=8.0)
cosines = jnp.sum(ends[:, 0] * ends[:, 1], axis=-1)
share = float(jnp.mean(cosines < 0))
expected = float(exact.antipodal_probability(0.0, 2.0, 4))
print(
    f"tokens that end opposite, β = 2, d = 4: {share:.3f}; in the limit {expected:.3f}"
)
middle.hist(np.asarray(cosines), bins=40, color="#0072B2")
middle.set(xlabel="cosine of two tokens at depth 8", ylabel="networks")

# %% Without noise clusters wait for a depth of about exp(β(1 − cos ω)), and the energy is
# a staircase in the logarithm of depth.
angles = np.array([0.0, 0.35, 0.9, 2.1, 3.0])
tokens = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1))
run = limits.metastability(tokens, 12.0, t1=1e7)
print(f"mergers at depth {np.array2string(run.merged, precision=1)}, {run.steps} steps")
right.semilogx(1 + run.ts, run.energies / run.energies[-1])
for depth in run.merged:
    right.axvline(1 + depth, color="0.7", linestyle=":")
right.set(xlabel="1 + depth", ylabel="energy, share of one cluster's")
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "which_limit.png", dpi=150)
