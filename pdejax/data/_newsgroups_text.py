"""The documents of 20 Newsgroups: what the set is, reading its archive, and removing what gives the group away."""

import lzma
import pathlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

from pdejax.data._prepare import Archive

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
