"""BERT and RoBERTa: post-LN encoders (Devlin et al., arXiv 1810.04805; Liu et al., arXiv 1907.11692).

MiniLM and most sentence embedders are BERT models. RoBERTa counts positions from its real tokens, and names its head otherwise.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pdejax.networks._network import Network
from pdejax.networks.families._assemble import below, filled, layer_norm, on_device, post_norm
from pdejax.networks.families._config import Config
from pdejax.networks.families._ends import HIDDEN_ACT, Head, LastField, Logits, TextEmbedding
from pdejax.networks.families._family import Family, Tensor, Weights, heads_in, heads_out, linear, vector
from pdejax.terms import Attention, FeedForward


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Sizes of a post-LN encoder: d, H, d_ffn, L, and those of the embedding."""

    dim: int
    heads: int
    ffn: int
    layers: int
    vocab: int
    embedding: int
    positions: int
    types: int
    eps: float
    activation: str
    padding: int | None = None
    tied: bool = True


def read_encoder(config: Config, padding: int | None = None, embedding: int | None = None) -> Encoder:
    """The configuration map of BERT, whose keys others share. `padding`: see `TextEmbedding`."""
    config.only("position_embedding_type", "absolute")
    config.only("is_decoder", False)
    config.only("add_cross_attention", False)
    dim, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if dim % heads:
        raise config.wrong("num_attention_heads", heads, f"a divisor of hidden_size={dim}")
    return Encoder(
        dim=dim,
        heads=heads,
        ffn=config.integer("intermediate_size"),
        layers=config.integer("num_hidden_layers"),
        vocab=config.integer("vocab_size"),
        embedding=embedding or dim,
        positions=config.integer("max_position_embeddings"),
        types=config.integer("type_vocab_size", 2),
        eps=config.number("layer_norm_eps", 1e-12),
        activation=config.choice("hidden_act", HIDDEN_ACT, "gelu"),
        padding=padding,
        tied=config.boolean("tie_word_embeddings", True),
    )


def embedding_tensors(e: Encoder) -> list[Tensor]:
    """The weight map of an embedding of words, positions and token types with a norm."""
    tables = (("word", "words", e.vocab), ("position", "positions", e.positions), ("token_type", "types", e.types))
    return [
        *(
            Tensor(f"embeddings.{name}_embeddings.weight", f"embed.{place}", (size, e.embedding))
            for name, place, size in tables
            if size
        ),
        vector("embeddings.LayerNorm.weight", "embed.norm.scale", e.embedding),
        vector("embeddings.LayerNorm.bias", "embed.norm.bias", e.embedding),
    ]


def block_tensors(e: Encoder, names: dict[str, str]) -> list[Tensor]:
    """The weight map of a post-LN block: `names` says how q, k, v, o, up and down, norm1 and norm2 are called."""
    lines = [line for x in "qkv" for line in heads_in(names[x], f"attention.{{}}{x}", e.dim, e.heads, e.dim // e.heads)]
    lines += [
        heads_out(f"{names['o']}.weight", "attention.wo", e.dim, e.heads, e.dim // e.heads),
        vector(f"{names['o']}.bias", "attention.bo", e.dim),
        linear(f"{names['up']}.weight", "feed_forward.w1", e.dim, e.ffn),
        vector(f"{names['up']}.bias", "feed_forward.b1", e.ffn),
        linear(f"{names['down']}.weight", "feed_forward.w2", e.ffn, e.dim),
        vector(f"{names['down']}.bias", "feed_forward.b2", e.dim),
    ]
    for norm in ("norm1", "norm2"):
        lines += [
            vector(f"{names[norm]}.weight", f"{norm}.scale", e.dim),
            vector(f"{names[norm]}.bias", f"{norm}.bias", e.dim),
        ]
    return lines


def head_tensors(e: Encoder, dense: str, norm: str, bias: str, decoder: str) -> list[Tensor]:
    """The weight map of a head of masked words, all of it there or absent. Where it is tied, its table is that of the embedding
    and its bias is `bias`; else both are those of `decoder`."""
    lines = [
        linear(f"{dense}.weight", "head.weight", e.dim, e.embedding, "head"),
        vector(f"{dense}.bias", "head.offset", e.embedding, "head"),
        vector(f"{norm}.weight", "head.norm.scale", e.embedding, "head"),
        vector(f"{norm}.bias", "head.norm.bias", e.embedding, "head"),
        vector(bias if e.tied else f"{decoder}.bias", "head.bias", e.vocab, "head"),
    ]
    return (
        lines if e.tied else [*lines, Tensor(f"{decoder}.weight", "head.table", (e.vocab, e.embedding), group="head")]
    )


def build_encoder(e: Encoder, weights: Weights, dtype: str, *, tied_layers: bool = False) -> Network:
    """The network of a post-LN encoder; with `tied_layers` the one layer serves all depths, an autonomous field."""
    layers = None if tied_layers else e.layers
    attention = filled(
        lambda key: Attention(e.dim, e.heads, key=key, bias=True), below(weights, "attention"), layers=layers
    )
    feed_forward = filled(
        lambda key: FeedForward(e.dim, e.ffn, key=key, activation=e.activation),
        below(weights, "feed_forward"),
        layers=layers,
    )
    first, second = (layer_norm(e.dim, e.eps, below(weights, norm), layers) for norm in ("norm1", "norm2"))
    d = post_norm(attention, feed_forward, (first, second), e.layers, tied=tied_layers)
    embed = build_embedding(e, below(weights, "embed"), dtype)
    return Network(embed, d, build_head(e, embed, below(weights, "head")), layers=e.layers)


def build_embedding(e: Encoder, weights: Mapping[str, Any], dtype: str) -> TextEmbedding:
    """The embedding of `embedding_tensors`, and a projection where there is one."""
    arrays: Any = {n: on_device(array) for n, array in weights.items() if not n.startswith("norm.")}
    return TextEmbedding(
        **arrays,
        norm=layer_norm(e.embedding, e.eps, below(weights, "norm")),
        padding=e.padding,
        longest=e.positions if e.padding is None else e.positions - e.padding - 1,
        dtype=dtype,
    )


def build_head(e: Encoder, embed: TextEmbedding, weights: Mapping[str, Any]) -> Head:
    """The head of `head_tensors`, or the last field where the checkpoint has none."""
    if not weights:
        return LastField()
    arrays: Any = {n: on_device(array) for n, array in weights.items() if not n.startswith("norm.")}
    norm = layer_norm(e.embedding, e.eps, below(weights, "norm"))
    return Logits(**{"table": embed.words} | arrays, norm=norm, activation=e.activation)


_BLOCK = {
    "q": "encoder.layer.{l}.attention.self.query",
    "k": "encoder.layer.{l}.attention.self.key",
    "v": "encoder.layer.{l}.attention.self.value",
    "o": "encoder.layer.{l}.attention.output.dense",
    "norm1": "encoder.layer.{l}.attention.output.LayerNorm",
    "up": "encoder.layer.{l}.intermediate.dense",
    "down": "encoder.layer.{l}.output.dense",
    "norm2": "encoder.layer.{l}.output.LayerNorm",
}


def _bert_tensors(e: Encoder) -> list[Tensor]:
    head = head_tensors(
        e,
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.bias",
        "cls.predictions.decoder",
    )
    return [*embedding_tensors(e), *block_tensors(e, _BLOCK), *head]


def _roberta_tensors(e: Encoder) -> list[Tensor]:
    head = head_tensors(e, "lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder")
    return [*embedding_tensors(e), *block_tensors(e, _BLOCK), *head]


def read_padding(config: Config) -> Encoder:
    """The configuration map of RoBERTa: positions are counted from `pad_token_id`."""
    return read_encoder(config, padding=config.integer("pad_token_id", 1, least=0))


UNUSED = {
    r"(.*\.)?pooler\..*": "the pooler, which neither hidden states nor logits of words pass through",
    r"embeddings\.position_ids": "a buffer of 0, 1, 2, …",
    r".*\.decoder\.bias": "a copy of the head's bias",
    r"(cls\.predictions|lm_head)\.bias": "a bias that the head does not use, which is not tied to the embedding",
    r".*\.decoder\.weight": "a copy of the table of words, to which the head is tied",
    r"cls\.seq_relationship\..*": "the head of next-sentence prediction",
}
IRRELEVANT = (
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "hidden_dropout_prob",
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
)
# Checkpoints made from TensorFlow ones call the numbers of a norm gamma and beta.
RENAMED = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))

FAMILY = Family(
    "BERT",
    read_encoder,
    _bert_tensors,
    build_encoder,
    lambda e: e.layers,
    prefixes=("bert.",),
    renamed=RENAMED,
    unused=UNUSED,
    irrelevant=IRRELEVANT,
)
ROBERTA = Family(
    "RoBERTa",
    read_padding,
    _roberta_tensors,
    build_encoder,
    lambda e: e.layers,
    prefixes=("roberta.",),
    renamed=RENAMED,
    unused=UNUSED,
    irrelevant=IRRELEVANT,
)
