"""A split of a set in memory, and the batches that training is fed from it."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Integer
from numpy import ndarray

from pdejax._arguments import checked
from pdejax._check import integer


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


@checked
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """One split as NumPy arrays: N sequences of n tokens, kept in few bytes and widened when taken.

    - `name`, `split`: what was asked of [`load`][pdejax.data.load].
    - `tokens (N, n)`: ids, unsigned integers, 0 at padding; or `None`.
    - `values (N, n, features)`: numbers, for sets without a vocabulary; or `None`. What a model gets is `values / divisor`
      in float32, so that pixels can stay bytes.
    - `mask (N, n)`: true at real tokens.
    - `labels`: classes `(N,)`, or for language models the next token `(N, n)`, 0 where the mask is false.
    - `classes`: names of the label values.
    - `vocabulary`: the words of the ids, or `None`.
    - `texts`: the N documents, for sets made of text, or `None`.
    - `source`, `license`: where the data come from, and on what terms.

    Raises `ValueError` for arrays that do not fit each other or hold no example.
    """

    name: str
    split: str
    mask: Bool[np.ndarray, "count n"]
    labels: Integer[np.ndarray, " count"] | Integer[np.ndarray, "count n"]
    classes: tuple[str, ...]
    source: str
    license: str
    tokens: Integer[np.ndarray, "count n"] | None = None
    values: Integer[np.ndarray, "count n features"] | Float32[np.ndarray, "count n features"] | None = None
    divisor: int = 1
    vocabulary: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None

    def __post_init__(self):
        if (self.tokens is None) == (self.values is None):
            raise ValueError("give either tokens or values, not both and not none")
        if len(self.stored) == 0:
            raise ValueError(f"the split {self.split!r} of {self.name!r} is empty: it must have an example")
        shape = self.stored.shape[:2]
        _check("tokens", self.tokens, "integers", "iu", 2)
        _check("values", self.values, "numbers", "iuf", 3)
        _check("mask", self.mask, "booleans", "b", 2)
        _check("labels", self.labels, "integers", "iu", self.labels.ndim)
        if self.mask.shape != shape:
            raise ValueError(f"mask has shape {self.mask.shape}; it must be {shape}, like the tokens or values")
        if self.labels.shape not in (shape[:1], shape):
            raise ValueError(f"labels have shape {self.labels.shape}; they must be {shape[:1]} or {shape}")
        if not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(
                f"labels go from {self.labels.min()} to {self.labels.max()}; with {len(self.classes)} classes they must be "
                f"in [0, {len(self.classes) - 1}]"
            )
        if self.tokens is not None and self.vocabulary is not None and self.tokens.max() >= len(self.vocabulary):
            raise ValueError(
                f"wrong vocabulary: tokens go up to {self.tokens.max()}, and the vocabulary has {len(self.vocabulary)} words"
            )
        if self.texts is not None and len(self.texts) != shape[0]:
            raise ValueError(f"texts has {len(self.texts)} entries; it must have {shape[0]}, one for each example")
        for name in ("tokens", "values", "mask", "labels"):
            if (array := getattr(self, name)) is not None:
                view = array.view()
                view.flags.writeable = False
                object.__setattr__(self, name, view)

    def __len__(self) -> int:
        return len(self.stored)

    def __repr__(self) -> str:
        kind = "tokens" if self.values is None else "values"
        shape = " × ".join(map(str, self.stored.shape))
        return f"Dataset({self.name!r}, {self.split!r}: {kind} {shape}, {len(self.classes)} classes)"

    @property
    def stored(self) -> np.ndarray:
        """Tokens or values as they are kept."""
        return cast(np.ndarray, self.tokens if self.values is None else self.values)

    @property
    def length(self) -> int:
        """Tokens n of a sequence, padding included."""
        return self.stored.shape[1]

    @property
    def features(self) -> int | None:
        """Numbers per token, or `None` for token ids."""
        return None if self.values is None else self.values.shape[2]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the arrays and the vocabulary, the first 16 hexadecimal digits: equal for equal data."""
        digest = hashlib.sha256(repr((self.stored.shape, self.divisor, self.classes, self.vocabulary)).encode())
        for array in (self.stored, self.labels):
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    @property
    def inputs(self) -> Int32[np.ndarray, "count n"] | Float32[np.ndarray, "count n features"]:
        """What models are fed, all examples at once: ids as int32, or values as float32."""
        return self._widened(self.stored)

    def take(self, indices: Sequence[int] | Integer[np.ndarray, " b"]) -> Batch:
        """Return the examples at these places, in this order, as new arrays.

        Raises `TypeError` for indices that are not integers, `IndexError` outside `[0, N)`.
        """
        rows = self._rows(indices)
        labels = self.labels[rows].astype(np.int32)
        return Batch(self._widened(self.stored[rows]), self.mask[rows], labels)

    def subset(self, indices: Sequence[int] | Integer[np.ndarray, " b"]) -> "Dataset":
        """Return the examples at these places as a set of their own. Raises as `take`, and `ValueError` for none."""
        rows = self._rows(indices)
        changed: dict[str, Any] = {"mask": self.mask[rows], "labels": self.labels[rows]}
        changed["tokens" if self.values is None else "values"] = self.stored[rows]
        if self.texts is not None:
            changed["texts"] = tuple(self.texts[i] for i in rows)
        return dataclasses.replace(self, **changed)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Return all examples once, in order; the last batch holds what is left. For training see `Batches`."""
        size = integer("Dataset.batches", "batch_size", batch_size)
        return (self.take(np.arange(i, min(i + size, len(self)))) for i in range(0, len(self), size))

    def _rows(self, indices) -> np.ndarray:
        rows = np.asarray(indices)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise TypeError(f"indices must be a sequence of integers, got shape {rows.shape} of {rows.dtype}")
        rows = rows.astype(np.int64)
        wrong = rows[(rows < 0) | (rows >= len(self))]
        if wrong.size:
            raise IndexError(f"index {wrong[0]} is not in [0, {len(self)}), the examples of {self.split!r}")
        return rows

    def _widened(self, stored: np.ndarray) -> np.ndarray:
        if self.values is None:
            return stored.astype(np.int32)
        values = stored.astype(np.float32)
        return values if self.divisor == 1 else values / np.float32(self.divisor)


def _check(name: str, array: np.ndarray | None, what: str, kinds: str, axes: int) -> None:
    if array is not None and (array.ndim != axes or array.dtype.kind not in kinds):
        raise ValueError(f"{name} must be {what} with {axes} axes, got {array.dtype} of shape {array.shape}")


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """A uniform order of `count` examples, the same on every platform and in every version of NumPy.

    The order of the first `count` words of the Philox generator with key (seed, epoch), which is fixed, whereas
    NumPy's own `permutation` may change.
    """
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(count)
    return np.argsort(words, kind="stable")


class Batches:
    """An endless iterator over the batches of a set, epoch after epoch.

    Each epoch has its own order, a function of `seed` and its number. Step s of an epoch takes the places
    `s * batch_size` to `(s + 1) * batch_size` of that order. Of these, process i of p gets the i-th of p equal parts, so
    that the processes' batches, joined, are the batch that one process would get.

    **Arguments**

    - `dataset`: a `Dataset`.
    - `batch_size`: examples of a batch over all processes; `process_count` must divide it.
    - `seed`: an integer in `[0, 2**64)`.
    - `shuffle`: `False` keeps the order of the set.
    - `drop_last`: leave out the examples at an epoch's end that fill no batch; else they are a smaller one.
    - `process_index`, `process_count`: which process this is, of how many.

    Raises `ValueError` or `TypeError` naming the argument, also for a set smaller than one batch when `drop_last`.
    """

    @checked
    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = True,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self.dataset = dataset
        self.batch_size = integer("Batches", "batch_size", batch_size, 1)
        self.seed = integer("Batches", "seed", seed, 0, 2**64 - 1)
        self.shuffle, self.drop_last = bool(shuffle), bool(drop_last)
        self.process_count = integer("Batches", "process_count", process_count, 1)
        self.process_index = integer("Batches", "process_index", process_index, 0)
        if self.process_index >= self.process_count:
            raise ValueError(
                f"process_index is {self.process_index}; with process_count={self.process_count} it must be less"
            )
        count, size, processes = len(dataset), self.batch_size, self.process_count
        if size % processes:
            raise ValueError(f"batch_size={size} is not a multiple of process_count={processes}: change one")
        if self.drop_last and count < size:
            raise ValueError(
                f"batch_size={size} is more than the {count} examples of {dataset.split!r}: no batch would be full. "
                "Lower it, or set drop_last=False"
            )
        if not self.drop_last and count % size % processes:
            raise ValueError(
                f"the last batch of an epoch, {count % size} examples, cannot be divided among process_count={processes} "
                "processes: set drop_last=True"
            )
        self._epoch = self._step = 0
        self._order: tuple[int, np.ndarray] | None = None

    def __repr__(self) -> str:
        return (
            f"Batches({self.dataset!r}, {self.batch_size} at a time, {self.per_epoch} an epoch, seed {self.seed}; at epoch "
            f"{self._epoch}, step {self._step})"
        )

    @property
    def per_epoch(self) -> int:
        """Batches of one epoch."""
        count = len(self.dataset)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        batch = self.dataset.take(self._places())
        self._step += 1
        if self._step == self.per_epoch:
            self._epoch, self._step = self._epoch + 1, 0
        return batch

    def state(self) -> dict[str, Any]:
        """Return where the iterator stands, for `restore`: a dictionary for JSON, the same on every process."""
        return self._identity() | {"epoch": self._epoch, "step": self._step}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken: the batches that follow are the same, exactly.

        The number of processes may differ. Raises `ValueError` for the state of another set, seed or batch size.
        """
        expected = self._identity()
        missing = [name for name in (*expected, "epoch", "step") if name not in state]
        if missing:
            raise ValueError(f"state lacks {', '.join(missing)}; it must come from Batches.state()")
        changed = [
            f"{name}={state[name]!r}, here {value!r}" for name, value in expected.items() if state[name] != value
        ]
        if changed:
            raise ValueError(f"state belongs to other batches: {'; '.join(changed)}. Build Batches as they were then")
        epoch, step = (
            integer("Batches", "state['epoch']", state["epoch"], 0),
            integer("Batches", "state['step']", state["step"], 0),
        )
        if step >= self.per_epoch:
            raise ValueError(f"state['step'] is {step}; an epoch has {self.per_epoch} batches")
        self._epoch, self._step = epoch, step

    def _identity(self) -> dict[str, Any]:
        data = self.dataset
        return {
            "name": data.name,
            "split": data.split,
            "examples": len(data),
            "fingerprint": data.fingerprint,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def _places(self) -> np.ndarray:
        if self._order is None or self._order[0] != self._epoch:
            count = len(self.dataset)
            order = permutation(count, self.seed, self._epoch) if self.shuffle else np.arange(count)
            self._order = (self._epoch, order)
        start = self._step * self.batch_size
        places = self._order[1][start : start + self.batch_size]
        share = len(places) // self.process_count
        return places[self.process_index * share : (self.process_index + 1) * share]
