"""Where the eigenvalues of a field's Jacobian lie, term by term: what a step size has to respect."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from pdejax._check import traced
from pdejax._equation import AbstractEquation
from pdejax.analysis.stability._jacobian import DENSE, Found, Jacobian
from pdejax.solvers import Laplacian
from pdejax.terms import Diffusion, FieldArgs, LinearDamping
from pdejax.terms._base import mask_of

ANGLES = tuple(
    math.pi * k / 4 for k in range(5)
)  # the field of values of a real matrix is symmetric about the real axis


@dataclasses.dataclass(frozen=True)
class SpectralBounds:
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


def spectral_bounds(
    equation: AbstractEquation, u: ArrayLike, t: ArrayLike = 0.0, args: FieldArgs | None = None
) -> dict[str, SpectralBounds]:
    r"""Spectral bounds of every term's Jacobian at `(t, u)` by the term's name, and of the whole field as `"field"`.

    Constant diffusion without padding is exact: $\lambda_k\,\mu_j$ from the eigenvalues $\lambda_k$ of the grid's Laplacian
    and $\mu_j$ of the diffusivity, as in v1 (21); so is linear damping. Every other Jacobian is formed when the field has at
    most 400 entries (n·d forward products, an O((n·d)³) eigenvalue problem) and else seen through its products alone, O(n·d)
    memory and a few thousand products (minutes for a thousand tokens). Give a float64 field for more than three digits.

    Where diffusion is very stiff the rightmost eigenvalue and the log-norm of the whole field lie in the crowd of slow modes
    and their iteration may not converge: the sum of the terms' log-norms is then an upper bound of both.

    They hold at this point. A bound over a set of fields needs a certificate.

    Raises `TypeError`/`ValueError` for anything but an equation and a finite real field that fits it.
    """
    jacobian = checked_jacobian("spectral_bounds", equation, u, t, args)
    found = {}
    for name in equation.names():
        part = equation.only((name,))
        term = getattr(part, name, None)
        exact = _exact(term, jacobian)
        found[name] = _bounds(dataclasses.replace(jacobian, equation=part)) if exact is None else exact
    found["field"] = _bounds(jacobian)
    return found


def checked_jacobian(owner: str, equation: object, u: object, t: object, args: object) -> Jacobian:
    """The Jacobian of a valid equation and field; else an error before anything compiles."""
    if not isinstance(equation, AbstractEquation):
        raise TypeError(
            f"{owner}: equation is a {type(equation).__name__}; it must be an equation of pdejax such as MasterEquation."
        )
    if args is not None and not isinstance(args, FieldArgs):
        raise TypeError(f"{owner}: args is a {type(args).__name__}; it must be FieldArgs or None.")
    if traced(u, t):
        raise TypeError(f"{owner}: works on numbers, not inside jit, vmap or grad; call it outside of them.")
    field = jnp.asarray(u)  # pyright: ignore[reportArgumentType]
    if not jnp.issubdtype(field.dtype, jnp.floating):
        raise TypeError(f"{owner}: u has type {field.dtype}; it must be a real floating-point field.")
    equation.check(field.shape)
    if not bool(jnp.all(jnp.isfinite(field))):
        raise ValueError(f"{owner}: u has values that are not finite; a linearization needs a finite field.")
    depth = jnp.asarray(t, field.dtype)  # pyright: ignore[reportArgumentType]
    if depth.ndim or not bool(jnp.isfinite(depth)):
        raise ValueError(f"{owner}: t={t!r} must be one finite depth.")
    return Jacobian(equation, depth, field, args)


def log_norm(jacobian: Jacobian, name: str) -> Found:
    """Largest eigenvalue of (J + Jᵀ)/2 for one term, in closed form where there is one."""
    exact = _exact(getattr(jacobian.equation, name, None), jacobian)
    if exact is not None:
        return Found(np.array([exact.log_norm]), True)
    if jacobian.size <= DENSE:
        matrix = jacobian.matrix()
        return Found(np.linalg.eigvalsh(0.5 * (matrix + matrix.T))[-1:], True)
    return jacobian.support(0.0)


def _exact(term: object, jacobian: Jacobian) -> SpectralBounds | None:
    """The bounds of a term whose eigenvalues are known, else None."""
    if jacobian.u.ndim != 2:
        return None
    if isinstance(term, LinearDamping):
        rates = np.broadcast_to(-np.asarray(term.gamma, float), jacobian.u.shape[:1])
        ends = np.array([rates.min(), rates.max()])
        supports = np.array([(math.cos(angle) * ends).max() for angle in ANGLES])
        values = np.repeat(rates, jacobian.u.shape[1])
        return _assemble(values, True, supports, float(np.abs(rates).max()), "exact", [])
    if isinstance(term, Diffusion) and mask_of(jacobian.args) is None:
        return _exact_diffusion(term, jacobian.u.shape[1])
    return None


def _exact_diffusion(term: Diffusion, d: int) -> SpectralBounds:
    diffusivity = np.asarray(term.diffusivity, float)
    matrix = diffusivity if diffusivity.ndim == 2 else np.diag(np.broadcast_to(diffusivity, (d,)))
    modes = np.asarray(Laplacian(term.grid).eigenvalues(), float)
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
    if jacobian.size <= DENSE:
        matrix = jacobian.matrix()
        rotated = [np.exp(1j * angle) * matrix for angle in ANGLES]
        supports = np.array([np.linalg.eigvalsh(0.5 * (m + m.conj().T)).max() for m in rotated])
        values = np.linalg.eigvals(matrix)
        return _assemble(values, True, supports, float(np.linalg.norm(matrix, 2)), "dense", [])
    failed = []
    values, extremes = [], extreme_eigenvalues(jacobian)
    for name, found in extremes.items():
        values.append(found.values)
        if not found.converged:
            failed.append(name)
    supports = []
    for angle in ANGLES:
        found = jacobian.support(angle)
        supports.append(float(found.values[0]) if found.converged else math.nan)
        if not found.converged:
            failed.append(f"field of values at {math.degrees(angle):.0f}°")
    gram = jacobian.largest(lambda v: jacobian.transposed(jacobian.product(v)))
    lipschitz = math.sqrt(max(float(gram.values[0]), 0.0)) if gram.converged else math.nan
    if not gram.converged:
        failed.append("lipschitz")
    return _assemble(np.concatenate(values), False, np.asarray(supports), lipschitz, "iteration", failed)


def extreme_eigenvalues(jacobian: Jacobian, rightmost: bool = True) -> dict[str, Found]:
    """ARPACK's eigenvalues in three or four directions, by name; `converged` says which can be relied on.

    Where diffusion is stiff the rightmost ones lie in the crowd next to 0 and may not converge.
    """
    directions = {"largest modulus": "LM", "leftmost": "SR", "imaginary": "LI"}
    if rightmost:
        directions["rightmost"] = "LR"
    return {name: jacobian.eigenvalues(which) for name, which in directions.items()}  # pyright: ignore[reportArgumentType]


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
    angles = np.concatenate([ANGLES, [2 * math.pi - a for a in reversed(ANGLES[1:-1])]])
    lines = np.concatenate([supports, supports[-2:0:-1]])
    following, beyond = np.roll(angles, -1), np.roll(lines, -1)
    # Re(e^{iθ}z) = cos θ x − sin θ y; two such equations for (x, y).
    determinant = -np.cos(angles) * np.sin(following) + np.sin(angles) * np.cos(following)
    x = (-lines * np.sin(following) + beyond * np.sin(angles)) / determinant
    y = (np.cos(angles) * beyond - np.cos(following) * lines) / determinant
    return x + 1j * y
