"""Check three claims.

python examples/09_claims.py [--out DIR]

Three claims of the papers with their verdicts; their counterexamples, loaded as arrays and solved again.
"""

# %% Verdicts are computed from evidence: here that of three seeds. `pdejax claims` does all.
import argparse
import pathlib

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

import pdejax as pj
from pdejax.studies.claims import claims

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out

ledger = claims(["C4", "C5", "C14"], seeds=3, out=out / "claims")
for finding in ledger.findings.values():
    print(f"{finding.claim} {finding.verdict}: {finding.statement}")
    print(f"    {finding.condition}")


# %% A counterexample is a file of arrays. The fields below are linear, by a term of our own.
def load(name: str) -> dict[str, np.ndarray]:
    with np.load(out / "claims" / "counterexamples" / f"{name}.npz") as saved:
        return dict(saved)


class Linear(pj.terms.AbstractTerm):
    """A term of one's own: u ↦ M u over the tokens."""

    matrix: Array

    def __call__(self, t, u, args):
        return self.matrix @ u

    def damping(self):
        return jnp.zeros(())  # a decay rate would limit explicit steps: none claimed

    def check(self, n, d):
        if self.matrix.shape != (n, n):
            raise ValueError(
                f"Linear: matrix has shape {self.matrix.shape}, the field {n} tokens."
            )


# %% C4: "γ > λ makes the energy decay". S of v2 (9) pulls with a fixed force, not in
# proportion: large fields escape it.
figure = Figure(figsize=(11, 3.6), layout="constrained")
left, middle, right = figure.subplots(1, 3)
c4 = load("C4")
equation = pj.MasterEquation(
    reaction=Linear(float(c4["growth"]) * jnp.eye(2)),
    stabilization=pj.SpatialNorm(float(c4["gamma"]), eps=1e-12),
)
t1 = float(c4["t"][-1])
for start in (2.9, float(c4["u"][0, 0, 0])):
    solved = pj.simulate(
        pj.Discretization(equation, "rk4", t1=t1, steps=1000),
        start * jnp.array([[1.0], [-1.0]]),
        save="steps",
    )
    left.plot(
        solved.ts, 0.5 * jnp.mean(solved.us**2, axis=(1, 2)), label=f"u₀ = ±{start:g}"
    )
left.plot(
    c4["t"],
    0.5 * np.mean(c4["u"] ** 2, axis=(1, 2)),
    "kx",
    label="counterexample as saved",
)
left.set_yscale("log")
left.set_title(
    f"C4: v2 (9) with γ = {float(c4['gamma']):g} > λ = {float(c4['growth']):g}",
    fontsize=10,
)
left.legend(frameon=False, fontsize=8)

# %% C5: "averaging over tokens lowers the energy". With a row-stochastic K that is no average it may rise.
c5 = load("C5")
kernel, uniform = jnp.asarray(c5["kernel"]), jnp.full((2, 2), 0.5)
# Where the symmetric part of K − I grows fastest.
steepest = jnp.linalg.eigh((kernel + kernel.T) / 2)[1][:, -1:]
for k, label in ((kernel, "K of the counterexample"), (uniform, "uniform K")):
    field = pj.MasterEquation(interaction=Linear(k - jnp.eye(2)))
    solved = pj.simulate(
        pj.Discretization(field, "rk4", t1=2.0, steps=200), steepest, save="steps"
    )
    middle.plot(solved.ts, 0.5 * jnp.sum(solved.us**2, axis=(1, 2)), label=label)
middle.set_title("C5: leaky attention u′ = (K − I)u", fontsize=10)
middle.legend(frameon=False, fontsize=8)
for ax in (left, middle):
    ax.set_xlabel("depth t")
    ax.set_ylabel("energy ½‖u‖²")

# %% C14: "a cosine of 0.98 shows that attention agrees". So do rows that prefer opposite keys.
c14 = load("C14")
spreads = np.linspace(0, 3, 61)
rows = np.stack([np.exp(spreads), np.exp(-spreads)]) / (2 * np.cosh(spreads))
cosine = 2 * rows[0] * rows[1] / np.sum(rows**2, axis=0)
right.plot(2 * spreads, cosine, label="rows with opposite logits ±s")
right.plot(
    float(np.ptp(c14["logits"][0])),
    c14["cosine"],
    "kx",
    label="counterexample as saved",
)
right.axhline(0.98, linestyle="--", color="0.45", label="the papers' 0.98")
right.set_xlabel("difference of the two logits")
right.set_ylabel("cosine of the rows")
right.set_title("C14: cosine of attention rows", fontsize=10)
right.legend(frameon=False, fontsize=8)

# %% Energies that rise, and a cosine that says little:
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "claims.png", dpi=150)
