"""20 Newsgroups as a builder of TensorFlow Datasets. Imported only when the set is prepared, for TFDS takes a second."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from pdejax.data import _newsgroups_text as posts
from pdejax.data._newsgroups_text import GROUPS, LICENSE, PARTS, VERSION, config_name, read_documents, remove_parts
from pdejax.data._prepare import fetch, import_tfds

tfds = import_tfds()


@dataclasses.dataclass(eq=False)
class NewsgroupsConfig(tfds.core.BuilderConfig):
    """A configuration with the parts of a document that are left out."""

    remove: tuple[str, ...] = ()


class Newsgroups(tfds.core.GeneratorBasedBuilder):
    """18,846 posts of 20 newsgroups, training and test posts apart in time.

    Configurations: `raw`, `stripped` (without headers, footers and quotes), or any other `NewsgroupsConfig`.
    """

    name = "newsgroups"
    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012  # TFDS wants a list
        NewsgroupsConfig(name=config_name(remove), remove=remove) for remove in (PARTS, ())
    ]
    files: Mapping[str, pathlib.Path] | None = None

    def _info(self) -> Any:
        features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=GROUPS)}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Posts of 20 newsgroups, sorted by date.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("text", "label"),
            homepage="http://qwone.com/~jason/20Newsgroups/",
            license=LICENSE,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        online = [archive for (archive,) in posts.ARCHIVES if archive.url]
        (path,) = (self.files or fetch(dl_manager, online)).values()
        return {split: self._generate_examples(path, split) for split in ("train", "test")}

    def _generate_examples(self, path: pathlib.Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for group, number, text in read_documents(path, split):
            yield f"{group}/{number}", {"text": remove_parts(text, self.builder_config.remove), "label": group}


def config_of(remove: tuple[str, ...]) -> NewsgroupsConfig:
    """The named configuration that leaves these parts out, or one of its own."""
    for config in Newsgroups.BUILDER_CONFIGS:
        if config.remove == remove:
            return config
    return NewsgroupsConfig(name=config_name(remove), remove=remove)
