"""GPT-2: a pre-LN decoder with learned positions (Radford et al. 2019). Linear maps are stored `(inward, outward)`."""

import dataclasses

from pdejax.networks._network import Network
from pdejax.networks.families._assemble import below, decoder_head, filled, layer_norm, on_device, pre_norm
from pdejax.networks.families._config import Config
from pdejax.networks.families._ends import HIDDEN_ACT, TextEmbedding
from pdejax.networks.families._family import (
    CAUSAL_MASK,
    DECODER_TASKS,
    TASK,
    Family,
    Tensor,
    Weights,
    norm_lines,
    vector,
)
from pdejax.terms import Attention, FeedForward, LayerNorm


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Sizes of GPT-2: d, H, d_ffn, L, and those of the embedding; `scale` of the logits of attention, None for 1/√dk."""

    dim: int
    heads: int
    ffn: int
    layers: int
    vocab: int
    positions: int
    eps: float
    activation: str
    scale: float | None
    tied: bool


def _settings(config: Config) -> Decoder:
    config.only("scale_attn_by_inverse_layer_idx", False)
    # Another order of the same operations, in float32.
    config.only("reorder_and_upcast_attn", False, True)
    dim, heads = config.width_and_heads("n_embd", "n_head")
    ffn = config.get("n_inner", None)
    return Decoder(
        dim=dim,
        heads=heads,
        ffn=4 * dim if ffn is None else config.integer("n_inner"),
        layers=config.layers("n_layer"),
        vocab=config.integer("vocab_size"),
        positions=config.integer("n_positions"),
        eps=config.number("layer_norm_epsilon", 1e-5),
        activation=config.choice("activation_function", HIDDEN_ACT, "gelu_new"),
        scale=None if config.boolean("scale_attn_weights", True) else 1.0,
        tied=config.tied_head(True),
    )


def _tensors(e: Decoder) -> list[Tensor]:
    d, heads, size = e.dim, e.heads, e.dim // e.heads
    lines = [
        Tensor("wte.weight", "embed.words", (e.vocab, d)),
        Tensor("wpe.weight", "embed.positions", (e.positions, d)),
        *norm_lines("ln_f", "norm", d),
        Tensor("h.{l}.attn.c_proj.weight", "attention.wo", (d, d), (heads, size, d)),
        vector("h.{l}.attn.c_proj.bias", "attention.bo", d),
        Tensor("h.{l}.mlp.c_fc.weight", "feed_forward.w1", (d, e.ffn)),
        vector("h.{l}.mlp.c_fc.bias", "feed_forward.b1", e.ffn),
        Tensor("h.{l}.mlp.c_proj.weight", "feed_forward.w2", (e.ffn, d)),
        vector("h.{l}.mlp.c_proj.bias", "feed_forward.b2", d),
    ]
    for index, x in enumerate("qkv"):
        stored = "h.{l}.attn.c_attn"
        lines += [
            Tensor(f"{stored}.weight", f"attention.w{x}", (d, 3 * d), (d, 3, heads, size), (1, 0, 2, 3), index),
            Tensor(f"{stored}.bias", f"attention.b{x}", (3 * d,), (3, heads, size), take=index),
        ]
    for name, place in (("ln_1", "attention.norm"), ("ln_2", "feed_forward.norm")):
        lines += norm_lines(f"h.{{l}}.{name}", place, d)
    return lines if e.tied else [*lines, Tensor("lm_head.weight", "head.table", (e.vocab, d), group="head")]


def _build(e: Decoder, weights: Weights, dtype: str) -> Network:
    attention = filled(
        lambda key: Attention(
            e.dim,
            e.heads,
            causal=True,
            bias=True,
            logit_scale=e.scale,
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
    words, positions = on_device(weights["embed.words"]), on_device(weights["embed.positions"])
    embed = TextEmbedding(words=words, positions=positions, longest=e.positions, dtype=dtype)
    head = decoder_head(words, weights, layer_norm(e.dim, e.eps, below(weights, "norm")), e.tied)
    return Network(embed, pre_norm(attention, feed_forward, e.layers), head, layers=e.layers)


FAMILY = Family(
    "GPT-2",
    _settings,
    _tensors,
    _build,
    lambda e: e.layers,
    causal=True,
    prefixes=("transformer.",),
    unused={r"h\.\d+\.attn\.(bias|masked_bias)": CAUSAL_MASK, DECODER_TASKS: TASK},
    copies={"lm_head.weight": "wte.weight"},
    irrelevant=(
        "attn_pdrop",
        "embd_pdrop",
        # An older name of n_positions, which is no longer read.
        "n_ctx",
        "n_special",
        "predict_special_tokens",
        "resid_pdrop",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ),
)
