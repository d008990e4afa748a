"""Whether solvers that are parallel in depth pay, before they run, and how far their gradients can be trusted."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach as _attach

if TYPE_CHECKING:
    from pdejax.analysis.parallel._bias import GradientBias as GradientBias
    from pdejax.analysis.parallel._bias import gradient_bias as gradient_bias
    from pdejax.analysis.parallel._predict import ParallelPrediction as ParallelPrediction
    from pdejax.analysis.parallel._predict import predict_iterations as predict_iterations
else:
    __getattr__, __dir__ = _attach(__name__)
