"""Train a Transformer and the PDE simulator it discretizes on the same digits, stop one of them, and go on.

python examples/06_train.py [--out DIR]
"""

import argparse
import dataclasses
import pathlib

import numpy as np
from matplotlib.figure import Figure

from pdejax.training import load_trained, preset, train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out

base = preset("digits", dim=32, ffn=128, layers=2, steps=300, warmup=20)
runs = {
    "Transformer": base,
    # The field the Transformer discretizes, with another scheme and twice as many steps.
    "simulator, RK4, h = 1/2": dataclasses.replace(base, model="simulator", solver="rk4", steps_per_layer=2),
    "full equation (with D and S)": dataclasses.replace(base, model="full"),
    "bare (no residual, no LayerNorm)": dataclasses.replace(base, model="bare"),
}
results = {}
for name, config in runs.items():
    folder = out / "train" / config.model
    results[name] = train(dataclasses.replace(config, out=str(folder)), progress=False)
    found = results[name]
    print(
        f"{name:<34}{found.parameters:>7,} parameters, test accuracy {found.test['accuracy']:.3f}, "
        f"{found.fit.stopped} at step {found.fit.step} (majority class {found.baselines['majority class']:.3f})"
    )

trained = load_trained(out / "train" / "transformer")  # the best on the validation split
print(f"read back: a {type(trained.model).__name__} as it was at step {trained.step}")

figure = Figure(figsize=(9.5, 3.8), layout="constrained")
left, right = figure.subplots(1, 2)
for (name, found), colour in zip(results.items(), ("#0072B2", "#E69F00", "#009E73", "#CC79A7"), strict=True):
    rows = found.fit.evaluations
    left.plot(
        [row["step"] for row in rows], [row["accuracy"] for row in rows], "o-", color=colour, markersize=4, label=name
    )
    norms = found.fit.history["gradient_norm"]
    right.semilogy(np.convolve(norms, np.ones(10) / 10, mode="valid"), color=colour, label=name)
left.set(xlabel="step", ylabel="validation accuracy", title="digits, 16 patches of 2 × 2 pixels")
right.set(xlabel="step", ylabel="gradient norm, mean of 10 steps", title="gradients")
left.legend(fontsize=8, frameon=False)
for axes in (left, right):
    axes.grid(True, color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "train.png", dpi=150)
print(f"saved {out / 'train.png'}")
