"""The second-order Laplacian of a uniform grid, its eigenvalues, and functions of it in O(n log n)."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from pdejax.solvers._divergence import check_diffusible, face_differences, inverse_square_spacing
from pdejax.solvers._grid import Grid
from pdejax.solvers._written import one_line


def _dst(u: Array) -> Array:
    """Orthonormal DST-I along the first axis, its own inverse: an FFT of the odd extension (0, u, 0, −u reversed)."""
    n = u.shape[0]
    zero = jnp.zeros_like(u[:1])
    odd = jnp.concatenate([zero, u, zero, -u[::-1]])
    return jnp.fft.rfft(odd, axis=0).imag[1 : n + 1] * (-math.sqrt(0.5 / (n + 1)))


def _dct(u: Array) -> Array:
    return jax.scipy.fft.dct(u, type=2, axis=0, norm="ortho")


def _idct(u: Array) -> Array:
    return jax.scipy.fft.idct(u, type=2, axis=0, norm="ortho")


def _on_parts(transform: Callable[[Array], Array], u: Array) -> Array:
    """A real transform applied to the real and the imaginary part."""
    return jax.lax.complex(transform(u.real), transform(u.imag)) if jnp.iscomplexobj(u) else transform(u)


class Laplacian(eqx.Module):
    """Second-order Laplacian L ≈ ∂²/∂x² on a [`Grid`][pdejax.solvers.Grid] of at least 2 tokens.

    (Lu)_i = (u_{i−1} − 2u_i + u_{i+1}) / dx² with u_{−1} = u_0, u_n = u_{n−1} (Neumann: reflecting ends),
    u_{−1} = u_n = 0 (Dirichlet: zero at x = 0 and x = length), or indices modulo n (periodic). L is symmetric
    and negative semidefinite, and one fast transform diagonalizes it:

    | boundary | transform | eigenvalue λ_k · dx² | k |
    |---|---|---|---|
    | `"neumann"` | DCT-II | −4 sin²(πk / 2n) | 0 … n−1 |
    | `"dirichlet"` | DST-I | −4 sin²(πk / 2(n+1)) | 1 … n |
    | `"periodic"` | FFT | −4 sin²(πk / n) | 0 … n−1, in FFT order: k and n − k are a pair |

    All methods act along the first axis of an array (n, …), real or complex, and keep float32 as float32.

    **Raises:** `ValueError` for a grid of one token, and where an array's first axis is not n.

    Source: v1 (8) with D = 1; eigenvalues as in LeVeque, *Finite Difference Methods*, SIAM 2007, (2.23).
    """

    grid: Grid

    __repr__ = one_line

    def __check_init__(self):
        check_diffusible(self.grid)

    @jax.named_scope("pdejax.solvers.Laplacian")
    def __call__(self, u: Inexact[Array, "n *features"]) -> Inexact[Array, "n *features"]:
        """Lu by the three-point stencil, written as a difference of face fluxes: for Neumann and periodic
        grids its sum over the tokens is 0 up to rounding.
        """
        self.grid.check(u)
        scale = inverse_square_spacing(self.grid, u.dtype)
        # By parts: strict promotion multiplies no complex array by a real scalar.
        return _on_parts(lambda v: jnp.diff(face_differences(self.grid, v), axis=0) * scale, u)

    def eigenvalues(self, dtype=None) -> Float[Array, " n"]:
        """λ_k ≤ 0, shape (n,), unit length⁻², in the order of `transform`; default float type unless `dtype`
        is given.
        """
        n, boundary = self.grid.n, self.grid.boundary
        dtype = jnp.asarray(self.grid.length).dtype if dtype is None else jnp.finfo(dtype).dtype
        k = jnp.arange(n, dtype=dtype) + (1.0 if boundary == "dirichlet" else 0.0)
        period = {"neumann": 2 * n, "dirichlet": 2 * (n + 1), "periodic": n}[boundary]
        return -4.0 * jnp.sin(math.pi / period * k) ** 2 * inverse_square_spacing(self.grid, dtype)

    def transform(self, u: Inexact[Array, "n *features"]) -> Inexact[Array, "n *features"]:
        """Coefficients of `u` in the orthonormal eigenvectors of L, so that Σ|û_k|² = Σ|u_i|². Real for real
        `u`, except on a periodic grid (complex).
        """
        self.grid.check(u)
        match self.grid.boundary:
            case "neumann":
                return _on_parts(_dct, u)
            case "dirichlet":
                return _on_parts(_dst, u)
            case _:
                return jnp.fft.fft(u, axis=0, norm="ortho")

    def inverse(self, coefficients: Inexact[Array, "n *features"]) -> Inexact[Array, "n *features"]:
        """The array whose `transform` is `coefficients`. Complex on a periodic grid, where a real field's
        imaginary part is rounding error.
        """
        self.grid.check(coefficients, "coefficients")
        match self.grid.boundary:
            case "neumann":
                return _on_parts(_idct, coefficients)
            case "dirichlet":
                return _on_parts(_dst, coefficients)
            case _:
                return jnp.fft.ifft(coefficients, axis=0, norm="ortho")

    @jax.named_scope("pdejax.solvers.Laplacian.apply")
    def apply(self, f: Callable[[Array], Array], u: Inexact[Array, "n *features"]) -> Inexact[Array, "n *features"]:
        """f(L)u, O(n log n), for example `L.apply(lambda z: jnp.exp(t * z), u)` for the heat semigroup.

        **Arguments:**

        - `f`: function of the eigenvalues, elementwise: takes (n,) and returns (n,), or (n, …) like `u` for
            one function per feature. It may return complex values, as exp(i t λ) does for a dispersive
            operator.
        - `u`: shape (n, …).

        **Returns:** an array like `u`: real if `u` and the values of `f` are real, else complex, in the
        precision of `u` (half precision is transformed in float32).

        **Raises:** `ValueError` if the shapes disagree.
        """
        self.grid.check(u)
        n = self.grid.n
        real_type = jnp.float64 if jnp.finfo(u.dtype).bits == 64 else jnp.float32
        complex_type = jnp.complex128 if real_type is jnp.float64 else jnp.complex64
        work = u.astype(complex_type if jnp.iscomplexobj(u) else real_type)
        values = jnp.asarray(f(self.eigenvalues(real_type)))
        if values.shape not in ((n,), u.shape):
            raise ValueError(
                f"f returned shape {values.shape} for the {n} eigenvalues; it must return ({n},), or {u.shape} like u."
            )
        values = values.reshape(values.shape + (1,) * (u.ndim - values.ndim))
        if jnp.iscomplexobj(values) or jnp.iscomplexobj(work):
            return self.inverse(values.astype(complex_type) * self.transform(work).astype(complex_type))
        values = values.astype(real_type)
        if self.grid.boundary == "periodic":  # a real even spectrum keeps the field real: half the work
            half = jnp.fft.rfft(work, axis=0)
            scaled = values[: n // 2 + 1].astype(complex_type) * half
            return jnp.fft.irfft(scaled, n=n, axis=0).astype(u.dtype)
        return self.inverse(values * self.transform(work)).astype(u.dtype)
