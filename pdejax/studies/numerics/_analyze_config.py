"""The command `analyze` and its configuration. Imports no JAX, so that help comes at once."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

from pdejax import _check as check
from pdejax._arguments import names_checked
from pdejax.runs._command import setting
from pdejax.studies._command import study_command
from pdejax.training._names import DatasetName

_OWNER = "analyze"


@names_checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """Configure the analyses of a trained model.

    - `model`: a folder that `pdejax train` left, or a file of `pdejax.save_model`; `against`: another one for the same data, of
      as many layers and features, whose states and attention are compared with this one's.
    - `dataset`, with its options in `data` (see [`load`][pdejax.data.load]): by default what the model was trained on, which a
      file may not say.
    - `examples`: held-out sequences. `noise` σ of the information estimates, relative to each layer's spread over sequences.
    - `seed`: of shuffles, draws and intervals. `out`: folder for results and plots, or None.

    Raises `ValueError`/`TypeError` for numbers out of range.
    """

    model: str = setting(help="folder of a training run, or a saved model's file", metavar="PATH", positional=True)
    against: str | None = setting(None, "another one for the same data", metavar="PATH")
    dataset: DatasetName | None = setting(None, "by default what the model was trained on")
    data: Mapping[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata={"help": "options of pdejax.data.load, such as manual_dir=DIR for files that you have"},
    )
    examples: int = setting(64, "held-out sequences", metavar="N")
    noise: float | int = setting(0.7, "σ of the information estimates, of a layer's spread", metavar="S")
    seed: int = setting(0, "of shuffles, draws and intervals", metavar="S")
    out: str | None = setting(None, "folder for results and plots", metavar="DIR")

    def __post_init__(self):
        if self.dataset is not None:
            check.choice(_OWNER, "dataset", self.dataset, get_args(DatasetName))
        if not isinstance(self.data, Mapping):
            raise TypeError(f"{_OWNER}: data={self.data!r} must map names to values.")
        check.integer(_OWNER, "examples", self.examples, 2)
        check.integer(_OWNER, "seed", self.seed, 0)
        check.number(_OWNER, "noise", self.noise, above=0, advice="it is a standard deviation")


COMMAND = study_command(
    "pdejax.studies.numerics._analyze:ANALYZE",
    AnalyzeConfig,
    description="How far a trained model is from its continuum limit, what a finer step changes, its largest stable steps and\n"
    "Lyapunov exponents, and which layers can be left out; then correlations, attention, spectra, information, statistics,\n"
    "clusters, gradients and perturbations, layer by layer, each beside a null model; with --against, of two models together.",
    examples="""examples:
  pdejax train digits --out out/digits
  pdejax analyze out/digits --out out/digits-analysis
  pdejax analyze out/digits/model.npz                          a model in one file
  pdejax train digits --seed 1 --out out/other
  pdejax analyze out/digits --against out/other
""",
)
