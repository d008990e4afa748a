"""Go round again, and see what a loop does.

python examples/12_loops.py [--out DIR]

A stack of layers that is gone through again and again is a map. It may come to rest, go
round in a cycle, drift away or part neighbours. Which of them, and how can one be sure?
"""

# %% A map whose behaviour is in every textbook: r u (1 − u), entry by entry. The classifier
# polishes each point by Newton–Krylov and states what is left of G^p(u) − u there.
import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

import pdejax as pj
from pdejax.analysis import loops

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out

jax.config.update("jax_enable_x64", True)
start = jnp.asarray([[0.3, 0.6]])
for r in (2.8, 3.2, 3.5, 4.0):
    found = loops.classify_loop(loops.loop_of(lambda u, r=r: r * u * (1 - u), start))
    left = "" if found.point is None else f", residual {found.point.relative:.0e}"
    what = f"{found.kind} {found.period or ''}".strip()
    print(f"r = {r}: {what}{left}, exponent {float(found.exponent):+.3f}")

# %% Two layers, gone through six times. Where the norm sits decides what the loop does:
# before each sub-layer the state grows by a bounded step each time, after it the state
# stays on a sphere.
base = pj.Architecture(
    vocab=12,
    dim=16,
    heads=2,
    layers=2,
    ffn=32,
    loops=6,
    head="classification",
    classes=3,
    dtype="float64",
    param_dtype="float64",
)
tokens = jnp.asarray([1, 7, 3, 3, 9])
kinds = {
    "pre-LN": {"norm": "pre"},
    "post-LN": {"norm": "post"},
    "pre-LN, gated": {"norm": "pre", "residual": "gated", "residual_scale": 0.5},
    "post-LN, injection": {"norm": "post", "injection": "add"},
}
behaviour, made = {}, {}
for name, form in kinds.items():
    model = pj.Transformer(base.replace(**form), rngs=nnx.Rngs(1))
    made[name] = loops.loop_of(model, tokens)
    behaviour[name] = found = loops.classify_loop(made[name], loops=256)
    rate = f", factor {found.rate:.3f} per pass" if found.point is not None else ""
    print(f"{name:20}{found.kind}{rate}, growth k^{found.growth:.2f}")

# %% The network itself is six passes of it, to rounding, and every pass is to be seen.
model = pj.Transformer(base, rngs=nnx.Rngs(1))
states = pj.as_network(model).hidden_states(tokens)
gap = jnp.abs(loops.loop_of(model, tokens).states(6) - states[::2]).max()
print(f"largest difference from the network's own states: {float(gap):.0e}")

# %% How fast does it come to rest, and by which sub-layer? The eigenvalues at the fixed
# point say it; the gains along the dominant one multiply to its modulus.
settled = next(n for n, b in behaviour.items() if b.kind in ("fixed point", "cycle"))
loop, point = made[settled], behaviour[settled].point.state
spectrum = loops.loop_eigenvalues(loop, point, count=4)
print(f"{settled}:", np.round(spectrum.values, 3))
gains = loops.sublayer_gains(loop, point, spectrum=spectrum)
for name, norm, gain in zip(gains.names, gains.norms, gains.gains, strict=True):
    print(f"{name:32} norm {norm:.2f}, gain {gain:.2f}")

# %% The estimates that are in use: the product with one random vector, the largest entry,
# the norm. How far are they off?
cheap = loops.cheap_radii(loop, point, spectrum=spectrum, gains=gains)
print(f"spectral radius {cheap.radius:.3f}")
for name, figure in cheap.estimates.items():
    print(f"  {name:30} {float(figure):.3f}")

# %% When to leave? What each criterion costs for an error of 0.1 %, beside the fewest
# passes that would do. Thresholds are chosen on one half of the inputs and used on the
# other.
rows, errors = {}, []
last = pj.Transformer(base.replace(**kinds["post-LN, injection"]), rngs=nnx.Rngs(1))
for i in range(8):
    sequence = jax.random.randint(jax.random.key(i), (5,), 0, 12)
    one = loops.loop_of(last, sequence)
    us = np.asarray(one.states(80))
    limit = np.asarray(loops.fixed_point(one, us[-1]).state)
    errors.append(np.linalg.norm(us[1:] - limit, axis=(1, 2)) / np.linalg.norm(limit))
    for name, score in loops.exit_scores(us).items():
        rows.setdefault(name, []).append(score)
scores = {name: np.stack(found) for name, found in rows.items()}
rules = loops.exit_rules(scores, np.stack(errors), target=1e-3)
for rule in rules:
    print(
        f"{rule.name:20} {float(rule.loops):5.1f} passes, kept {float(rule.kept):.2f}"
    )
print(f"{'the fewest':20} {float(rules[0].loops.nulls['oracle']):5.1f} passes")

# %% Four loops, four ways.
canvas = Figure(figsize=(6, 3.6), layout="constrained")
axes = canvas.add_subplot()
for name, found in behaviour.items():
    share = np.maximum(found.steps / found.norms[:-1], 1e-17)
    axes.loglog(np.arange(1, len(share) + 1), share, label=f"{name}: {found.kind}")
axes.axvline(6, color="0.6", linestyle="--", linewidth=1)
axes.set_xlabel("pass")
axes.set_ylabel("relative step")
axes.set_title("What a loop does beyond its six passes")
axes.legend(frameon=False, fontsize=8)
out.mkdir(parents=True, exist_ok=True)
canvas.savefig(out / "loops.png", dpi=150)
