"""The command `convergence`."""

from pdejax.studies._command import study_command
from pdejax.studies.numerics._convergence_config import ConvergenceConfig

COMMAND = study_command(
    "pdejax.studies.numerics._convergence:CONVERGENCE",
    ConvergenceConfig,
    description="Errors, orders and bounds of each scheme as the step is refined, on real input; see\n"
    "pdejax.studies.ConvergenceConfig.",
    examples="""examples:
  pdejax convergence --out out                              data and plots too; goes on after a stop
  pdejax convergence --steps 4 8 16 --solvers euler rk4
  pdejax convergence --dataset digits --dt 0.5 0.25 0.125
  pdejax convergence --weights checkpoint --checkpoint net.npz

exit status: 0 done, 1 a verdict is NOT as it should be or a bound is VIOLATED, 2 bad input
""",
)
