"""MNIST as a builder of TensorFlow Datasets that does without TensorFlow. Imported only when the set is prepared."""

import gzip
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pdejax.data._mnist_archives import ARCHIVES, VERSION
from pdejax.data._prepare import fetch, import_tfds

tfds = import_tfds()
_PARTS = {"train": (ARCHIVES[0], ARCHIVES[1], 60_000), "test": (ARCHIVES[2], ARCHIVES[3], 10_000)}


with tfds.core.registered.skip_registration():

    class Mnist(tfds.core.GeneratorBasedBuilder):
        """The set that `tfds.data_source("mnist")` reads: same name, version, features and files.

        TFDS's own builder needs TensorFlow to open the archives and to write the images.
        """

        name = "mnist"
        VERSION = tfds.core.Version(VERSION)
        files: Mapping[str, pathlib.Path] | None = None

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(28, 28, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description="The MNIST database of handwritten digits.",
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                homepage="http://yann.lecun.com/exdb/mnist/",
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            files = self.files or fetch(dl_manager, [archive for *pair, _ in _PARTS.values() for archive in pair])
            return {
                split: self._generate_examples(files[images.filename], files[labels.filename], count)
                for split, (images, labels, count) in _PARTS.items()
            }

        def _generate_examples(self, images: Any, labels: Any, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
            from PIL import Image

            pixels, classes = read_idx(images, (count, 28, 28)), read_idx(labels, (count,))
            for number in range(count):
                yield number, {"image": Image.fromarray(pixels[number]), "label": int(classes[number])}


def read_idx(path: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The bytes of a gzipped IDX file: two zeros, 8 for bytes, the number of axes, their sizes, the data.

    Raises `ValueError` for another shape.
    """
    with gzip.open(path) as file:
        content = file.read()
    axes = len(shape)
    sizes = tuple(np.frombuffer(content, dtype=">u4", count=axes, offset=4).tolist())
    if content[:4] != bytes([0, 0, 8, axes]) or sizes != shape:
        raise ValueError(f"{path} holds an array of shape {sizes}; it must be {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)
