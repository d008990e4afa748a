"""One table of the solvers by name, for scripts and the command line."""

import difflib
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffrax

from pdejax._arguments import checked
from pdejax.solvers._etdrk import ETDRK1, ETDRK2, ETDRK4
from pdejax.solvers._evaluations import evaluations
from pdejax.solvers._imex import ARK3, ARK4, ARS222
from pdejax.solvers._linear_flow import LinearFlow
from pdejax.solvers._linear_part import linear_part
from pdejax.solvers._rk4 import RK4
from pdejax.solvers._rkc import RKC2
from pdejax.solvers._rock2 import ROCK2
from pdejax.solvers._splitting import AbstractSplitting, LieTrotter, Strang
from pdejax.solvers._stability import real_stability_limit
from pdejax.solvers._written import one_line


@dataclass(frozen=True)
class SolverInfo:
    """A row of `SOLVERS`.

    - `name`: key in the table.
    - `make`: number of terms ↦ solver; solvers that take the field as a whole ignore the number.
    - `order`: order in h for smooth fields.
    - `adaptive`: whether it estimates its error, so that a PID controller can use it.
    - `evaluations`: field evaluations per step, first-same-as-last respected; for a splitting evaluations of
        single terms, with two terms. None for implicit solvers and where the stages are chosen in every step.
    - `real_limit`: stable for h|λ| up to this on the negative real axis; inf if A-stable, None for
        splittings.
    - `splitting`: whether it wants a `MultiTerm`.
    - `linear`: whether it takes the linear part (diffusion, damping, leaks) apart from the rest; `evaluations` and
        `real_limit` are of the rest then.
    - `note`: one line.
    """

    name: str
    make: Callable[[int], diffrax.AbstractSolver]
    order: int
    adaptive: bool
    evaluations: int | None
    real_limit: float | None
    splitting: bool
    linear: bool
    note: str

    __repr__ = one_line


def _info(name: str, make: Callable[[int], diffrax.AbstractSolver], order: int, note: str) -> SolverInfo:
    solver = make(2)
    two, one = evaluations(solver, 2), evaluations(solver, 1)
    return SolverInfo(
        name=name,
        make=make,
        order=order,
        adaptive=isinstance(solver, diffrax.AbstractAdaptiveSolver),
        evaluations=None if two is None or one is None else two - one,
        real_limit=real_stability_limit(solver),
        splitting=isinstance(solver, AbstractSplitting),
        linear=linear_part(solver) is not None,
        note=note,
    )


def _whole(cls: Callable[[], diffrax.AbstractSolver]) -> Callable[[int], diffrax.AbstractSolver]:
    return lambda terms: cls()


_ROWS = (
    _info("euler", _whole(diffrax.Euler), 1, "a parallel residual block is one step"),
    _info("heun", _whole(diffrax.Heun), 2, "explicit trapezoidal rule"),
    _info("midpoint", _whole(diffrax.Midpoint), 2, "explicit midpoint rule"),
    _info("bosh3", _whole(diffrax.Bosh3), 3, "Bogacki-Shampine 3(2)"),
    _info("rk4", _whole(RK4), 4, "classic Runge-Kutta, fixed steps only"),
    _info("tsit5", _whole(diffrax.Tsit5), 5, "Tsitouras 5(4), the default for adaptive steps"),
    _info("dopri5", _whole(diffrax.Dopri5), 5, "Dormand-Prince 5(4)"),
    _info("dopri8", _whole(diffrax.Dopri8), 8, "Dormand-Prince 8(7), for references at tight tolerances"),
    _info(
        "kvaerno5",
        _whole(diffrax.Kvaerno5),
        5,
        "implicit, A- and L-stable; dense Jacobian; fixed steps need a root finder with tolerances",
    ),
    _info(
        "lietrotter",
        lambda terms: LieTrotter((diffrax.Euler(),) * terms),
        1,
        "one Euler step per term in turn: a sequential block is one step",
    ),
    _info(
        "strang",
        lambda terms: Strang((diffrax.Midpoint(),) * terms),
        2,
        "palindrome of midpoint steps, the first term in the middle",
    ),
    _info(
        "macaron",
        lambda terms: Strang((diffrax.Euler(),) * terms),
        1,
        "palindrome of Euler steps: a Macaron block is one step",
    ),
    _info(
        "strangflow",
        lambda terms: Strang((diffrax.Midpoint(), LinearFlow())),
        2,
        "midpoint for the rest between two exact half steps of the linear part",
    ),
    _info("etdrk1", _whole(ETDRK1), 1, "exponential Euler: the linear part is exact"),
    _info("etdrk2", _whole(ETDRK2), 2, "exponential, order 2 at any boundary"),
    _info("etdrk4", _whole(ETDRK4), 4, "exponential (Krogstad); the linear part is exact"),
    _info(
        "etdrk4ho",
        lambda terms: ETDRK4(variant="hochbruck-ostermann"),
        4,
        "exponential (Hochbruck-Ostermann), keeps its order at Dirichlet walls",
    ),
    _info("ars222", _whole(ARS222), 2, "implicit-explicit (Ascher, Ruuth, Spiteri): the linear part is implicit"),
    _info("ark3", _whole(ARK3), 3, "implicit-explicit (Kennedy and Carpenter), L-stable for the linear part"),
    _info("ark4", _whole(ARK4), 4, "implicit-explicit (Kennedy and Carpenter); also for variable diffusion and masks"),
    _info("rkc2", _whole(RKC2), 2, "stabilized explicit (Chebyshev); stages chosen in every step, no structure needed"),
    _info("rock2", _whole(ROCK2), 2, "stabilized explicit (orthogonal polynomials), a longer interval than rkc2"),
)

SOLVERS: dict[str, SolverInfo] = {row.name: row for row in _ROWS}
"""Name ↦ [`SolverInfo`][pdejax.solvers.SolverInfo]."""


@checked
def get_solver(solver: Any, terms: Any = 1) -> diffrax.AbstractSolver:
    """A solver from its name in `SOLVERS`, or the solver itself.

    **Arguments:**

    - `solver`: a name, or a diffrax solver, which is returned unchanged.
    - `terms`: number of terms, at least 1; splittings get so many sub-solvers: `"lietrotter"` and `"macaron"`
        (Strang) of Euler, `"strang"` of Midpoint, because Strang is second order only with second-order
        sub-solvers.

    **Raises:** `ValueError` for an unknown name (the text lists the names), `TypeError` for a class or
    anything else.
    """
    if isinstance(terms, bool) or not isinstance(terms, numbers.Integral):
        raise TypeError(f"terms is the number of terms, an integer of at least 1; got {terms!r}.")
    if terms < 1:
        raise ValueError(f"terms is the number of terms and must be at least 1; got {terms}.")
    if isinstance(solver, diffrax.AbstractSolver):
        return solver
    if isinstance(solver, type) and issubclass(solver, diffrax.AbstractSolver):
        raise TypeError(f"solver is the class {solver.__name__}; call it to make a solver: {solver.__name__}().")
    if not isinstance(solver, str):
        raise TypeError(f"solver must be a name or a diffrax solver; got {solver!r} ({type(solver).__name__}).")
    if solver not in SOLVERS:
        close = difflib.get_close_matches(solver.lower(), SOLVERS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown solver {solver!r}.{hint} Known: {', '.join(SOLVERS)}; or pass a diffrax solver.")
    return SOLVERS[solver].make(int(terms))
