"""Batches without end, in an order that a few integers determine."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pdejax._check import integer
from pdejax.data._batch import Batch
from pdejax.data._dataset import Dataset


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
