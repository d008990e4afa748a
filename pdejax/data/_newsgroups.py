"""20 Newsgroups: posts, the words of them, and three splits."""

import contextlib
import itertools
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from pdejax._check import choice, integer
from pdejax.data import _sources
from pdejax.data._dataset import Dataset, permutation
from pdejax.data._prepare import cached, carve, data_folder, ensure, find_archives, join, records
from pdejax.data._sources import GROUPS, NEWSGROUPS_LICENSE, NEWSGROUPS_VERSION, PARTS, newsgroups_name
from pdejax.data._tokenizer import Tokenizer

TASKS = ("classification", "lm")


def load_split(
    split: str,
    *,
    remove: Sequence[str] = PARTS,
    task: str = "classification",
    length: int = 256,
    vocabulary_size: int | None = None,
    vocabulary: Tokenizer | str | os.PathLike[str] | None = None,
    validation: int = 1131,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    download: bool | None = None,
    limit: int | None = None,
) -> Dataset:
    """See `load`."""
    remove = _parts(remove)
    choice("load", "task", task, TASKS)
    length = integer("load", "length", length, 2 if task == "lm" else 1)
    validation = integer("load", "validation", validation, 0, 11_313)
    seed = integer("load", "seed", seed, 0, 2**64 - 1)
    tokenizer = _given(vocabulary, vocabulary_size)
    size = integer("load", "vocabulary_size", 10_000 if vocabulary_size is None else vocabulary_size, 3)
    if split == "validation" and validation == 0:
        raise ValueError("the split 'validation' is empty: validation is 0")
    folder = data_folder(data_dir)

    def stored(part: str) -> tuple[list[str], np.ndarray]:
        texts, labels = _documents("test" if part == "test" else "train", remove, folder, manual_dir, download)
        if part == "test":
            return texts, labels
        rows = carve(permutation(len(texts), seed, 0), part, validation)
        return [texts[i] for i in rows], labels[rows]

    texts, labels = stored(split)
    if tokenizer is None:
        path = (
            folder
            / "pdejax_arrays"
            / f"newsgroups-{newsgroups_name(remove)}-{NEWSGROUPS_VERSION}-{validation}-{seed}-{size}.json"
        )
        tokenizer = _trained(path, size, lambda: texts if split == "train" else stored("train")[0])
    texts, labels = texts[:limit], labels[:limit]
    tokens = tokenizer.encode_all(texts, length)
    classes, mask = GROUPS, tokens != 0
    if task == "lm":
        kept = np.flatnonzero(tokens[:, 1])
        tokens, texts = tokens[kept], [texts[i] for i in kept]
        tokens, labels, classes = tokens[:, :-1], tokens[:, 1:].astype(np.int32), tokenizer.words
        mask = labels != 0
    return Dataset(
        name="newsgroups",
        split=split,
        tokens=tokens,
        mask=mask,
        labels=labels,
        classes=classes,
        vocabulary=tokenizer.words,
        texts=tuple(texts),
        source="20 Newsgroups sorted by date, K. Lang and J. Rennie, http://qwone.com/~jason/20Newsgroups/; "
        f"{'without ' + ', '.join(remove) if remove else 'raw'}",
        license=NEWSGROUPS_LICENSE,
    )


def prepare(
    *,
    remove: Sequence[str] = PARTS,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    download: bool | None = None,
) -> Any:
    """See `prepare` of `_load`."""
    folder, remove = data_folder(data_dir), _parts(remove)

    def find() -> dict[str, pathlib.Path] | None:
        return find_archives("20 Newsgroups", _sources.NEWSGROUPS_ARCHIVES, folder, manual_dir, download)

    def make() -> Any:
        from pdejax.data._builders import Newsgroups, newsgroups_config  # only now, for TFDS takes a second

        return Newsgroups(config=newsgroups_config(remove), data_dir=folder, file_format="array_record")

    return ensure(folder, f"newsgroups/{newsgroups_name(remove)}/{NEWSGROUPS_VERSION}", make, find)


def _documents(
    stored: str,
    remove: tuple[str, ...],
    folder: pathlib.Path,
    manual_dir: str | os.PathLike[str] | None,
    download: bool | None,
) -> tuple[list[str], np.ndarray]:
    def read() -> dict[str, np.ndarray]:
        examples = records(prepare(remove=remove, data_dir=folder, manual_dir=manual_dir, download=download), stored)
        flat, ends = join([example["text"] for example in examples])
        return {"texts": flat, "ends": ends, "labels": np.array([e["label"] for e in examples], dtype=np.int32)}

    name = newsgroups_name(remove)
    arrays = cached(folder / "pdejax_arrays" / f"newsgroups-{name}-{NEWSGROUPS_VERSION}-{stored}.npz", read)
    joined, ends = arrays["texts"].tobytes(), arrays["ends"].tolist()
    texts = [joined[a:b].decode("utf-8") for a, b in itertools.pairwise(ends)]
    return texts, arrays["labels"]


def _parts(remove: Any) -> tuple[str, ...]:
    if isinstance(remove, str):
        raise ValueError(f"remove must be a tuple of {', '.join(map(repr, PARTS))}, got the string {remove!r}")
    chosen = [choice("load", "entry of remove", part, PARTS) for part in remove]
    return tuple(part for part in PARTS if part in chosen)


def _given(vocabulary: Any, size: Any) -> Tokenizer | None:
    if vocabulary is None:
        return None
    if not isinstance(vocabulary, Tokenizer):
        if not isinstance(vocabulary, str | os.PathLike):
            raise TypeError(
                f"vocabulary must be a Tokenizer or the path of its file, got a {type(vocabulary).__name__}"
            )
        vocabulary = Tokenizer.load(vocabulary)
    if size is not None and size != len(vocabulary):
        raise ValueError(
            f"wrong vocabulary: it has {len(vocabulary)} words, and vocabulary_size is {size}. Leave one out"
        )
    return vocabulary


def _trained(path: pathlib.Path, size: int, texts: Any) -> Tokenizer:
    """The vocabulary of the training split, kept in a file."""
    with contextlib.suppress(OSError, ValueError):
        return Tokenizer.load(path)
    tokenizer = Tokenizer.train(texts(), size)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(path)
    except OSError as error:
        warnings.warn(f"could not keep the vocabulary in {path}: {error}", stacklevel=2)
    return tokenizer
