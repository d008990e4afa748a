"""Tensors of an ONNX file by the names they had before the export, for a family's weight map.

An export keeps the names of vectors and tables, and gives matrices names of its own; but the node that multiplies by one is named
after its module: `/encoder/layer.0/query/MatMul` reads `encoder.layer.0.query.weight`, transposed. Weights that were quantized to
8 bits are turned into float32, w = s(q − z) with scale s and zero point z; how a runtime quantizes the states in between is
not imitated.

No ONNX file says which family it is, so `load_pretrained` takes none: give the tensors, with a configuration, as a `Checkpoint`
to `network_of`.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pdejax.networks.families._checkpoint import OWNER, Stored, fault

# What a quantized tensor is stored as.
_PARTS = ("_quantized", "_scale", "_zero_point")


def read_onnx(paths: Sequence[pathlib.Path], prefix: str = "") -> dict[str, Stored]:
    """Return the tensors whose names begin with `prefix`, without it; the parts of a file that was cut are given in order.

    Raises `CheckpointError` for bytes that are no ONNX model, `ImportError` without the package onnx.
    """
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        from onnx import numpy_helper  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError(f"{OWNER}: reading ONNX needs the package onnx: pip install 'pdejax[oracle]'.") from None
    try:
        graph = onnx.load_model_from_string(b"".join(path.read_bytes() for path in paths)).graph
    except Exception as error:  # of protobuf
        raise fault(
            paths[0].name, f"it is no ONNX model ({type(error).__name__}); parts must be whole and in order."
        ) from None
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {n: array for n, array in constants.items() if not n.startswith("/") and not n.endswith(_PARTS)}
    found |= _tables(graph, constants) | _matrices(graph, constants)
    return {name.removeprefix(prefix): _stored(array) for name, array in found.items() if name.startswith(prefix)}


def _matrices(graph: Any, constants: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights of linear maps, stored `(out, in)` as before the export, by the modules whose nodes multiply by them."""
    found: dict[str, np.ndarray] = {}
    seen: set[str] = set()
    for node in graph.node:
        products = node.op_type in ("MatMul", "MatMulInteger") and node.input[1] in constants
        # A layer that is applied again reads the same matrix, under the name of its module with a number.
        if not products or node.input[1] in seen:
            continue
        seen.add(node.input[1])
        array = constants[node.input[1]]
        if node.op_type == "MatMulInteger":
            scale = constants[node.input[1].removesuffix("_quantized") + "_scale"]
            zero = constants[node.input[3]] if len(node.input) > 3 else np.zeros((), array.dtype)
            array = _real(array, scale, zero)
        module = node.name.rsplit("/", 1)[0].strip("/").replace("/", ".")
        found[f"{module}.weight"] = array.T
    return found


def _tables(graph: Any, constants: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Quantized tables, whose rows are looked up and then turned into numbers."""
    looked_up = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Gather"}
    found = {}
    for node in graph.node:
        name = looked_up.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if name in constants:
            zero = constants[node.input[2]] if len(node.input) > 2 else np.zeros((), constants[name].dtype)
            found[name.removesuffix("_quantized")] = _real(constants[name], constants[node.input[1]], zero)
    return found


def _real(array: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """The numbers that 8-bit integers stand for; scales and zero points of a matrix are one per column, or one."""
    return (array.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)


def _stored(array: np.ndarray) -> Stored:
    return Stored(array.shape, array.dtype.name, array.nbytes, lambda: array)
