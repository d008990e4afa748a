"""The command `algorithm1`."""

from pdejax.studies._command import study_command
from pdejax.studies.numerics._algorithm1_config import Algorithm1Config

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
