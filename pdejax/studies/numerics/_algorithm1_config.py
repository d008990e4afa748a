"""What the Algorithm 1 study runs."""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Literal, get_args

from pdejax.training._bottleneck import Signs

Estimator = Literal["paper", "club", "infonce", "barber-agakov"]
Start = Literal["all", "first"]
PATCHES = {4: 4, 16: 2, 64: 1}


@dataclasses.dataclass(frozen=True)
class Algorithm1Config:
    r"""Algorithm 1 of v1 on handwritten digits, one run for each reading of the signs, all from the same parameters.

    The field, v1 (4) and (20):

    - `layers` L, `tokens` N (4, 16 or 64 patches of an image, on a Neumann grid of Δx = 1/N), `dim` d, `heads`, `ffn`;
      `diffusivity` D and `strength` α, the same in every layer and not trained; `exchange`: scale of the initial W of C.
    - `time_steps` T of explicit Euler with step `dt` Δt. `start`: v1 gives one initial state u₀(x) and no layer: every layer
      starts there (`"all"`), or the first does and the others at 0 (`"first"`). The classes are read off layer L.

    The flow of the parameters, v1 (14), (3), line 33:

    - `learning_rate` η, `weight_decay` λ, `beta` β, `signs`: which to run. `warmup` steps with λ = β = 0 come first (Algorithm
      1 has none; 0 leaves them out), then `training_steps` each, of `batch` images; a run with λ = β = 0 goes along.
    - `estimator` of Ĩ (v1 (16): `"paper"`), x a projection of the image to `x_dim` numbers, T the mean token of layer L with
      Gaussian `noise` σ, `updates` of the estimator per step.
    - `bounds`: fit InfoNCE and CLUB afresh at the start and the ends, to bracket I from both sides.
    - `refine`: measure the orders in Δt and Δx. `out`: folder for data and the plot.

    Raises `ValueError` for values that cannot be run.
    """

    layers: int = 3
    tokens: int = 16
    dim: int = 16
    heads: int = 2
    ffn: int = 32
    diffusivity: float = 2e-3
    strength: float = 0.5
    exchange: float = 0.3
    time_steps: int = 4
    dt: float = 0.25
    start: str = "all"
    learning_rate: float = 0.3
    weight_decay: float = 3e-3
    beta: float = 0.04
    signs: Sequence[str] = get_args(Signs)
    warmup: int = 150
    training_steps: int = 60
    batch: int = 64
    estimator: str = "paper"
    x_dim: int = 16
    noise: float = 0.5
    updates: int = 4
    bounds: bool = True
    refine: bool = True
    seed: int = 0
    out: str | None = None

    def __post_init__(self):
        least = {"warmup": 0, "seed": 0, "batch": 2}
        for name in (
            "layers",
            "dim",
            "heads",
            "ffn",
            "time_steps",
            "warmup",
            "training_steps",
            "batch",
            "x_dim",
            "updates",
            "seed",
        ):
            value, bound = getattr(self, name), least.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < bound:
                raise ValueError(f"{name}={value!r} must be an integer of at least {bound}.")
        if self.tokens not in PATCHES:
            raise ValueError(f"tokens={self.tokens!r} must be one of {tuple(PATCHES)}: patches of an 8 by 8 image.")
        if self.dim % self.heads:
            raise ValueError(f"heads={self.heads} must divide dim={self.dim}.")
        for name in ("diffusivity", "strength", "exchange", "learning_rate", "weight_decay", "beta"):
            _real(name, getattr(self, name), positive=False)
        for name in ("dt", "noise"):
            _real(name, getattr(self, name), positive=True)
        for name, kind in (("estimator", Estimator), ("start", Start)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {get_args(kind)}.")
        unknown = [name for name in self.signs if name not in get_args(Signs)]
        if isinstance(self.signs, str) or unknown or not self.signs or len(set(self.signs)) < len(self.signs):
            raise ValueError(f"signs={self.signs!r} must hold one or more of {get_args(Signs)}, each once.")


def _real(name: str, value, positive: bool) -> None:
    sound = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not sound or value < 0 or (positive and value == 0):
        raise ValueError(f"{name}={value!r} must be a finite number {'above' if positive else 'of at least'} 0.")
