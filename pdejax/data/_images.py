"""Digits and MNIST: images as sequences, pixel by pixel or patch by patch."""

import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pdejax._check import choice, integer
from pdejax.data import _sources
from pdejax.data._dataset import Dataset, permutation
from pdejax.data._prepare import cached, carve, data_folder, ensure, find_archives, records
from pdejax.data._sources import MNIST_URL, MNIST_VERSION
from pdejax.data.digits import load as load_digits

FORMS = ("pixels", "patches")


def check_form(form: Any, patch: Any, side: int, default: int) -> int:
    """The side of a patch, 1 for pixels."""
    choice("load", "form", form, FORMS)
    if form == "pixels":
        if patch is not None:
            raise ValueError(f"patch={patch!r} is for form='patches'; form is 'pixels'")
        return 1
    patch = default if patch is None else integer("load", "patch", patch, 1)
    if side % patch:
        sides = [p for p in range(1, side + 1) if side % p == 0]
        raise ValueError(f"patch is {patch}; it must divide the image's side {side}: one of {sides}")
    return patch


def sequences(images: UInt8[np.ndarray, "count side side"], patch: int) -> UInt8[np.ndarray, "count n features"]:
    """Tokens of `patch * patch` numbers each: patches in reading order, in each its pixels in reading order."""
    count, side, _ = images.shape
    per_side = side // patch
    tiles = images.reshape(count, per_side, patch, per_side, patch).swapaxes(2, 3)
    return np.ascontiguousarray(tiles).reshape(count, per_side * per_side, patch * patch)


_SIZES = {"train": 1257, "validation": 180, "test": 360}


def digits_split(
    split: str, *, form: str = "pixels", patch: int | None = None, seed: int = 0, limit: int | None = None
) -> Dataset:
    """See `load`. The set has no splits of its own: they are cut from one order that `seed` determines."""
    patch = check_form(form, patch, 8, 4)
    values, labels = load_digits()
    order = permutation(len(labels), integer("load", "seed", seed, 0, 2**64 - 1), 0)
    start = 0
    for name, size in _SIZES.items():
        if name == split:
            order = order[start : start + size][:limit]
            break
        start += size
    images = np.round(values[order] * 16).astype(np.uint8).reshape(-1, 8, 8)
    inputs = sequences(images, patch)
    return Dataset(
        name="digits",
        split=split,
        values=inputs,
        divisor=16,
        mask=np.broadcast_to(True, inputs.shape[:2]),
        labels=labels[order],
        classes=tuple(str(digit) for digit in range(10)),
        source="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, doi:10.24432/C50P49, as bundled "
        "with scikit-learn",
        license="CC BY 4.0",
    )


def mnist_split(
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
        source="Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST database of handwritten digits, " + MNIST_URL,
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
        return find_archives("MNIST", [_sources.MNIST_ARCHIVES], folder, manual_dir, download)

    def make() -> Any:
        from pdejax.data._builders import Mnist  # only now, for TFDS takes a second

        return Mnist(data_dir=folder, file_format="array_record")

    return ensure(folder, f"mnist/{MNIST_VERSION}", make, find)


def _arrays(
    stored: str, folder: pathlib.Path, manual_dir: str | os.PathLike[str] | None, download: bool | None
) -> tuple[np.ndarray, np.ndarray]:
    def read() -> dict[str, np.ndarray]:
        examples = records(prepare(data_dir=folder, manual_dir=manual_dir, download=download), stored)
        images = np.stack([example["image"][:, :, 0] for example in examples])
        return {"images": images, "labels": np.array([example["label"] for example in examples], dtype=np.int32)}

    arrays = cached(folder / "pdejax_arrays" / f"mnist-{MNIST_VERSION}-{stored}.npz", read)
    return arrays["images"], arrays["labels"]
