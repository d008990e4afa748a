"""Image files as the pixels that a checkpoint of images takes, by its `preprocessor_config.json`."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from pdejax.networks._network import Network
from pdejax.networks.families._checkpoint import fault
from pdejax.networks.families._config import Config
from pdejax.networks.families._huggingface import read_json
from pdejax.networks.families._images import ImageEmbedding

FILE = "preprocessor_config.json"
# Whether a size of one number is that of both sides (else of the shorter one), whether the middle is cut out by default, and
# the filter by default.
_KINDS = {"ViT": (True, False, 2), "Bit": (False, True, 3)}
_TYPES = {
    f"{name}{ending}": options
    for name, options in _KINDS.items()
    for ending in ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
}
# The kind of the older files, which do not say it, by `model_type`.
_MODELS = {"vit": "ViTFeatureExtractor", "dinov2": "BitImageProcessor"}
_RESAMPLE = {0: "NEAREST", 1: "LANCZOS", 2: "BILINEAR", 3: "BICUBIC", 4: "BOX", 5: "HAMMING"}
# Modes of Pillow with 8 bits a number, which lose nothing but transparency in RGB or grey.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_IRRELEVANT = (
    *("_processor_class", "_valid_processor_keys", "default_to_square", "device", "disable_grouping", "do_convert_rgb"),
    *("processor_class", "return_tensors"),
)


@dataclasses.dataclass(frozen=True)
class Pixels:
    r"""What makes pixels of an image: resized, cut, then $(f x - \text{mean})/\text{std}$ of each channel, x in 0 … 255.

    - `size`: height and width, or the shorter side alone; None: as it is. `crop`: height and width of the middle, or None.
    """

    size: tuple[int, ...] | None
    resample: int
    crop: tuple[int, int] | None
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, path: pathlib.Path) -> Float[np.ndarray, "c height width"]:
        """Return the pixels of a file. Raises `CheckpointError` for one that is no image of 8 bits a number, or is too small."""
        try:
            with Image.open(path) as opened:
                mode, image = opened.mode, ImageOps.exif_transpose(opened)
        except Exception as error:  # Pillow has many kinds
            raise fault(path.name, f"it is no image that Pillow reads ({type(error).__name__}).") from None
        if mode not in _MODES:
            raise fault(path.name, f"its pixels are of the kind {mode!r}; they must have 8 bits: {', '.join(_MODES)}.")
        image = image.convert("L" if len(self.mean) == 1 else "RGB")
        if self.size is not None:
            image = image.resize(self._resized(*image.size), Image.Resampling(self.resample))
        x = np.asarray(image, np.float64).reshape(image.size[1], image.size[0], len(self.mean))
        if self.crop is not None:
            top, left = ((there - wanted) // 2 for there, wanted in zip(x.shape, self.crop, strict=False))
            if top < 0 or left < 0:
                raise fault(path.name, f"of {x.shape[:2]} pixels the middle of {self.crop} cannot be cut.")
            x = x[top : top + self.crop[0], left : left + self.crop[1]]
        return ((x * self.factor - self.mean) / self.std).transpose(2, 0, 1)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing."""
        assert self.size is not None
        if len(self.size) == 2:
            return self.size[1], self.size[0]
        [short] = self.size
        long = int(short * max(width, height) / min(width, height))
        return (short, long) if width <= height else (long, short)


def read_pixels(folder: pathlib.Path, network: Network) -> Pixels:
    """Return what makes pixels for a network of images, by the folder that it was loaded from.

    Raises `FileNotFoundError` without that file, `CheckpointError` for options that are not supported, by name, and for a network
    that takes no images.
    """
    if not isinstance(network.embed, ImageEmbedding):
        raise fault(folder.name, "it is no network of images, so that images cannot be read in.")
    channels = network.embed.weight.shape[0]
    if channels not in (1, 3):
        raise fault(folder.name, f"images of {channels} channels are not read from files; 1 (grey) and 3 (RGB) are.")
    values = read_json(folder / FILE)
    return pixels_of(values, folder.name, channels, read_json(folder / "config.json").get("model_type"))


def pixels_of(values: dict[str, Any], where: str, channels: int, model_type: str | None = None) -> Pixels:
    """Return the map of a configuration, of a checkpoint of this `model_type`. Raises as `read_pixels`."""
    # Null is how a processor writes what it was not given.
    config = Config({key: value for key, value in values.items() if value is not None}, where, "image", FILE)
    # The older key says nothing beside the newer one.
    older = config.get("feature_extractor_type", None)
    kind = (
        "image_processor_type" if older is None or "image_processor_type" in config.values else "feature_extractor_type"
    )
    own = {} if model_type not in _MODELS else {"default": _MODELS[model_type]}
    square, cut, resample = config.choice(kind, _TYPES, **own)
    size = crop = None
    if config.boolean("do_resize", True):
        size, resample = _size(config, "size", square), config.get("resample", resample)
        if type(resample) is not int or resample not in _RESAMPLE:
            raise config.wrong("resample", resample, f"one of {', '.join(map(str, _RESAMPLE))}, the filters of Pillow")
    if config.boolean("do_center_crop", cut):
        middle = _size(config, "crop_size", True)
        crop = (middle[0], middle[-1])
    factor, mean, std = 1.0, (0.0,) * channels, (1.0,) * channels
    if config.boolean("do_rescale", True):
        factor = config.number("rescale_factor", 1 / 255)
    if config.boolean("do_normalize", True):
        mean, std = _per_channel(config, "image_mean", channels), _per_channel(config, "image_std", channels)
        if 0 in std:
            raise config.wrong("image_std", list(std), "positive")
    # What is turned off has options that change nothing.
    for key in ("size", "resample", "crop_size", "rescale_factor", "image_mean", "image_std", "pad_size"):
        config.get(key, None)
    config.only("do_pad", False)
    config.only("data_format", "channels_first")
    config.only("input_data_format", None)
    config.finish(_IRRELEVANT, None)
    return Pixels(size, resample, crop, factor, mean, std)


def _size(config: Config, key: str, square: bool) -> tuple[int, ...]:
    """Height and width, or the shorter side alone."""
    value = config.get(key)
    table = (
        value if isinstance(value, dict) else {"height": value, "width": value} if square else {"shortest_edge": value}
    )
    names = (
        ("shortest_edge",) if "shortest_edge" in table and not (square and key == "crop_size") else ("height", "width")
    )
    if table.keys() != set(names) or not all(type(n) is int and 0 < n < 2**15 for n in table.values()):
        raise config.wrong(key, value, "height and width, or shortest_edge: whole numbers of pixels")
    return tuple(table[name] for name in names)


def _per_channel(config: Config, key: str, channels: int) -> tuple[float, ...]:
    value = config.get(key)
    numbers = value if isinstance(value, list) else [value] * channels
    if len(numbers) != channels or not all(type(x) in (int, float) and 0 <= x < 1e6 for x in numbers):
        raise config.wrong(key, value, f"{channels} numbers of at least 0, one per channel")
    return tuple(map(float, numbers))
