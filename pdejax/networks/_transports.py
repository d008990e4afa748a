"""`save_transports`: Jacobian transports of a network as a safetensors file that any framework reads."""

import json
import os
import pathlib

import numpy as np
from jaxtyping import ArrayLike, Float

from pdejax._arguments import checked
from pdejax._check import finite, real_array
from pdejax.runs._files import write_whole

_OWNER = "save_transports"
_WORDS = {
    "format": "pdejax.transports.1",
    "tensor": "jacobian.{l}: the derivative of the last state by state l, averaged over tokens; state 0 is the embedding",
    "axes": "[feature of the last state, feature of state l]",
}


@checked
def save_transports(path: str | os.PathLike[str], transports: Float[ArrayLike, "states d d"]) -> pathlib.Path:
    """Write transports `(L + 1, d, d)`, such as those of
    [`jacobian_transports`][pdejax.analysis.jacobian.jacobian_transports], as a safetensors file, and return its path.

    Tensors are `jacobian.0` … `jacobian.L`, `(d, d)` in float32, rows features of the last state; L is that of the embedding's
    successor after all layers, the identity. The metadata says so: `format`, `tensor`, `axes`, `states`. Public Jacobian lenses
    are files of PyTorch with one matrix per block's output: that of block i is `jacobian.{i + 1}` here.

    Raises `ValueError` for another shape, for values that are not finite and for a name that does not end in `.safetensors`,
    `ResultError` for a folder that cannot be written.
    """
    place = pathlib.Path(path)
    if place.suffix != ".safetensors":
        raise ValueError(f"{_OWNER}: path={str(path)!r} must end in .safetensors.")
    found = real_array(_OWNER, "transports", transports, "(states, d, d)", 3)
    if found.shape[1] != found.shape[2] or 0 in found.shape:
        raise ValueError(
            f"{_OWNER}: transports has shape {found.shape}; it must be (states, d, d), one matrix per state."
        )
    finite(_OWNER, "transports", found)
    each = np.ascontiguousarray(np.asarray(found, np.dtype("<f4")))
    size = each[0].nbytes
    header: dict[str, object] = {"__metadata__": _WORDS | {"states": str(len(each))}}
    header |= {
        f"jacobian.{l}": {"dtype": "F32", "shape": list(each.shape[1:]), "data_offsets": [l * size, (l + 1) * size]}
        for l in range(len(each))
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8 bytes
    write_whole(place, len(text).to_bytes(8, "little") + text + each.tobytes())
    return place
