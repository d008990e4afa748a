"""Analyses of fields and trajectories: pure functions of arrays, discretizations and models.

All of them are in the packages by what they look at; the most used are here too.
"""

from typing import TYPE_CHECKING

from pdejax._lazy import attach as _attach

if TYPE_CHECKING:
    from pdejax.analysis import attention as attention
    from pdejax.analysis import depth as depth
    from pdejax.analysis import growth as growth
    from pdejax.analysis import information as information
    from pdejax.analysis import jacobian as jacobian
    from pdejax.analysis import limits as limits
    from pdejax.analysis import loops as loops
    from pdejax.analysis import numerics as numerics
    from pdejax.analysis import operators as operators
    from pdejax.analysis import parallel as parallel
    from pdejax.analysis import residual as residual
    from pdejax.analysis import similarity as similarity
    from pdejax.analysis import spectra as spectra
    from pdejax.analysis import stability as stability
    from pdejax.analysis import tokens as tokens
    from pdejax.analysis._states import shuffle_features as shuffle_features
    from pdejax.analysis._states import shuffle_tokens as shuffle_tokens
    from pdejax.analysis.attention._fidelity import attention_entropy as attention_entropy
    from pdejax.analysis.attention._fidelity import attention_fidelity as attention_fidelity
    from pdejax.analysis.information._depth import information_plane as information_plane
    from pdejax.analysis.information._measures import mutual_information as mutual_information
    from pdejax.analysis.jacobian._gradient_flow import gradient_flow as gradient_flow
    from pdejax.analysis.jacobian._lyapunov import lyapunov_exponents as lyapunov_exponents
    from pdejax.analysis.jacobian._operator import layer_jacobian as layer_jacobian
    from pdejax.analysis.jacobian._perturbation import perturbation_sensitivity as perturbation_sensitivity
    from pdejax.analysis.numerics._convergence import convergence as convergence
    from pdejax.analysis.numerics._fit import fit_order as fit_order
    from pdejax.analysis.numerics._norms import mesh_norm as mesh_norm
    from pdejax.analysis.residual._fidelity import residual_decay as residual_decay
    from pdejax.analysis.similarity._trajectory import layer_correlation as layer_correlation
    from pdejax.analysis.similarity._trajectory import trajectory_fidelity as trajectory_fidelity
    from pdejax.analysis.spectra._amplitude import amplitude_spectrum as amplitude_spectrum
    from pdejax.analysis.spectra._amplitude import spectral_similarity as spectral_similarity
    from pdejax.analysis.spectra._weights import attention_spectra as attention_spectra
    from pdejax.analysis.stability._limits import predict_dt_max as predict_dt_max
    from pdejax.analysis.stability._lipschitz import field_lipschitz as field_lipschitz
    from pdejax.analysis.tokens._clustering import token_clustering as token_clustering
    from pdejax.analysis.tokens._collapse import collapse_rate as collapse_rate
    from pdejax.analysis.tokens._representation import representation as representation
else:
    __getattr__, __dir__ = _attach(__name__)
