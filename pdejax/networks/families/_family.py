"""`Family` and `Tensor`: a family of checkpoints as data, and the strict reading of its weights."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pdejax.networks._network import Network
from pdejax.networks.families._checkpoint import Checkpoint, Stored, check_memory, fault, is_float, listed
from pdejax.networks.families._config import Config

Weights = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A line of a weight map: a stored tensor and what becomes of it.

    - `name`: as stored. `{l}` stands for the layer: L tensors become one array with a leading axis of layers.
    - `place`: the name under which `build` finds it. `shape`: the stored shape, which must be met.
    - `reshape`, then `axes` (a transposition), then `take` (an entry of the first axis): in this order, each optional. Several
      lines may read one stored tensor, such as fused queries, keys and values.
    - `group`: a name for tensors that are all there or all absent, such as those of a head.
    """

    name: str
    place: str
    shape: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    axes: tuple[int, ...] | None = None
    take: int | None = None
    group: str = ""

    def names(self, layers: int) -> list[str]:
        """The stored names, one per layer or one."""
        return [self.name.replace("{l}", str(l)) for l in range(layers)] if "{l}" in self.name else [self.name]

    def arranged(self, array: np.ndarray) -> np.ndarray:
        """The stored numbers in the arrangement of `pdejax.terms`."""
        array = array if self.reshape is None else array.reshape(self.reshape)
        array = array if self.axes is None else array.transpose(self.axes)
        return array if self.take is None else array[self.take]


def vector(name: str, place: str, size: int, group: str = "") -> Tensor:
    """A bias, or a scale of a norm, `(size,)`."""
    return Tensor(name, place, (size,), group=group)


def linear(name: str, place: str, inward: int, outward: int, group: str = "") -> Tensor:
    """The weight of a linear map, stored `(outward, inward)`, as `(inward, outward)`."""
    return Tensor(name, place, (outward, inward), axes=(1, 0), group=group)


def heads_in(name: str, place: str, dim: int, heads: int, size: int) -> list[Tensor]:
    """Weight and bias `name.weight (H·dk, d)`, `name.bias (H·dk,)` of queries, keys or values as `w… (d, H, dk)`, `b… (H, dk)`;
    `place` is such as `"attention.{}q"`."""
    return [
        Tensor(f"{name}.weight", place.format("w"), (heads * size, dim), (heads, size, dim), (2, 0, 1)),
        Tensor(f"{name}.bias", place.format("b"), (heads * size,), (heads, size)),
    ]


def heads_out(name: str, place: str, dim: int, heads: int, size: int) -> Tensor:
    """The weight `(d, H·dk)` of the map out of the heads as `wo (H, dk, d)`."""
    return Tensor(name, place, (dim, heads * size), (dim, heads, size), (1, 2, 0))


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of checkpoints: `name` for messages, the three maps of the package's docstring, and

    - `layers(settings)`: how many layers `{l}` counts.
    - `prefixes`: what may stand before the names of the map, such as `"bert."`. `renamed`: patterns and replacements for older
      names. `unused`: patterns of stored tensors that the network does not need, each with the reason.
    - `irrelevant`: keys of the configuration that the output does not depend on.
    """

    name: str
    settings: Callable[[Config], Any]
    tensors: Callable[[Any], Sequence[Tensor]]
    build: Callable[[Any, Weights, str], Network]
    layers: Callable[[Any], int]
    prefixes: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    irrelevant: tuple[str, ...] = ()

    def plain_name(self, name: str) -> str:
        """A stored name in the words of the weight map."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def why_unused(self, name: str) -> str | None:
        """Why a stored tensor is not read, or None."""
        return next((reason for pattern, reason in self.unused.items() if re.fullmatch(pattern, name)), None)

    def lines(self, settings: Any, stored: Collection[str]) -> dict[str, Tensor]:
        """The lines of the weight map by stored name, without groups of which nothing is stored."""
        layers = self.layers(settings)
        wanted = {name: line for line in self.tensors(settings) for name in line.names(layers)}
        present = {line.group for name, line in wanted.items() if line.group and name in stored}
        return {name: line for name, line in wanted.items() if not line.group or line.group in present}

    def left_out(self, settings: Any, checkpoint: Checkpoint) -> dict[str, str]:
        """Stored tensors that are not read, each with the reason."""
        plain = {name: self.plain_name(name) for name in checkpoint.tensors}
        wanted = self.lines(settings, plain.values())
        found = {name: self.why_unused(short) for name, short in plain.items() if short not in wanted}
        return {name: reason for name, reason in found.items() if reason is not None}


def read_weights(family: Family, settings: Any, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint by place, in their own types.

    Raises `CheckpointError`, which lists them, where tensors are missing, unexpected, of another shape or quantized, and for
    numbers that are not finite; `MemoryError` where they would not fit.
    """
    stored = _by_plain_name(family, checkpoint)
    wanted = family.lines(settings, stored)
    unused = {name for name in stored if name not in wanted and family.why_unused(name) is not None}
    _check_names(family, checkpoint, stored, wanted, unused)
    check_memory(checkpoint.where, sum(stored[name].size for name in wanted))
    layers = family.layers(settings)
    lines = {line.place: line for line in family.tensors(settings) if line.names(layers)[0] in wanted}
    return {
        place: _stacked(checkpoint, line, [(name, stored[name]) for name in line.names(layers)])
        for place, line in lines.items()
    }


def _by_plain_name(family: Family, checkpoint: Checkpoint) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for name, tensor in checkpoint.tensors.items():
        plain = family.plain_name(name)
        if plain in found:
            raise fault(checkpoint.where, f"two tensors stand for {plain!r}; the checkpoint holds more than one model.")
        found[plain] = tensor
    return found


def _check_names(
    family: Family, checkpoint: Checkpoint, stored: Mapping[str, Stored], wanted: Mapping[str, Tensor], unused: set[str]
) -> None:
    missing = wanted.keys() - stored.keys()
    unexpected = stored.keys() - wanted.keys() - unused
    misshapen = [
        f"{name} {stored[name].shape} instead of {line.shape}"
        for name, line in wanted.items()
        if name in stored and stored[name].shape != line.shape
    ]
    quantized = [
        f"{name} ({stored[name].kind})" for name in wanted if name in stored and not is_float(stored[name].kind)
    ]
    faults = [
        f"{what}: {listed(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
            ("of a type that holds no real numbers", quantized),
        )
        if names
    ]
    if faults:
        raise fault(
            checkpoint.where,
            f"the tensors are not those of a {family.name} model with this configuration. {'; '.join(faults)}.",
        )


def _stacked(checkpoint: Checkpoint, line: Tensor, tensors: Sequence[tuple[str, Stored]]) -> np.ndarray:
    """One array of the tensors of all layers, filled one by one; of types that differ, float32 or wider."""
    kinds = {tensor.kind for _, tensor in tensors}
    stack: np.ndarray | None = None
    for index, (name, tensor) in enumerate(tensors):
        array = line.arranged(tensor.read())
        if not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise fault(
                checkpoint.where, f"tensor {name!r} has {bad} NaN or infinite entries of {array.size}; it is damaged."
            )
        if "{l}" not in line.name:
            return np.ascontiguousarray(array)
        if stack is None:
            wide = np.float64 if "float64" in kinds else np.float32
            stack = np.empty((len(tensors), *array.shape), array.dtype if len(kinds) == 1 else wide)
        stack[index] = array
    assert stack is not None
    return stack
