"""What a training step is fed."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray


class Batch(NamedTuple):
    """Sequences of n tokens, b of them: NumPy arrays, or JAX arrays once on a device.

    - `inputs`: token ids `(b, n)`, or values `(b, n, features)`.
    - `mask (b, n)`: true at real tokens, false at padding.
    - `labels`: classes `(b,)`, or for language models the token to predict at each place `(b, n)`.
    """

    inputs: Int[Array | ndarray, "b n"] | Float[Array | ndarray, "b n features"]
    mask: Bool[Array | ndarray, "b n"]
    labels: Int[Array | ndarray, " b"] | Int[Array | ndarray, "b n"]

    def __repr__(self) -> str:
        shapes = (f"{name} {getattr(x, 'shape', x)}" for name, x in zip(self._fields, self, strict=True))
        return f"Batch({', '.join(shapes)})"
