"""The command `analyze`."""

from pdejax.studies._command import study_command
from pdejax.studies.numerics._analyze_config import AnalyzeConfig

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
