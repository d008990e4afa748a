"""Sets on disk: shared options, archives found and checked, sets built once with TensorFlow Datasets, arrays kept."""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import socket
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from pdejax._check import integer
from pdejax.runs._files import whole_file

# A name look-up has no time limit of its own, and being offline must show within a second.
_PATIENCE = 0.7


class Archive(NamedTuple):
    """An original file: its name, its SHA-256, and where it can be had, if it can."""

    filename: str
    sha256: str
    url: str | None = None


def import_tfds() -> Any:
    """TensorFlow Datasets. Raises `ImportError` saying what to install."""
    try:
        with warnings.catch_warnings():
            # Its dependencies warn about their own future when they are imported; nothing here is the user's.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            import importlib_resources  # noqa: F401  # TFDS needs it and does not say so: tensorflow/datasets#11212
            import tensorflow_datasets
            import tensorflow_datasets.core
    except ImportError as error:
        raise ImportError(
            f"preparing data needs {error.name}: pip install tensorflow-datasets array_record importlib_resources"
        ) from error
    return tensorflow_datasets


def find_archives(
    name: str,
    alternatives: Sequence[Sequence[Archive]],
    folder: pathlib.Path,
    manual_dir: str | os.PathLike[str] | None,
    download: bool | None,
) -> dict[str, pathlib.Path] | None:
    """Paths by file name of the first alternative that is in `manual_dir` (default `folder/downloads/manual`), verified.

    `None` when they are to be downloaded. Raises `FileNotFoundError` when they are nowhere to be found, and `ValueError`
    for a wrong checksum.
    """
    if download not in (None, True, False):
        raise TypeError(f"download must be True, False or None, got {download!r}")
    place = folder / "downloads" / "manual" if manual_dir is None else pathlib.Path(manual_dir).expanduser()
    for archives in alternatives:
        paths = {archive.filename: place / archive.filename for archive in archives}
        if all(path.is_file() for path in paths.values()):
            for archive in archives:
                check_sum(paths[archive.filename], archive)
            return paths
    reason = "is not prepared"
    if manual_dir is None and download is not False:
        urls = [archive.url for archives in alternatives for archive in archives if archive.url]
        if download or reachable(urls[0]):
            return None
        reason += f", and {urllib.parse.urlsplit(urls[0]).hostname} cannot be reached"
    names = ", or ".join(" and ".join(archive.filename for archive in archives) for archives in alternatives)
    where = "; ".join(archive.url for archives in alternatives for archive in archives if archive.url)
    raise FileNotFoundError(
        f"{name} {reason}. Put {names} into {place} (from {where}), or name the folder that has them with manual_dir="
    )


def check_sum(path: pathlib.Path, archive: Archive) -> None:
    """Raise `ValueError` unless the file has the archive's SHA-256."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256:
        raise ValueError(
            f"{path} has the wrong checksum: SHA-256 {found}, and {archive.filename} must have {archive.sha256}. It is "
            "truncated or not the original: replace it"
        )


def fetch(dl_manager: Any, archives: Sequence[Archive]) -> dict[str, pathlib.Path]:
    """The archives by file name, downloaded by TFDS and verified; one with the wrong checksum is not kept."""
    paths = dl_manager.download({archive.filename: archive.url for archive in archives})
    for archive in archives:
        path = pathlib.Path(paths[archive.filename])
        try:
            check_sum(path, archive)
        except ValueError:
            for file in path.parent.glob(f"{path.name}*"):  # what TFDS noted about it, too
                file.unlink()
            raise
    return {name: pathlib.Path(path) for name, path in paths.items()}


def reachable(url: str) -> bool:
    """Whether the server, or the proxy for it, answers at once."""
    answered = threading.Event()

    def ask():
        with contextlib.suppress(Exception):  # whatever goes wrong, there was no answer
            if _proxied(url):
                request = urllib.request.Request(url, method="HEAD")
                try:
                    urllib.request.urlopen(request, timeout=_PATIENCE).close()
                except urllib.error.HTTPError as error:
                    error.close()  # an answer, if not a kind one
            else:
                parts = urllib.parse.urlsplit(url)
                port = parts.port or {"http": 80}.get(parts.scheme, 443)
                socket.create_connection((parts.hostname, port), timeout=_PATIENCE).close()
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return answered.is_set()


def ensure(
    folder: pathlib.Path,
    place: str,
    make: Callable[[], Any],
    find: Callable[[], Mapping[str, pathlib.Path] | None] | None = None,
) -> Any:
    """The builder that `make` gives, its set prepared in `folder/place` as array_record files.

    `find` gives the archives, which become the builder's `files`. TFDS builds in a folder of another name and renames it
    at the end, so that a killed or failed build is no prepared set; what it left is removed here, under a lock that
    makes one of several processes build.

    Raises what `find` and the build raise, and `ValueError` for a set prepared in another file format.
    """
    target = folder / place
    if not is_prepared(target):
        files = None if find is None else find()
        tfds = import_tfds()
        with _locked(target):
            if not is_prepared(target):
                for left in (target, *target.parent.glob(f"incomplete.*_{target.name}")):
                    shutil.rmtree(left, ignore_errors=True)
                with _quiet():
                    builder = make()
                    builder.files = files
                    try:
                        builder.download_and_prepare(file_format="array_record")
                    except tfds.download.download_manager.NonMatchingChecksumError as error:
                        raise ValueError(f"a download has the wrong checksum; try again. {error}") from error
                    finally:
                        for left in (folder / "downloads" / builder.name).glob("*.tmp.*"):
                            shutil.rmtree(left, ignore_errors=True)
    with _quiet():
        return make()


def records(builder: Any, split: str) -> list[dict[str, Any]]:
    """All examples of a prepared split, in the order of its files."""
    with _quiet():
        source = builder.as_data_source(split=split)
        return source.__getitems__(range(len(source)))


def is_prepared(target: pathlib.Path) -> bool:
    """Whether the folder holds a whole array_record set. Raises `ValueError` for one in another format."""
    try:
        info = json.loads((target / "dataset_info.json").read_text())
    except (OSError, ValueError):
        return False
    if info.get("fileFormat") != "array_record":
        raise ValueError(
            f"{target} was prepared as {info.get('fileFormat', 'tfrecord')}, which only TensorFlow reads: name another "
            "folder with data_dir="
        )
    for split in info.get("splits", ()):
        shards = len(split["shardLengths"])
        start = f"{info['name']}-{split['name']}.array_record"
        if not all((target / f"{start}-{i:05d}-of-{shards:05d}").is_file() for i in range(shards)):
            return False
    return True


def _proxied(url: str) -> bool:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname or "")


@contextlib.contextmanager
def _locked(target: pathlib.Path) -> Iterator[None]:
    """One process at a time, where the system has advisory locks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(target.parent / f".{target.name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS without its log lines about unknown configurations, and what it prints sent to stderr: stdout is for results."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)


SPLITS = ("train", "validation", "test")


def sizes(value: Sequence[Any]) -> tuple[int, int, int]:
    """Numbers of examples of the three splits."""
    if isinstance(value, str | bytes) or not hasattr(value, "__len__") or len(value) != 3:
        raise ValueError(f"load: sizes={value!r} must be three numbers, for {', '.join(SPLITS)}.")
    train, validation, test = (integer("load", f"sizes[{i}]", size, 0) for i, size in enumerate(value))
    return train, validation, test


def data_folder(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    """Where prepared sets are kept: `data_dir`, else `$PDEJAX_DATA`, `$TFDS_DATA_DIR` or `~/tensorflow_datasets`."""
    chosen = data_dir or os.environ.get("PDEJAX_DATA") or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(chosen).expanduser().absolute()


def carve(order: np.ndarray, split: str, validation: int) -> np.ndarray:
    """The places of a training or validation split: the first `validation` of an order are the latter, in rising order."""
    return np.sort(order[:validation] if split == "validation" else order[validation:])


def cached(path: pathlib.Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in the `.npz` file, or those that `make` gives, which are then kept there.

    A damaged file, which its checksums show, is made anew. Warns if the file cannot be written.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        arrays = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        warnings.warn(f"could not keep the arrays in {path}: {error}", stacklevel=2)
    return arrays


def join(rows: Sequence[bytes]) -> tuple[UInt8[np.ndarray, " total"], Int64[np.ndarray, " count_plus_1"]]:
    """Byte strings as one array, and where each ends, from 0 on."""
    ends = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=ends[1:])
    return np.frombuffer(b"".join(rows), dtype=np.uint8), ends


def pad(flat: np.ndarray, ends: Int64[np.ndarray, " count_plus_1"], length: int) -> np.ndarray:
    """The rows of a joined array, their first `length` entries each, padded with 0."""
    rows = np.zeros((len(ends) - 1, length), dtype=flat.dtype)
    sizes = np.minimum(np.diff(ends), length)
    places = np.arange(length)[None, :] < sizes[:, None]
    rows[places] = flat[(ends[:-1, None] + np.arange(length)[None, :])[places]]
    return rows
