"""20 Newsgroups: posts, the words of them, and three splits."""

import contextlib
import itertools
import lzma
import os
import pathlib
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pdejax._check import choice, integer
from pdejax.data._dataset import Dataset, permutation
from pdejax.data._prepare import Archive, cached, carve, data_folder, ensure, find_archives, join, records
from pdejax.data._tokenizer import Tokenizer

VERSION = "1.0.0"
LICENSE = "none stated: Usenet posts collected by K. Lang, in use for research since 1995"
# The first is a tar file of the 18,846 posts; the second is scikit-learn's copy, with the checksum given there.
ARCHIVES = (
    (Archive("20news-bydate.tar.xz", "051f45d765e0443ac4d1e6d3abfff7c3dcb16d881788c54e196eb27f91ceac69"),),
    (
        Archive(
            "20news-bydate.tar.gz",
            "8f1b2514ca22a5ade8fbb9cfa5727df95fa587f4c87b786e15c759fa66d95610",
            "https://ndownloader.figshare.com/files/5975967",
        ),
    ),
)
GROUPS = (
    "alt.atheism",
    "comp.graphics",
    "comp.os.ms-windows.misc",
    "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware",
    "comp.windows.x",
    "misc.forsale",
    "rec.autos",
    "rec.motorcycles",
    "rec.sport.baseball",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.electronics",
    "sci.med",
    "sci.space",
    "soc.religion.christian",
    "talk.politics.guns",
    "talk.politics.mideast",
    "talk.politics.misc",
    "talk.religion.misc",
)
PARTS = ("headers", "footers", "quotes")
_MOST_BYTES = 200_000_000
_QUOTING_STARTS = ("In article", "Quoted from", "|", ">")
_QUOTING_WORDS = ("writes in", "writes:", "wrote:", "says:", "said:")


def config_name(remove: tuple[str, ...]) -> str:
    """The name that a set without these parts has among the prepared sets."""
    return {PARTS: "stripped", (): "raw"}.get(remove, "without_" + "_".join(remove))


def read_documents(path: pathlib.Path, split: str) -> Iterator[tuple[str, str, str]]:
    """Group, number and text of each document of a split, in the archive's order. Nothing is written to disk.

    Raises `ValueError` for an archive with links, devices, absolute names or names with `..`, whose members
    are not `20news-bydate-<split>/<group>/<number>`, or which is larger than 200 MB when unpacked.
    """
    total = 0
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                parts = _checked_name(path, member)
                total += member.size
                if total > _MOST_BYTES:
                    raise ValueError(f"{path} holds more than {_MOST_BYTES} bytes: it is not the original archive")
                if member.isfile() and parts[0] == f"20news-bydate-{split}":
                    file: Any = archive.extractfile(member)
                    yield parts[1], parts[2], file.read().decode("latin-1")
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system, not of the content
        raise ValueError(f"{path} is not a whole tar archive: {error}") from error


def remove_parts(text: str, remove: tuple[str, ...]) -> str:
    """The text without its `"headers"`, `"footers"` or `"quotes"`, as `sklearn.datasets.fetch_20newsgroups` defines them.

    - headers: all up to the first blank line; the whole text if there is none.
    - footers: all from the last line on, blank or of hyphens only, that is neither the first nor at the text's ends.
    - quotes: lines that begin with `>`, `|`, `In article` or `Quoted from`, or announce a quotation (`writes:`).
    """
    if "headers" in remove:
        text = text.partition("\n\n")[2]
    if "footers" in remove:
        lines = text.strip().split("\n")
        rules = [i for i, line in enumerate(lines) if i and not line.strip().strip("-")]
        if rules:
            text = "\n".join(lines[: rules[-1]])
    if "quotes" in remove:
        lines = [line for line in text.split("\n") if not line.startswith(_QUOTING_STARTS)]
        text = "\n".join(line for line in lines if not any(words in line for words in _QUOTING_WORDS))
    return text


def _checked_name(path: pathlib.Path, member: tarfile.TarInfo) -> list[str]:
    name = member.name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith(("/", "\\")) or "\\" in name or ":" in name or ".." in parts:
        raise ValueError(f"{path}: refused, for its member {name!r} lies outside the archive's own folder")
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"{path}: refused, for its member {name!r} is a link or a device")
    known = bool(parts) and parts[0] in ("20news-bydate-train", "20news-bydate-test")
    if not known or len(parts) > 3 or (member.isfile() and len(parts) != 3):
        raise ValueError(f"{path}: the member {name!r} does not belong to 20 Newsgroups, sorted by date")
    return parts


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
        path = folder / "pdejax_arrays" / f"newsgroups-{config_name(remove)}-{VERSION}-{validation}-{seed}-{size}.json"
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
        license=LICENSE,
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
        return find_archives("20 Newsgroups", ARCHIVES, folder, manual_dir, download)

    def make() -> Any:
        from pdejax.data._builders import Newsgroups, newsgroups_config  # only now, for TFDS takes a second

        return Newsgroups(config=newsgroups_config(remove), data_dir=folder, file_format="array_record")

    return ensure(folder, f"newsgroups/{config_name(remove)}/{VERSION}", make, find)


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

    name = config_name(remove)
    arrays = cached(folder / "pdejax_arrays" / f"newsgroups-{name}-{VERSION}-{stored}.npz", read)
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
