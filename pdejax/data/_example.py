"""One sequence of real input: of a data set, of a text, or of an array."""

import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pdejax.data import digits, listops
from pdejax.data._load import load
from pdejax.data._tokenizer import Tokenizer

_ARRAYS = (".npy", ".npz")
_LEAST = 2  # tokens, for a sequence that attention does something with
_WORDS = 10_000  # different words of a text, at most
_LOOKED_AT = 200  # sequences, for one that is long enough


class Example(NamedTuple):
    """A sequence without padding: token ids `(n,)` or values `(n, features)`, how many ids there are, and what it is."""

    tokens: np.ndarray
    vocab: int | None
    source: str


def example(
    dataset: str, *, index: int = 0, length: int = 48, options: Mapping[str, Any] | None = None, owner: str = "example"
) -> Example:
    """Take the sequence number `index` of a data set's test split, from its beginning if there are fewer, padding left out.

    `options` are those of `load`. Without any, ListOps is one expression of exactly `length` tokens, digits an image pixel by
    pixel; MNIST comes in patches, and of a text the first `length` words are taken. Raises as `load`.
    """
    given = dict(options or {})
    if dataset == "listops" and not given:
        record = listops.generate(1, min_length=length - 1, max_length=length + 1, seed=index)
        tokens = record.tokens[0, :length]
        return Example(tokens, len(listops.VOCABULARY), f"ListOps: {listops.to_text(tokens)} = {int(record.labels[0])}")
    if dataset == "digits" and not given:
        images = digits.load()
        place = index % len(images.labels)
        return Example(
            images.values[place][:, None], None, f"digits image {place} of class {int(images.labels[place])}"
        )
    if dataset == "mnist" and "form" not in given:
        given = {"form": "patches", "patch": 4} | given
    if dataset == "newsgroups" and "length" not in given:
        given["length"] = length
    test = load(dataset, "test", limit=index + _LOOKED_AT, **given)
    counts = np.asarray(test.mask).sum(axis=1)
    long = [place for place in range(len(test)) if counts[place] >= _LEAST]
    if not long:
        raise ValueError(
            f"{owner}: the first sequences of {dataset} with {given} have fewer than {_LEAST} tokens each."
        )
    place = next((place for place in long if place >= index), long[index % len(long)])
    batch = test.take(np.asarray([place]))
    tokens = np.asarray(batch.inputs[0])[np.asarray(batch.mask[0])]
    of = "" if np.ndim(batch.labels) > 1 else f" of class {test.classes[int(batch.labels[0])]}"
    vocab = None if test.vocabulary is None else len(test.vocabulary)
    return Example(tokens, vocab, f"{dataset}, test split, number {place}{of}, {len(tokens)} tokens")


def example_of_file(
    path: str | os.PathLike[str],
    *,
    length: int = 48,
    encode: Callable[[str], Sequence[int]] | None = None,
    owner: str = "example_of_file",
) -> Example:
    """Take the sequence that a file holds: a text, of which the first `length` words, or one array of NumPy.

    An array `(n,)` of integers is token ids, of other numbers one feature; `(n, features)` is values. A text's words become ids
    by `encode`; without it by a vocabulary of the text's own words. The name alone of the file is in `source`.

    Raises `FileNotFoundError` where there is no file, and `ValueError` for another content, naming the `owner`.
    """
    place = pathlib.Path(path)
    if not place.is_file():
        raise FileNotFoundError(
            f"{owner}: file={os.fspath(path)!r} does not exist; give a text in UTF-8, or an .npy array."
        )
    if place.suffix in _ARRAYS:
        tokens = _array(owner, place)
        ids = tokens.ndim == 1 and tokens.dtype.kind in "iu"
        vocab = int(tokens.max()) + 1 if ids else None
        if ids and tokens.min() < 0:
            raise ValueError(f"{owner}: file={place.name!r} holds {tokens.min()}; token ids are from 0 on.")
        return Example(tokens, vocab, f"{place.name}, {len(tokens)} {'token ids' if ids else 'values'}")
    try:
        text = place.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{owner}: file={place.name!r} is no text in UTF-8, nor an .npy array: {error}.") from None
    own = Tokenizer.train([text], _WORDS)
    found = np.asarray((own.encode if encode is None else encode)(text)[:length], np.int32)
    if len(found) < _LEAST:
        raise ValueError(f"{owner}: file={place.name!r} has {len(found)} words; at least {_LEAST} are needed.")
    return Example(found, len(own) if encode is None else None, f"{place.name}, its first {len(found)} words")


def encoder_of(dataset: str, options: Mapping[str, Any], owner: str) -> Callable[[str], Sequence[int]]:
    """How a model of this data set reads a text. Raises `ValueError` for a set of images, and as `load`."""
    if dataset == "listops":
        return lambda text: listops.to_tokens(text).tolist()
    words = load(dataset, "test", limit=1, **options).vocabulary
    if words is None:
        raise ValueError(f"{owner}: the model takes images of {dataset}, not a text; give an .npy array of its values.")
    return Tokenizer(words).encode


def _array(owner: str, place: pathlib.Path) -> np.ndarray:
    try:
        found = np.load(place, allow_pickle=False)
        names = getattr(found, "files", None)
        if names is not None and len(names) != 1:
            raise ValueError(f"it holds {len(names)} arrays, {', '.join(names)}, and must hold one")
        array = np.asarray(found if names is None else found[names[0]])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{owner}: file={place.name!r} cannot be read as an array: {error}.") from None
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2) or len(array) < _LEAST or not array.size:
        raise ValueError(
            f"{owner}: file={place.name!r} holds {array.dtype} {array.shape}; it must be token ids (n,) or numbers (n,) or "
            f"(n, features), n at least {_LEAST}."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{owner}: file={place.name!r} holds NaN or infinities; every value must be finite.")
    if array.ndim == 1 and array.dtype.kind in "iu":
        return array
    return np.asarray(array, np.float64).reshape(len(array), -1)
