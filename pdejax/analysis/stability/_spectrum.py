"""Where the eigenvalues of a field's Jacobian lie, term by term: what a step size has to respect."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from pdejax._arguments import checked
from pdejax._check import finite, number, on_numbers, token_mask
from pdejax._equation import AbstractEquation, MasterEquation, as_field
from pdejax._figure import AbstractRecord
from pdejax._types import Mask
from pdejax.analysis.jacobian._krylov import Found
from pdejax.analysis.jacobian._operator import FieldAt, Jacobian
from pdejax.analysis.jacobian._systems import discretization_of, is_system
from pdejax.terms import FieldArgs

ANGLES = tuple(
    math.pi * k / 4 for k in range(5)
)  # the field of values of a real matrix is symmetric about the real axis


class SpectralBounds(AbstractRecord):
    r"""Bounds on a Jacobian J, all per unit depth.

    - `eigenvalues`: all of them (`complete`), else the extreme ones that were found, complex.
    - `rightmost`, `leftmost`: the eigenvalues of largest and smallest real part; `spectral_radius` $\max|\lambda|$.
    - `log_norm`, `lower_log_norm`: largest and smallest eigenvalue of $(J + J^\top)/2$: distances grow at most at the
      first rate and shrink at most at the second. `lipschitz`: $\|J\|_2$.
    - `field_of_values`: vertices of a polygon that contains $\{v^*Jv : \|v\| = 1\}$, from the largest eigenvalue of the
      Hermitian part of $e^{i\theta}J$ at eight angles θ (C. R. Johnson, DOI 10.1137/0715040). All eigenvalues lie in it;
      how far it reaches beyond them measures non-normality.
    - `method`: `"exact"` (closed form), `"dense"` (the matrix), `"iteration"` (ARPACK on products, residual 1e-3: every
      figure is then approached from inside).
    - `converged`: whether every iteration did; `note` says which did not. Figures that are not known are NaN.
    """

    eigenvalues: np.ndarray
    complete: bool
    rightmost: complex
    leftmost: complex
    spectral_radius: float
    log_norm: float
    lower_log_norm: float
    lipschitz: float
    field_of_values: np.ndarray
    method: str
    converged: bool = True
    note: str = ""


@checked
@on_numbers
def spectral_bounds(
    system: Any, u: ArrayLike, *, t: ArrayLike | None = None, mask: ArrayLike | None = None
) -> dict[str, SpectralBounds]:
    r"""Bound the spectra of every term's Jacobian at `(t, u)` by the term's name, and of the whole field as `"field"`.

    `system`: a field (a `MasterEquation` …, or any function f(t, u, args)), or a discretization or model, whose field it is.
    `t`: by default the discretization's t0, or 0. A term that is linear as a whole and diagonal in a known basis, such as
    diffusion without padding or linear damping, is exact: $\lambda_k\,\mu_j$ from the eigenvalues $\lambda_k$ of the grid's
    Laplacian and $\mu_j$ of the diffusivity, as in v1 (21). Every other Jacobian is formed when the field has at
    most 400 entries (n·d forward products, an O((n·d)³) eigenvalue problem) and else seen through its products alone, O(n·d)
    memory and a few thousand products (minutes for a thousand tokens). Give a float64 field for more than three digits.

    Where diffusion is very stiff the rightmost eigenvalue and the log-norm of the whole field lie in the crowd of slow modes
    and their iteration may not converge: the sum of the terms' log-norms is then an upper bound of both.

    With a `mask (n,)` they are those of the real tokens alone, as if the padded ones were not there.

    They hold at this point. A bound over a set of fields needs a certificate.

    Raises `TypeError`/`ValueError` for anything but a field and a finite real state that fits it.
    """
    point = checked_point("spectral_bounds", system, u, t, mask)
    found = {}
    for name in point.field.names():
        part = dataclasses.replace(point, field=point.field.only((name,)))
        exact = _exact(part, name)
        found[name] = _bounds(part.jacobian()) if exact is None else exact
    found["field"] = _bounds(point.jacobian())
    return found


@dataclasses.dataclass(frozen=True)
class Point:
    """A field, a depth, a state and a mask that fit together."""

    field: AbstractEquation
    t: Any
    u: Any
    args: FieldArgs | None

    @property
    def mask(self) -> Mask | None:
        """True at real tokens; None without padding."""
        return None if self.args is None else self.args.mask

    def jacobian(self, at: Any = None) -> Jacobian:
        """∂F/∂u of real tokens here, or `at` another state."""
        return Jacobian(FieldAt(self.field, self.t, self.args), self.u if at is None else at, self.mask)


def checked_point(owner: str, system: Any, u: Any, t: Any, mask: Any) -> Point:
    """A field and a state that fit; else an error, which names `owner`, before anything compiles."""
    state = jnp.asarray(u)
    if not jnp.issubdtype(state.dtype, jnp.floating):
        raise TypeError(f"{owner}: u has type {state.dtype}; it must be a real floating-point field.")
    if is_system(system):
        d = discretization_of(owner, system, state.shape[-2] if state.ndim > 1 else None)
        field, t = d.field, d.t0 if t is None else t
    else:
        field = as_field(owner, system)
    try:
        field.check(state.shape)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from None
    finite(owner, "u", state, "a linearization needs a finite field")
    number(owner, "t", 0.0 if t is None else t, advice="it is a depth")
    real = None if mask is None else token_mask(owner, mask, state.shape[-2])
    return Point(
        field, jnp.asarray(0.0 if t is None else t, state.dtype), state, None if real is None else FieldArgs(real)
    )


def log_norm(point: Point, name: str) -> Found:
    """Largest eigenvalue of (J + Jᵀ)/2 for a field of one term, in closed form where there is one."""
    exact = _exact(point, name)
    return point.jacobian().support(0.0) if exact is None else Found(np.array([exact.log_norm]), True)


def _exact(point: Point, name: str) -> SpectralBounds | None:
    """The bounds of a term whose eigenvalues are known, else None."""
    field, shape = point.field, point.u.shape
    if not isinstance(field, MasterEquation) or len(shape) != 2:
        return None
    modes = field[name].modes(shape[0], shape[1], point.mask)
    return None if modes is None else _exact_modes(modes[0], modes[1])


def _exact_modes(modes: np.ndarray, matrix: np.ndarray) -> SpectralBounds:
    """Bounds of a Jacobian that is `modes[k]`·`matrix` on the k-th of an orthonormal set of token modes."""
    values = np.multiply.outer(modes, np.linalg.eigvals(matrix)).ravel()
    ends = np.array([modes.min(), modes.max()])

    def support(angle):
        rotated = np.exp(1j * angle) * matrix
        inner = np.linalg.eigvalsh(0.5 * (rotated + rotated.conj().T))
        return float(np.multiply.outer(ends, inner).max())

    supports = np.array([support(angle) for angle in ANGLES])
    lipschitz = float(np.abs(modes).max() * np.linalg.norm(matrix, 2))
    return _assemble(values, True, supports, lipschitz, "exact", [])


def _bounds(jacobian: Jacobian) -> SpectralBounds:
    failed, values = [], []
    if jacobian.complete:
        values = [np.linalg.eigvals(jacobian.known())]
    else:
        for name, found in extreme_eigenvalues(jacobian).items():
            values.append(found.values)
            if not found.converged:
                failed.append(name)
    supports = []
    for angle in ANGLES:
        found = jacobian.support(angle)
        supports.append(float(found.values[0]) if found.converged else math.nan)
        if not found.converged:
            failed.append(f"field of values at {math.degrees(angle):.0f}°")
    norm = jacobian.norm()
    lipschitz = float(norm.values[0]) if norm.converged else math.nan
    if not norm.converged:
        failed.append("lipschitz")
    method = "dense" if jacobian.complete else "iteration"
    return _assemble(np.concatenate(values), jacobian.complete, np.asarray(supports), lipschitz, method, failed)


def extreme_eigenvalues(jacobian: Jacobian, rightmost: bool = True) -> dict[str, Found]:
    """ARPACK's eigenvalues in three or four directions, by name; `converged` says which can be relied on.

    Where diffusion is stiff the rightmost ones lie in the crowd next to 0 and may not converge.
    """
    directions = {"largest modulus": "LM", "leftmost": "SR", "imaginary": "LI"}
    if rightmost:
        directions["rightmost"] = "LR"
    return {name: jacobian.extreme(which) for name, which in directions.items()}


def _assemble(
    values: np.ndarray, complete: bool, supports: np.ndarray, lipschitz: float, method: str, failed: list[str]
) -> SpectralBounds:
    values = np.asarray(values, complex)
    known = values.size > 0
    rightmost = (
        complex(values[np.argmax(np.real(values))]) if known and "rightmost" not in failed else complex(math.nan)
    )
    leftmost = complex(values[np.argmin(np.real(values))]) if known and "leftmost" not in failed else complex(math.nan)
    radius = float(np.abs(values).max()) if known and "largest modulus" not in failed else math.nan
    return SpectralBounds(
        eigenvalues=values,
        complete=complete,
        rightmost=rightmost,
        leftmost=leftmost,
        spectral_radius=radius,
        log_norm=float(supports[0]),
        lower_log_norm=float(-supports[-1]),
        lipschitz=lipschitz,
        field_of_values=_polygon(supports),
        method=method,
        converged=not failed,
        note="" if not failed else f"did not converge: {', '.join(failed)}",
    )


def _polygon(supports: np.ndarray) -> np.ndarray:
    """Vertices where neighbouring supporting lines Re(e^{iθ}z) = s(θ) meet, counter-clockwise in −θ."""
    angles = np.asarray([*ANGLES, *(2 * math.pi - a for a in reversed(ANGLES[1:-1]))])
    lines = np.concatenate([supports, supports[-2:0:-1]])
    following, beyond = np.roll(angles, -1), np.roll(lines, -1)
    # Re(e^{iθ}z) = cos θ x − sin θ y; two such equations for (x, y).
    determinant = -np.cos(angles) * np.sin(following) + np.sin(angles) * np.cos(following)
    x = (-lines * np.sin(following) + beyond * np.sin(angles)) / determinant
    y = (np.cos(angles) * beyond - np.cos(following) * lines) / determinant
    return x + 1j * y
