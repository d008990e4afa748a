"""Write a term of your own.

python examples/10_own_term.py [--out DIR]

Hyper-diffusion, −κ ∂⁴u/∂x⁴: not in the library, and 25 lines here. Every solver and bound takes it.
"""

# %% A term says its value, its largest decay rate and which fields it fits. It may say its
# linear part, so that stiff solvers take it exactly, and its Lipschitz constant.
import argparse
import pathlib

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import pdejax as pj
from pdejax.solvers import DiagonalizableOperator, Laplacian


class HyperDiffusion(pj.terms.AbstractTerm):
    grid: pj.Grid
    kappa: float

    def operator(self):
        symbol = -self.kappa * Laplacian(self.grid).eigenvalues() ** 2
        return DiagonalizableOperator(self.grid, symbol=symbol)

    def __call__(self, t, u, args):
        return self.operator()(t, u, args)

    def damping(self):
        return self.operator().spectral_radius()

    def check(self, n, d):
        if n != self.grid.n:
            raise ValueError(f"HyperDiffusion: made for {self.grid.n} tokens, not {n}.")

    def linear(self, n, mask=None):
        return pj.terms.Linear(self.operator(), whole=True)

    def lipschitz(self, radius, n, norm="token_max", spread=0.0):
        return float(self.damping()) if norm == "frobenius" else None


# %% Use it beside attention, under a name of its own.
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
out = parser.parse_args().out

n = 64
grid = pj.Grid(n, boundary="periodic")
field = pj.MasterEquation(
    interaction=pj.Attention(dim=4, heads=2, leak=True, key=jax.random.key(0)),
    smoothing=HyperDiffusion(grid, 1e-6),
)
u0 = jax.random.normal(jax.random.key(1), (n, 4))
shares = field.contributions(0.0, u0)
print({name: f"{float(jnp.abs(share).max()):.3g}" for name, share in shares.items()})

# %% Exponential, implicit-explicit and stabilized solvers take it, and `auto` sees that it is stiff.
explicit = pj.Discretization(field, "rk4", t1=1.0, steps=1)
limit = pj.analysis.stability.predict_dt_max(explicit, u0).dt_max
print(f"largest stable step of RK4: {float(limit):.2e}")
exact = pj.Discretization(field, "etdrk4", t1=1.0, steps=256)
reference = pj.simulate(exact, u0).us[-1]
for solver in ("etdrk4", "ark4", "rkc2", "auto", "tsit5"):
    d = pj.Discretization(field, solver, t1=1.0, rtol=1e-6, atol=1e-6)
    end = pj.simulate(d, u0)
    error = float(jnp.abs(end.us[-1] - reference).max())
    print(f"{solver:<7}{int(end.stats.evaluations):>6} evaluations, error {error:.0e}")
print(pj.simulate(d.replace(solver="auto"), u0).choice)

# %% By itself it damps the wave cos 2πkx by e^{−κλ²t}. Compare with that.
alone = pj.Discretization(
    pj.MasterEquation(HyperDiffusion(grid, 1e-6)), "etdrk4", t1=1.0, steps=8
)
waves = np.arange(1, 17)
start = jnp.cos(2 * jnp.pi * waves * grid.points[:, None])
end = pj.simulate(alone, start).us[-1]
found = jnp.abs(end).max(axis=0)
wave_numbers = 4 * np.sin(np.pi * waves / n) ** 2 / grid.spacing**2
closed_form = np.exp(-1e-6 * wave_numbers**2)
print(
    f"largest difference from the closed form: {np.abs(found - closed_form).max():.0e}"
)

# %% Fine waves go first.
figure = Figure(figsize=(6, 3.6), layout="constrained")
axes = figure.add_subplot()
axes.semilogy(waves, closed_form, "-", label="closed form")
axes.semilogy(waves, found, "o", label="solved")
axes.set_xlabel("wave number k")
axes.set_ylabel("amplitude at depth 1")
axes.set_title("Hyper-diffusion: −κ ∂⁴u/∂x⁴")
axes.legend(frameon=False)
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "own_term.png", dpi=150)
