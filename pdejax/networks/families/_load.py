"""`load_pretrained`: a checkpoint as a `Network`."""

import importlib
import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import jax

from pdejax._arguments import checked
from pdejax.networks._network import Network
from pdejax.networks._tokenizer import Tokenizer
from pdejax.networks.families._checkpoint import OWNER, Checkpoint, fault
from pdejax.networks.families._config import Config
from pdejax.networks.families._ends import TextEmbedding
from pdejax.networks.families._family import Family, read_weights
from pdejax.networks.families._gguf import read_gguf_file
from pdejax.networks.families._huggingface import onnx_of_folder, read_folder
from pdejax.networks.families._onnx import read_onnx_folder

# `model_type` of a configuration, the file of its family, and the name of the `Family` there.
FAMILIES = {
    "albert": ("_albert", "FAMILY"),
    "bert": ("_bert", "FAMILY"),
    "camembert": ("_bert", "ROBERTA"),
    "dinov2": ("_vit", "DINOV2"),
    "distilbert": ("_distilbert", "FAMILY"),
    "gpt2": ("_gpt2", "FAMILY"),
    "gpt_neox": ("_neox", "FAMILY"),
    "llama": ("_llama", "FAMILY"),
    "mistral": ("_llama", "MISTRAL"),
    "ouro": ("_ouro", "FAMILY"),
    "qwen2": ("_llama", "QWEN2"),
    "qwen3": ("_llama", "QWEN3"),
    "roberta": ("_bert", "ROBERTA"),
    "vit": ("_vit", "FAMILY"),
    "xlm-roberta": ("_bert", "ROBERTA"),
}


@checked
def load_pretrained(
    path: str | os.PathLike[str], *, dtype: Literal["float32", "float64"] = "float32", ignore: Sequence[str] = ()
) -> Network:
    """Load a pretrained Transformer as a network: embedding, field with solver and steps, head, tokenizer.

    - `path`: a Hugging Face folder (`config.json` and `model.safetensors`, in one file or several with an index, or one ONNX
      file), or a GGUF file. Nothing is downloaded, nothing is unpickled.
    - `dtype`: the type of the computation, `"float32"` or `"float64"` (with `jax_enable_x64`). Weights keep the type they are
      stored in.
    - `ignore`: keys of `config.json` that are not known and that you know to change nothing.

    `net(tokens, mask)` gives the logits `(n, vocab)` where the checkpoint has a head, else the last field `(n, d)`;
    `net.hidden_states(tokens)` `(L + 1, n, d)`; `net.tokenize(text)` the tokens. All are those of `transformers`, to rounding:
    `pdejax parity PATH` shows it. Families: BERT (MiniLM, RoBERTa, DistilBERT), ALBERT, Llama (SmolLM,
    Mistral, Qwen2, Qwen3), GPT-2, GPT-NeoX (Pythia), Ouro; ViT and DINOv2, whose input is an image `(c, height, width)` and whose
    output is the scores of classes or the last field.

    Everything stored is either used or known to be needless: tensors that are missing, unexpected or of another shape, and
    options of the configuration that are not supported, are refused by name, within a second for what needs no weights.

    Raises `FileNotFoundError` for a path or a part of the checkpoint that is not there, `CheckpointError` (a `ValueError`) for
    one that is damaged, of an unknown family or not as its configuration says, `MemoryError` where the weights would not fit.
    """
    if dtype == "float64" and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f'{OWNER}: dtype="float64" needs jax.config.update("jax_enable_x64", True) at the beginning.')
    return network_of(read_checkpoint(path), dtype, ignore)


def network_of(checkpoint: Checkpoint, dtype: str = "float32", ignore: Sequence[str] = ()) -> Network:
    """Return the network that a checkpoint is. Raises as `load_pretrained`."""
    family, settings = read_settings(checkpoint, ignore)
    tokenizer = _tokenizer(checkpoint)
    net = family.build(settings, read_weights(family, settings, checkpoint), dtype)
    if tokenizer is None or not isinstance(net.embed, TextEmbedding):
        return net
    return net.replace(tokenizer=_fitting(checkpoint, tokenizer, net.embed))


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Return what a folder or a file holds. Raises as `load_pretrained`."""
    place = pathlib.Path(path)
    if place.is_dir():
        onnx = onnx_of_folder(place)
        return read_folder(place) if onnx is None else read_onnx_folder(place, onnx)
    if place.is_file():
        if place.suffix == ".onnx":
            return read_onnx_folder(place.absolute().parent, place)
        if place.suffix != ".gguf":
            raise fault(place.name, "a checkpoint is a Hugging Face folder, a .gguf or a .onnx file; this is neither.")
        return read_gguf_file(place)
    name = str(path)
    hint = (
        f"hf download {name} --local-dir {place.name}" if name.count("/") == 1 else "hf download NAME --local-dir DIR"
    )
    raise FileNotFoundError(
        f"{OWNER}: there is no folder or file {name!r}, and nothing is downloaded here. Download it first, `{hint}` (of the "
        "package huggingface_hub), and give that folder."
    )


def read_settings(checkpoint: Checkpoint, ignore: Sequence[str] = ()) -> tuple[Family, Any]:
    """Return the family of a checkpoint and its settings by the family's configuration map."""
    kind = checkpoint.config.get("model_type")
    if kind is None:
        raise fault(
            checkpoint.where,
            f'config.json has no model_type; add it, such as "model_type": "bert". Known are {", ".join(sorted(FAMILIES))}.',
        )
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise fault(
            checkpoint.where,
            f"config.json has model_type={kind!r}; known are {', '.join(sorted(FAMILIES))}. Another network becomes one by "
            "pdejax.network([layer, …], embed=…, head=…).",
        )
    module, name = FAMILIES[kind]
    family: Family = getattr(importlib.import_module(f"pdejax.networks.families.{module}"), name)
    config = Config(checkpoint.config, checkpoint.where, family.name)
    config.architectures()
    config.only("is_causal", family.causal)
    settings = family.settings(config)
    config.finish(family.irrelevant, ignore)
    return family, settings


def _tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer, or None where there is no file of one or no package to read it."""
    if checkpoint.tokenizer is None or importlib.util.find_spec("tokenizers") is None:
        return None
    return checkpoint.tokenizer()


def _fitting(checkpoint: Checkpoint, tokenizer: Any, embed: TextEmbedding) -> Tokenizer:
    """The tokenizer of a network with this embedding; refused where it gives ids that the embedding has not."""
    ids, vocab = tokenizer.get_vocab().values(), embed.words.shape[0]
    if max(ids, default=0) >= vocab:
        raise fault(
            checkpoint.where,
            f"the tokenizer has ids up to {max(ids)}, and the network has a vocabulary of {vocab}; they belong to different "
            "checkpoints.",
        )
    return Tokenizer(tokenizer, embed.longest, embed.types is not None)
