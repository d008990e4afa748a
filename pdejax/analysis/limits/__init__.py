"""Limits of many layers and many tokens: which limit depth has, closures, slow clustering, noise common to all tokens."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach as _attach

if TYPE_CHECKING:
    from pdejax.analysis.limits._closures import circle_closure as circle_closure
    from pdejax.analysis.limits._closures import closure_gap as closure_gap
    from pdejax.analysis.limits._closures import gaussian_closure as gaussian_closure
    from pdejax.analysis.limits._coordinate import DepthCheck as DepthCheck
    from pdejax.analysis.limits._coordinate import depth_check as depth_check
    from pdejax.analysis.limits._metastability import metastability as metastability
    from pdejax.analysis.limits._metastability import waiting_exponent as waiting_exponent
    from pdejax.analysis.limits._noise import CommonNoise as CommonNoise
    from pdejax.analysis.limits._noise import attention_means as attention_means
    from pdejax.analysis.limits._noise import network_ends as network_ends
    from pdejax.analysis.limits._noise import sde_ends as sde_ends
    from pdejax.analysis.limits._recipe import Recipe as Recipe
else:
    __getattr__, __dir__ = _attach(__name__)
