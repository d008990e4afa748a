"""Derivatives of a layer and of the whole flow: Jacobians, Lyapunov exponents, gradients and perturbations."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach as _attach

if TYPE_CHECKING:
    from pdejax.analysis.jacobian._gradient_flow import gradient_flow as gradient_flow
    from pdejax.analysis.jacobian._gradient_flow import stack_gradient_flows as stack_gradient_flows
    from pdejax.analysis.jacobian._lyapunov import ftle as ftle
    from pdejax.analysis.jacobian._lyapunov import lyapunov_exponents as lyapunov_exponents
    from pdejax.analysis.jacobian._lyapunov import lyapunov_of_maps as lyapunov_of_maps
    from pdejax.analysis.jacobian._operator import layer_jacobian as layer_jacobian
    from pdejax.analysis.jacobian._perturbation import perturbation_sensitivity as perturbation_sensitivity
    from pdejax.analysis.jacobian._systems import shuffle_weights as shuffle_weights
    from pdejax.analysis.jacobian._transports import jacobian_transports as jacobian_transports
else:
    __getattr__, __dir__ = _attach(__name__)
