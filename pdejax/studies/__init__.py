"""Studies: one question each, from a configuration to numbers, figures and a verdict."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach

if TYPE_CHECKING:
    from pdejax.studies._sweep import study_sweep as study_sweep
    from pdejax.studies.numerics._algorithm1 import algorithm1 as algorithm1
    from pdejax.studies.numerics._algorithm1_config import Algorithm1Config as Algorithm1Config
    from pdejax.studies.numerics._analyze import analyze as analyze
    from pdejax.studies.numerics._analyze_config import AnalyzeConfig as AnalyzeConfig
    from pdejax.studies.numerics._convergence import convergence as convergence
    from pdejax.studies.numerics._convergence_config import ConvergenceConfig as ConvergenceConfig
    from pdejax.studies.numerics._stability import stability as stability
    from pdejax.studies.numerics._stability_config import StabilityConfig as StabilityConfig
    from pdejax.studies.numerics._stiff import stiff as stiff
    from pdejax.studies.numerics._stiff_config import StiffConfig as StiffConfig
    from pdejax.studies.numerics._verify import verify as verify
    from pdejax.studies.numerics._verify_config import VerifyConfig as VerifyConfig
    from pdejax.studies.phases._config import PhasesConfig as PhasesConfig
    from pdejax.studies.phases._phases import phase_diagram as phase_diagram
    from pdejax.studies.study import Judgement as Judgement
    from pdejax.studies.study import Study as Study
    from pdejax.studies.study import run as run
else:
    __getattr__, __dir__ = attach(__name__)
