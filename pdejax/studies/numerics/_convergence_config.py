"""The command `convergence` and its configuration. Imports no JAX, so that help comes at once."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pdejax import _check as check
from pdejax._activation import Activation
from pdejax._arguments import names_checked
from pdejax.runs._command import setting
from pdejax.studies._command import study_command

Dataset = Literal["listops", "digits", "mnist", "newsgroups"]
Weights = Literal["smooth", "iid", "checkpoint"]
Norm = Literal["pre", "peri", "post", "none"]
NormType = Literal["layernorm", "rmsnorm"]

MODES = 6  # Fourier-cosine coefficients that are compared between meshes
_OWNER = "ConvergenceConfig"


@names_checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvergenceConfig:
    """Configure the convergence study.

    - `dataset`, `length`: the real input, number `seed` of a data set: one ListOps expression of exactly `length` tokens, a
      `digits` image of 64 pixels, an MNIST image in 49 patches, the first `length` words of a post of 20 Newsgroups. None:
      ListOps, or for a trained run what it was trained on. `data`: options of [`load`][pdejax.data.load].
    - `file`: input of your own instead: a text, of which the first `length` words are taken, or an `.npy` array of token ids
      `(n,)` or of values `(n, features)`.
    - `dim`, `heads`, `ffn` (None: 4·dim), `norm`, `norm_type`, `activation`: the Transformer whose weights and embedding are
      used, drawn from `seed`. With `norm="post"` the limit is the flow of the projected field Dρ(u)f(u) on normalized
      states, which the network's steps u ← ρ(u + hf(u)) tend to at order 1; schemes are measured on that field.
    - `weights`: `"smooth"`, θ(t) smooth in depth around the first layer (v2 Thm 3.2 applies); `"iid"`, the Transformer's own
      independent `layers`, refined layer by layer at residual scale 1/layers; `"checkpoint"`, a saved Transformer: `checkpoint`
      is a folder that `pdejax train` left, or a file of `pdejax.save_model`.
    - `layers`: layers of the network; with smooth weights the network is one Euler step per layer.
    - `depth`: T (None: 2 for smooth weights, 1 for iid, the number of layers for a checkpoint).
    - `steps` or `dt`: the sweep (None: 4·2^k for smooth weights, layers·2^k else). Each dt must divide the depth.
    - `solvers`: names from `pdejax.solvers.SOLVERS`. `tolerance` of the reference.
    - `spatial`: numbers of tokens for the spatial order q of v1 (24), with `diffusivity` D; empty to leave it out.
    - `regimes`: numbers of layers for the regime measurement, with `draws` networks each; empty to leave it out.
    - `out`: folder for results, or None.

    Raises `ValueError`/`TypeError` naming the argument.
    """

    dataset: Dataset | None = setting(None, "the real input (default listops, or that of a trained run)")
    data: Mapping[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata={"help": "options of pdejax.data.load, such as manual_dir=DIR for files that you have"},
    )
    file: str | None = setting(None, "input of your own: a text, or an .npy array of ids or values", metavar="FILE")
    length: int = setting(48, "tokens of a ListOps expression; of a text at most", metavar="N")
    dim: int = setting(32, "features", metavar="D")
    layers: int = setting(6, "layers of the network", metavar="L")
    heads: int = setting(4, "attention heads", metavar="H")
    ffn: int | None = setting(None, "hidden width (default 4·dim)", metavar="F")
    norm: Norm = setting("pre", "where the layers normalize")
    norm_type: NormType = setting("layernorm", "how")
    activation: Activation = setting("gelu", "of the feed-forward part")
    weights: Weights = setting(
        "smooth", "smooth in depth, the network's own independent layers, or those of a checkpoint"
    )
    checkpoint: str | None = setting(
        None, "with --weights checkpoint: the folder of a training run, or a saved model's file", metavar="PATH"
    )
    seed: int = setting(0, "of weights and input", metavar="S")
    depth: float | int | None = setting(
        None, "T (default 2 for smooth weights, 1 for iid, the layers of a checkpoint)", metavar="T"
    )
    steps: Sequence[int] | None = setting(None, "step counts (default 4·2^k, or layers·2^k)", metavar="N")
    dt: Sequence[float | int] | None = setting(None, "step sizes, instead of --steps", metavar="H")
    solvers: Sequence[str] = setting(("euler", "lietrotter", "heun", "strang", "rk4"), "schemes", metavar="NAME")
    tolerance: float | int = setting(1e-13, "of the reference solution", metavar="TOL")
    spatial: Sequence[int] = setting((16, 32, 64, 128), "tokens for the spatial order; none leaves it out", metavar="N")
    diffusivity: float | int = setting(0.02, "D of the spatial order", metavar="D")
    regimes: Sequence[int] = setting((8, 32, 128), "layers of the regimes; none leaves them out", metavar="L")
    draws: int = setting(64, "networks in each regime", metavar="K")
    out: str | None = setting(None, "folder for data and plots; resumes from it", metavar="DIR")

    def __post_init__(self):
        from pdejax.solvers import SOLVERS

        names = {"norm": Norm, "norm_type": NormType, "weights": Weights, "activation": Activation}
        for name, allowed in (names | ({} if self.dataset is None else {"dataset": Dataset})).items():
            check.choice(_OWNER, name, getattr(self, name), get_args(allowed))
        if not isinstance(self.data, Mapping):
            raise TypeError(f"{_OWNER}: data={self.data!r} must map names to values.")
        object.__setattr__(self, "data", dict(self.data))
        for name in ("file", "checkpoint"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{_OWNER}: {name}={value!r} must be a path as text.")
        if self.file is not None and (self.dataset is not None or self.data):
            raise ValueError(f"{_OWNER}: file={self.file!r} is the input; leave out dataset and data.")
        for name, least in (("length", 1), ("dim", 1), ("layers", 1), ("heads", 1), ("draws", 2), ("seed", 0)):
            check.integer(_OWNER, name, getattr(self, name), least)
        if self.ffn is not None:
            check.integer(_OWNER, "ffn", self.ffn)
        if self.dim % self.heads:
            raise ValueError(f"{_OWNER}: heads={self.heads} must divide dim={self.dim}.")
        if self.depth is not None:
            check.number(_OWNER, "depth", self.depth, above=0)
        check.number(_OWNER, "tolerance", self.tolerance, least=1e-14, most=1e-3, advice="float64 resolves 1e-14")
        check.number(_OWNER, "diffusivity", self.diffusivity, least=0)
        if self.steps is not None and self.dt is not None:
            raise ValueError(f"{_OWNER}: give steps or dt, not both.")
        if (self.weights == "checkpoint") != (self.checkpoint is not None):
            raise ValueError(
                f"{_OWNER}: weights='checkpoint' and checkpoint=PATH belong together; give both or neither."
            )
        for name in ("solvers", "steps", "dt", "spatial", "regimes"):
            values = getattr(self, name)
            if not isinstance(values, tuple | list | None):
                raise TypeError(f"{_OWNER}: {name}={values!r} must be a tuple, such as ({values!r},).")
        if not self.solvers:
            raise ValueError(f"{_OWNER}: solvers is empty; name at least one.")
        for name in self.solvers:
            check.choice(_OWNER, "solvers", name, SOLVERS)
        for name in ("steps", "spatial", "regimes"):
            for value in getattr(self, name) or ():
                check.integer(_OWNER, name, value)
        for value in self.dt or ():
            check.number(_OWNER, "dt", value, above=0)
        if self.spatial:
            check_tokens(self.spatial)
        if self.regimes and len(set(self.regimes)) < 2:
            raise ValueError(f"{_OWNER}: regimes={self.regimes} must hold at least two numbers of layers, or none.")
        if self.weights != "checkpoint" and self.file is None and self.dataset is None:
            object.__setattr__(self, "dataset", "listops")
        if self.weights != "checkpoint":  # whose layers are known when it has been read
            self.step_counts(self.own_depth(), 1 if self.weights == "smooth" else self.layers)

    def own_depth(self) -> float:
        """Return T: 2 for smooth weights and 1 for i.i.d. ones unless `depth` says otherwise."""
        return float(self.depth) if self.depth is not None else 2.0 if self.weights == "smooth" else 1.0

    def step_counts(self, t1: float, layers: int) -> tuple[int, ...]:
        """Return the sweep in numbers of steps; `layers` is 1 unless weights are piecewise constant."""
        if self.dt is not None:
            counts = []
            for h in self.dt:
                n = round(t1 / h)
                if n < 1 or abs(n * h - t1) > 1e-9 * t1:
                    raise ValueError(f"{_OWNER}: dt={h} does not divide the depth T={t1}; try dt={t1 / max(n, 1):g}.")
                counts.append(n)
        else:
            # Piecewise-constant weights start from one step per layer, the network itself.
            first = 4 if layers == 1 else layers
            counts = self.steps if self.steps is not None else tuple(first * 2**k for k in range(7))
        wrong = [n for n in counts if n % layers]
        if wrong:
            raise ValueError(
                f"{_OWNER}: steps={wrong} are not multiples of the {layers} layers, which are integrated one by one."
            )
        if len(set(counts)) < 2:
            raise ValueError(
                f"{_OWNER}: steps={tuple(counts)} must hold at least two different step counts to show an order."
            )
        return tuple(sorted(set(counts)))


def check_tokens(tokens: Sequence[int]) -> None:
    """Raise `ValueError` unless these numbers of tokens can show a spatial order."""
    if len(tokens) < 3 or any(b != 2 * a for a, b in itertools.pairwise(tokens)):
        raise ValueError(
            f"{_OWNER}: spatial={tuple(tokens)} must double from one entry to the next, at least three entries."
        )
    if tokens[0] < MODES:
        raise ValueError(
            f"{_OWNER}: spatial={tuple(tokens)} must start with at least {MODES} tokens, to hold as many cosine modes."
        )


COMMAND = study_command(
    "pdejax.studies.numerics._convergence:CONVERGENCE",
    ConvergenceConfig,
    description="Errors, orders and bounds of each scheme as the step is refined, on real input; see\n"
    "pdejax.studies.ConvergenceConfig.",
    examples="""examples:
  pdejax convergence --out out                              data and plots too; goes on after a stop
  pdejax convergence --steps 4 8 16 --solvers euler rk4
  pdejax convergence --dataset digits --dt 0.5 0.25 0.125
  pdejax convergence --file text.txt --norm post            your own input, the flow of post-LN blocks
  pdejax train digits --out out/digits
  pdejax convergence --weights checkpoint --checkpoint out/digits    a trained run, or a saved model's file

exit status: 0 done, 1 a verdict is NOT as it should be or a bound is VIOLATED, 2 bad input
""",
)
