"""Analyse a trained Transformer.

python examples/08_analyses.py [--out DIR]

Every analysis with its null model, on one small Transformer, in one picture.
"""

# %% Everything here is small: compiling would take longer than computing. Leave the flag out
# for larger models.
import argparse
import concurrent.futures
import os
import pathlib
import types
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import jax.numpy as jnp
from flax import nnx
from matplotlib.figure import Figure

import pdejax as pj
from pdejax import analysis, plot
from pdejax.analysis import information
from pdejax.training import TrainConfig, train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out

# %% Train a Transformer for some seconds. Beside it: its own field at half the step (does
# refining the depth change it?), and an untrained one.
options = {"min_length": 6, "max_length": 16, "sizes": (3_000, 64, 64)}
config = TrainConfig(
    data=options,
    dim=32,
    ffn=64,
    layers=4,
    steps=80,
    learning_rate=2e-3,
    eval_every=80,
)
model: Any = train(config, progress=False).model
fine = pj.pair(model, "shared", steps=8)
untrained = pj.Transformer(model.architecture, rngs=nnx.Rngs(1))

# %% Run all three on 64 expressions.
batch = pj.data.load("listops", "test", **options).take(range(64))
tokens, mask, labels = (
    jnp.asarray(x) for x in (batch.inputs, batch.mask, batch.labels)
)

# States (layers + 1, b, n, d) and attention maps (layers, b, H, n, n).
_, states, maps = pj.observe(model, tokens, mask)
_, fine_states, fine_maps = pj.observe(fine, tokens, mask)
null_states = pj.observe(untrained, tokens, mask).states

# %% Each analysis returns a record. Numbers carry intervals (50 resamples here; 500 is the
# default) and nulls.
key = jax.random.key(0)
draws = {"key": key, "resamples": 50}
few = slice(0, 4)  # sequences for the analyses that differentiate
n = int(mask[0].sum())
attention = pj.Attention(dim=32, heads=4, leak=True, key=key)
leaky = pj.MasterEquation(interaction=attention)
jobs = {
    "fidelity": lambda: analysis.trajectory_fidelity(
        fine_states, states, mask=mask, reference_null=null_states, **draws
    ),
    "kept": lambda: analysis.layer_correlation(states, mask=mask, **draws),
    "attention": lambda: analysis.attention_fidelity(
        maps, fine_maps, mask=mask, **draws
    ),
    "spectra": lambda: analysis.spectral_similarity(
        states, fine_states, mask=mask, untrained=null_states, **draws
    ),
    "circuits": lambda: analysis.attention_spectra(model, key=key),
    "plane": lambda: information.information_plane(
        states, states[0], labels, noise=2.0, mask=mask, key=key, permutations=10
    ),
    "statistics": lambda: analysis.representation(states, mask=mask, **draws),
    "flow": lambda: analysis.gradient_flow(
        model, tokens[few], labels[few], mask=mask[few], **draws
    ),
    "answer": lambda: analysis.perturbation_sensitivity(
        model,
        tokens[few],
        labels[few],
        mask=mask[few],
        epsilons=(1e-3, 1e-2, 1e-1, 1.0),
        draws=1,
        **draws,
    ),
    "exponents": lambda: analysis.lyapunov_exponents(
        pj.lift(model).refine(4), states[0, 0, :n], k=4, key=key
    ),
    "clusters": lambda: analysis.token_clustering(
        states, mask=mask, threshold=0.9, **draws
    ),
    "decay": lambda: analysis.residual.residual_necessity(
        leaky, states[0, :12, :6], layers=6, refine=8, key=key, resamples=20
    ),
}
with concurrent.futures.ThreadPoolExecutor() as pool:  # one compiles, another computes
    records = pool.map(lambda job: job(), jobs.values())
    found: Any = types.SimpleNamespace(**dict(zip(jobs, records, strict=True)))


# %% In numbers, each beside its null model:
def line(name, value, null, of):
    print(f"{name:<42}{float(value):>9.4f}{float(null):>9.4f}   {of}")


def beside(name, figure, null):
    line(name, figure, figure.nulls[null], null)


print(f"{'':<42}{'measured':>9}{'null':>9}")
overall = found.fidelity.overall
rows = found.attention.overall
answer = found.answer
beside("cosine, field at h = 1/2", overall["cosine"], "untrained")
beside("linear CKA, debiased", overall["cka_debiased"], "untrained")
similar = found.spectra.token["cosine"][-1]
beside("spectral similarity, last layer", similar, "untrained")
beside("attention cosine", rows["cosine"], "uniform")
beside("attention KL (nats)", rows["kl"], "uniform")
kept = found.kept.pearson[-1]
beside("correlation with the input, last layer", kept, "tokens shuffled")
beside("I(T; Y), last layer (nats)", found.plane.target[-1], "y permuted")
ratio = found.statistics.participation_ratio[-1]
beside("effective dimension / d, last layer", ratio, "gaussian")
close = found.clusters.cosine[-1]
beside("mean cosine of tokens, last layer", close, *close.nulls)
line(
    "∂loss/∂u at the input",
    found.flow.median.value[0],
    found.flow.median.nulls["labels"].value[0],
    "labels exchanged",
)
line(
    "loss along the gradient, ε = 0.1",
    answer.gradient.loss_median.value[2],
    answer.random.loss_median.value[2],
    "random",
)
line(
    "largest Lyapunov exponent",
    found.exponents.exponents.value[0],
    0.0,
    "kept distances",
)
line(
    "fidelity ρ after 6 layers, h = 1",
    found.decay.bare.rho.value[-1],
    found.decay.residual.rho.value[-1],
    "h = 1/8",
)

# %% In one picture:
figure = Figure(figsize=(19, 15), layout="constrained")
grid: Any = figure.subfigures(4, 3)
panels = [part for row in grid for part in row]
titles = (
    "fidelity",
    "correlation with the input",
    "attention",
    "spectra along the tokens",
    "information plane",
    "clustering",
    "gradient flow",
    "perturbations",
    "fidelity to the input",
    "circuits",
    "Lyapunov exponents",
    "statistics of the states",
)
for panel, title in zip(panels, titles, strict=True):
    panel.suptitle(title, fontsize=11, fontweight="bold")
decays = {"h = 1": found.decay.bare, "h = 1/8": found.decay.residual}
plot.plot(found.fidelity, measure="cosine", ax=panels[0].subplots())
plot.plot({"Transformer": found.kept}, ax=panels[1].subplots())
plot.plot(found.attention, figure="cosine", ax=panels[2].subplots())
plot.plot(found.spectra, ax=panels[3].subplots())
plot.plot(found.plane, ax=panels[4].subplots())
plot.plot(found.clusters, picture="cosines", ax=panels[5].subplots())
plot.plot(found.flow, ax=panels[6].subplots())
plot.plot(found.answer, of="loss", ax=panels[7].subplots())
plot.plot(decays, ax=panels[8].subplots())
plot.plot(found.circuits, ax=panels[9].subplots(1, 2))
plot.plot(found.exponents, ax=panels[10].subplots(1, 2))
plot.plot(found.statistics, ax=panels[11].subplots(2, 3).ravel())
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "analyses.png", dpi=90)
