"""Studies: one question each, from a configuration to numbers, figures and a verdict."""

from pdejax.studies._convergence import ConvergenceResult as ConvergenceResult
from pdejax.studies._convergence import convergence as convergence
from pdejax.studies._convergence_config import ConvergenceConfig as ConvergenceConfig
from pdejax.studies._records import ResultError as ResultError
from pdejax.studies._records import environment as environment
from pdejax.studies._verify import verify as verify
