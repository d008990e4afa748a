"""Loops u ← G(u): what each input's states do, with certified residuals; spectra, exponents, exits, the safe range."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach as _attach

if TYPE_CHECKING:
    from pdejax.analysis.loops._estimates import cheap_radii as cheap_radii
    from pdejax.analysis.loops._estimates import predict_change as predict_change
    from pdejax.analysis.loops._estimates import sublayer_gains as sublayer_gains
    from pdejax.analysis.loops._exits import exit_rules as exit_rules
    from pdejax.analysis.loops._exits import exit_scores as exit_scores
    from pdejax.analysis.loops._exits import safe_range as safe_range
    from pdejax.analysis.loops._kinds import classify_loop as classify_loop
    from pdejax.analysis.loops._loop import Loop as Loop
    from pdejax.analysis.loops._loop import loop_of as loop_of
    from pdejax.analysis.loops._points import fixed_point as fixed_point
    from pdejax.analysis.loops._points import loop_eigenvalues as loop_eigenvalues
    from pdejax.analysis.loops._points import loop_exponents as loop_exponents
else:
    __getattr__, __dir__ = _attach(__name__)
