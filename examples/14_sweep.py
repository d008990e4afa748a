"""Sweep over many runs, stop, and go on.

python examples/14_sweep.py [--out DIR]

Where do tokens that attend to each other end up, as attention and diffusion grow in strength? A grid of some 900 runs answers.
They lie in a zarr store, chunk by chunk, so that the sweep may be stopped, go on, or be shared by machines.
"""

# %% Measure one run: a pure function of a random key and of a point of the grid.
import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import pdejax as pj
from pdejax.runs.sweep import Sweep, run_sweep

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out

n, dim = 16, 8
depths = (0.5, 1.0, 2.0, 4.0)


def order(t, u, args):
    """The mean cosine of two tokens, and how rough they are from one to the next."""
    unit = u / jnp.linalg.norm(u, axis=1, keepdims=True)
    cosine = (jnp.sum(unit @ unit.T) - n) / (n * (n - 1))
    roughness = jnp.mean(jnp.diff(u, axis=0) ** 2) / jnp.mean(u**2)
    return {"cosine": cosine, "roughness": roughness}


def measure(key, *, strength, diffusivity):
    weights, start = jax.random.split(key)
    equation = pj.MasterEquation(
        pj.Attention(dim, key=weights, strength=strength, norm=pj.LayerNorm(dim)),
        pj.Diffusion(pj.Grid(n), diffusivity),
    )
    d = pj.Discretization(equation, "rk4", t1=depths[-1], steps=64)
    u0 = jax.random.normal(start, (n, dim))
    return pj.simulate(d, u0, save=list(depths), reduce=order).us


# %% Declare the grid: axes, seeds, and what is measured. A chunk is what is compiled,
# spread over all devices, and kept at once.
sweep = Sweep(
    measure=measure,
    axes={
        "strength": tuple(np.geomspace(0.1, 10.0, 12)),
        "diffusivity": tuple(np.geomspace(1e-5, 1e-2, 9)),
    },
    seeds=8,
    dims={"cosine": ("depth",), "roughness": ("depth",)},
    coords={"depth": depths},
    chunk=150,
    name="attention and diffusion",
)
chunks = sweep.chunks()
print(f"{sweep.runs} runs in {len(chunks)} chunks of {sweep.chunk_shape}")

# %% Run a half of it, as one of two machines would, and then whatever is missing. The
# same call does both; what is there is compared with its digest and kept.
store = out / "14_sweep"
half = run_sweep(sweep, store, shard="0/2")
print(f"{half.done} of {half.chunks} chunks are there, {half.measured} measured")
whole = run_sweep(sweep, store)
print(f"{whole.done} of {whole.chunks} chunks are there, {whole.measured} measured")

# %% Open the data: axes have names, wherever they are opened.
data = whole.dataset()
print(data.sizes)
print(data.cosine.mean(["seed", "diffusivity"]).round(2).values)

# %% Look at it. Both align tokens: attention all with all, diffusion each with its
# neighbours, so that it smooths them before they all point one way.
figure = Figure(figsize=(9.0, 3.6), layout="constrained")
for axes, name, label in zip(
    figure.subplots(1, 2),
    ("cosine", "roughness"),
    ("mean cosine of two tokens", "mean square step from token to token"),
    strict=True,
):
    values = data[name].sel(depth=4.0).mean("seed")
    grid = axes.pcolormesh(data.diffusivity, data.strength, values, cmap="viridis")
    axes.set(xscale="log", yscale="log", xlabel="diffusivity D", ylabel="strength α")
    figure.colorbar(grid, ax=axes, label=label)
figure.suptitle("Attention and diffusion at depth 4, means of 8 seeds", fontsize=11)
figure.savefig(out / "14_sweep.png", dpi=150)
