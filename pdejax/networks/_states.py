"""`states`: hidden states and attention maps that any framework has written, in the order that the analyses take."""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from pdejax._arguments import checked
from pdejax.networks.families._checkpoint import CheckpointError
from pdejax.networks.families._safetensors import read_safetensors

_OWNER = "states"
_AXES = ("layers", "batch", "n", "d")
_STACKED = {3: "layers n d", 4: "layers batch n d"}
_APART = {2: "n d", 3: "batch n d"}


class StoredStates(NamedTuple):
    """Hidden states `u (layers, [batch], n, d)`, the embedding first; attention maps `(layers, [batch], H, n, n)` and the mask
    of real tokens `(n,)` or `(batch, n)`, or None where they were not asked for. Half precisions are read as float32."""

    u: Float[np.ndarray, "layers *batch n d"]
    maps: Float[np.ndarray, "maps *batch H n n"] | None = None
    mask: Bool[np.ndarray, "*batch n"] | None = None

    def __repr__(self) -> str:
        shapes = (f"{name} {x.shape}" for name, x in self._asdict().items() if x is not None)
        return f"StoredStates({', '.join(shapes)})"


@checked
def states(
    source: Any,
    *,
    name: str | None = None,
    maps: str | None = None,
    mask: str | None = None,
    layout: str | None = None,
) -> StoredStates:
    """Read hidden states, attention maps and a mask that another framework has computed, for the analyses.

    - `source`: a file (`.npz`, `.npy`, `.safetensors`) or a Zarr folder, an array, a list of arrays, one per layer (such as
      PyTorch's `out.hidden_states`), or a mapping from names to arrays.
    - `name`: which array holds the states. With `{l}` in it there is one array per layer, counted from 0 without a gap:
      `"resid.{l}"`. It may be left out where there is one array only. `maps`: the same for attention maps, of every layer;
      `mask`: for the mask of real tokens, of booleans or of 0 and 1.
    - `layout`: the order of axes in one array of states, words out of `layers`, `batch`, `n` (tokens) and `d` (features), such as
      `"batch layers n d"`; by default `"layers n d"` or `"layers batch n d"`, of one array per layer `"n d"` or `"batch n d"`.
      Maps have the same order with `heads n n` at the end in the place of `n` and `d`.

    Everything that takes states takes the result's `u` and `mask`: `pdejax.analysis.token_clustering(found.u, mask=found.mask)`.

    Raises `FileNotFoundError` for a file that is not there, `ValueError` for one that is damaged or pickled, a name that is not
    in it, layers that are missing or of different shapes, or a layout that does not fit, `TypeError` for what holds no real
    numbers.
    """
    arrays = _arrays(source)
    u, words = _read(arrays, name, "name", layout)
    found = None if maps is None else _maps(arrays, maps, words)
    real = None if mask is None else _mask(arrays, mask)
    result = StoredStates(_moved(u, words, _AXES), found, real)
    _check_fit(result)
    return result


def _arrays(source: Any) -> Mapping[str, Any]:
    """Arrays by name; of one array alone, or of a list with one per layer, the names are empty and numbers."""
    if isinstance(source, str | os.PathLike):
        return _file(pathlib.Path(source))
    if isinstance(source, Mapping):
        if not source:
            raise ValueError(f"{_OWNER}: source is an empty mapping; give arrays by name.")
        return source
    if isinstance(source, Sequence):
        if not source:
            raise ValueError(f"{_OWNER}: source is an empty list; give one array per layer.")
        return {str(l): array for l, array in enumerate(source)}
    return {"": source}


def _file(path: pathlib.Path) -> Mapping[str, Any]:
    if not path.exists():
        raise FileNotFoundError(
            f"{_OWNER}: there is no file {str(path)!r}; give an .npz, .npy, .safetensors or Zarr one."
        )
    if path.is_dir():
        return _zarr(path)
    if path.suffix == ".safetensors":
        try:
            return {name: tensor.read() for name, tensor in read_safetensors(path).items()}
        except CheckpointError as error:
            raise ValueError(f"{_OWNER}: {str(error).removeprefix('load_pretrained: ')}") from None
    if path.suffix not in (".npz", ".npy"):
        raise ValueError(
            f"{_OWNER}: {path.name} ends in {path.suffix!r}; .npz, .npy, .safetensors and Zarr folders are read. Of PyTorch's "
            ".pt, which is pickled, write the arrays by numpy.savez."
        )
    try:
        loaded = np.load(path, allow_pickle=False)
        return {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except Exception as error:  # of zip and zlib, of encryption, of NumPy's headers: many kinds
        raise ValueError(f"{_OWNER}: {path.name} holds no arrays that can be read without pickle ({error}).") from None


def _zarr(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        import zarr
    except ImportError:
        raise ImportError(
            f"{_OWNER}: {path.name} is a folder, which the package zarr would read: pip install zarr."
        ) from None
    try:
        found: Any = zarr.open(path, mode="r")
    except Exception as error:  # the package has many kinds
        raise ValueError(f"{_OWNER}: {path.name} is no Zarr folder ({error}).") from None
    return {"": found[...]} if hasattr(found, "shape") else {name: array[...] for name, array in found.arrays()}


def _read(
    arrays: Mapping[str, Any], name: str | None, argument: str, layout: str | None
) -> tuple[np.ndarray, list[str]]:
    """One array with the words of its axes: of one array per layer `layers` comes first."""
    if name is None and len(arrays) > 1 and all(key == str(l) for l, key in enumerate(arrays)):
        name = "{l}"
    if name is None and len(arrays) > 1:
        raise ValueError(
            f"{_OWNER}: {argument} is missing, and there are {_names(arrays)}; say which holds the states."
        )
    name = next(iter(arrays)) if name is None else name
    apart = "{l}" in name
    array = _layers(arrays, name, argument) if apart else _one(arrays, name, argument)
    usual = _APART if apart else _STACKED
    axes = array.ndim - apart
    words = (layout or usual.get(axes, "")).split()
    allowed = _AXES[1:] if apart else _AXES
    needed = {"n", "d"} if apart else {"layers", "n", "d"}
    if len(words) != axes or len({*words}) != axes or not needed <= {*words} <= {*allowed}:
        shape = array.shape[apart:]
        raise ValueError(
            f"{_OWNER}: layout={layout!r} does not fit {argument}={name!r} of shape {shape}; it must name {len(shape)} axes, "
            f"{' '.join(sorted(needed, key=_AXES.index))} among them and out of {' '.join(allowed)}."
        )
    return array, ["layers", *words] if apart else words


def _one(arrays: Mapping[str, Any], name: str, argument: str) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"{_OWNER}: {argument}={name!r} is not there; there are {_names(arrays)}.")
    return _numbers(argument, name, arrays[name])


def _layers(arrays: Mapping[str, Any], name: str, argument: str) -> np.ndarray:
    """The arrays of all layers, `{l}` = 0, 1, …, one after the other."""
    pattern = re.escape(name).replace(re.escape("{l}"), r"(0|[1-9]\d*)", 1).replace(re.escape("{l}"), r"\1")
    there = {int(match[1]) for key in arrays if (match := re.fullmatch(pattern, key))}
    # The first of 0 … count that is not there is one too many, or a gap.
    first = next(l for l in range(len(there) + 1) if l not in there)
    if first < len(there) or not there:
        key = name.replace("{l}", str(first))
        rest = f", and a layer {max(there)} is" if there else ""
        raise ValueError(f"{_OWNER}: {argument}={name!r}: {key!r} is not there{rest}; there are {_names(arrays)}.")
    keys = [name.replace("{l}", str(l)) for l in range(len(there))]
    found = [_numbers(argument, key, arrays[key]) for key in keys]
    shapes = {array.shape for array in found}
    if len(shapes) > 1:
        raise ValueError(f"{_OWNER}: {argument}={name!r}: layers have different shapes, {sorted(shapes)}.")
    return np.stack(found)


def _numbers(argument: str, name: str, value: Any) -> np.ndarray:
    """An array of at least float32."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{_OWNER}: {argument}={name!r} is no array of numbers ({error}); of a PyTorch tensor give x.detach().cpu().float()."
        ) from None
    if array.dtype.name in ("float16", "bfloat16"):
        return array.astype(np.float32)
    if array.dtype.name not in ("float32", "float64"):
        raise TypeError(
            f"{_OWNER}: {argument}={name!r} has type {array.dtype}; it must be real floating-point numbers."
        )
    return array


def _maps(arrays: Mapping[str, Any], name: str, words: list[str]) -> np.ndarray:
    apart = "{l}" in name
    array = _layers(arrays, name, "maps") if apart else _one(arrays, name, "maps")
    around = [word for word in words if word in ("layers", "batch")]
    # One array per layer has layers in front, whatever the states have.
    around = ["layers", *(word for word in around if word == "batch")] if apart else around
    if array.ndim != len(around) + 3 or array.shape[-1] != array.shape[-2]:
        wanted = ", ".join([*around[apart:], "heads", "n", "n"])
        raise ValueError(f"{_OWNER}: maps={name!r} has shape {array.shape[apart:]}; it must be ({wanted}).")
    order = sorted(range(len(around)), key=lambda i: _AXES.index(around[i]))
    return np.moveaxis(array, order, range(len(order)))


def _mask(arrays: Mapping[str, Any], name: str) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"{_OWNER}: mask={name!r} is not there; there are {_names(arrays)}.")
    array = np.asarray(arrays[name])
    if array.dtype != bool and not (np.issubdtype(array.dtype, np.integer) and np.isin(array, (0, 1)).all()):
        raise TypeError(f"{_OWNER}: mask={name!r} has type {array.dtype}; it must be booleans, or 0 and 1.")
    return array.astype(bool)


def _moved(array: np.ndarray, words: list[str], order: Sequence[str]) -> np.ndarray:
    return array.transpose([words.index(word) for word in order if word in words])


def _check_fit(found: StoredStates) -> None:
    """Raise unless maps and mask have the layers, sequences and tokens of the states."""
    batch, n = found.u.shape[1:-2], found.u.shape[-2]
    if found.maps is not None and len(found.maps) != len(found.u) - 1:
        raise ValueError(
            f"{_OWNER}: there are {len(found.u)} states and maps of {len(found.maps)} layers; the embedding is a state without "
            "maps, so that there is one less of them: give the state before the first layer too, or the maps of all layers."
        )
    if found.maps is not None and (found.maps.shape[1:-3] != batch or found.maps.shape[-1] != n):
        raise ValueError(
            f"{_OWNER}: states are of shape {found.u.shape} and maps of {found.maps.shape} (layers, batch, heads, n, n); "
            "sequences and tokens must match."
        )
    if found.mask is not None and found.mask.shape not in ((n,), (*batch, n)):
        raise ValueError(f"{_OWNER}: mask has shape {found.mask.shape}; it must be ({n},) or {(*batch, n)}.")


def _names(arrays: Mapping[str, Any]) -> str:
    """Names and shapes in words, the first few."""
    shown = [f"{name!r} {getattr(array, 'shape', '')}".strip() for name, array in list(arrays.items())[:8]]
    return ", ".join(shown) + (f", … ({len(arrays)} in all)" if len(arrays) > 8 else "")
