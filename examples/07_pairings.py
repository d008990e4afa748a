"""What does "the PDE matches the Transformer" mean? Three protocols on one trained Transformer.

python examples/07_pairings.py [--out DIR]
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import pdejax as pj
from pdejax.training import (
    Classification,
    Distillation,
    TrainConfig,
    build_model,
    distillation_report,
    fit,
    make_optimizer,
    make_step,
    merge_model,
    split_model,
    start_training,
)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out

options = {"min_length": 3, "max_length": 16, "sizes": (20_000, 100, 500)}
data = {split: pj.data.load("listops", split, **options) for split in ("train", "test")}
config = TrainConfig(data=options, dim=32, ffn=128, layers=2)


def trained(model, task, steps, seed):
    """The model after `steps` steps of Adam."""
    parameters, static = split_model(model)
    optimizer = make_optimizer("adam", learning_rate=2e-3)
    state = start_training(parameters, optimizer, jax.random.key(seed))
    batches = pj.data.Batches(data["train"], 64, seed=seed)
    found = fit(state, make_step(task, optimizer, static), batches, steps=steps, progress=False)
    return merge_model(found.state.params, static)


def accuracy(model):
    batch = data["test"].take(np.arange(len(data["test"])))
    return float(jnp.mean(jnp.argmax(jax.vmap(model)(batch.inputs, batch.mask), axis=1) == batch.labels))


transformer = trained(build_model(config, data["train"]), Classification(), 200, 0)
root = pj.data.root_operator_accuracy(data["train"], data["test"])
print(f"Transformer: accuracy {accuracy(transformer):.3f} (root operator alone {root:.3f})\n")

students = {f"shared, h = 1/{k}": pj.pair(transformer, "shared", steps=2 * k) for k in (1, 4)}
students["distilled, 200 steps"] = trained(
    pj.pair(transformer, "distilled", key=jax.random.key(1)), Distillation(transformer), 200, 1
)
students["independent, 200 steps"] = trained(
    pj.pair(transformer, "independent", key=jax.random.key(2)), Classification(), 200, 2
)

held_out = list(data["test"].batches(100))
print(f"{'simulator':<24}{'accuracy':>9}{'cosine':>9}{'attention KL':>14}   (held-out sequences, mean over layers)")
matches = {}
for name, student in students.items():
    report = distillation_report(transformer, student, held_out)
    matches[name] = report.student
    if name.startswith("distilled"):
        matches["the same, not yet fitted"] = report.untrained
for name, match in matches.items():
    right = f"{accuracy(students[name]):.3f}" if name in students else ""
    print(f"{name:<24}{right:>9}{np.mean(match.cosine[1:]):>9.4f}{np.mean(match.attention_kl):>14.4f}")

figure = Figure(figsize=(9.5, 3.8), layout="constrained")
left, right = figure.subplots(1, 2)
colours = ("#000000", "#56B4E9", "#E69F00", "#D55E00", "#CC79A7")
for (name, match), colour in zip(matches.items(), colours, strict=True):
    left.plot(match.cosine, "o-", color=colour, markersize=4, label=name)
    right.semilogy(np.maximum(np.mean(match.attention_kl, axis=1), 1e-12), "o-", color=colour, markersize=4, label=name)
left.set(xlabel="layer", ylabel="cosine with the Transformer's states")
right.set(xlabel="layer", ylabel="KL of attention maps (nats)")
left.legend(fontsize=7.5, frameon=False)
for axes in (left, right):
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(True, color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "pairings.png", dpi=150)
print(f"saved {out / 'pairings.png'}")
