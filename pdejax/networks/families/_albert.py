"""ALBERT: a factorized embedding and one layer that is applied L times, an autonomous field (Lan et al., arXiv 1909.11942)."""

from pdejax.networks._network import Network
from pdejax.networks.families._bert import (
    IRRELEVANT,
    OWN_BIAS,
    TASKS,
    Encoder,
    block_tensors,
    build_encoder,
    copies_of,
    embedding_tensors,
    head_tensors,
    read_encoder,
)
from pdejax.networks.families._config import Config
from pdejax.networks.families._family import PLACES, POOLER, TASK, Family, Tensor, Weights, linear, vector

_LAYER = "encoder.albert_layer_groups.0.albert_layers.0"
_BLOCK = {
    "q": f"{_LAYER}.attention.query",
    "k": f"{_LAYER}.attention.key",
    "v": f"{_LAYER}.attention.value",
    "o": f"{_LAYER}.attention.dense",
    "norm1": f"{_LAYER}.attention.LayerNorm",
    "up": f"{_LAYER}.ffn",
    "down": f"{_LAYER}.ffn_output",
    "norm2": f"{_LAYER}.full_layer_layer_norm",
}


def _settings(config: Config) -> Encoder:
    # Several groups are several fields one after the other, which no released checkpoint has.
    config.only("num_hidden_groups", 1)
    config.only("inner_group_num", 1)
    config.only("net_structure_type", 0)
    config.only("down_scale_factor", 1)
    config.only("gap_size", 0)
    config.only("num_memory_blocks", 0)
    config.only("layers_to_keep", [])
    return read_encoder(config, embedding=config.integer("embedding_size"), act="gelu_new")


def _tensors(e: Encoder) -> list[Tensor]:
    projection = "encoder.embedding_hidden_mapping_in"
    head = head_tensors(e, "predictions.dense", "predictions.LayerNorm", "predictions.bias", "predictions.decoder")
    return [
        *embedding_tensors(e),
        linear(f"{projection}.weight", "embed.weight", e.embedding, e.dim),
        vector(f"{projection}.bias", "embed.bias", e.dim),
        *block_tensors(e, _BLOCK),
        *head,
    ]


def _build(e: Encoder, weights: Weights, dtype: str) -> Network:
    return build_encoder(e, weights, dtype, tied_layers=True)


FAMILY = Family(
    "ALBERT",
    _settings,
    _tensors,
    _build,
    lambda e: e.layers,
    prefixes=("albert.",),
    unused={
        r"pooler\..*": POOLER,
        r"embeddings\.position_ids": PLACES,
        r"predictions\.bias": OWN_BIAS,
        r"sop_classifier\..*": "the head of sentence-order prediction",
        TASKS: TASK,
    },
    copies=copies_of("predictions"),
    irrelevant=(*IRRELEVANT, "classifier_dropout_prob"),
)
