"""The command `stability`."""

from pdejax.studies._command import study_command
from pdejax.studies.numerics._stability_config import StabilityConfig

COMMAND = study_command(
    "pdejax.studies.numerics._stability:STABILITY",
    StabilityConfig,
    description="Largest stable steps predicted and measured, and maps of stability against v1 (21) and the corrected bound.",
    examples="""examples:
  pdejax stability --out out                                           data and maps too; goes on after a stop
  pdejax stability --families diffusion "softmax attention" --resolution 60
  pdejax stability --solvers euler rk4 --families                      largest steps only

exit status: 0 done, 1 a verdict is NOT as it should be or a bound is VIOLATED, 2 bad input
""",
)
