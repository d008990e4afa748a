"""ListOps as a builder of TensorFlow Datasets. Imported only when a set is prepared, for TFDS takes a second."""

import dataclasses
from typing import Any

import numpy as np

from pdejax.data._listops_splits import LENGTHS, LICENSE, SOURCE, VERSION, Settings, config_name, splits
from pdejax.data._options import SPLITS
from pdejax.data._prepare import import_tfds

tfds = import_tfds()


@dataclasses.dataclass(eq=False)
class ListOpsConfig(tfds.core.BuilderConfig):
    """A configuration with what determines the examples."""

    settings: Settings | None = None


class ListOps(tfds.core.GeneratorBasedBuilder):
    """Nested list operations with their values, in three splits without common examples.

    Configurations `short`, `l1000` and `l2000` differ in the lengths; any other `ListOpsConfig` can be given. The records
    keep the order in which the examples are drawn, and are the same on every run.
    """

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012  # TFDS wants a list
        ListOpsConfig(name=name, settings=Settings(*bounds), description=f"{bounds[0]} < tokens < {bounds[1]}")
        for name, bounds in LENGTHS.items()
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
            license=f"{LICENSE}; {SOURCE}",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        counts = dict(zip(SPLITS, self.builder_config.settings.sizes, strict=True))
        return {split: self._generate_examples(split) for split in SPLITS if counts[split]}

    def _generate_examples(self, split: str) -> Any:
        for number, (key, value) in enumerate(splits(self.builder_config.settings, split)):
            yield number, {"tokens": np.frombuffer(key, dtype=np.uint8), "label": value}


def config_of(settings: Settings) -> ListOpsConfig:
    """The named configuration with these settings, or one of its own."""
    for config in ListOps.BUILDER_CONFIGS:
        if config.settings == settings:
            return config
    return ListOpsConfig(name=config_name(settings), settings=settings)
