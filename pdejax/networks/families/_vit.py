"""ViT and DINOv2: pre-LN encoders of images (Dosovitskiy et al., arXiv 2010.11929; Oquab et al., arXiv 2304.07193).

The LayerScale of DINOv2, λ ⊙ A(u) and λ ⊙ R(u), goes into the maps out of the heads and out of the feed-forward network.
"""

import dataclasses
from typing import Any

import numpy as np

from pdejax.networks._network import Network
from pdejax.networks.families._assemble import below, filled, layer_norm, on_device, pre_norm
from pdejax.networks.families._config import Config
from pdejax.networks.families._ends import HIDDEN_ACT, Head, LastField
from pdejax.networks.families._family import (
    POOLER,
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
from pdejax.networks.families._images import ImageEmbedding, ImageHead
from pdejax.terms import Attention, FeedForward, LayerNorm

_BLOCK = "encoder.layer.{l}."
_MOST_RATIO = 1000


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Sizes of an encoder of images: d, H, d_ffn, L, patches of p × p pixels, c channels, a grid of g × g positions.

    `scales`: LayerScale; `features`: of how many numbers the classifier makes its `labels` scores.
    """

    dim: int
    heads: int
    ffn: int
    layers: int
    patch: int
    grid: int
    channels: int
    labels: int
    eps: float
    activation: str
    bias: bool
    gate: bool = False
    scales: bool = False
    features: int = 0


def _read(config: Config, **options: Any) -> Encoder:
    dim, heads = config.width_and_heads("hidden_size", "num_attention_heads")
    patch, size = _side(config, "patch_size", 16), _side(config, "image_size", 224)
    labels = config.get("id2label", None)
    if labels is not None and not isinstance(labels, dict):
        raise config.wrong("id2label", labels, "a table of names of classes")
    return Encoder(
        dim=dim,
        heads=heads,
        layers=config.layers("num_hidden_layers"),
        patch=patch,
        grid=size // patch,
        channels=config.integer("num_channels", 3),
        labels=config.integer("num_labels", len(labels) if labels else 2),
        activation=config.choice("hidden_act", HIDDEN_ACT, "gelu"),
        bias=config.boolean("qkv_bias", True),
        **options,
    )


def _side(config: Config, key: str, default: int) -> int:
    """A size in pixels: one number, or two that are equal."""
    value = config.get(key, default)
    sides = value if isinstance(value, list) else [value]
    if not all(type(side) is int and side > 0 for side in sides) or len(set(sides)) != 1:
        raise config.wrong(key, value, "one positive integer, or two that are equal")
    return sides[0]


def _read_vit(config: Config) -> Encoder:
    eps = config.number("layer_norm_eps", 1e-12)
    return _read(config, eps=eps, ffn=config.integer("intermediate_size"), features=config.integer("hidden_size"))


def _read_dinov2(config: Config) -> Encoder:
    gate, dim = config.boolean("use_swiglu_ffn", False), config.integer("hidden_size")
    ratio = config.number("mlp_ratio", 4)
    if ratio > _MOST_RATIO:
        raise config.wrong("mlp_ratio", ratio, f"at most {_MOST_RATIO}")
    ffn = int(dim * ratio)
    # A gate has a third matrix: two thirds of the width, rounded up to a multiple of 8.
    ffn = (int(ffn * 2 / 3) + 7) // 8 * 8 if gate else ffn
    eps = config.number("layer_norm_eps", 1e-6)
    return _read(config, eps=eps, ffn=ffn, gate=gate, scales=True, features=2 * dim)


def _common(e: Encoder, norms: tuple[str, str]) -> list[Tensor]:
    """The weight map of everything but the feed-forward network."""
    d, size, prefix = e.dim, e.dim // e.heads, "embeddings."
    lines = [
        Tensor(f"{prefix}cls_token", "embed.first", (1, 1, d), (d,)),
        Tensor(f"{prefix}position_embeddings", "embed.positions", (1, 1 + e.grid**2, d), (1 + e.grid**2, d)),
        Tensor(
            f"{prefix}patch_embeddings.projection.weight",
            "embed.weight",
            (d, e.channels, e.patch, e.patch),
            axes=(1, 2, 3, 0),
        ),
        vector(f"{prefix}patch_embeddings.projection.bias", "embed.bias", d),
        heads_out(f"{_BLOCK}attention.output.dense.weight", "attention.wo", d, e.heads, size),
        vector(f"{_BLOCK}attention.output.dense.bias", "attention.bo", d),
        linear("classifier.weight", "head.weight", e.features, e.labels, "head"),
        vector("classifier.bias", "head.bias", e.labels, "head"),
    ]
    for x, name in (("q", "query"), ("k", "key"), ("v", "value")):
        both = heads_in(f"{_BLOCK}attention.attention.{name}", f"attention.{{}}{x}", d, e.heads, size)
        lines += both if e.bias else both[:1]
    for name, place in (
        (f"{_BLOCK}{norms[0]}", "attention.norm"),
        (f"{_BLOCK}{norms[1]}", "feed_forward.norm"),
        ("layernorm", "norm"),
    ):
        lines += norm_lines(name, place, d)
    return lines


def _network(e: Encoder, first: str, second: str) -> list[Tensor]:
    return [
        *affine(f"{_BLOCK}{first}", "feed_forward.{}1", e.dim, e.ffn),
        *affine(f"{_BLOCK}{second}", "feed_forward.{}2", e.ffn, e.dim),
    ]


def _vit_tensors(e: Encoder) -> list[Tensor]:
    return [
        *_common(e, ("layernorm_before", "layernorm_after")),
        *_network(e, "intermediate.dense", "output.dense"),
    ]


def _dinov2_tensors(e: Encoder) -> list[Tensor]:
    lines = _common(e, ("norm1", "norm2"))
    lines += [
        vector(f"{_BLOCK}layer_scale1.lambda1", "scales.attention", e.dim),
        vector(f"{_BLOCK}layer_scale2.lambda1", "scales.feed_forward", e.dim),
    ]
    if not e.gate:
        return lines + _network(e, "mlp.fc1", "mlp.fc2")
    # Gate and values are stored as one map.
    stored = f"{_BLOCK}mlp.weights_in"
    for index, x in enumerate("g1"):
        lines += [
            Tensor(f"{stored}.weight", f"feed_forward.w{x}", (2 * e.ffn, e.dim), (2, e.ffn, e.dim), (0, 2, 1), index),
            Tensor(f"{stored}.bias", f"feed_forward.b{x}", (2 * e.ffn,), (2, e.ffn), take=index),
        ]
    return [*lines, *affine(f"{_BLOCK}mlp.weights_out", "feed_forward.{}2", e.ffn, e.dim)]


def _build(e: Encoder, weights: Weights, dtype: str) -> Network:
    attention, feed_forward = below(weights, "attention"), below(weights, "feed_forward")
    if not e.bias:
        empty = np.zeros((e.layers, e.heads, e.dim // e.heads), np.float32)
        attention |= {"bq": empty, "bk": empty, "bv": empty}
    if e.scales:
        scales = below(weights, "scales")
        attention |= _scaled(attention, ("wo", "bo"), scales["attention"], dtype)
        feed_forward |= _scaled(feed_forward, ("w2", "b2"), scales["feed_forward"], dtype)

    def norm() -> LayerNorm:
        return LayerNorm(e.dim, eps=e.eps)

    terms = (
        filled(lambda key: Attention(e.dim, e.heads, bias=True, norm=norm(), key=key), attention, layers=e.layers),
        filled(
            lambda key: FeedForward(
                e.dim,
                e.ffn,
                gate=e.gate,
                activation="silu" if e.gate else e.activation,
                norm=norm(),
                key=key,
            ),
            feed_forward,
            layers=e.layers,
        ),
    )
    embed: Any = {name: on_device(array) for name, array in below(weights, "embed").items()}
    last = layer_norm(e.dim, e.eps, below(weights, "norm"))
    head: Head = LastField(last)
    if "head.weight" in weights:
        head = ImageHead(last, on_device(weights["head.weight"]), on_device(weights["head.bias"]))
    return Network(ImageEmbedding(**embed, dtype=dtype), pre_norm(*terms, e.layers), head, layers=e.layers)


def _scaled(weights: dict[str, Any], names: tuple[str, ...], scale: np.ndarray, dtype: str) -> dict[str, Any]:
    """Weights `(L, …, d)` times a scale `(L, d)`, in float64 if the network computes in it, where float32 loses nothing."""
    wide = scale.astype(dtype)
    return {
        name: weights[name].astype(dtype) * wide.reshape(len(wide), *(1,) * (weights[name].ndim - 2), -1)
        for name in names
    }


_UNUSED = {
    r"pooler\..*": POOLER,
    r"embeddings\.mask_token": "the token of masked patches in training",
    r"decoder\.0\..*": "the head of masked patches, which neither hidden states nor the last field pass through",
}
_IRRELEVANT = (
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "encoder_stride",
    "hidden_dropout_prob",
    "layerscale_value",
    "out_features",
    "out_indices",
    "pooler_act",
    "pooler_output_size",
    "reshape_hidden_states",
    "apply_layernorm",
    "stage_names",
    "use_mask_token",
)


def _family(name: str, prefix: str, read: Any, tensors: Any) -> Family:
    return Family(
        name,
        read,
        tensors,
        _build,
        lambda e: e.layers,
        prefixes=(prefix,),
        unused=_UNUSED,
        irrelevant=_IRRELEVANT,
    )


FAMILY = _family("ViT", "vit.", _read_vit, _vit_tensors)
DINOV2 = _family("DINOv2", "dinov2.", _read_dinov2, _dinov2_tensors)
