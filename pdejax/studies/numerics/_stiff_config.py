"""What the cost study of stiff fields measures, and its field."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pdejax._equation import MasterEquation
from pdejax.solvers import SOLVERS, Grid
from pdejax.terms import Attention, Diffusion, FeedForward

SCHEMES = ("tsit5", "rkc2", "rock2", "strangflow", "etdrk2", "etdrk4", "ark3", "ark4")


@dataclasses.dataclass(frozen=True)
class StiffConfig:
    r"""Cost to accuracy of $\partial_t u = A(u) + R(u) + D\nabla^2 u$ on a fine grid, attention and feed-forward on.

    - `tokens` N and `dim` d, `heads`, `ffn`: size of the field; float64, Neumann boundaries on a unit interval.
    - `diffusivities`: the D to measure. The spectral radius is 4DN².
    - `depth` T (None: 0.05, or 0.25 with `full`).
    - `target`: relative error to reach, in the mesh norm.
    - `solvers`: names of `pdejax.solvers.SOLVERS`. Explicit ones and stabilized ones run with adaptive steps, the others at
      doubling step counts.
    - `full`: run explicit solves whole, whatever they take; else one that would need over `explicit_steps` steps is measured
      over a shorter depth and extrapolated (and marked so).
    - `out`: folder for data, plots and resuming.

    Raises `ValueError` for sizes or values that cannot be measured.
    """

    tokens: int = 1000
    dim: int = 16
    heads: int = 2
    ffn: int = 32
    diffusivities: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1)
    depth: float | None = None
    target: float = 1e-6
    solvers: Sequence[str] = SCHEMES
    full: bool = False
    explicit_steps: int = 700
    seed: int = 0
    out: str | None = None

    def __post_init__(self):
        for name in ("tokens", "dim", "heads", "ffn", "explicit_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < (8 if name == "tokens" else 1):
                raise ValueError(f"{name}={value!r} must be an integer of at least {8 if name == 'tokens' else 1}.")
        if self.dim % self.heads:
            raise ValueError(f"heads={self.heads} must divide dim={self.dim}.")
        if not self.diffusivities or any(not (math.isfinite(d) and d > 0) for d in self.diffusivities):
            raise ValueError(f"diffusivities={tuple(self.diffusivities)} must be one or more positive numbers.")
        if self.depth is not None and not (math.isfinite(self.depth) and self.depth > 0):
            raise ValueError(f"depth={self.depth} must be positive and finite.")
        if not 1e-11 <= self.target <= 1e-2:
            raise ValueError(
                f"target={self.target} must lie between 1e-11, which the reference can resolve, and 1e-2; it is a relative error."
            )
        unknown = [name for name in self.solvers if name not in SOLVERS]
        if unknown or not self.solvers:
            raise ValueError(f"solvers={tuple(self.solvers)}: unknown {unknown}; known are {', '.join(SOLVERS)}.")
        unfit = [name for name in self.solvers if SOLVERS[name].splitting and not SOLVERS[name].linear]
        unfit += [name for name in self.solvers if name == "kvaerno5"]
        if unfit:
            raise ValueError(
                f"solvers: {', '.join(unfit)} cannot be measured here: a splitting of explicit parts is an explicit solver, and "
                "kvaerno5 factors the dense Jacobian."
            )

    @property
    def length(self) -> float:
        """T."""
        if self.depth is not None:
            return self.depth
        return 0.25 if self.full else 0.05


def build_field(config: StiffConfig) -> tuple[Any, Array]:
    """`make(D)`, the equation, and the initial field: ten cosines with amplitudes falling like 1/k, `(N, d)`."""
    ka, kr, ku = jax.random.split(jax.random.key(config.seed), 3)
    grid = Grid(config.tokens)
    attention = Attention(config.dim, config.heads, key=ka)
    reaction = FeedForward(config.dim, config.ffn, activation="gelu", key=kr)
    k = jnp.arange(1, 11)
    waves = jnp.cos(jnp.pi * k[None].astype(float) * grid.points[:, None])
    u0 = waves @ (jax.random.normal(ku, (10, config.dim)) / k[:, None].astype(float))

    def make(diffusivity: float) -> MasterEquation:
        return MasterEquation(interaction=attention, reaction=reaction, diffusion=Diffusion(grid, diffusivity))

    return make, u0
