"""Take all layers at once.

python examples/15_parallel_in_depth.py [--out DIR]

The states after all steps are the solution of one equation. Iterations solve it everywhere at once, where that pays.
"""

# %% Fields with smooth weights, in 256 steps of Euler.
import argparse
import pathlib

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

import pdejax as pj

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out


def smooth(strength, damping):
    one, two, three = jax.random.split(jax.random.key(0), 3)
    block = pj.MasterEquation(
        pj.Attention(4, 1, key=one, strength=strength),
        pj.FeedForward(4, 8, key=two, activation="tanh", strength=strength),
        pj.LinearDamping(damping),
    )
    field = pj.smooth_random(block, 4.0, key=three)
    return pj.Discretization(field, "euler", t1=4.0, steps=256)


fields = {"damped": smooth(0.6, 0.6), "expanding": smooth(6.0, 0.0)}
u0 = jax.random.normal(jax.random.key(1), (8, 4))

# %% Ask first whether it pays. The prediction follows the error of the coarse steps
# through the linearized flow.
for name, d in fields.items():
    print(name, pj.analysis.parallel.predict_iterations(d, u0, tolerance=1e-3))

# %% Then solve, and compare with stepping. A residual says how well the steps are met;
# where the flow expands, the error is larger than it.
found = {}
for name, d in fields.items():
    serial = pj.simulate(d, u0, save="steps").us
    found[name] = pj.simulate_in_parallel(d, u0, tolerance=1e-3)
    gap = jnp.abs(found[name].us - serial).max() / jnp.abs(serial).max()
    print(f"{name}: {found[name]}, largest error {float(gap):.0e}")

# %% Residuals by iteration.
figure = Figure(figsize=(6, 3.5), layout="constrained")
axes = figure.subplots()
for name, one in found.items():
    k = int(one.iterations) + 1
    axes.semilogy(range(k), one.residuals[:k], marker="o", label=name)
axes.set(xlabel="cycles", ylabel="residual of the steps", title="MGRIT over 256 steps")
axes.legend()
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "parallel_in_depth.png", dpi=150)

# %% Gradients stopped after few cycles are biased. One cycle more estimates by how much.
bias = pj.analysis.parallel.gradient_bias(
    fields["damped"], u0, loss=lambda u: jnp.sum(u**2), iterations=(0, 1, 2)
)
for k, b, e in zip(bias.iterations, bias.bias, bias.estimate, strict=True):
    print(f"{int(k)} cycles: gradient off by {float(b):.1e}, estimated {float(e):.1e}")
