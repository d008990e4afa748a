"""MNIST as three splits of sequences."""

import os
import pathlib
from typing import Any

import numpy as np

from pdejax._check import integer
from pdejax.data import _mnist_archives as archives
from pdejax.data._batches import permutation
from pdejax.data._cache import cached
from pdejax.data._dataset import Dataset
from pdejax.data._images import check_form, sequences
from pdejax.data._mnist_archives import URL, VERSION
from pdejax.data._options import carve, data_folder
from pdejax.data._prepare import ensure, find_archives, records


def load_split(
    split: str,
    *,
    form: str = "pixels",
    patch: int | None = None,
    validation: int = 5000,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    download: bool | None = None,
    limit: int | None = None,
) -> Dataset:
    """See `load`."""
    patch = check_form(form, patch, 28, 7)
    validation = integer("load", "validation", validation, 0, 59_999)
    seed = integer("load", "seed", seed, 0, 2**64 - 1)
    if split == "validation" and validation == 0:
        raise ValueError("the split 'validation' is empty: validation is 0")
    images, labels = _arrays("test" if split == "test" else "train", data_folder(data_dir), manual_dir, download)
    if split != "test":
        rows = carve(permutation(len(labels), seed, 0), split, validation)[:limit]
        images, labels = images[rows], labels[rows]
    inputs = sequences(images[:limit], patch)
    return Dataset(
        name="mnist",
        split=split,
        values=inputs,
        divisor=255,
        mask=np.broadcast_to(True, inputs.shape[:2]),
        labels=labels[:limit],
        classes=tuple(str(digit) for digit in range(10)),
        source="Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST database of handwritten digits, " + URL,
        license="CC BY-SA 3.0",
    )


def prepare(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    download: bool | None = None,
) -> Any:
    """See `prepare` of `_load`."""
    folder = data_folder(data_dir)

    def find() -> dict[str, pathlib.Path] | None:
        return find_archives("MNIST", [archives.ARCHIVES], folder, manual_dir, download)

    def make() -> Any:
        from pdejax.data._build_mnist import Mnist  # only now, for TFDS takes a second

        return Mnist(data_dir=folder, file_format="array_record")

    return ensure(folder, f"mnist/{VERSION}", make, find)


def _arrays(
    stored: str, folder: pathlib.Path, manual_dir: str | os.PathLike[str] | None, download: bool | None
) -> tuple[np.ndarray, np.ndarray]:
    def read() -> dict[str, np.ndarray]:
        examples = records(prepare(data_dir=folder, manual_dir=manual_dir, download=download), stored)
        images = np.stack([example["image"][:, :, 0] for example in examples])
        return {"images": images, "labels": np.array([example["label"] for example in examples], dtype=np.int32)}

    arrays = cached(folder / "pdejax_arrays" / f"mnist-{VERSION}-{stored}.npz", read)
    return arrays["images"], arrays["labels"]
