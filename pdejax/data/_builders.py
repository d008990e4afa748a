"""Sets as builders of TensorFlow Datasets. Imported only when a set is prepared, for TFDS takes a second."""

import dataclasses
import gzip
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pdejax.data import _sources
from pdejax.data._prepare import SPLITS, fetch, import_tfds

tfds = import_tfds()


@dataclasses.dataclass(eq=False)
class ListOpsConfig(tfds.core.BuilderConfig):
    """A configuration with what determines the examples."""

    settings: _sources.ListOpsSettings | None = None


class ListOps(tfds.core.GeneratorBasedBuilder):
    """Nested list operations with their values, in three splits without common examples.

    Configurations `short`, `l1000` and `l2000` differ in the lengths; any other `ListOpsConfig` can be given. The records
    keep the order in which the examples are drawn, and are the same on every run.
    """

    VERSION = tfds.core.Version(_sources.LISTOPS_VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012  # TFDS wants a list
        ListOpsConfig(
            name=name, settings=_sources.ListOpsSettings(*bounds), description=f"{bounds[0]} < tokens < {bounds[1]}"
        )
        for name, bounds in _sources.LENGTHS.items()
    ]
    files = None

    def _info(self) -> Any:
        features = {
            "tokens": tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding="bytes"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Nested list operations and their values, as in the Long Range Arena.",
            features=tfds.features.FeaturesDict(features),
            homepage="https://arxiv.org/abs/2011.04006",
            license=f"{_sources.LISTOPS_LICENSE}; {_sources.LISTOPS_SOURCE}",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        counts = dict(zip(SPLITS, self.builder_config.settings.sizes, strict=True))
        return {split: self._generate_examples(split) for split in SPLITS if counts[split]}

    def _generate_examples(self, split: str) -> Any:
        for number, (key, value) in enumerate(_sources.splits(self.builder_config.settings, split)):
            yield number, {"tokens": np.frombuffer(key, dtype=np.uint8), "label": value}


def listops_config(settings: _sources.ListOpsSettings) -> ListOpsConfig:
    """The named configuration with these settings, or one of its own."""
    for config in ListOps.BUILDER_CONFIGS:
        if config.settings == settings:
            return config
    return ListOpsConfig(name=_sources.listops_name(settings), settings=settings)


_PARTS = {
    "train": (_sources.MNIST_ARCHIVES[0], _sources.MNIST_ARCHIVES[1], 60_000),
    "test": (_sources.MNIST_ARCHIVES[2], _sources.MNIST_ARCHIVES[3], 10_000),
}


with tfds.core.registered.skip_registration():

    class Mnist(tfds.core.GeneratorBasedBuilder):
        """The set that `tfds.data_source("mnist")` reads: same name, version, features and files.

        TFDS's own builder needs TensorFlow to open the archives and to write the images.
        """

        name = "mnist"
        VERSION = tfds.core.Version(_sources.MNIST_VERSION)
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


@dataclasses.dataclass(eq=False)
class NewsgroupsConfig(tfds.core.BuilderConfig):
    """A configuration with the parts of a document that are left out."""

    remove: tuple[str, ...] = ()


class Newsgroups(tfds.core.GeneratorBasedBuilder):
    """18,846 posts of 20 newsgroups, training and test posts apart in time.

    Configurations: `raw`, `stripped` (without headers, footers and quotes), or any other `NewsgroupsConfig`.
    """

    name = "newsgroups"
    VERSION = tfds.core.Version(_sources.NEWSGROUPS_VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012  # TFDS wants a list
        NewsgroupsConfig(name=_sources.newsgroups_name(remove), remove=remove) for remove in (_sources.PARTS, ())
    ]
    files: Mapping[str, pathlib.Path] | None = None

    def _info(self) -> Any:
        features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=_sources.GROUPS)}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Posts of 20 newsgroups, sorted by date.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("text", "label"),
            homepage="http://qwone.com/~jason/20Newsgroups/",
            license=_sources.NEWSGROUPS_LICENSE,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        online = [archive for (archive,) in _sources.NEWSGROUPS_ARCHIVES if archive.url]
        (path,) = (self.files or fetch(dl_manager, online)).values()
        return {split: self._generate_examples(path, split) for split in ("train", "test")}

    def _generate_examples(self, path: pathlib.Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for group, number, text in _sources.read_documents(path, split):
            yield (
                f"{group}/{number}",
                {"text": _sources.remove_parts(text, self.builder_config.remove), "label": group},
            )


def newsgroups_config(remove: tuple[str, ...]) -> NewsgroupsConfig:
    """The named configuration that leaves these parts out, or one of its own."""
    for config in Newsgroups.BUILDER_CONFIGS:
        if config.remove == remove:
            return config
    return NewsgroupsConfig(name=_sources.newsgroups_name(remove), remove=remove)
