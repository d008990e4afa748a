"""`Family` and `Tensor`: a family of checkpoints as data, and the strict reading of its weights."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pdejax.networks._network import Network
from pdejax.networks.families._checkpoint import Checkpoint, Stored, check_memory, fault, is_float, listed
from pdejax.networks.families._config import HEADED, Config, is_bare

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


def affine(name: str, place: str, inward: int, outward: int, group: str = "") -> list[Tensor]:
    """Weight and bias of an affine map; `place` is such as `"feed_forward.{}1"`."""
    return [
        linear(f"{name}.weight", place.format("w"), inward, outward, group),
        vector(f"{name}.bias", place.format("b"), outward, group),
    ]


def norm_lines(name: str, place: str, size: int, group: str = "") -> list[Tensor]:
    """Scale and bias of a LayerNorm."""
    return [
        vector(f"{name}.weight", f"{place}.scale", size, group),
        vector(f"{name}.bias", f"{place}.bias", size, group),
    ]


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


# Reasons of several families why a stored tensor is not read.
POOLER = "the pooler, which neither hidden states nor the output pass through"
# Of a decoder: classes of texts by `score`, of tokens by either, answers.
DECODER_TASKS = r"(score|classifier|qa_outputs)\..*"
TASK = "the head of a task, which neither hidden states nor the last field pass through"
PLACES = "a buffer of 0, 1, 2, …"
CAUSAL_MASK = "a buffer of the causal mask"
FREQUENCIES = "frequencies of rotary positions, which follow from the configuration"
# Compared at once of two tensors that should be the same.
_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of checkpoints: `name` for messages, the three maps of the package's docstring, and

    - `layers(settings)`: how many layers `{l}` counts.
    - `causal`: whether tokens see those before them alone. Such a model has a head, unless its configuration names a bare one.
    - `prefixes`: what may stand before the names of the map, such as `"bert."`. `renamed`: patterns and replacements for older
      names. `unused`: patterns of stored tensors that the network does not need, each with the reason. `copies`: tensors that
      are stored beside the one they are tied to, by its name: they are not read where the two are the same, and refused else.
    - `irrelevant`: keys of the configuration that the output does not depend on.
    """

    name: str
    settings: Callable[[Config], Any]
    tensors: Callable[[Any], Sequence[Tensor]]
    build: Callable[[Any, Weights, str], Network]
    layers: Callable[[Any], int]
    causal: bool = False
    prefixes: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    irrelevant: tuple[str, ...] = ()

    def plain_name(self, name: str) -> str:
        """A stored name in the words of the weight map."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def why_unused(self, name: str, wanted: Collection[str]) -> str | None:
        """Why a stored tensor is not read, or None. `wanted`: what is read."""
        if (original := self.copies.get(name)) in wanted:
            return f"a copy of {original}, to which it is tied"
        return next((reason for pattern, reason in self.unused.items() if re.fullmatch(pattern, name)), None)

    def has_head(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint must have a head, by its configuration; else it may have one."""
        names = Config(checkpoint.config, checkpoint.where, self.name).architectures()
        return any(name.endswith(HEADED) for name in names) or (self.causal and not is_bare(names))

    def lines(self, settings: Any, stored: Collection[str], checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The lines of the weight map by stored name, without groups of which nothing is stored but that of a head that the
        configuration speaks of."""
        layers = self.layers(settings)
        wanted = {name: line for line in self.tensors(settings) for name in line.names(layers)}
        if self.has_head(checkpoint):
            return wanted
        present = {line.group for name, line in wanted.items() if line.group and name in stored}
        return {name: line for name, line in wanted.items() if not line.group or line.group in present}

    def left_out(self, settings: Any, checkpoint: Checkpoint) -> dict[str, str]:
        """Stored tensors that are not read, each with the reason."""
        plain = {name: self.plain_name(name) for name in checkpoint.tensors}
        wanted = self.lines(settings, plain.values(), checkpoint)
        found = {name: self.why_unused(short, wanted) for name, short in plain.items() if short not in wanted}
        return {name: reason for name, reason in found.items() if reason is not None}


def read_weights(family: Family, settings: Any, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint by place, in their own types.

    Raises `CheckpointError`, which lists them, where tensors are missing, unexpected, of another shape or quantized, and for
    numbers that are not finite; `MemoryError` where they would not fit.
    """
    stored = _by_plain_name(family, checkpoint)
    wanted = family.lines(settings, stored, checkpoint)
    unused = {name for name in stored if name not in wanted and family.why_unused(name, wanted) is not None}
    _check_names(family, checkpoint, stored, wanted, unused)
    check_memory(checkpoint.where, sum(stored[name].size for name in wanted))
    for name in sorted(unused & family.copies.keys()):
        _check_copy(checkpoint.where, name, family.copies[name], stored)
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
    head = {name for name, line in wanted.items() if line.group == "head"}
    if head and head <= missing:
        names = checkpoint.config.get("architectures")
        faults.append(
            f"architectures={names!r} speaks of a head; of a bare model it names a class that ends in Model, such as LlamaModel"
        )
    if faults:
        raise fault(
            checkpoint.where,
            f"the tensors are not those of a {family.name} model with this configuration. {'; '.join(faults)}.",
        )


def _check_copy(where: str, name: str, original: str, stored: Mapping[str, Stored]) -> None:
    """Raise unless two stored tensors are the same numbers."""
    one, other = stored[name], stored[original]
    what = f"of shapes {one.shape} and {other.shape}"
    if one.shape == other.shape:
        ours, theirs = one.read(), other.read()
        places = range(0, len(ours), _ROWS)
        apart = sum(int(np.sum(ours[i : i + _ROWS] != theirs[i : i + _ROWS])) for i in places)
        if not apart:
            return
        what = f"apart in {apart} of {ours.size} entries"
    raise fault(
        where,
        f"tensor {name!r} should be a copy of {original!r}, to which the configuration ties it, and they are {what}. If the head "
        'is one of its own, write "tie_word_embeddings": false in config.json; else take the tensor out.',
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
