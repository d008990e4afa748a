"""The command `stiff`."""

from pdejax.studies._command import study_command
from pdejax.studies.numerics._stiff_config import StiffConfig

COMMAND = study_command(
    "pdejax.studies.numerics._stiff:STIFF",
    StiffConfig,
    description="Field evaluations, time and memory to a given error; see pdejax.studies.StiffConfig.",
    examples="""examples:
  pdejax stiff --out out                            T = 0.05: minutes on two cores; goes on after a stop
  pdejax stiff --full --out out                     T = 0.25 with every explicit solve run whole: about an hour
  pdejax stiff --diffusivities 0.01 0.1 --solvers tsit5 rkc2 etdrk4
""",
)
