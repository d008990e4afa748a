"""The two ends of a network of images: pixels to the first field by patches, and the last field to scores of classes."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pdejax._types import Field, Mask
from pdejax.solvers._written import one_line
from pdejax.terms import LayerNorm


class ImageEmbedding(eqx.Module):
    r"""The first field of an image (Dosovitskiy et al., arXiv 2010.11929, (1)): the class token, then one token per patch, row
    by row, $W\,\text{patch} + b$; positions are added to all.

    Shapes: `weight (c, p, q, d)`, `bias (d,)`, `first (d,)`, `positions (1 + g², d)`. An image is `(c, height, width)`, of real
    numbers normalized as the checkpoint's `preprocessor_config.json` says. Of another size than the positions' grid g × g, they
    are interpolated: bicubic convolution with a = −¾ (Keys, doi:10.1109/TASSP.1981.1163711), edges continued.

    Raises `TypeError`/`ValueError` for what is no such image, or no whole number of patches.
    """

    weight: Float[Array, "c p q d"]
    bias: Float[Array, " d"] | None
    first: Float[Array, " d"]
    positions: Float[Array, "m d"]
    dtype: str = eqx.field(static=True, default="float32")

    __repr__ = one_line

    def __call__(self, tokens: Any) -> Field:
        image = jnp.asarray(tokens)
        channels, high, wide, _ = self.weight.shape
        wanted = f"it must be real numbers ({channels}, height, width), one image; batches by jax.vmap."
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise TypeError(f"Network: an image has type {image.dtype}; {wanted}")
        if image.ndim != 3 or image.shape[0] != channels or 0 in image.shape:
            raise ValueError(f"Network: an image has shape {image.shape}; {wanted}")
        if image.shape[1] % high or image.shape[2] % wide:
            raise ValueError(
                f"Network: an image of {image.shape[1]} × {image.shape[2]} pixels is no whole number of patches of "
                f"{high} × {wide}; crop or resize it."
            )
        return self._embedded(image)

    @eqx.filter_jit
    def _embedded(self, image: Array) -> Field:
        channels, high, wide, _ = self.weight.shape
        rows, columns = image.shape[1] // high, image.shape[2] // wide
        patches = image.astype(self.dtype).reshape(channels, rows, high, columns, wide)
        u = jnp.einsum("crpsq,cpqd->rsd", patches, self.weight.astype(self.dtype)).reshape(rows * columns, -1)
        u = u if self.bias is None else u + self.bias.astype(self.dtype)[None]
        u = jnp.concatenate([self.first.astype(self.dtype)[None], u])
        return u + self._places(rows, columns)

    def _places(self, rows: int, columns: int) -> Array:
        places = self.positions.astype(self.dtype)
        grid = round((places.shape[0] - 1) ** 0.5)
        if (rows, columns) == (grid, grid):
            return places
        down, across = (jnp.asarray(bicubic(grid, size), places.dtype) for size in (rows, columns))
        patches = jnp.einsum("ri,sj,ijd->rsd", down, across, places[1:].reshape(grid, grid, -1))
        return jnp.concatenate([places[:1], patches.reshape(rows * columns, -1)])


def bicubic(size: int, wanted: int) -> Float[np.ndarray, "wanted size"]:
    """The matrix that interpolates values at `size` cell centres of a line at those of `wanted` cells."""
    a = -0.75
    at = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    matrix = np.zeros((wanted, size))
    for tap in range(-1, 3):
        node = np.floor(at).astype(int) + tap
        x = np.abs(at - node)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = ((x - 5) * x + 8) * x * a - 4 * a
        np.add.at(matrix, (np.arange(wanted), np.clip(node, 0, size - 1)), np.where(x <= 1, near, far))
    return matrix


class ImageHead(eqx.Module):
    """Scores of classes `(labels,)` from the normalized last field: of the class token, `weight (d, labels)`, or of it beside
    the mean of the patches, `weight (2d, labels)`."""

    norm: LayerNorm
    weight: Float[Array, "e labels"]
    bias: Float[Array, " labels"]

    __repr__ = one_line

    def __call__(self, u: Field, mask: Mask | None) -> Float[Array, " labels"]:
        del mask
        u = self.norm(u)
        features = u[0] if self.weight.shape[0] == u.shape[1] else jnp.concatenate([u[0], jnp.mean(u[1:], axis=0)])
        return features @ self.weight.astype(u.dtype) + self.bias.astype(u.dtype)
