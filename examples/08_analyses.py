"""What the papers measure, on one small trained Transformer: every analysis with its null model, in one picture.

python examples/08_analyses.py [--out DIR]
"""

import argparse
import concurrent.futures
import os
import pathlib
import types
from typing import Any

# Everything here is small: compiling would take longer than computing. Leave this out for larger models.
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

# A Transformer trained for some seconds, and its own field at half the step: does refining the depth change it?
options = {"min_length": 6, "max_length": 16, "sizes": (3_000, 64, 64)}
config = TrainConfig(data=options, dim=32, ffn=64, layers=4, steps=80, learning_rate=2e-3, eval_every=80)
model: Any = train(config, progress=False).model
fine = pj.pair(model, "shared", steps=8)
untrained = pj.Transformer(model.architecture, rngs=nnx.Rngs(1))

batch = pj.data.load("listops", "test", **options).take(range(64))
tokens, mask, labels = (jnp.asarray(x) for x in (batch.inputs, batch.mask, batch.labels))
few = slice(0, 4)  # sequences for the analyses that differentiate
key = jax.random.key(0)


def observe(system):
    """Hidden states (layers + 1, b, n, d), the embedding first, and attention maps (layers, b, H, n, n)."""
    return tuple(jnp.moveaxis(jax.vmap(f)(tokens, mask), 0, 1) for f in (system.hidden_states, system.attention_maps))


states, maps = observe(model)
fine_states, fine_maps = observe(fine)
null_states, _ = observe(untrained)
few_draws = {"key": key, "resamples": 50}  # 500 is the default; 50 will do for a look

n = int(mask[0].sum())
jobs = {
    # 1: how near the two are, and how much of the input is left.
    "fidelity": lambda: analysis.trajectory_fidelity(
        fine_states, states, mask=mask, reference_null=null_states, **few_draws
    ),
    "kept": lambda: analysis.input_correlation(states, mask, **few_draws),
    # 2, 3: attention, spectra and circuits.
    "attention": lambda: analysis.attention_fidelity(maps, fine_maps, mask=mask, **few_draws),
    "spectra": lambda: analysis.spectral_similarity(states, fine_states, mask=mask, untrained=null_states, **few_draws),
    "circuits": lambda: analysis.attention_spectra(model, key=key),
    # 4: information, with the noise said, and statistics of the states.
    "plane": lambda: information.information_plane(
        states, states[0], labels, noise=2.0, mask=mask, key=key, permutations=10
    ),
    "statistics": lambda: analysis.representation(states, mask=mask, **few_draws),
    # 5, 6: gradients and perturbations, on four sequences.
    "flow": lambda: analysis.gradient_flow(model, tokens[few], labels[few], mask=mask[few], **few_draws),
    "answer": lambda: analysis.perturbation_sensitivity(
        model, tokens[few], labels[few], mask=mask[few], epsilons=(1e-3, 1e-2, 1e-1, 1.0), draws=1, **few_draws
    ),
    # 7: Lyapunov exponents of one sequence's field.
    "exponents": lambda: analysis.lyapunov_exponents(
        pj.lift(model).field, states[0, 0, :n], t1=4.0, steps=16, k=4, key=key
    ),
    # 8: clustering.
    "clusters": lambda: analysis.token_clustering(states, mask=mask, threshold=0.9, **few_draws),
    # 9: fidelity to the input of a leaky field, whose step of 1 is no residual network and whose small step is one.
    "decay": lambda: analysis.residual_necessity(leaky, states[0, :12, :6], layers=6, refine=8, key=key, resamples=20),
}
leaky = pj.MasterEquation(interaction=pj.Attention(dim=32, heads=4, leak=True, key=key))
with concurrent.futures.ThreadPoolExecutor() as pool:  # one compiles while another computes
    found: Any = types.SimpleNamespace(**dict(zip(jobs, pool.map(lambda job: job(), jobs.values()), strict=True)))

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
plot.trajectory_fidelity(found.fidelity, "cosine", ax=panels[0].subplots())
plot.layer_correlation({"Transformer": found.kept}, ax=panels[1].subplots())
plot.attention_fidelity(found.attention, "cosine", ax=panels[2].subplots())
plot.spectral_similarity(found.spectra, ax=panels[3].subplots())
plot.information_plane(found.plane, ax=panels[4].subplots())
plot.token_cosines(found.clusters, ax=panels[5].subplots())
plot.gradient_flow(found.flow, ax=panels[6].subplots())
plot.perturbation_response(found.answer, of="loss", ax=panels[7].subplots())
plot.residual_decay({"h = 1": found.decay.bare, "h = 1/8": found.decay.residual}, ax=panels[8].subplots())
plot.attention_spectra(found.circuits, ax=panels[9].subplots(1, 2))
plot.lyapunov_exponents(found.exponents, ax=panels[10].subplots(1, 2))
plot.representation(found.statistics, ax=panels[11].subplots(2, 3).ravel())
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "analyses.png", dpi=90)


def line(name, value, null, of):
    """One analysis in numbers."""
    print(f"{name:<46}{float(value):>10.4f}{float(null):>12.4f}   {of}")


print(f"{'':<46}{'measured':>10}{'null':>12}")
cosine = found.fidelity.overall.cosine
line("cosine with the field at h = 1/2", cosine.value.value, cosine.untrained.null.value, "untrained")
cka = found.fidelity.overall.cka_debiased
line("linear CKA, debiased", cka.value.value, cka.untrained.null.value, "untrained")
similar = found.spectra.token["untrained"].cosine
line("spectral similarity, last layer", similar.value.value[-1], similar.null.value[-1], "untrained")
rows = found.attention.overall["uniform"]
line("attention cosine", rows.cosine.value.value, rows.cosine.null.value, "uniform attention")
line("attention KL (nats)", rows.kl.value.value, rows.kl.null.value, "uniform attention")
pearson = found.kept.pearson.tokens
line("correlation with the input, last layer", pearson.value.value[-1], pearson.null.value[-1], "tokens shuffled")
line(
    "I(T; Y) of the last layer (nats)",
    found.plane.target.value[-1],
    found.plane.target_null.value[-1],
    "labels permuted",
)
ratio = found.statistics.participation_ratio
line("effective dimension / d, last layer", ratio.value.value[-1], ratio.null.value[-1], "Gaussian")
line(
    "mean cosine of tokens, last layer",
    found.clusters.cosine.value.value[-1],
    found.clusters.cosine.null.value[-1],
    found.clusters.null,
)
line("∂loss/∂u at the input", found.flow.median.value[0], found.flow.null.value[0], "labels exchanged")
line(
    "loss along the gradient, ε = 0.1",
    found.answer.gradient.loss_median.value[2],
    found.answer.random.loss_median.value[2],
    "random",
)
line("largest Lyapunov exponent (per layer)", found.exponents.exponents.value[0], 0.0, "a flow that keeps distances")
line("fidelity ρ after 6 layers, h = 1", found.decay.bare.rho.value[-1], found.decay.residual.rho.value[-1], "h = 1/8")
print(f"saved {out / 'analyses.png'}")
