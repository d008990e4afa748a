"""ONNX files: tensors by the names they had before the export, and the folder that says what they are.

An export keeps the names of vectors and tables, and gives matrices names of its own; but the node that multiplies by one is named
after its module: `/encoder/layer.0/query/MatMul` reads `encoder.layer.0.query.weight`, transposed. Weights that were quantized to
8 bits are turned into float32, w = s(q − z) with scale s and zero point z; how a runtime quantizes the states in between is
not imitated.

No ONNX file says which family it is. So it lies in a folder with a `config.json`, as exports of Hugging Face's do, which may have
one key more, `onnx`, of a network that is a part of a larger graph:

- `prefix`: of the names of that part, such as `"encoder.bert."`; nothing else of the file is read.
- `names`: tensors whose names the export lost, each with the stored name, or several that are put together along their second
  axis: an export that cuts positions to the size of its input keeps those of the class token and of patches apart.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdejax.networks.families._checkpoint import OWNER, Checkpoint, Stored, fault, listed
from pdejax.networks.families._huggingface import read_json, tokenizer_of_file

# What a quantized tensor is stored as.
_PARTS = ("_quantized", "_scale", "_zero_point")
_KEY = "onnx"
# How an export calls what had no name.
_NAMELESS = "onnx::"


def read_onnx_folder(folder: pathlib.Path, file: pathlib.Path) -> Checkpoint:
    """Return what an ONNX file and the `config.json` beside it hold.

    Raises `FileNotFoundError` without that file, `CheckpointError` for bytes that are no ONNX model and for names that the file
    has not, `ImportError` without the package onnx.
    """
    config = read_json(folder / "config.json")
    layout = config.pop(_KEY, {})
    if not isinstance(layout, dict) or layout.keys() - {"prefix", "names"}:
        raise fault(folder.name, f"config.json has {_KEY}={layout!r}; it must be a table with prefix, names or both.")
    prefix, names = layout.get("prefix", ""), layout.get("names", {})
    if not isinstance(prefix, str) or not isinstance(names, dict):
        raise fault(folder.name, f"config.json has {_KEY}={layout!r}; prefix must be a text and names a table.")
    every = read_onnx([file], within=prefix)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in every.items() if name.startswith(prefix)}
    if not tensors:
        raise fault(folder.name, f"no tensor of {file.name} has a name that begins with {prefix!r}.")
    for name, parts in names.items():
        own = [parts] if isinstance(parts, str) else parts
        if name in tensors and isinstance(own, list) and prefix + name not in own:
            raise fault(
                folder.name, f"config.json has {_KEY}: {name!r}, which the ONNX file has under that name already."
            )
        tensors[name] = _together(folder.name, name, parts, every)
        # They are read under the name given alone.
        for part in [parts] if isinstance(parts, str) else parts:
            tensors.pop(part.removeprefix(prefix), None)
    tokenizer = folder / "tokenizer.json"
    load = functools.partial(tokenizer_of_file, tokenizer) if tokenizer.is_file() else None
    return Checkpoint(folder.name, config, tensors, load)


def _together(where: str, name: str, parts: Any, tensors: Mapping[str, Stored]) -> Stored:
    """One tensor of those stored under the names `parts`."""
    stored = [parts] if isinstance(parts, str) else parts
    if not isinstance(stored, list) or not stored or not all(isinstance(part, str) for part in stored):
        raise fault(
            where, f"config.json has {_KEY}: {name!r} is stored as {parts!r}; it must be a name, or a list of names."
        )
    missing = [part for part in stored if part not in tensors]
    if missing:
        raise fault(
            where, f"config.json says that {name!r} is stored as {listed(missing)}, which the ONNX file has not."
        )
    arrays = [tensors[part].read() for part in stored]
    if len(arrays) == 1:
        return _stored(arrays[0])
    shapes = {array.shape[:1] + array.shape[2:] for array in arrays}
    if len(shapes) > 1 or arrays[0].ndim < 2:
        shown = ", ".join(str(array.shape) for array in arrays)
        raise fault(
            where, f"config.json puts {name!r} together of shapes {shown}, which differ beside the second axis."
        )
    return _stored(np.concatenate(arrays, axis=1))


def read_onnx(paths: Sequence[pathlib.Path], prefix: str = "", *, within: str | None = None) -> dict[str, Stored]:
    """Return the tensors whose names begin with `prefix`, without it; the parts of a file that was cut are given in order.

    Raises `CheckpointError` for bytes that are no ONNX model and, among names that begin with `within` (default: `prefix`), for
    two tensors of one name and 8-bit numbers without a scale; `ImportError` without the package onnx.
    """
    within = prefix if within is None else within
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        from onnx import numpy_helper  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError(f"{OWNER}: reading ONNX needs the package onnx: pip install 'pdejax[pretrained]'.") from None
    where = paths[0].name
    try:
        graph = onnx.load_model_from_string(b"".join(path.read_bytes() for path in paths)).graph
    except Exception as error:  # of protobuf
        raise fault(where, f"it is no ONNX model ({type(error).__name__}); parts must be whole and in order.") from None
    if not graph.initializer:
        raise fault(where, "it is no ONNX model with weights: the file is empty or damaged; download it again.")
    outside = [tensor.name for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise fault(
            where,
            f"its weights ({listed(outside)}) lie in a file beside it, which is not read; save the model as one file.",
        )
    names = [tensor.name for tensor in graph.initializer]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise fault(where, f"it has two tensors of one name ({listed(twice)}); download it again.")
    try:
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    except (ValueError, TypeError) as error:
        raise fault(where, f"a tensor is damaged ({error}); download it again.") from None
    weights = _Weights(where, constants, within)
    read = weights.read(graph)
    # A matrix without a name of its own is there under its module's. Whole numbers without a name are shapes and places.
    nameless = {n for n in constants if n.startswith(_NAMELESS) and (n in read or constants[n].dtype.kind not in "f")}
    found = {
        n: x for n, x in constants.items() if not n.startswith("/") and not n.endswith(_PARTS) and n not in nameless
    }
    found |= weights.found
    return {name.removeprefix(prefix): _stored(array) for name, array in found.items() if name.startswith(prefix)}


class _Weights:
    """Tensors whose names follow from the nodes that read them, `found`. What cannot be told is refused among names that begin
    with `within`, and left out elsewhere: the rest of a larger graph is nobody's network."""

    def __init__(self, where: str, constants: Mapping[str, np.ndarray], within: str):
        self.where, self.constants, self.within = where, constants, within
        self.found: dict[str, np.ndarray] = {}

    def read(self, graph: Any) -> set[str]:
        """Read all nodes; return the names that matrices were read under."""
        seen: set[str] = set()
        looked_up: dict[str, str] = {}
        for node in graph.node:
            if node.op_type == "Gather" and node.input and node.output:
                looked_up[node.output[0]] = node.input[0]
        for node in graph.node:
            if node.op_type in ("MatMul", "MatMulInteger"):
                self._matrix(node, seen)
            elif node.op_type == "DequantizeLinear" and node.input:
                self._table(node, looked_up.get(node.input[0], ""))
        return seen

    def _matrix(self, node: Any, seen: set[str]) -> None:
        """A weight of a linear map, stored `(out, in)` as before the export, by the module whose node multiplies by it."""
        source = node.input[1] if len(node.input) > 1 else ""
        # A layer that is applied again reads the same matrix, under the name of its module with a number.
        if source not in self.constants or source in seen:
            return
        seen.add(source)
        module = node.name.rsplit("/", 1)[0].strip("/").replace("/", ".")
        name, array = f"{module}.weight", self.constants[source]
        if node.op_type == "MatMulInteger":
            scale = source.removesuffix("_quantized") + "_scale"
            array = self._real(name, array, scale, node.input[3] if len(node.input) > 3 else "")
        if array is not None:
            self._keep(name, array.T, source)

    def _table(self, node: Any, source: str) -> None:
        """A quantized table, whose rows are looked up and then turned into numbers."""
        if source not in self.constants:
            return
        name, scale = source.removesuffix("_quantized"), node.input[1] if len(node.input) > 1 else ""
        array = self._real(name, self.constants[source], scale, node.input[2] if len(node.input) > 2 else "")
        if array is not None:
            self._keep(name, array, source)

    def _keep(self, name: str, array: np.ndarray, source: str) -> None:
        """One more tensor. The same one may be there under its name too, as tied weights are; another may not."""
        others = [self.found[name]] if name in self.found else []
        if name in self.constants and name != source:
            others.append(self.constants[name])
        if self._strict(name) and any(not np.array_equal(array, other) for other in others):
            raise fault(
                self.where, f"it has two tensors that are {name!r}, one of them {source!r}: which it is cannot be told."
            )
        self.found[name] = array

    def _real(self, name: str, array: np.ndarray, scale: str, zero: str) -> np.ndarray | None:
        """The numbers that 8-bit integers stand for; scales and zero points of a matrix are one per column, or one."""
        for what, stored in (("scale", scale), ("zero point", zero)):
            if stored not in self.constants and (stored or what == "scale"):
                return self._refuse(name, f"the {what} of {name!r} is not stored in it.")
        places = self.constants[zero] if zero else np.zeros((), array.dtype)
        try:
            return (array.astype(np.float32) - places.astype(np.float32)) * self.constants[scale].astype(np.float32)
        except ValueError:
            return self._refuse(name, f"scale or zero point of {name!r} do not fit its shape {array.shape}.")

    def _strict(self, name: str) -> bool:
        return name.startswith(self.within)

    def _refuse(self, name: str, words: str) -> None:
        if self._strict(name):
            raise fault(self.where, words)


def _stored(array: np.ndarray) -> Stored:
    return Stored(array.shape, array.dtype.name, array.nbytes, lambda: array)
