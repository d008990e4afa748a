"""Mode space: the orthonormal change of variables in which a Laplacian and a feature matrix are diagonal."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from pdejax.solvers._grid import Boundary, Grid
from pdejax.solvers._laplacian import Laplacian


def times(factor: Any, array: Array) -> Array:
    """`factor * array` in the precision of `array`, complex if either is."""
    return like(factor, array.dtype) * (
        array.astype(np.promote_types(array.dtype, jnp.complex64)) if jnp.iscomplexobj(factor) else array
    )


def like(array: Any, dtype: Any) -> Array:
    """`array` in the precision of `dtype`, complex if either is."""
    array = jnp.asarray(array)
    complex_ = jnp.iscomplexobj(array) or jnp.issubdtype(dtype, jnp.complexfloating)
    return array.astype(np.promote_types(dtype, jnp.complex64) if complex_ else dtype)


def weighted(weights: Array, coefficients: Array) -> Array:
    """A function of an operator on coefficients `(n, d)`: its values `(n, d)`, or matrices `(n, d, d)`, one per token mode."""
    if weights.ndim == 3:
        return jnp.einsum("kij,kj->ki", weights, coefficients)
    return weights * coefficients


def on_parts(f: Callable[[Array], Array], u: Array) -> Array:
    """A real linear map, applied to the real and the imaginary part."""
    return jax.lax.complex(f(u.real), f(u.imag)) if jnp.iscomplexobj(u) else f(u)


class Modes(eqx.Module):
    """û = T u V: T a real orthonormal fast transform along the tokens, V an orthogonal basis of the features.

    T is the DCT-II (Neumann), the DST-I (Dirichlet), or the Hartley transform (periodic),
    û_k = n^(−1/2) Σ_i (cos + sin)(2πik/n) u_i. The last diagonalizes the periodic Laplacian as the FFT does, with the
    eigenvalues in the same order, because k and n − k share theirs; and it leaves real fields real.
    """

    boundary: Boundary = eqx.field(static=True)
    basis: Float[Array, "d d"] | None = None

    def to(self, u: Inexact[Array, "n d"]) -> Inexact[Array, "n d"]:
        """û of `u`: real if `u` is, at least float32."""
        u = u.astype(np.promote_types(u.dtype, jnp.float32))
        plain = Grid(u.shape[0], boundary=self.boundary)
        out = on_parts(_hartley, u) if self.boundary == "periodic" else Laplacian(plain).transform(u)
        return out if self.basis is None else out @ like(self.basis, u.dtype)

    def back(self, coefficients: Inexact[Array, "n d"]) -> Inexact[Array, "n d"]:
        """The `u` whose `to` is `coefficients`."""
        if self.basis is not None:
            coefficients = coefficients @ like(self.basis, coefficients.dtype).T
        if self.boundary == "periodic":
            return on_parts(_hartley, coefficients)
        return Laplacian(Grid(coefficients.shape[0], boundary=self.boundary)).inverse(coefficients)


def _hartley(u: Array) -> Array:
    """Orthonormal discrete Hartley transform along the first axis, its own inverse: Re − Im of the FFT."""
    n = u.shape[0]
    half = jnp.fft.rfft(u, axis=0, norm="ortho")
    conjugates = half[1 : (n + 1) // 2][::-1]
    return jnp.concatenate([half.real - half.imag, conjugates.real + conjugates.imag])
