"""One split of a data set, in memory."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float32, Int32, Integer

from pdejax._check import integer
from pdejax.data._batch import Batch


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
