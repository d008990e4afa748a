"""The command `analyze` and its configuration. Imports no JAX, so that help comes at once."""

import dataclasses

from pdejax import _check as check
from pdejax.runs._command import setting
from pdejax.studies._command import study_command

_OWNER = "analyze"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """Configure the analyses of a trained model.

    - `folder`: what `pdejax train` left; `against`: another run on the same data, of as many layers and features, whose states
      and attention are compared with this one's.
    - `examples`: held-out sequences. `noise` σ of the information estimates, relative to each layer's spread over sequences.
    - `seed`: of shuffles, draws and intervals. `out`: folder for results and plots, or None.

    Raises `ValueError`/`TypeError` for numbers out of range.
    """

    folder: str = setting(help="folder of a training run", metavar="DIR", positional=True)
    against: str | None = setting(None, "another run on the same data", metavar="DIR")
    examples: int = setting(64, "held-out sequences", metavar="N")
    noise: float | int = setting(0.7, "σ of the information estimates, of a layer's spread", metavar="S")
    seed: int = setting(0, "of shuffles, draws and intervals", metavar="S")
    out: str | None = setting(None, "folder for results and plots", metavar="DIR")

    def __post_init__(self):
        check.integer(_OWNER, "examples", self.examples, 2)
        check.integer(_OWNER, "seed", self.seed, 0)
        check.number(_OWNER, "noise", self.noise, above=0, advice="it is a standard deviation")


COMMAND = study_command(
    "pdejax.studies.numerics._analyze:ANALYZE",
    AnalyzeConfig,
    description="Correlations, attention, spectra, information, statistics, clusters, gradients and perturbations of a model\n"
    "that `pdejax train` left in a folder, layer by layer, each beside a null model; with --against, of two runs together.",
    examples="""examples:
  pdejax train digits --out out/digits
  pdejax analyze out/digits --out out/digits-analysis
  pdejax analyze out/student --against out/teacher
""",
)
