"""ListOps as three splits, generated or kept in files."""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pdejax._check import choice, integer
from pdejax.data._dataset import Dataset
from pdejax.data._prepare import SPLITS, cached, data_folder, ensure, join, pad, records, sizes
from pdejax.data._sources import (
    LENGTHS,
    LISTOPS_LICENSE,
    LISTOPS_SOURCE,
    LISTOPS_VERSION,
    SIZES,
    ListOpsSettings,
    listops_name,
    splits,
)
from pdejax.data.listops import VOCABULARY, Expressions

# More places for tokens than this are worth keeping in files: some ten seconds of work.
_IN_MEMORY = 20_000_000


def load_split(
    split: str,
    *,
    lengths: str | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    max_depth: int = 10,
    max_args: int = 10,
    prepared: bool | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> Dataset:
    """See `load`."""
    settings = _settings(lengths, min_length, max_length, sizes, seed, max_depth, max_args)
    if prepared not in (None, True, False):
        raise TypeError(f"prepared must be True, False or None, got {prepared!r}")
    count = settings.sizes[SPLITS.index(split)]
    if count == 0:
        raise ValueError(f"the split {split!r} is empty: sizes is {settings.sizes}")
    if limit is not None:
        count = min(count, limit)
    if prepared is None:
        prepared = data_dir is not None or sum(settings.sizes) * settings.max_length > _IN_MEMORY
    if prepared:
        tokens, labels = _prepared_arrays(settings, split, data_folder(data_dir))
        tokens, labels = tokens[:count], labels[:count]
    else:
        tokens, labels = arrays(splits(settings, split), count, settings.max_length)
    return Dataset(
        name="listops",
        split=split,
        tokens=tokens,
        mask=tokens != 0,
        labels=labels,
        classes=tuple(str(digit) for digit in range(10)),
        vocabulary=VOCABULARY,
        source=f"{LISTOPS_SOURCE}; {settings.min_length} < tokens < {settings.max_length}, seed {settings.seed}",
        license=LISTOPS_LICENSE,
    )


def prepare(
    *,
    lengths: str | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    max_depth: int = 10,
    max_args: int = 10,
    data_dir: str | os.PathLike[str] | None = None,
) -> Any:
    """See `prepare` of `_load`."""
    settings = _settings(lengths, min_length, max_length, sizes, seed, max_depth, max_args)
    return _prepared(settings, data_folder(data_dir))


def _prepared(settings: ListOpsSettings, folder: pathlib.Path) -> Any:
    def make() -> Any:
        from pdejax.data._builders import ListOps, listops_config  # only now, for TFDS takes a second

        return ListOps(config=listops_config(settings), data_dir=folder, file_format="array_record")

    return ensure(folder, f"list_ops/{listops_name(settings)}/{LISTOPS_VERSION}", make)


def arrays(examples: Iterator[tuple[bytes, int]], count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` examples as rows padded with 0, and their values."""
    tokens = np.zeros((count, length), dtype=np.uint8)
    labels = np.zeros(count, dtype=np.int32)
    for row, (key, value) in zip(range(count), examples, strict=False):
        tokens[row, : len(key)] = np.frombuffer(key, dtype=np.uint8)
        labels[row] = value
    return tokens, labels


def _prepared_arrays(settings: ListOpsSettings, split: str, folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    def read() -> dict[str, np.ndarray]:
        examples = records(_prepared(settings, folder), split)
        flat, ends = join([example["tokens"].tobytes() for example in examples])
        return {"tokens": flat, "ends": ends, "labels": np.array([e["label"] for e in examples], dtype=np.int32)}

    path = folder / "pdejax_arrays" / f"list_ops-{listops_name(settings)}-{LISTOPS_VERSION}-{split}.npz"
    arrays = cached(path, read)
    return pad(arrays["tokens"], arrays["ends"], settings.max_length), arrays["labels"]


def _settings(lengths: Any, low: Any, high: Any, counts: Any, seed: Any, depth: Any, args: Any) -> ListOpsSettings:
    if (low is None) != (high is None):
        raise ValueError("give both min_length and max_length, or neither")
    if low is not None and lengths is not None:
        raise ValueError(f"give either lengths={lengths!r} or min_length and max_length, not both")
    if low is None:
        low, high = LENGTHS[choice("load", "lengths", "short" if lengths is None else lengths, LENGTHS)]
    checked = Expressions(low, high, depth, args)
    return ListOpsSettings(
        checked.min_length,
        checked.max_length,
        sizes(counts),
        integer("load", "seed", seed, 0),
        checked.max_depth,
        checked.max_args,
    )
