"""Draw the picture of the README.

python examples/04_picture.py [--out DIR]

One Transformer, its continuous limit, and how each scheme gets there.
"""

# %% The network and its limit, on 40 tokens.
import argparse
import pathlib

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

import pdejax as pj

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out

config = pj.Architecture(
    vocab=16,
    dim=32,
    heads=4,
    layers=6,
    ffn=128,
    dtype="float64",
    param_dtype="float64",
)
model = pj.Transformer(config, rngs=nnx.Rngs(0))
found = pj.data.listops.generate(1, min_length=39, max_length=41, seed=0)
u0 = model.embed(jnp.asarray(found.tokens[0, :40]))
d = pj.lift(model)
network = pj.simulate(d, u0)
depths = np.linspace(0, 6, 121)
exact = d.replace(solver="dopri8", rtol=1e-10, atol=1e-10)
limit = pj.simulate(exact, u0, save=depths)

# %% Weights smooth in depth: fit the order of four schemes.
smooth = pj.smooth_random(d.field.layer(0), 2.0, key=jax.random.key(0))
exact = pj.Discretization(smooth, "dopri8", t1=2.0, rtol=1e-13, atol=1e-13)
truth = pj.simulate(exact, u0).us[-1]
norm = pj.analysis.mesh_norm
counts = (4, 8, 16, 32, 64, 128)
errors, orders = {}, {}
for solver in ("lietrotter", "strang", "rk4", "tsit5"):
    scheme = pj.Discretization(smooth, solver, t1=2.0, steps=1)
    errors[solver] = [
        float(norm(pj.simulate(scheme.refine(k), u0).us[-1] - truth)) for k in counts
    ]
    steps = [2.0 / k for k in counts]
    orders[solver] = pj.analysis.fit_order(steps, errors[solver], floor=1e-12).order
    print(f"{solver}: order {orders[solver]:.2f}")

# %% The picture.
figure = Figure(figsize=(10, 3.6), layout="constrained")
left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
scale = float(jnp.abs(limit.us[:, :, 0]).max())
for axes, states, title, span in (
    (left, network.us, "the network: embedding and 6 layers", (-0.5, 6.5)),
    (middle, limit.us, "its continuous limit", (0, 6)),
):
    image = axes.imshow(
        np.asarray(states[:, :, 0]),
        aspect="auto",
        origin="lower",
        cmap="RdBu_r",
        vmin=-scale,
        vmax=scale,
        extent=(0, 40, *span),
        interpolation="nearest",
    )
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("token position")
    axes.set_ylabel("depth t (layers)")
figure.colorbar(image, ax=middle, label="first feature of u(x, t)")
colours = ("#E69F00", "#D55E00", "#CC79A7", "#56B4E9")
for (solver, values), colour, marker in zip(
    errors.items(), colours, "sDvP", strict=True
):
    label = f"{solver}: order {orders[solver]:.2f}"
    right.loglog(counts, values, color=colour, marker=marker, markersize=4, label=label)
right.set_xlabel("steps")
right.set_ylabel("error at depth T = 2")
right.set_title("smooth weights: measured orders", fontsize=10)
right.legend(frameon=False, fontsize=8)
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "pdejax.png", dpi=110)
