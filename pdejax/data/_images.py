"""Images as sequences: pixel by pixel, or patch by patch."""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from pdejax._check import choice, integer

FORMS = ("pixels", "patches")


def check_form(form: Any, patch: Any, side: int, default: int) -> int:
    """The side of a patch, 1 for pixels."""
    choice("load", "form", form, FORMS)
    if form == "pixels":
        if patch is not None:
            raise ValueError(f"patch={patch!r} is for form='patches'; form is 'pixels'")
        return 1
    patch = default if patch is None else integer("load", "patch", patch, 1)
    if side % patch:
        sides = [p for p in range(1, side + 1) if side % p == 0]
        raise ValueError(f"patch is {patch}; it must divide the image's side {side}: one of {sides}")
    return patch


def sequences(images: UInt8[np.ndarray, "count side side"], patch: int) -> UInt8[np.ndarray, "count n features"]:
    """Tokens of `patch * patch` numbers each: patches in reading order, in each its pixels in reading order."""
    count, side, _ = images.shape
    per_side = side // patch
    tiles = images.reshape(count, per_side, patch, per_side, patch).swapaxes(2, 3)
    return np.ascontiguousarray(tiles).reshape(count, per_side * per_side, patch * patch)
