"""GPT-NeoX and Pythia: parallel blocks with partial rotary positions (Black et al., arXiv 2204.06745).

`u ← u + A(u) + R(u)`, each with a norm of its own, is one Euler step of A + R; older models take A and R one after the other.
"""

import dataclasses

from pdejax.networks._network import Network
from pdejax.networks.families._assemble import below, decoder_head, filled, layer_norm, on_device, pre_norm
from pdejax.networks.families._config import Config
from pdejax.networks.families._ends import HIDDEN_ACT, TextEmbedding
from pdejax.networks.families._family import (
    CAUSAL_MASK,
    DECODER_TASKS,
    FREQUENCIES,
    TASK,
    Family,
    Tensor,
    Weights,
    affine,
    heads_out,
    norm_lines,
    vector,
)
from pdejax.networks.families._rotary import read_rotary
from pdejax.terms import Attention, FeedForward, LayerNorm, Rotary


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Sizes of GPT-NeoX: d, H, d_ffn, L, and its options."""

    dim: int
    heads: int
    ffn: int
    layers: int
    vocab: int
    positions: int
    eps: float
    activation: str
    rotary: Rotary
    bias: bool
    parallel: bool
    tied: bool


def _settings(config: Config) -> Decoder:
    config.only("is_decoder", False, True)
    dim, heads = config.width_and_heads("hidden_size", "num_attention_heads")
    share = config.number("rotary_pct", 0.25)
    return Decoder(
        dim=dim,
        heads=heads,
        ffn=config.integer("intermediate_size"),
        layers=config.layers("num_hidden_layers"),
        vocab=config.integer("vocab_size"),
        positions=config.integer("max_position_embeddings"),
        eps=config.number("layer_norm_eps", 1e-5),
        activation=config.choice("hidden_act", HIDDEN_ACT, "gelu"),
        rotary=read_rotary(config, dim // heads, share=share, theta=config.number("rotary_emb_base", 10000.0)),
        bias=config.boolean("attention_bias", True),
        parallel=config.boolean("use_parallel_residual", True),
        tied=config.tied_head(False),
    )


def _tensors(e: Decoder) -> list[Tensor]:
    d, heads, size = e.dim, e.heads, e.dim // e.heads
    lines = [
        Tensor("embed_in.weight", "embed.words", (e.vocab, d)),
        heads_out("layers.{l}.attention.dense.weight", "attention.wo", d, heads, size),
        *affine("layers.{l}.mlp.dense_h_to_4h", "feed_forward.{}1", d, e.ffn),
        *affine("layers.{l}.mlp.dense_4h_to_h", "feed_forward.{}2", e.ffn, d),
    ]
    stored = "layers.{l}.attention.query_key_value"
    # Queries, keys and values of one head stand together.
    for index, x in enumerate("qkv"):
        lines.append(
            Tensor(f"{stored}.weight", f"attention.w{x}", (3 * d, d), (heads, 3, size, d), (1, 3, 0, 2), index)
        )
        if e.bias:
            lines.append(Tensor(f"{stored}.bias", f"attention.b{x}", (3 * d,), (heads, 3, size), (1, 0, 2), index))
    if e.bias:
        lines.append(vector("layers.{l}.attention.dense.bias", "attention.bo", d))
    for name, place in (
        ("layers.{l}.input_layernorm", "attention.norm"),
        ("layers.{l}.post_attention_layernorm", "feed_forward.norm"),
        ("final_layer_norm", "norm"),
    ):
        lines += norm_lines(name, place, d)
    return lines if e.tied else [*lines, Tensor("embed_out.weight", "head.table", (e.vocab, d), group="head")]


def _build(e: Decoder, weights: Weights, dtype: str) -> Network:
    attention = filled(
        lambda key: Attention(
            e.dim,
            e.heads,
            causal=True,
            bias=e.bias,
            rotary=e.rotary,
            norm=LayerNorm(e.dim, eps=e.eps),
            key=key,
        ),
        below(weights, "attention"),
        layers=e.layers,
    )
    feed_forward = filled(
        lambda key: FeedForward(e.dim, e.ffn, activation=e.activation, norm=LayerNorm(e.dim, eps=e.eps), key=key),
        below(weights, "feed_forward"),
        layers=e.layers,
    )
    words = on_device(weights["embed.words"])
    head = decoder_head(words, weights, layer_norm(e.dim, e.eps, below(weights, "norm")), e.tied)
    return Network(
        TextEmbedding(words=words, longest=e.positions, dtype=dtype),
        pre_norm(attention, feed_forward, e.layers, parallel=e.parallel),
        head,
        layers=e.layers,
    )


FAMILY = Family(
    "GPT-NeoX",
    _settings,
    _tensors,
    _build,
    lambda e: e.layers,
    causal=True,
    prefixes=("gpt_neox.",),
    unused={
        DECODER_TASKS: TASK,
        r"layers\.\d+\.attention\.(bias|masked_bias)": CAUSAL_MASK,
        r"layers\.\d+\.attention\.rotary_emb\.inv_freq": FREQUENCIES,
    },
    copies={"embed_out.weight": "embed_in.weight"},
    irrelevant=("attention_dropout", "attention_probs_dropout_prob", "hidden_dropout", "hidden_dropout_prob"),
)
