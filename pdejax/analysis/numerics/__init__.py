"""The continuum limit measured: errors, orders, and a-priori bounds of a scheme as its step is refined."""

from typing import TYPE_CHECKING

from pdejax._lazy import attach as _attach

if TYPE_CHECKING:
    from pdejax.analysis.numerics._bounds import ContinuumBounds as ContinuumBounds
    from pdejax.analysis.numerics._bounds import FieldConstants as FieldConstants
    from pdejax.analysis.numerics._bounds import continuum_bounds as continuum_bounds
    from pdejax.analysis.numerics._bounds import field_constants as field_constants
    from pdejax.analysis.numerics._convergence import Convergence as Convergence
    from pdejax.analysis.numerics._convergence import Reference as Reference
    from pdejax.analysis.numerics._convergence import SchemeConvergence as SchemeConvergence
    from pdejax.analysis.numerics._convergence import convergence as convergence
    from pdejax.analysis.numerics._convergence import error_floor as error_floor
    from pdejax.analysis.numerics._convergence import expected_order as expected_order
    from pdejax.analysis.numerics._convergence import measure_constants as measure_constants
    from pdejax.analysis.numerics._convergence import measure_scheme as measure_scheme
    from pdejax.analysis.numerics._convergence import solve_reference as solve_reference
    from pdejax.analysis.numerics._fit import OrderFit as OrderFit
    from pdejax.analysis.numerics._fit import fit_order as fit_order
    from pdejax.analysis.numerics._fit import fit_power as fit_power
    from pdejax.analysis.numerics._norms import mesh_norm as mesh_norm
    from pdejax.analysis.numerics._norms import token_max_norm as token_max_norm
else:
    __getattr__, __dir__ = _attach(__name__)
