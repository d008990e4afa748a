"""Tableaus of additive Runge–Kutta methods: one explicit, one diagonally implicit, with the same nodes."""

import math
from typing import Any, NamedTuple

import diffrax

Row = tuple[float, ...]


class AdditiveTableau(NamedTuple):
    """Y_i = y + h Σ_{j<i} (e_ij N_j + a_ij L Y_j) + h γ L Y_i with Y_1 = y, N_j = N(t + c_j h, Y_j), and

        y(t + h) ≈ Y_s + h Σ_j corrections_j N_j.

    The implicit method is stiffly accurate: its weights are its last row, so that the last stage contains its
    result and only the explicit one is corrected. `explicit_error` and `implicit_error` are the differences of the
    weights to those of the embedded method. Python floats, so that they take the precision of the field.
    """

    nodes: Row
    gamma: float
    explicit: tuple[Row, ...]
    implicit: tuple[Row, ...]
    corrections: Row
    explicit_error: Row
    implicit_error: Row

    def needed(self) -> tuple[bool, ...]:
        """For every stage, whether N_j is used."""
        count = len(self.nodes)
        return tuple(
            any(row[j] != 0.0 for row in self.explicit[j + 1 :])
            or self.corrections[j] != 0.0
            or self.explicit_error[j] != 0.0
            for j in range(count)
        )

    def evaluations(self) -> int:
        return sum(self.needed())


def _from_diffrax(tableau: Any) -> AdditiveTableau:
    explicit, implicit = tableau.tableaus
    weights = tuple(map(float, implicit.b_sol))
    error = tuple(map(float, implicit.b_error))
    rows = [tuple(map(float, row)) for row in explicit.a_lower]
    last = (*rows[-1], 0.0)
    return AdditiveTableau(
        nodes=(0.0, *map(float, explicit.c)),
        gamma=float(implicit.a_diagonal[-1]),
        explicit=((), *rows),
        implicit=((), *(tuple(map(float, row)) for row in implicit.a_lower)),
        corrections=tuple(b - e for b, e in zip(weights, last, strict=True)),
        explicit_error=error,
        implicit_error=error,
    )


def _ars222() -> AdditiveTableau:
    gamma = 1.0 - 0.5 * math.sqrt(2.0)
    delta = 1.0 - 0.5 / gamma
    return AdditiveTableau(
        nodes=(0.0, gamma, 1.0),
        gamma=gamma,
        explicit=((), (gamma,), (delta, 1.0 - delta)),
        implicit=((), (0.0,), (0.0, 1.0 - gamma)),
        corrections=(0.0, 0.0, 0.0),
        # Against the first-order method with all weight on the second stage.
        explicit_error=(delta, -delta, 0.0),
        implicit_error=(0.0, -gamma, gamma),
    )


ARK3_TABLEAU = _from_diffrax(diffrax.KenCarp3.tableau)
ARK4_TABLEAU = _from_diffrax(diffrax.KenCarp4.tableau)
ARS222_TABLEAU = _ars222()
