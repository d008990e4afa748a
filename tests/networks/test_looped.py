"""Ouro against a loop in NumPy, written from the paper: transformers has no such model."""

import json

import numpy as np
import pytest
import stored

import pdejax as pj

VOCAB, DIM, HEADS, GROUPS, SIZE, FFN, LAYERS, PASSES, EPS, THETA = 17, 8, 4, 2, 4, 12, 2, 3, 1e-3, 20.0
NORMS = ("input_layernorm", "input_layernorm_2", "post_attention_layernorm", "post_attention_layernorm_2")
CONFIG = {
    "model_type": "ouro",
    "architectures": ["OuroForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": DIM,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": SIZE,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "total_ut_steps": PASSES,
    "early_exit_threshold": 1.0,
    "max_position_embeddings": 64,
    "rms_norm_eps": EPS,
    "rope_theta": THETA,
    "rope_scaling": None,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": LAYERS,
    "layer_types": ["full_attention"] * LAYERS,
    "attention_dropout": 0.0,
}


def weights(dtype=np.float64):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return 0.4 * rng.standard_normal(shape)

    found = {
        "model.embed_tokens.weight": normal(VOCAB, DIM),
        "model.norm.weight": 1 + normal(DIM),
        "lm_head.weight": normal(VOCAB, DIM),
        "model.early_exit_gate.weight": normal(1, DIM),
        "model.early_exit_gate.bias": normal(1),
    }
    for layer in range(LAYERS):
        shapes = {
            "self_attn.q_proj": (HEADS * SIZE, DIM),
            "self_attn.k_proj": (GROUPS * SIZE, DIM),
            "self_attn.v_proj": (GROUPS * SIZE, DIM),
            "self_attn.o_proj": (DIM, HEADS * SIZE),
            "mlp.gate_proj": (FFN, DIM),
            "mlp.up_proj": (FFN, DIM),
            "mlp.down_proj": (DIM, FFN),
        }
        found |= {f"model.layers.{layer}.{name}.weight": normal(*shape) for name, shape in shapes.items()}
        found |= {f"model.layers.{layer}.{name}.weight": 1 + normal(DIM) for name in NORMS}
    return {name: np.asarray(array, dtype) for name, array in found.items()}


def save(folder, config=None):
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    stored.write(folder / "model.safetensors", weights())
    return folder


def rms(x, scale):
    return scale * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + EPS)


def attend(x, w, mask):
    """Causal attention of grouped heads, a head and a query at a time, positions as complex numbers."""
    n = len(x)
    turn = np.exp(1j * np.arange(n)[:, None] * THETA ** (-np.arange(SIZE // 2) * 2 / SIZE))

    def rotated(rows):
        z = (rows[:, : SIZE // 2] + 1j * rows[:, SIZE // 2 :]) * turn
        return np.concatenate([z.real, z.imag], axis=1)

    out = np.zeros((n, HEADS * SIZE))
    for h in range(HEADS):
        g = h * GROUPS // HEADS
        q, k, v = (
            (x @ w[f"self_attn.{name}_proj.weight"].T)[:, i * SIZE : (i + 1) * SIZE]
            for name, i in (("q", h), ("k", g), ("v", g))
        )
        q, k = rotated(q), rotated(k)
        for i in range(n):
            seen = [j for j in range(i + 1) if mask[j]]
            p = np.exp([q[i] @ k[j] / np.sqrt(SIZE) for j in seen])
            out[i, h * SIZE : (h + 1) * SIZE] = (p / p.sum()) @ v[seen] if seen else 0.0
    return out @ w["self_attn.o_proj.weight"].T


def network(x, w):
    gate = x @ w["mlp.gate_proj.weight"].T
    return (gate / (1 + np.exp(-gate)) * (x @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T


def twin(ids, mask, passes=PASSES):
    """States after every layer of every pass, the last of a pass normalized, and logits."""
    stored = weights()
    u = stored["model.embed_tokens.weight"][ids]
    states = [u]
    for _ in range(passes):
        for layer in range(LAYERS):
            start = f"model.layers.{layer}."
            w = {name.removeprefix(start): a for name, a in stored.items() if name.startswith(start)}
            u = u + rms(attend(rms(u, w["input_layernorm.weight"]), w, mask), w["input_layernorm_2.weight"])
            inner = network(rms(u, w["post_attention_layernorm.weight"]), w)
            u = u + rms(inner, w["post_attention_layernorm_2.weight"])
            if layer == LAYERS - 1:
                u = rms(u, stored["model.norm.weight"])
            states.append(u)
    return np.stack(states), u @ stored["lm_head.weight"].T


@pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-12), ("float32", 2e-5)])
def test_states_and_logits_are_those_of_the_loop(dtype, error, tmp_path, relative):
    net = pj.load_pretrained(save(tmp_path), dtype=dtype)
    assert net.layers == PASSES * LAYERS and net.discretization.field.stacked.interaction.wq.shape[0] == LAYERS
    ids = np.random.default_rng(1).integers(0, VOCAB, 7).astype(np.int32)
    for mask in (np.arange(7) >= 0, np.arange(7) < 5):
        states, logits = twin(ids, mask)
        out, found, maps = net.observe(ids, mask)
        assert relative(found, states.astype(dtype)) < error and relative(out, logits.astype(dtype)) < error
        assert maps.shape == (PASSES * LAYERS, HEADS, 7, 7)


def test_another_number_of_passes_is_another_network(tmp_path, relative):
    net = pj.load_pretrained(save(tmp_path, {"total_ut_steps": 1}), dtype="float64")
    ids = np.arange(5, dtype=np.int32)
    assert relative(net(ids), twin(ids, np.ones(5, bool), 1)[1]) < 1e-12
    assert relative(net(ids), twin(ids, np.ones(5, bool))[1]) > 1e-2


def test_early_exit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="early_exit_threshold"):
        pj.load_pretrained(save(tmp_path, {"early_exit_threshold": 0.5}))
