"""Matrix product and exponential at full precision on every device."""

import jax.numpy as jnp
import jax.scipy.linalg
from jaxtyping import Array, Float


def product(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """a @ b; without `precision`, GPUs and TPUs round float32 factors to 10 or 7 bits first."""
    return jnp.matmul(a, b, precision="highest")


def matrix_exponential(a: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """e^a by scaling and squaring (Higham 2005, DOI 10.1137/04061101X). Up to 2⁶⁴ in norm: jax's own limit
    of 2¹⁶ would return NaN for a diffusion operator over a long depth.
    """
    return jax.scipy.linalg.expm(a, max_squarings=64)
