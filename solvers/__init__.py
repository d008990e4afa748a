"""Numerical analysis for pdejax: grids, operators that a fast transform diagonalizes, and time integrators
for diffrax.

Knows nothing of Transformers and imports nothing from the rest of pdejax.
"""

if __name__ != "pdejax.solvers":
    raise ImportError(
        f"this package is pdejax.solvers, but was imported as {__name__!r}. Use `import pdejax.solvers`; if "
        "Python finds the folder `solvers` first, start it elsewhere or install pdejax (pip install -e .)."
    )

from diffrax import Bosh3 as Bosh3
from diffrax import Dopri5 as Dopri5
from diffrax import Dopri8 as Dopri8
from diffrax import Euler as Euler
from diffrax import Heun as Heun
from diffrax import Kvaerno5 as Kvaerno5
from diffrax import Midpoint as Midpoint
from diffrax import Tsit5 as Tsit5

from pdejax.solvers import parallel as parallel
from pdejax.solvers._coupled import CoupledOperator as CoupledOperator
from pdejax.solvers._divergence import divergence as divergence
from pdejax.solvers._etdrk import ETDRK1 as ETDRK1
from pdejax.solvers._etdrk import ETDRK2 as ETDRK2
from pdejax.solvers._etdrk import ETDRK4 as ETDRK4
from pdejax.solvers._evaluations import evaluations as evaluations
from pdejax.solvers._grid import Grid as Grid
from pdejax.solvers._guard import BlowupGuard as BlowupGuard
from pdejax.solvers._guard import GuardState as GuardState
from pdejax.solvers._imex import ARK3 as ARK3
from pdejax.solvers._imex import ARK4 as ARK4
from pdejax.solvers._imex import ARS222 as ARS222
from pdejax.solvers._laplacian import Laplacian as Laplacian
from pdejax.solvers._linear_flow import LinearFlow as LinearFlow
from pdejax.solvers._linear_part import linear_part as linear_part
from pdejax.solvers._operator import AbstractLinearOperator as AbstractLinearOperator
from pdejax.solvers._operator import DiagonalizableOperator as DiagonalizableOperator
from pdejax.solvers._retract import Retract as Retract
from pdejax.solvers._rk4 import RK4 as RK4
from pdejax.solvers._rkc import RKC2 as RKC2
from pdejax.solvers._rock2 import ROCK2 as ROCK2
from pdejax.solvers._splitting import LieTrotter as LieTrotter
from pdejax.solvers._splitting import Strang as Strang
from pdejax.solvers._stability import real_stability_limit as real_stability_limit
from pdejax.solvers._stability import stability_function as stability_function
from pdejax.solvers._stabilized import StabilizedState as StabilizedState
from pdejax.solvers._table import SOLVERS as SOLVERS
from pdejax.solvers._table import SolverInfo as SolverInfo
from pdejax.solvers._table import get_solver as get_solver
from pdejax.solvers._tridiagonal import TridiagonalOperator as TridiagonalOperator
