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
from pdejax.networks.families._family import (
    PLACES,
    POOLER,
    TASK,
    Family,
    Tensor,
    Weights,
    affine,
    heads_in,
    heads_out,
    linear,
    norm_lines,
    vector,
)
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
    # Of the head of masked words.
    head_activation: str
    padding: int | None = None
    tied: bool = True


def read_encoder(
    config: Config,
    padding: int | None = None,
    embedding: int | None = None,
    head_activation: str | None = None,
    act: str = "gelu",
) -> Encoder:
    """The configuration map of BERT, whose keys others share. `padding`: see `TextEmbedding`. `head_activation`: that of the head
    where it is another than between the maps of a block; `act`: what that is where the configuration does not say."""
    config.only("position_embedding_type", "absolute")
    dim, heads = config.width_and_heads("hidden_size", "num_attention_heads")
    activation = config.choice("hidden_act", HIDDEN_ACT, act)
    return Encoder(
        dim=dim,
        heads=heads,
        ffn=config.integer("intermediate_size"),
        layers=config.layers("num_hidden_layers"),
        vocab=config.integer("vocab_size"),
        embedding=embedding or dim,
        positions=config.integer("max_position_embeddings"),
        types=config.integer("type_vocab_size", 2),
        eps=config.number("layer_norm_eps", 1e-12),
        activation=activation,
        head_activation=head_activation or activation,
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
        *norm_lines("embeddings.LayerNorm", "embed.norm", e.embedding),
    ]


def block_tensors(e: Encoder, names: dict[str, str]) -> list[Tensor]:
    """The weight map of a post-LN block: `names` says how q, k, v, o, up and down, norm1 and norm2 are called."""
    lines = [line for x in "qkv" for line in heads_in(names[x], f"attention.{{}}{x}", e.dim, e.heads, e.dim // e.heads)]
    lines += [
        heads_out(f"{names['o']}.weight", "attention.wo", e.dim, e.heads, e.dim // e.heads),
        vector(f"{names['o']}.bias", "attention.bo", e.dim),
        *affine(names["up"], "feed_forward.{}1", e.dim, e.ffn),
        *affine(names["down"], "feed_forward.{}2", e.ffn, e.dim),
    ]
    for norm in ("norm1", "norm2"):
        lines += norm_lines(names[norm], norm, e.dim)
    return lines


def head_tensors(e: Encoder, dense: str, norm: str, bias: str, decoder: str) -> list[Tensor]:
    """The weight map of a head of masked words, all of it there or absent. Where it is tied, its table is that of the embedding
    and its bias is `bias`; else both are those of `decoder`."""
    lines = [
        linear(f"{dense}.weight", "head.weight", e.dim, e.embedding, "head"),
        vector(f"{dense}.bias", "head.offset", e.embedding, "head"),
        *norm_lines(norm, "head.norm", e.embedding, "head"),
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
    return Logits(**{"table": embed.words} | arrays, norm=norm, activation=e.head_activation)


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
    """The configuration map of RoBERTa: positions are counted from `pad_token_id`, and the head's activation is always GELU."""
    return read_encoder(config, padding=config.integer("pad_token_id", 1, least=0), head_activation="gelu")


# The table of words, and reasons why tensors of a head are not read.
WORDS = "embeddings.word_embeddings.weight"
OWN_BIAS = "a bias that the head does not use, which is not tied to the embedding"
# Of classes of texts or tokens, and of answers.
TASKS = r"(classifier|pre_classifier|qa_outputs)\..*"
UNUSED = {
    r"(.*\.)?pooler\..*": POOLER,
    r"embeddings\.position_ids": PLACES,
    r"(cls\.predictions|lm_head)\.bias": OWN_BIAS,
    r"cls\.seq_relationship\..*": "the head of next-sentence prediction",
    TASKS: TASK,
}
IRRELEVANT = (
    "attention_probs_dropout_prob",
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


def copies_of(head: str) -> dict[str, str]:
    """What the decoder of a tied head is a copy of."""
    return {f"{head}.decoder.weight": WORDS, f"{head}.decoder.bias": f"{head}.bias"}


FAMILY = Family(
    "BERT",
    read_encoder,
    _bert_tensors,
    build_encoder,
    lambda e: e.layers,
    prefixes=("bert.",),
    renamed=RENAMED,
    unused=UNUSED,
    copies=copies_of("cls.predictions"),
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
    copies=copies_of("lm_head"),
    irrelevant=IRRELEVANT,
)
