"""Stabilization S: v2 (9) as written, and the three readings that keep what v2 Thm 3.3 promises of it."""

import math
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from pdejax._arguments import checked
from pdejax._check import integer, number
from pdejax._types import Depth, Field, Mask
from pdejax.solvers import Grid
from pdejax.terms._base import (
    LEAST_EPS,
    AbstractTerm,
    FieldArgs,
    Linear,
    check_features,
    check_grid,
    concrete,
    constant,
    mask_of,
    scalar,
    token_average,
)
from pdejax.terms._constants import Lipschitz, check_domain, in_float64, magnitude
from pdejax.terms._normalization import LayerNorm, Norm, largest_output
from pdejax.terms._token_axis import TokenAxis


class SpatialNorm(AbstractTerm):
    r"""Stabilization exactly as v2 (9): $S(u) = -\gamma\,(u - \mu)/\sqrt{\sigma^2 + \epsilon}$ with the **spatial** mean
    $\mu = \int u\,dy$ `(d,)` and variance $\sigma^2 = \int\|u - \mu\|^2 dy$ (a scalar).

    This averages over tokens (instance normalization), not over features: it is not LayerNorm. It is of degree 0 in the
    fluctuation, so $\langle u, S\rangle = -\gamma\sigma^2/\sqrt{\sigma^2+\epsilon}$, not −2γE, and it never touches the
    mean (claim C4). Near σ = 0 it is stiff with rate γ/√ε: explicit Euler needs `h ≤ 2√ε/γ`.

    `gamma` γ ≥ 0, per unit depth times a length: a scalar or `(n,)`. `eps` ε ≥ 1e-24. `grid` gives quadrature weights.
    """

    gamma: Array
    eps: Array
    grid: Grid | None
    role: ClassVar[str] = "stabilization"
    label: ClassVar[str] = "spatial normalization"
    state_dependent: ClassVar[bool] = True  # γ/√ε holds near σ = 0 only

    @checked
    def __init__(self, gamma: ArrayLike = 1.0, *, eps: ArrayLike = 1e-5, grid: Grid | None = None):
        self.gamma = _rate("SpatialNorm", gamma)
        self.eps = scalar("SpatialNorm", "eps", eps)
        if concrete(eps):
            number("SpatialNorm", "eps", eps, least=LEAST_EPS, advice="it keeps the term regular at σ = 0")
        self.grid = grid

    @jax.named_scope("pdejax.SpatialNorm")
    def __call__(self, t: Depth, u: Field, args: FieldArgs | None) -> Field:
        del t
        return self._on(u, mask_of(args), None)

    def across(self, tokens: TokenAxis) -> Callable[[Depth, Field, FieldArgs | None], Field]:
        return lambda t, u, args: self._on(u, mask_of(args), tokens)

    def _on(self, u: Field, mask: Mask | None, tokens: TokenAxis | None) -> Field:
        w = self.grid.weights if self.grid is not None and self.grid.boundary == "dirichlet" else None
        w = w if w is None or tokens is None else tokens.own(w)
        centred = u - token_average(u, w, mask, tokens)[None]
        variance = token_average(jnp.sum(centred**2, axis=-1, keepdims=True), w, mask, tokens)[0]
        gamma = _rate_here(self.gamma, tokens).astype(u.dtype)
        rate = gamma * jax.lax.rsqrt(variance + self.eps.astype(u.dtype))
        return -centred * (rate if rate.ndim == 0 else rate[:, None])

    def damping(self) -> Float[Array, ""]:
        return jnp.max(self.gamma) / jnp.sqrt(self.eps)

    def check(self, n: int, d: int) -> None:
        if self.grid is not None:
            check_grid("SpatialNorm", self.grid.n, n)
        _check_rate("SpatialNorm", self.gamma, n)

    def lipschitz(self, radius: float, n: int, norm: str = "token_max", spread: float = 0.0) -> Lipschitz:
        r"""Lipschitz constant on all fields without padding (padded tokens feel σ without being part of it).

        In the Frobenius norm γ/√ε: v2 (9) is γ times an orthogonal projection followed by $c\mapsto c/\sqrt{\|c\|^2+\epsilon}$,
        whose derivative is largest, $\epsilon^{-1/2}$, at c = 0: sharp. (On a Dirichlet grid, whose end weights are 3/2, times
        √(3/2).) In the token-max norm the derivative is at most $(2(1-w_{min}) + x/((1+x)\sqrt{w_{min}}))/\sqrt{1+x}$ in units of
        γ/√ε, x = σ²/ε, with $w_{min}$ the smallest quadrature weight (1/n). Its maximum over x is
        $\tfrac23\gamma\epsilon^{-1/2}(a+b)^{3/2}(3b)^{-1/2}$ with $a = 2(1-w_{min})$ and $b = w_{min}^{-1/2}$, or a if 3b ≤
        a + b.
        """
        n, _, _ = check_domain("SpatialNorm.lipschitz", n, radius, norm, spread)
        self.check(n, 1)
        w = self._shares(n)
        rate = magnitude(self.gamma) / math.sqrt(float(in_float64(self.eps)))
        conditions = ("no padding: padded tokens feel σ without being part of it",)
        if norm == "frobenius":
            return Lipschitz(rate * math.sqrt(float(w.max() / w.min())), conditions=conditions)
        a, b = 2 * (1 - float(w.min())), float(w.min()) ** -0.5
        # The largest (a + b)/√y − b/y^{3/2} over y = 1 + σ²/ε ≥ 1.
        largest = a if 3 * b <= a + b else 2 / 3 * (a + b) ** 1.5 / math.sqrt(3 * b)
        return Lipschitz(rate * largest, conditions=conditions)

    def growth(self, n: int, norm: str = "token_max") -> tuple[float, float]:
        """Growth (0, 0): v2 (9) points inwards and is 0 on constant fields (claim C4).

        Raises `ValueError` in the mesh norm for γ or quadrature weights that vary over tokens.
        """
        del n
        uneven = self.gamma.ndim > 0 or (self.grid is not None and self.grid.boundary == "dirichlet")
        if norm == "mesh" and uneven:
            raise ValueError("SpatialNorm with gamma or weights that vary over tokens: use norm='token_max'.")
        return 0.0, 0.0

    def _shares(self, n: int) -> Float[np.ndarray, " n"]:
        """Quadrature weights that sum to 1."""
        if self.grid is None or self.grid.boundary != "dirichlet":
            return np.full(n, 1 / n)
        w = in_float64(self.grid.weights)
        return w / w.sum()


class LayerNormRelaxation(AbstractTerm):
    r"""Relaxation to the layer-normalized field, $S(u) = -\gamma\,(u - \mathrm{LN}(u))$: the reading of v2 (9) with the
    Transformer's own per-token LayerNorm. Its fixed points are the normalized fields. `gamma` γ ≥ 0 per unit depth,
    a scalar or `(n,)`; `norm` a `LayerNorm` or `RMSNorm` (default: plain LayerNorm of width `dim`)."""

    gamma: Array
    norm: Norm
    role: ClassVar[str] = "stabilization"
    label: ClassVar[str] = "LayerNorm relaxation"

    @checked
    def __init__(self, dim: int, gamma: ArrayLike = 1.0, *, norm: Norm | None = None):
        self.gamma = _rate("LayerNormRelaxation", gamma)
        integer("LayerNormRelaxation", "dim", dim)
        self.norm = LayerNorm(dim) if norm is None else norm

    @jax.named_scope("pdejax.LayerNormRelaxation")
    def __call__(self, t: Depth, u: Field, args: FieldArgs | None) -> Field:
        del t, args
        gamma = self.gamma.astype(u.dtype)
        return -(gamma if gamma.ndim == 0 else gamma[:, None]) * (u - self.norm(u))

    def across(self, tokens: TokenAxis) -> Callable[[Depth, Field, FieldArgs | None], Field]:
        return eqx.tree_at(lambda s: s.gamma, self, _rate_here(self.gamma, tokens))

    def damping(self) -> Float[Array, ""]:
        return jnp.max(self.gamma)

    def linear(self, n: int, mask: Mask | None = None) -> Linear | None:
        del n, mask
        return Linear(rate=self.gamma) if self.gamma.ndim == 0 else None

    def check(self, n: int, d: int) -> None:
        check_features("LayerNormRelaxation", self.norm.scale.shape[-1], d)
        _check_rate("LayerNormRelaxation", self.gamma, n)

    def lipschitz(self, radius: float, n: int, norm: str = "token_max", spread: float = 0.0) -> Lipschitz:
        """Lipschitz constant in both norms, J the norm's Jacobian where every token deviates by at least `spread`:
        γ·max(1, ‖J‖ − 1) for a uniform positive scale, which makes J symmetric with eigenvalues in [0, ‖J‖]; else γ(1 + ‖J‖)."""
        _, _, spread = check_domain("LayerNormRelaxation.lipschitz", n, radius, norm, spread)
        slope, scale = self.norm.lipschitz(spread), in_float64(self.norm.scale)
        uniform = bool(np.all(scale == scale[0]) and scale[0] >= 0)
        return Lipschitz(magnitude(self.gamma) * (max(1.0, slope - 1) if uniform else 1 + slope))

    def growth(self, n: int, norm: str = "token_max") -> tuple[float, float]:
        """Growth (−γ, γ·sup‖LN‖), with the smallest and the largest γ of any token."""
        del n, norm
        gamma = in_float64(self.gamma)
        return -float(gamma.min()), float(gamma.max()) * largest_output(self.norm)


class LinearDamping(AbstractTerm):
    r"""Linear damping $S(u) = -\gamma u$: the stabilization for which v2 Thm 3.3 holds, with γ above the growth constants
    of attention and reaction (claim C4). `gamma` γ ≥ 0 per unit depth, a scalar or `(n,)`."""

    gamma: Array
    role: ClassVar[str] = "stabilization"
    label: ClassVar[str] = "linear damping"

    @checked
    def __init__(self, gamma: ArrayLike = 1.0):
        self.gamma = _rate("LinearDamping", gamma)

    @jax.named_scope("pdejax.LinearDamping")
    def __call__(self, t: Depth, u: Field, args: FieldArgs | None) -> Field:
        del t, args
        gamma = self.gamma.astype(u.dtype)
        return -(gamma if gamma.ndim == 0 else gamma[:, None]) * u

    def across(self, tokens: TokenAxis) -> Callable[[Depth, Field, FieldArgs | None], Field]:
        return eqx.tree_at(lambda s: s.gamma, self, _rate_here(self.gamma, tokens))

    def damping(self) -> Float[Array, ""]:
        return jnp.max(self.gamma)

    def linear(self, n: int, mask: Mask | None = None) -> Linear | None:
        del n, mask
        return Linear(rate=self.gamma, whole=True) if self.gamma.ndim == 0 else None

    def check(self, n: int, d: int) -> None:
        del d
        _check_rate("LinearDamping", self.gamma, n)

    def modes(self, n: int, d: int, mask: Mask | None = None) -> tuple[np.ndarray, np.ndarray] | None:
        del mask
        return np.broadcast_to(-in_float64(self.gamma), (n,)), np.eye(d)

    def lipschitz(self, radius: float, n: int, norm: str = "token_max", spread: float = 0.0) -> Lipschitz:
        """Lipschitz constant γ, all of it a leak; the largest γ of any token."""
        check_domain("LinearDamping.lipschitz", n, radius, norm, spread)
        return Lipschitz(0.0, leak=magnitude(self.gamma), least_leak=float(in_float64(self.gamma).min()))

    def growth(self, n: int, norm: str = "token_max") -> tuple[float, float]:
        """Growth (−γ, 0), with the smallest γ of any token."""
        del n, norm
        return -float(in_float64(self.gamma).min()), 0.0


def _rate_here(gamma: Array, tokens: TokenAxis | None) -> Array:
    return gamma if gamma.ndim == 0 or tokens is None else tokens.own(gamma)


def _rate(owner: str, gamma: ArrayLike) -> Array:
    rate = constant(gamma)
    if rate.ndim > 1:
        raise ValueError(f"{owner}: gamma has shape {rate.shape}; allowed are a scalar and (n,).")
    if concrete(gamma) and not np.all((np.asarray(gamma) >= 0) & np.isfinite(np.asarray(gamma))):
        raise ValueError(
            f"{owner}: gamma={gamma} must be finite and not negative; a negative rate makes the field grow."
        )
    return rate


def _check_rate(owner: str, gamma: Array | jax.ShapeDtypeStruct, n: int) -> None:
    if gamma.ndim == 1:
        check_grid(f"{owner} (its gamma)", gamma.shape[0], n)
