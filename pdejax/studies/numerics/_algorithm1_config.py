"""The command `algorithm1` and its configuration. Imports no JAX, so that help comes at once."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

from pdejax import _check as check
from pdejax._arguments import names_checked
from pdejax.runs._command import setting
from pdejax.studies._command import study_command
from pdejax.training._names import Signs

Estimator = Literal["paper", "club", "infonce", "barber-agakov"]
Start = Literal["all", "first"]
PATCHES = {4: 4, 16: 2, 64: 1}
_OWNER = "Algorithm1Config"


@names_checked
@dataclasses.dataclass(frozen=True)
class Algorithm1Config:
    r"""Configure Algorithm 1 of v1 on handwritten digits, one run for each reading of the signs, all from the same parameters.

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

    layers: int = setting(3, "L", metavar="L")
    tokens: Literal[4, 16, 64] = setting(16, "N, patches of an image")
    dim: int = setting(16, "d", metavar="D")
    heads: int = setting(2, "attention heads", metavar="H")
    ffn: int = setting(32, "hidden width", metavar="F")
    diffusivity: float | int = setting(2e-3, "D", metavar="D")
    strength: float | int = setting(0.5, "α", metavar="A")
    exchange: float | int = setting(0.3, "scale of the exchange's initial weights", metavar="X")
    time_steps: int = setting(4, "T", metavar="T")
    dt: float | int = setting(0.25, "Δt", metavar="H")
    start: Start = setting("all", "layers that start at u0")
    learning_rate: float | int = setting(0.3, "η", metavar="X")
    weight_decay: float | int = setting(3e-3, "λ", metavar="X")
    beta: float | int = setting(0.04, "β", metavar="X")
    signs: Sequence[Signs] = setting(get_args(Signs), "readings of the signs to run")
    warmup: int = setting(150, "steps with λ = β = 0 before the runs", metavar="N")
    training_steps: int = setting(60, "steps of each run", metavar="N")
    batch: int = setting(64, "images per step", metavar="N")
    estimator: Estimator = setting("paper", "of Ĩ")
    x_dim: int = setting(16, "numbers an image is projected to for Ĩ", metavar="N")
    noise: float | int = setting(0.5, "σ on the representation", metavar="X")
    updates: int = setting(4, "estimator's updates per step", metavar="N")
    bounds: bool = setting(True, "no InfoNCE and CLUB at the ends")
    refine: bool = setting(True, "no orders in Δt and Δx")
    seed: int = setting(0, "of everything drawn", metavar="S")
    out: str | None = setting(None, "folder for data and the plot; resumes from it", metavar="DIR")

    def __post_init__(self):
        ones = ("layers", "dim", "heads", "ffn", "time_steps", "training_steps", "x_dim", "updates")
        for name, least in (*((name, 1) for name in ones), ("warmup", 0), ("seed", 0), ("batch", 2)):
            check.integer(_OWNER, name, getattr(self, name), least)
        check.choice(_OWNER, "tokens", self.tokens, PATCHES, "they are patches of an 8 by 8 image")
        if self.dim % self.heads:
            raise ValueError(f"{_OWNER}: heads={self.heads} must divide dim={self.dim}.")
        for name in ("diffusivity", "strength", "exchange", "learning_rate", "weight_decay", "beta"):
            check.number(_OWNER, name, getattr(self, name), least=0)
        for name in ("dt", "noise"):
            check.number(_OWNER, name, getattr(self, name), above=0)
        for name, kind in (("estimator", Estimator), ("start", Start)):
            check.choice(_OWNER, name, getattr(self, name), get_args(kind))
        if isinstance(self.signs, str) or not self.signs or len(set(self.signs)) < len(self.signs):
            raise ValueError(f"{_OWNER}: signs={self.signs!r} must hold one or more of {get_args(Signs)}, each once.")
        for name in self.signs:
            check.choice(_OWNER, "signs", name, get_args(Signs))


COMMAND = study_command(
    "pdejax.studies.numerics._algorithm1:ALGORITHM1",
    Algorithm1Config,
    description="Algorithm 1 of v1 on handwritten digits: the coupled multi-layer system by explicit Euler, trained by the\n"
    "information-bottleneck flow under each of the signs that v1 prints; see pdejax.studies.Algorithm1Config.",
    examples="""examples:
  pdejax algorithm1 --out out
  pdejax algorithm1 --signs "v1 (14)" --estimator infonce --beta 0.1
  pdejax algorithm1 --layers 4 --dt 0.05 --no-refine --no-bounds

exit status: 0 done, 1 every run diverged, 2 bad input
""",
)
