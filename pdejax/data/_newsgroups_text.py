"""The documents of 20 Newsgroups: read from the archive, and without the parts that give the group away."""

import lzma
import pathlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

PARTS = ("headers", "footers", "quotes")
_MOST_BYTES = 200_000_000
_QUOTING_STARTS = ("In article", "Quoted from", "|", ">")
_QUOTING_WORDS = ("writes in", "writes:", "wrote:", "says:", "said:")


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
