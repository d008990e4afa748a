"""Checkpoints written by the tests' own few lines: a safetensors file from arrays, and a small BERT folder."""

import json
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from pdejax.networks.families._checkpoint import Checkpoint
from pdejax.networks.families._load import read_settings

CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8", "int64": "I64"}
CONFIG = {
    "model_type": "bert",
    "vocab_size": 29,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
}


def write(path: pathlib.Path, arrays: dict[str, np.ndarray], edit: Any = None, metadata: dict | None = None) -> None:
    """Write arrays as a safetensors file; `edit(header)` changes the header before it is written."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    place = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [place, place + array.nbytes],
        }
        place += array.nbytes
    if edit is not None:
        edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in arrays.values()))


def unread(*args: Any, **options: Any) -> Any:
    """Stands in the place of `numpy.memmap`, by which every tensor is read, where none may be."""
    raise AssertionError("a tensor was read")


def arrays(config: dict[str, Any] | None = None, **changes: Any) -> dict[str, np.ndarray]:
    """Random tensors of a small model, by default a BERT with a head, by their stored names without a prefix."""
    config = (CONFIG if config is None else config) | changes
    family, settings = read_settings(Checkpoint("test", config, {}))
    rng = np.random.default_rng(0)
    lines = {name: line for line in family.tensors(settings) for name in line.names(family.layers(settings))}
    return {name: rng.standard_normal(line.shape) * 0.3 for name, line in lines.items()}


def folder(place: pathlib.Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> pathlib.Path:
    """A folder of this configuration with these tensors in float32."""
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))
    write(place / "model.safetensors", {name: array.astype(np.float32) for name, array in tensors.items()})
    return place


def bert(folder: pathlib.Path, kind: Any = "float32", **changes: Any) -> pathlib.Path:
    """A folder with a small BERT, its tensors of this type."""
    kind = np.dtype(ml_dtypes.bfloat16) if kind == "bfloat16" else np.dtype(kind)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    write(folder / "model.safetensors", {name: array.astype(kind) for name, array in arrays(**changes).items()})
    return folder


def tokenizer(folder: pathlib.Path, words: int = 29) -> None:
    """A tokenizer of words that pads to 12 tokens and cuts at 14, with [CLS] and [SEP]."""
    import tokenizers

    vocab = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3} | {f"w{i}": i for i in range(4, words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    made.enable_padding(length=12)
    made.enable_truncation(14)
    made.save(str(folder / "tokenizer.json"))
