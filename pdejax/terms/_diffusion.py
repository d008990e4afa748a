"""Diffusion: v1 (8) with constant diffusivity, and the emergent diffusion of v2 (7)–(8)."""

import math
from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from pdejax import _check
from pdejax._arguments import checked
from pdejax._types import Depth, Field, Mask
from pdejax.exact._heat import largest_wave_number
from pdejax.solvers import Grid, Laplacian, TridiagonalOperator, divergence
from pdejax.solvers._coupled import modal_operator
from pdejax.solvers._divergence import inverse_square_spacing
from pdejax.terms._attention import Attention
from pdejax.terms._base import (
    AbstractTerm,
    FieldArgs,
    Linear,
    check_features,
    check_grid,
    concrete,
    constant,
    mask_of,
    with_static,
)
from pdejax.terms._constants import UNEQUAL, UNSYMMETRIC, Lipschitz, check_domain, in_float64, operator_norm
from pdejax.terms._reaction import FeedForward
from pdejax.terms._token_axis import Seam, TokenAxis

Form = Literal["raw", "absolute", "softplus", "clip"]
# The values beyond the ends: no flux, zero, or the other end's.
_SEAMS: dict[str, Seam] = {"neumann": "edge", "dirichlet": "constant", "periodic": "wrap"}


class Diffusion(AbstractTerm):
    r"""Diffusion term $D\,\nabla^2 u$ of v1 (1) and (8), by the second-order Laplacian of `grid`.

    `diffusivity` D, in length² per unit depth: a scalar, `(d,)` one per feature, or a full `(d, d)` matrix acting as
    $\partial_t u_i = D\,(\nabla_h^2 u)_i$. A matrix must have a positive semidefinite symmetric part (else some mode
    grows without bound as Δx → 0: claim C7). Explicit Euler is stable for `2·D·h/Δx² ≤ 1` (v1 (21) without attention).

    With a padding mask no flux crosses a face that touches a padded token.
    Raises `ValueError` for a grid of one token, a negative or non-finite diffusivity or a wrong shape.
    """

    grid: Grid
    diffusivity: Array
    symmetric: bool = eqx.field(static=True)  # known to be; where values are traced, they are not known
    role: ClassVar[str] = "diffusion"

    @checked
    def __init__(self, grid: Grid, diffusivity: ArrayLike):
        _needs_neighbours("Diffusion", grid)
        d = constant(diffusivity)
        if d.ndim > 2 or (d.ndim == 2 and d.shape[0] != d.shape[1]):
            raise ValueError(f"Diffusion: diffusivity has shape {d.shape}; allowed are a scalar, (d,) and (d, d).")
        if concrete(diffusivity):
            _well_posed(np.asarray(diffusivity))
        self.grid, self.diffusivity, self.symmetric = grid, d, False

    @jax.named_scope("pdejax.Diffusion")
    def __call__(self, t: Depth, u: Field, args: FieldArgs | None) -> Field:
        del t
        mask = mask_of(args)
        if mask is None:
            curvature = Laplacian(self.grid)(u)
        else:
            curvature = divergence(self.grid, jnp.ones(u.shape[0], u.dtype), u, mask=mask)
        return self._times(curvature)

    def across(self, tokens: TokenAxis) -> Callable[[Depth, Field, FieldArgs | None], Field]:
        def on(t: Depth, u: Field, args: FieldArgs | None) -> Field:
            del t
            seam = _SEAMS[self.grid.boundary]
            before, after = tokens.neighbours(u, seam)
            left, right = u - before, after - u
            if (mask := mask_of(args)) is not None:
                # Faces that touch padding carry no flux; the ends of the sequence are real where their token is.
                one, other = tokens.neighbours(mask, "wrap" if seam == "wrap" else "edge")
                left = jnp.where((mask & one)[:, None], left, 0)
                right = jnp.where((mask & other)[:, None], right, 0)
            return self._times((right - left) * inverse_square_spacing(self.grid, u.dtype))

        return on

    def _times(self, curvature: Field) -> Field:
        d = self.diffusivity.astype(curvature.dtype)
        if d.ndim == 2:
            return curvature @ d.T
        return curvature * (d if d.ndim == 0 else d[None])

    def damping(self) -> Float[Array, ""]:
        d = self.diffusivity
        largest = jnp.linalg.norm(d, 2) if d.ndim == 2 else jnp.max(d)
        return 4 * largest / jnp.asarray(self.grid.spacing, d.dtype) ** 2

    def looked_at(self) -> "Diffusion":
        return with_static(self, symmetric=is_symmetric(self.diffusivity))

    def linear(self, n: int, mask: Mask | None = None) -> Linear | None:
        del n
        d, grid = self.diffusivity, self.grid
        if mask is None:
            return Linear(
                modal_operator(grid, d, symmetric=is_symmetric(d) if concrete(d) else self.symmetric), whole=True
            )
        if d.ndim == 2:
            raise ValueError(
                "a diffusivity matrix with a padding mask has no fast solve: leave the padding out of the field, give one "
                "diffusivity per feature, or use solver='rkc2'."
            )
        coefficient = jnp.broadcast_to(d, (grid.n,)) if d.ndim == 0 else jnp.broadcast_to(d[None], (grid.n, d.shape[0]))
        return Linear(TridiagonalOperator(grid, coefficient, mask), whole=True)

    def check(self, n: int, d: int) -> None:
        check_grid("Diffusion", self.grid.n, n)
        if self.diffusivity.ndim > 0:
            check_features("Diffusion (its diffusivity)", self.diffusivity.shape[-1], d)

    def modes(self, n: int, d: int, mask: Mask | None = None) -> tuple[np.ndarray, np.ndarray] | None:
        if mask is not None:
            return None
        diffusivity = in_float64(self.diffusivity)
        matrix = diffusivity if diffusivity.ndim == 2 else np.diag(np.broadcast_to(diffusivity, (d,)))
        return np.asarray(Laplacian(self.grid).eigenvalues(), float), matrix

    def lipschitz(self, radius: float, n: int, norm: str = "token_max", spread: float = 0.0) -> Lipschitz:
        r"""Lipschitz constant $4\|D\|_2/\Delta x^2$ in the token-max norm, $\|D\|_2\max_k|\lambda_k|$ with the grid's own
        eigenvalues in the Frobenius norm. Both hold with padding, which removes faces: a smaller quadratic form.

        `conditions` says where explicit steps expand the norm however short: for unequal diffusivities in the token-max norm
        (D = (0, 1), three tokens, 0.9 of 2/constant: 1.345), for a matrix that is not symmetric in the Frobenius norm."""
        n, _, _ = check_domain("Diffusion.lipschitz", n, radius, norm, spread)
        d = in_float64(self.diffusivity)
        self.check(n, d.shape[-1] if d.ndim else 1)
        size = operator_norm(d) if d.ndim == 2 else float(np.max(np.abs(d)))
        wave = 4.0 if norm == "token_max" else largest_wave_number(n, self.grid.boundary)
        found = size * wave / float(np.asarray(self.grid.spacing)) ** 2
        if norm == "token_max":
            unfit = () if _equal(d) else (UNEQUAL,)
        else:
            unfit = () if d.ndim < 2 or np.array_equal(d, d.T) else (UNSYMMETRIC,)
        return Lipschitz(0.0, diffusion=found, conditions=unfit)

    def growth(self, n: int, norm: str = "token_max") -> tuple[float, float]:
        """Growth (0, 0). Raises `ValueError` in the token-max norm for diffusivities that differ between features or couple
        them: then the invariant sets of diffusion are boxes, not balls."""
        del n
        d = in_float64(self.diffusivity)
        if norm == "token_max" and not _equal(d):
            raise ValueError(
                "unequal diffusivities have no maximum principle for token norms; use norm='mesh' or one scalar."
            )
        return 0.0, 0.0


class EffectiveDiffusion(AbstractTerm):
    r"""Emergent diffusion $\nabla\cdot(D_\mathrm{eff}\nabla u)$, v2 (7), with v2 (8)

    $$D_\mathrm{eff}(u, x) = c\,|\nabla_x P(x)|^2\;\mathrm{Tr}(\partial\,\mathrm{FFN}/\partial u)\;
      \sigma^2_\mathrm{att}(x),\qquad \sigma^2_\mathrm{att}(x_i) = \tfrac1H \sum_{h,j} K^h_{ij}(x_j - \bar x^h_i)^2 .$$

    v2 gives no formula for $\sigma^2_\mathrm{att}$; we read it as the spatial variance of the attention kernel, which
    makes it a squared length. `positions` P has shape `(n, d)`; its slope is a centred difference (one-sided at walls).

    v2 (8) is **not sign-definite**: at a random initialization the trace is negative on about half to two thirds of
    the tokens, which is a backward heat equation, ill-posed as Δx → 0 (claim C7). `form` chooses the reading:
    `"raw"` (as written), `"absolute"`, `"softplus"` or `"clip"` (the last three are non-negative).

    `coefficient(u, mask)` returns D_eff itself, shape `(n,)`. Raises `ValueError` for sizes that differ.
    """

    grid: Grid
    interaction: Attention
    reaction: FeedForward
    positions: Float[Array, "n d"]
    scale: Array
    form: str = eqx.field(static=True)
    role: ClassVar[str] = "diffusion"
    state_dependent: ClassVar[bool] = True

    @checked
    def __init__(
        self,
        grid: Grid,
        interaction: Attention,
        reaction: FeedForward,
        positions: Float[Array, "n d"],
        *,
        scale: ArrayLike = 1.0,
        form: str = "raw",
    ):
        _needs_neighbours("EffectiveDiffusion", grid)
        _check.choice("EffectiveDiffusion", "form", form, get_args(Form))
        if positions.ndim != 2:
            raise ValueError(f"EffectiveDiffusion: positions has shape {positions.shape}; it must be (n, d).")
        check_grid("EffectiveDiffusion", grid.n, positions.shape[0])
        self.grid, self.interaction, self.reaction = grid, interaction, reaction
        self.positions, self.scale, self.form = positions, constant(scale), form

    @jax.named_scope("pdejax.EffectiveDiffusion")
    def __call__(self, t: Depth, u: Field, args: FieldArgs | None) -> Field:
        del t
        mask = mask_of(args)
        return divergence(self.grid, self.coefficient(u, mask), u, mask=mask)

    def coefficient(self, u: Field, mask: Mask | None = None) -> Float[Array, " n"]:
        """D_eff at every token, shape `(n,)`, in length² per unit depth."""
        trace = self.reaction.jacobian_trace(u)
        if self.form == "absolute":
            trace = jnp.abs(trace)
        elif self.form == "softplus":
            trace = jax.nn.softplus(trace)
        elif self.form == "clip":
            trace = jax.nn.relu(trace)
        return self.scale.astype(u.dtype) * self._slope_squared(u.dtype) * trace * self._spread(u, mask)

    def damping(self) -> Float[Array, ""]:
        # D_eff depends on the state: no bound holds before a solve has seen it.
        return jnp.asarray(jnp.inf)

    def linear(self, n: int, mask: Mask | None = None) -> Linear | None:
        del n, mask
        raise ValueError(
            "the effective diffusion of v2 (8) depends on the state: no solver can take it exactly. Use solver='rkc2' or "
            "'rock2', which need no structure."
        )

    def check(self, n: int, d: int) -> None:
        check_grid("EffectiveDiffusion", self.grid.n, n)
        self.interaction.check(n, d)
        self.reaction.check(n, d)

    @property
    def smoothness(self) -> float:
        """One derivative less than the network, whose Jacobian it holds; 0 at most for forms with kinks."""
        return min(self.reaction.smoothness - 1, 0.0 if self.form in ("absolute", "clip") else math.inf)

    def _slope_squared(self, dtype) -> Float[Array, " n"]:
        p, dx = self.positions.astype(dtype), jnp.asarray(self.grid.spacing, dtype)
        if self.grid.boundary == "periodic":
            slope = (jnp.roll(p, -1, axis=0) - jnp.roll(p, 1, axis=0)) / (2 * dx)
        else:
            slope = jnp.asarray(jnp.gradient(p, axis=0)) / dx
        return jnp.sum(slope**2, axis=-1)

    def _spread(self, u: Field, mask: Mask | None) -> Float[Array, " n"]:
        kernel = self.interaction.weights(u, mask)
        x = self.grid.points.astype(u.dtype)
        mean = kernel @ x
        return jnp.mean(jnp.maximum(kernel @ x**2 - mean**2, 0), axis=0)


def _equal(d: np.ndarray) -> bool:
    """Whether every feature diffuses alike: the invariant sets are balls for tokens then, else boxes."""
    return bool(np.array_equal(d, d[0, 0] * np.eye(len(d))) if d.ndim == 2 else np.all(d == d.flat[0]))


def _needs_neighbours(owner: str, grid: Grid) -> None:
    if grid.n < 2:
        raise ValueError(f"{owner} needs at least 2 tokens to couple, but the grid has {grid.n}: leave it out for n=1.")


def is_symmetric(d: Array) -> bool:
    """Whether a matrix `(…, d, d)` is known to be symmetric; False where it is traced."""
    if not concrete(d) or d.ndim < 2 or d.shape[-1] != d.shape[-2]:
        return False
    known = np.asarray(d)
    gap = float(np.abs(known - np.swapaxes(known, -1, -2)).max())
    return gap <= 100 * float(np.finfo(known.dtype).eps) * known.shape[-1] * float(np.abs(known).max())


def _well_posed(d: np.ndarray) -> None:
    if not np.all(np.isfinite(d)):
        raise ValueError("Diffusion: diffusivity has NaN or infinite entries.")
    if d.ndim < 2 and np.any(d < 0):
        raise ValueError(
            f"Diffusion: diffusivity={d.tolist()} has a negative entry, which is a backward heat equation. Use values ≥ 0."
        )
    if d.ndim == 2:
        lowest = float(np.linalg.eigvalsh((d + d.T) / 2).min())
        if lowest < -1e-12 * max(1.0, float(np.abs(d).max())):
            raise ValueError(
                f"Diffusion: the symmetric part of the diffusivity matrix has eigenvalue {lowest:.3g} < 0, so some mode "
                "grows without bound. Use a positive semidefinite matrix."
            )
