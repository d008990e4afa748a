"""Llama and its kin, Mistral, Qwen2 and Qwen3: pre-LN decoders with rotary positions, grouped heads and a gated network.

Touvron et al., arXiv 2302.13971; Jiang et al., arXiv 2310.06825 (a sliding window); Yang et al., arXiv 2407.10671 (biases of
queries, keys and values) and arXiv 2505.09388 (norms of queries and keys). SmolLM is a Llama.
"""

import dataclasses
from typing import Any

import numpy as np

from pdejax.networks._network import Network
from pdejax.networks.families._assemble import below, decoder_head, filled, on_device, pre_norm, rms_norm
from pdejax.networks.families._config import Config
from pdejax.networks.families._ends import HIDDEN_ACT, Head, TextEmbedding
from pdejax.networks.families._family import (
    DECODER_TASKS,
    FREQUENCIES,
    TASK,
    Family,
    Tensor,
    Weights,
    heads_in,
    heads_out,
    linear,
    vector,
)
from pdejax.networks.families._rotary import read_rotary
from pdejax.terms import Attention, FeedForward, RMSNorm, Rotary

NO_WINDOW = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder: d, H, groups of keys and values, dk, d_ffn, L, and its options.

    `windows`: the window of each layer, or None where none has one. `biases`: of queries, keys and values, of the map out of the
    heads, of the feed-forward network. `head_norms`: norms of queries and keys.
    """

    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    layers: int
    vocab: int
    positions: int
    eps: float
    activation: str
    rotary: Rotary
    windows: tuple[int, ...] | None = None
    biases: tuple[bool, bool, bool] = (False, False, False)
    head_norms: bool = False
    tied: bool = False


def read_decoder(config: Config, **options: Any) -> Decoder:
    """The configuration map of Llama, whose keys the others share."""
    config.only("pretraining_tp", 1)
    config.only("rope_interleaved", False)
    dim, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    groups = config.get("num_key_value_heads", None)
    groups = heads if groups is None else config.integer("num_key_value_heads")
    if heads % groups:
        raise config.wrong("num_key_value_heads", groups, f"a divisor of num_attention_heads={heads}")
    size = config.get("head_dim", None)
    if size is None and dim % heads:
        raise config.wrong("num_attention_heads", heads, f"a divisor of hidden_size={dim}, or head_dim is given")
    size = dim // heads if size is None else config.integer("head_dim")
    return Decoder(
        dim=dim,
        heads=heads,
        kv_heads=groups,
        head_dim=size,
        ffn=config.integer("intermediate_size"),
        layers=config.layers("num_hidden_layers"),
        vocab=config.integer("vocab_size"),
        positions=config.integer("max_position_embeddings"),
        eps=config.number("rms_norm_eps", 1e-6),
        activation=config.choice("hidden_act", HIDDEN_ACT, "silu"),
        rotary=read_rotary(config, size),
        tied=config.tied_head(False),
        **options,
    )


def _read_llama(config: Config) -> Decoder:
    attention, network = config.boolean("attention_bias", False), config.boolean("mlp_bias", False)
    return read_decoder(config, biases=(attention, attention, network))


def _read_mistral(config: Config) -> Decoder:
    # A configuration without it has a window of 4096 in transformers: no default is guessed.
    window = config.get("sliding_window")
    windows = None
    if window is not None:
        windows = (config.integer("sliding_window"),) * config.layers("num_hidden_layers")
    return read_decoder(config, windows=windows)


def _read_qwen2(config: Config) -> Decoder:
    config.only("use_mrope", False)
    return read_decoder(config, windows=read_windows(config), biases=(True, False, False))


def _read_qwen3(config: Config) -> Decoder:
    attention = config.boolean("attention_bias", False)
    return read_decoder(config, windows=read_windows(config), biases=(attention, attention, False), head_norms=True)


def read_windows(config: Config) -> tuple[int, ...] | None:
    """The window of each layer by `layer_types`, or by `max_window_layers`, from which on layers have one; None for none."""
    layers, kinds = config.layers("num_hidden_layers"), config.get("layer_types", None)
    first = config.integer("max_window_layers", 28, least=0)
    if not config.boolean("use_sliding_window", False):
        if kinds is not None and kinds != ["full_attention"] * layers:
            raise config.wrong(
                "layer_types", kinds, f"{layers} times 'full_attention' where use_sliding_window is false"
            )
        config.get("sliding_window", None)
        return None
    window = config.integer("sliding_window")
    if kinds is None:
        return tuple(window if layer >= first else NO_WINDOW for layer in range(layers))
    sizes = {"full_attention": NO_WINDOW, "sliding_attention": window}
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in list(sizes) for kind in kinds):
        raise config.wrong("layer_types", kinds, f"{layers} times 'full_attention' or 'sliding_attention'")
    return tuple(sizes[kind] for kind in kinds)


def block_tensors(e: Decoder) -> list[Tensor]:
    """The weight map of a block but for its norms."""
    inward, outward, network = e.biases
    lines = []
    for name, heads in (("q", e.heads), ("k", e.kv_heads), ("v", e.kv_heads)):
        both = heads_in(f"layers.{{l}}.self_attn.{name}_proj", f"attention.{{}}{name}", e.dim, heads, e.head_dim)
        lines += both if inward else both[:1]
    lines.append(heads_out("layers.{l}.self_attn.o_proj.weight", "attention.wo", e.dim, e.heads, e.head_dim))
    if outward:
        lines.append(vector("layers.{l}.self_attn.o_proj.bias", "attention.bo", e.dim))
    for name, place, sizes in (
        ("gate", "g", (e.dim, e.ffn)),
        ("up", "1", (e.dim, e.ffn)),
        ("down", "2", (e.ffn, e.dim)),
    ):
        lines.append(linear(f"layers.{{l}}.mlp.{name}_proj.weight", f"feed_forward.w{place}", *sizes))
        if network:
            lines.append(vector(f"layers.{{l}}.mlp.{name}_proj.bias", f"feed_forward.b{place}", sizes[1]))
    if e.head_norms:
        lines += [
            vector(f"layers.{{l}}.self_attn.{x}_norm.weight", f"attention.norm_{x}.scale", e.head_dim) for x in "qk"
        ]
    return lines


def end_tensors(e: Decoder) -> list[Tensor]:
    """The weight map of the embedding, the last norm and the head."""
    lines = [
        Tensor("embed_tokens.weight", "embed.words", (e.vocab, e.dim)),
        vector("norm.weight", "norm.scale", e.dim),
    ]
    return lines if e.tied else [*lines, Tensor("lm_head.weight", "head.table", (e.vocab, e.dim), group="head")]


def _tensors(e: Decoder) -> list[Tensor]:
    return [
        *end_tensors(e),
        *block_tensors(e),
        vector("layers.{l}.input_layernorm.weight", "attention.norm.scale", e.dim),
        vector("layers.{l}.post_attention_layernorm.weight", "feed_forward.norm.scale", e.dim),
    ]


def build_terms(e: Decoder, weights: Weights, *, norm_out: bool = False) -> tuple[Attention, FeedForward]:
    """Attention and feed-forward of all layers, normalized before and, with `norm_out`, after."""

    def norm(there: bool = True, size: int = e.dim) -> RMSNorm | None:
        return RMSNorm(size, eps=e.eps) if there else None

    inward, outward, network = e.biases
    attention = below(weights, "attention")
    if e.windows is not None:
        attention["window"] = np.asarray(e.windows, np.int32)
    return (
        filled(
            lambda key: Attention(
                e.dim,
                e.heads,
                kv_heads=e.kv_heads,
                head_dim=e.head_dim,
                causal=True,
                window=None if e.windows is None else 1,
                rotary=e.rotary,
                bias=(True if outward else "qkv") if inward else False,
                norm=norm(),
                norm_out=norm(norm_out),
                norm_q=norm(e.head_norms, e.head_dim),
                norm_k=norm(e.head_norms, e.head_dim),
                key=key,
            ),
            attention,
            layers=e.layers,
        ),
        filled(
            lambda key: FeedForward(
                e.dim,
                e.ffn,
                gate=True,
                bias=network,
                activation=e.activation,
                norm=norm(),
                norm_out=norm(norm_out),
                key=key,
            ),
            below(weights, "feed_forward"),
            layers=e.layers,
        ),
    )


def build_ends(e: Decoder, weights: Weights, dtype: str, norm: RMSNorm | None) -> tuple[TextEmbedding, Head]:
    """The embedding, and the head after a norm where there is one: tied to the embedding, or of its own, or none."""
    embed = TextEmbedding(words=on_device(weights["embed.words"]), longest=e.positions, dtype=dtype)
    return embed, decoder_head(embed.words, weights, norm, e.tied)


def _build(e: Decoder, weights: Weights, dtype: str) -> Network:
    d = pre_norm(*build_terms(e, weights), e.layers)
    embed, head = build_ends(e, weights, dtype, rms_norm(e.dim, e.eps, below(weights, "norm")))
    return Network(embed, d, head, layers=e.layers)


UNUSED = {r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq": FREQUENCIES, DECODER_TASKS: TASK}
COPIES = {"lm_head.weight": "embed_tokens.weight"}
IRRELEVANT = ("attention_dropout", "is_llama_config", "max_sequence_length")


def _family(name: str, read: Any) -> Family:
    return Family(
        name,
        read,
        _tensors,
        _build,
        lambda e: e.layers,
        causal=True,
        prefixes=("model.",),
        unused=UNUSED,
        copies=COPIES,
        irrelevant=IRRELEVANT,
    )


FAMILY = _family("Llama", _read_llama)
MISTRAL = _family("Mistral", _read_mistral)
QWEN2 = _family("Qwen2", _read_qwen2)
QWEN3 = _family("Qwen3", _read_qwen3)
