"""Train a Transformer and three fields.

python examples/06_train.py [--out DIR]

The Transformer, the field it discretizes, the full equation, and the papers' bare simulator, on the same digits.
"""

# %% Four configurations that differ in the model alone.
import argparse
import dataclasses
import pathlib

import numpy as np
from matplotlib.figure import Figure

from pdejax.training import load_trained, preset, train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out

base = preset(
    "digits",
    dim=32,
    ffn=128,
    layers=2,
    steps=150,
    warmup=20,
    eval_every=50,
    save_every=50,
)
runs = {
    "Transformer": base,
    # The field the Transformer discretizes, with another scheme and twice the steps.
    "field, RK4, h = 1/2": dataclasses.replace(
        base, model="simulator", solver="rk4", steps_per_layer=2
    ),
    "full equation (with D and S)": dataclasses.replace(base, model="full"),
    "bare (no residual, no LayerNorm)": dataclasses.replace(base, model="bare"),
}

# %% Train each. Stopped and started again, this goes on where it was.
results = {}
for name, config in runs.items():
    folder = str(out / "train" / config.model)
    found = train(dataclasses.replace(config, out=folder), progress=False)
    results[name] = found
    print(
        f"{name:<33}{found.parameters:>7,} parameters, test accuracy "
        f"{found.test['accuracy']:.3f}, {found.fit.stopped} at step {found.fit.step}"
    )
print(f"majority class: {found.baselines['majority class']:.3f}")

# %% Read one back: the best on the validation split.
trained = load_trained(out / "train" / "transformer")
print(f"a {type(trained.model).__name__} as it was at step {trained.step}")

# %% Accuracy and gradients along training.
figure = Figure(figsize=(9.5, 3.8), layout="constrained")
left, right = figure.subplots(1, 2)
for name, found in results.items():
    rows = found.fit.evaluations
    steps = [row["step"] for row in rows]
    left.plot(steps, [row["accuracy"] for row in rows], "o-", markersize=4, label=name)
    norms = np.convolve(found.fit.history["gradient_norm"], np.ones(10) / 10, "valid")
    right.semilogy(norms, label=name)
left.set(xlabel="step", ylabel="validation accuracy", title="digits, 16 patches")
right.set(xlabel="step", ylabel="gradient norm, mean of 10 steps", title="gradients")
left.legend(fontsize=8, frameon=False)
for axes in (left, right):
    axes.grid(True, color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "train.png", dpi=150)
