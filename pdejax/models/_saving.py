"""A trained model in one file: an .npz archive that shows when a byte of it has changed."""

import dataclasses
import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import jax
import numpy as np
from flax import nnx
from numpy.lib import format as npy

from pdejax._arguments import checked
from pdejax._check import instance, spoken_by
from pdejax.models._architecture import Architecture
from pdejax.models._multilayer import MultilayerSimulator
from pdejax.models._simulator import Simulator
from pdejax.models._simulator_config import MultilayerSimulatorConfig, SimulatorConfig
from pdejax.models._transformer import Transformer
from pdejax.runs._files import whole_file

Model = Transformer | Simulator | MultilayerSimulator

_FORMAT = "pdejax-model"
_VERSION = 1
_HEADER = "header.json"
# The archive ends in its own digest, as the zip comment: 'sha256=' and 64 hexadecimal digits over all bytes
# before them. The checksums inside a zip file leave out names, dates and the directory.
_LABEL = b"sha256="
_DIGITS = 64


@checked
def save_model(path: str | os.PathLike[str], model: Model, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a model's configuration and weights, and whatever `metadata` says about them, to one file.

    For a trained model, to keep or to hand on. A training to resume, with its optimizer and its place in the data, is kept in
    the folder that `pdejax.training.fit` writes to.

    The file is an ordinary `.npz` archive, one array per parameter, with the configuration as JSON beside
    them and a SHA-256 digest at its end. It appears under `path` complete or not at all: it is written beside
    it, flushed to disk and renamed. The same model and metadata give the same bytes.

    **Arguments**

    - `path`: where to write, used as it is; an existing file is replaced.
    - `model`: a `Transformer`, a `Simulator` or a `MultilayerSimulator`.
    - `metadata`: anything JSON can hold (training step, seed, dataset, …); tuples come back as lists.

    Raises `TypeError` for metadata that JSON cannot hold, `ValueError` when the folder does not exist, and
    `OSError` when it cannot be written to.
    """
    instance("save_model", "model", model, (Transformer, Simulator, MultilayerSimulator))
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"path: the folder {str(path.parent)!r} does not exist; create it first")
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": model_record(model),
        "metadata": dict(metadata or {}),
    }
    try:
        text = json.dumps(header, indent=1, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata must consist of what JSON can hold, got {metadata!r}: {error}") from None
    arrays = {name: np.asarray(value) for name, value in model.parameters().items()}
    with whole_file(path) as file:
        _write_archive(file, text, arrays)
        size = file.seek(-_DIGITS, os.SEEK_END)
        digest = _digest(file, size)
        file.seek(size)
        file.write(digest)


@checked
def load_model(path: str | os.PathLike[str]) -> tuple[Model, dict[str, Any]]:
    """Read what `save_model` wrote: `(model, metadata)`.

    Every byte is checked against the digest before anything is used, and nothing is unpickled.

    Raises `FileNotFoundError` when there is no such file, and `ValueError` for a file that is damaged or cut
    short, is not a pdejax model, or has a version this release does not read; also for float64 weights
    while JAX's 64-bit mode is off.
    """
    with spoken_by("load_model"):
        path = pathlib.Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"no model at {str(path)!r}: check the path, or write one with pdejax.save_model(path, model)"
            )
        with path.open("rb") as file:
            _verify(file, path)
            header, arrays = _read_archive(file, path)
        if header.get("format") != _FORMAT:
            raise ValueError(f"{str(path)!r} is not a pdejax model: format {header.get('format')!r}")
        if header.get("version") != _VERSION:
            raise ValueError(
                f"model {str(path)!r} has version {header.get('version')!r} and this pdejax reads version "
                f"{_VERSION}: read it with the pdejax that wrote it and save it anew, or update pdejax"
            )
        kind, config = _kind_and_config(header["model"])
        return kind.from_parameters(config, arrays), header["metadata"]


def model_record(model: Model) -> dict[str, Any]:
    """Give the kind of a model and its configuration as what JSON can hold."""
    config = model.architecture if isinstance(model, Transformer) else model.config
    return {"kind": type(model).__name__, "config": dataclasses.asdict(config)}


def model_of_record(record: Mapping[str, Any], seed: int = 0) -> Model:
    """Make a model of this kind and configuration, with fresh weights.

    Raises `ValueError` for a kind that there is not, `TypeError` for arguments that the configuration does not have.
    """
    kind, config = _kind_and_config(record)
    return kind(config, rngs=nnx.Rngs(seed)) if kind is Transformer else kind(config, key=jax.random.key(seed))


def _kind_and_config(record: Mapping[str, Any]) -> tuple[Any, Any]:
    options = dict(record["config"])
    if record["kind"] == "Transformer":
        return Transformer, Architecture(**options)
    kinds = {
        "Simulator": (Simulator, SimulatorConfig),
        "MultilayerSimulator": (MultilayerSimulator, MultilayerSimulatorConfig),
    }
    if record["kind"] not in kinds:
        raise ValueError(
            f"a model of kind {record['kind']!r} is unknown; choose Transformer or one of {sorted(kinds)}."
        )
    kind, config = kinds[record["kind"]]
    return kind, config(Architecture(**options.pop("architecture")), **options)


def _write_archive(file: IO[bytes], header: str, arrays: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        # A ZipInfo made by hand has a fixed date, so that equal content gives equal bytes.
        archive.writestr(zipfile.ZipInfo(_HEADER), header)
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                npy.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)
        archive.comment = _LABEL + b"0" * _DIGITS


def _read_archive(file: IO[bytes], path: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with zipfile.ZipFile(file) as archive:
            header = json.loads(archive.read(_HEADER))
            arrays = {}
            for name in archive.namelist():
                if name != _HEADER:
                    with archive.open(name) as entry:
                        arrays[name.removesuffix(".npy")] = npy.read_array(entry, allow_pickle=False)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is not a pdejax model: {error}") from error
    return header, arrays


def _verify(file: IO[bytes], path: pathlib.Path) -> None:
    size = file.seek(0, os.SEEK_END)
    end = len(_LABEL) + _DIGITS
    file.seek(max(0, size - end))
    label, stored = file.read(len(_LABEL)), file.read(_DIGITS)
    if size < end or label != _LABEL:
        raise ValueError(
            f"{str(path)!r} does not end in a model's digest: it is cut short, damaged, or no pdejax "
            "model; copy it again or load another"
        )
    if _digest(file, size - _DIGITS) != stored:
        raise ValueError(
            f"model {str(path)!r} is damaged: its content does not match its SHA-256 digest; copy it "
            "again or load another"
        )
    file.seek(0)


def _digest(file: IO[bytes], size: int) -> bytes:
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0:
        chunk = file.read(min(size, 1 << 20))
        if not chunk:
            break
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest().encode()
