"""Match a Transformer with a field.

python examples/07_pairings.py [--out DIR]

What does "the PDE matches the Transformer" mean? Three protocols on one trained Transformer.
"""

# %% Short ListOps expressions, and a helper that trains any model on any task.
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


def trained(model, task, seed, steps=200):
    """The model after `steps` steps of Adam."""
    parameters, static = split_model(model)
    optimizer = make_optimizer("adam", learning_rate=2e-3)
    state = start_training(parameters, optimizer, jax.random.key(seed))
    batches = pj.data.Batches(data["train"], 64, seed=seed)
    step = make_step(task, optimizer, static)
    found = fit(state, step, batches, steps=steps, progress=False)
    return merge_model(found.state.params, static)


def accuracy(model):
    batch = data["test"].take(np.arange(len(data["test"])))
    answers = jnp.argmax(jax.vmap(model)(batch.inputs, batch.mask), axis=1)
    return float(jnp.mean(answers == batch.labels))


# %% The Transformer.
transformer = trained(build_model(config, data["train"]), Classification(), 0)
root = pj.data.root_operator_accuracy(data["train"], data["test"])
print(f"accuracy {accuracy(transformer):.3f} (root operator alone {root:.3f})")

# %% Three protocols. `shared` carries its weights and refines the step. `distilled` is
# fitted to its trajectory. `independent` is trained on the task from its own seed.
distilled = pj.pair(transformer, "distilled", key=jax.random.key(1))
independent = pj.pair(transformer, "independent", key=jax.random.key(2))
students = {
    "shared, h = 1": pj.pair(transformer, "shared", steps=2),
    "shared, h = 1/4": pj.pair(transformer, "shared", steps=8),
    "distilled": trained(distilled, Distillation(transformer), 1),
    "independent": trained(independent, Classification(), 2),
}

# %% On held-out sequences: the cosine of each token with the Transformer's, and the KL of the
# attention maps. Layers come first, then the sequences.
held_out = data["test"].take(np.arange(300))
mask = jnp.asarray(held_out.mask)
_, theirs, their_maps = pj.observe(transformer, held_out.inputs, mask)


def match(student):
    _, states, maps = pj.observe(student, held_out.inputs, mask)
    norms = jnp.linalg.norm(states, axis=-1) * jnp.linalg.norm(theirs, axis=-1)
    cosines = jnp.sum(states * theirs, axis=-1) / jnp.where(norms > 0, norms, 1)
    kl = pj.analysis.attention.attention_divergence(their_maps, maps, mask)
    return jnp.mean(cosines, axis=(1, 2), where=mask[None]), jnp.mean(kl, axis=(1, 2))


matches = {name: match(student) for name, student in students.items()}
fresh = pj.models.untrained_field(students["distilled"], jax.random.key(0))
matches["distilled, not yet fitted"] = match(fresh)
print(f"{'field':<26}{'accuracy':>9}{'cosine':>9}{'attention KL':>14}")
for name, (cosine, kl) in matches.items():
    right = f"{accuracy(students[name]):.3f}" if name in students else ""
    print(f"{name:<26}{right:>9}{jnp.mean(cosine[1:]):>9.4f}{jnp.mean(kl):>14.4f}")

# %% Layer by layer.
figure = Figure(figsize=(9.5, 3.8), layout="constrained")
left, right = figure.subplots(1, 2)
for name, (cosine, kl) in matches.items():
    left.plot(cosine, "o-", markersize=4, label=name)
    right.semilogy(np.maximum(kl, 1e-12), "o-", markersize=4, label=name)
left.set(xlabel="layer", ylabel="cosine with the Transformer's states")
right.set(xlabel="layer", ylabel="KL of attention maps (nats)")
left.legend(fontsize=7.5, frameon=False)
for axes in (left, right):
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(True, color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "pairings.png", dpi=150)
