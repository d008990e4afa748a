"""Stability of a step: Lipschitz constants and spectra of a field, regions of solvers, step limits predicted and measured."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach as _attach

if TYPE_CHECKING:
    from pdejax.analysis.stability._corrected import StepConstants as StepConstants
    from pdejax.analysis.stability._corrected import corrected_step_bound as corrected_step_bound
    from pdejax.analysis.stability._corrected import one_sided_step_bound as one_sided_step_bound
    from pdejax.analysis.stability._corrected import step_constants as step_constants
    from pdejax.analysis.stability._corrected import v1_21 as v1_21
    from pdejax.analysis.stability._limits import StepMeasurement as StepMeasurement
    from pdejax.analysis.stability._limits import StepPrediction as StepPrediction
    from pdejax.analysis.stability._limits import measure_dt_max as measure_dt_max
    from pdejax.analysis.stability._limits import predict_dt_max as predict_dt_max
    from pdejax.analysis.stability._lipschitz import Certificate as Certificate
    from pdejax.analysis.stability._lipschitz import castin_bound as castin_bound
    from pdejax.analysis.stability._lipschitz import field_lipschitz as field_lipschitz
    from pdejax.analysis.stability._lipschitz_sampled import LipschitzEstimate as LipschitzEstimate
    from pdejax.analysis.stability._lipschitz_sampled import adversarial_lipschitz as adversarial_lipschitz
    from pdejax.analysis.stability._lipschitz_sampled import sampled_lipschitz as sampled_lipschitz
    from pdejax.analysis.stability._region import stability_factor as stability_factor
    from pdejax.analysis.stability._spectrum import SpectralBounds as SpectralBounds
    from pdejax.analysis.stability._spectrum import spectral_bounds as spectral_bounds
else:
    __getattr__, __dir__ = _attach(__name__)
