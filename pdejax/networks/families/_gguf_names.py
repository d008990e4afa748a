"""Architectures of GGUF files: their metadata as a configuration of Hugging Face, and their names of tensors.

llama.cpp turns rotary positions of the `llama` architecture between neighbouring features (2j, 2j + 1) where Hugging Face turns
(j, j + dk/2): rows of queries and keys are stored in another order, which is undone here.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pdejax.networks.families._checkpoint import fault, listed

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How an architecture's files are read.

    - `config(where, metadata, shapes)`: the configuration. `names`: stored names and those of Hugging Face, `{l}` the layer.
    - `turned`: stored names, without the layer, of tensors whose rows are in the order of neighbouring pairs, each with the key
      of the configuration that says how many heads they have.
    """

    config: Callable[[str, Mapping[str, Any], Shapes], dict[str, Any]]
    names: Mapping[str, str]
    turned: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def name(self, stored: str) -> str:
        """The name of Hugging Face; an unknown one stays, and is refused by the family's map."""
        found = re.fullmatch(r"blk\.(\d+)\.(.+)", stored)
        if found is None:
            return self.names.get(stored, stored)
        pattern = self.names.get(f"blk.{{l}}.{found[2]}")
        return stored if pattern is None else pattern.replace("{l}", found[1])

    def arrange(self, stored: str, config: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray] | None:
        """What puts rows in the order of Hugging Face, or None."""
        heads = self.turned.get(re.sub(r"^blk\.\d+\.", "", stored))
        return None if heads is None else _halves(config[heads])


def _halves(heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Rows (head, pair, 2) as (head, 2, pair)."""

    def arrange(array: np.ndarray) -> np.ndarray:
        pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
        return pairs.swapaxes(1, 2).reshape(array.shape)

    return arrange


_KNOWN = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
# Options that may only say what the size of a head says, and what another value would be.
_AS_KEYS = {
    "rope.dimension_count": "partial rotary positions",
    "attention.value_length": "values of another size than keys",
}
# What the tensors say.
_NEEDLESS = ("vocab_size", *_AS_KEYS)


def _rotary_decoder(kind: str) -> Callable[[str, Mapping[str, Any], Shapes], dict[str, Any]]:
    """The configuration of a pre-RMSNorm decoder with rotary positions."""

    def config(where: str, metadata: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
        own = {key.removeprefix(f"{kind}."): v for key, v in metadata.items() if key.startswith(f"{kind}.")}
        unknown = [f"{kind}.{key}={own[key]!r}" for key in own if key not in _KNOWN and key not in _NEEDLESS]
        if unknown:
            raise fault(where, f"its metadata has options that are not supported: {listed(unknown)}.")
        found = {new: own[old] for old, new in _KNOWN.items() if old in own}
        missing = [f"{kind}.{old}" for old, new in _KNOWN.items() if new not in found and new not in _DEFAULTS]
        if missing or "token_embd.weight" not in shapes:
            raise fault(where, f"it has no {listed(missing or ['token_embd.weight'])}, which a {kind} model needs.")
        heads, dim = found["num_attention_heads"], found["hidden_size"]
        if type(heads) is not int or heads < 1 or type(dim) is not int:
            raise fault(where, f"{kind}.attention.head_count={heads!r} is no number of heads.")
        defaults = {"num_key_value_heads": heads, "rope_theta": 10000.0, "head_dim": dim // heads}
        size = found.get("head_dim", defaults["head_dim"])
        # Features that turn, and features of a value: as many as of a key, unless the file says otherwise.
        for key, words in _AS_KEYS.items():
            if own.get(key, size) != size:
                raise fault(
                    where,
                    f"{kind}.{key}={own[key]!r}, and a head has {size} features: {words} are not supported.",
                )
        return (
            defaults
            | found
            | {
                "model_type": kind,
                "vocab_size": shapes["token_embd.weight"][0],
                "hidden_act": "silu",
                "tie_word_embeddings": "output.weight" not in shapes,
            }
        )

    return config


_DEFAULTS = ("num_key_value_heads", "rope_theta", "head_dim")
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.{l}.attn_norm.weight": "model.layers.{l}.input_layernorm.weight",
    "blk.{l}.attn_q.weight": "model.layers.{l}.self_attn.q_proj.weight",
    "blk.{l}.attn_k.weight": "model.layers.{l}.self_attn.k_proj.weight",
    "blk.{l}.attn_v.weight": "model.layers.{l}.self_attn.v_proj.weight",
    "blk.{l}.attn_output.weight": "model.layers.{l}.self_attn.o_proj.weight",
    "blk.{l}.attn_q.bias": "model.layers.{l}.self_attn.q_proj.bias",
    "blk.{l}.attn_k.bias": "model.layers.{l}.self_attn.k_proj.bias",
    "blk.{l}.attn_v.bias": "model.layers.{l}.self_attn.v_proj.bias",
    "blk.{l}.attn_q_norm.weight": "model.layers.{l}.self_attn.q_norm.weight",
    "blk.{l}.attn_k_norm.weight": "model.layers.{l}.self_attn.k_norm.weight",
    "blk.{l}.ffn_norm.weight": "model.layers.{l}.post_attention_layernorm.weight",
    "blk.{l}.ffn_gate.weight": "model.layers.{l}.mlp.gate_proj.weight",
    "blk.{l}.ffn_up.weight": "model.layers.{l}.mlp.up_proj.weight",
    "blk.{l}.ffn_down.weight": "model.layers.{l}.mlp.down_proj.weight",
}
_TURNED = {
    "attn_q.weight": "num_attention_heads",
    "attn_q.bias": "num_attention_heads",
    "attn_k.weight": "num_key_value_heads",
    "attn_k.bias": "num_key_value_heads",
}
ARCHITECTURES = {
    "llama": Architecture(_rotary_decoder("llama"), _NAMES, _TURNED),
    "qwen2": Architecture(_rotary_decoder("qwen2"), _NAMES),
    "qwen3": Architecture(_rotary_decoder("qwen3"), _NAMES),
}
