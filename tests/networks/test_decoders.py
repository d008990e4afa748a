"""Decoders against `transformers`: Llama and its kin, GPT-2, GPT-NeoX; states, maps and logits of small random models."""

import json

import numpy as np
import oracle
import pytest
from oracle import DIM, LAYERS, LENGTH, VOCAB, Case

import pdejax as pj

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": DIM,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 4}
WINDOWS = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
GPT2 = {"vocab_size": VOCAB, "n_embd": DIM, "n_layer": LAYERS, "n_head": 3, "n_positions": 16}


def scaled(kind, **options):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 50.0, **options}}


CASES = {
    "Llama": Case("LlamaForCausalLM", GROUPED | {"tie_word_embeddings": True}, logits=True),
    "Llama, biases, linear": Case(
        "LlamaForCausalLM",
        SIZES | {"head_dim": 6, "attention_bias": True, "mlp_bias": True} | scaled("linear", factor=3.0),
        logits=True,
    ),
    "Llama without a head, llama3": Case(
        "LlamaModel",
        GROUPED
        | scaled(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    ),
    "Llama, yarn": Case(
        "LlamaForCausalLM",
        GROUPED | scaled("yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=2.0, beta_slow=0.5),
        logits=True,
    ),
    "Mistral": Case("MistralForCausalLM", GROUPED | {"sliding_window": 3}, logits=True),
    "Qwen2": Case(
        "Qwen2ForCausalLM", SIZES | {"num_attention_heads": 3, "num_key_value_heads": 1} | WINDOWS, logits=True
    ),
    "Qwen3": Case("Qwen3ForCausalLM", GROUPED | {"hidden_act": "gelu", "use_sliding_window": False}, logits=True),
    "GPT-2": Case("GPT2LMHeadModel", GPT2 | {"layer_norm_epsilon": 1e-3}, logits=True),
    "GPT-2 without a head": Case("GPT2Model", GPT2 | {"scale_attn_weights": False, "n_inner": 20}),
    "GPT-NeoX": Case(
        "GPTNeoXForCausalLM",
        SIZES | {"num_attention_heads": 3, "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 50.0}},
        logits=True,
    ),
    "GPT-NeoX, serial": Case(
        "GPTNeoXModel",
        SIZES
        | {"num_attention_heads": 3, "attention_bias": False, "use_parallel_residual": False}
        | {"rope_parameters": {"partial_rotary_factor": 1.0, "rope_theta": 50.0}},
    ),
}


@pytest.fixture(scope="module")
def double():
    with oracle.in_float64():
        yield


@pytest.fixture(scope="module", params=CASES)
def made(request, tmp_path_factory, double):
    """A case, its folder and the model of transformers."""
    folder = tmp_path_factory.mktemp("model")
    case = CASES[request.param]
    return case, folder, oracle.make(case, folder)


def tokens_of(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(2, VOCAB, length).astype(np.int32)


def differences(net, ids, mask, expected, relative) -> dict[str, float]:
    """Relative differences where tokens are real; the last state of the oracle is normalized."""
    real = np.ones(len(ids), bool) if mask is None else mask
    out, states, maps = net.observe(ids, mask)
    found = {
        "states": max(relative(a[real], b[real]) for a, b in zip(states[:-1], expected["states"][:-1], strict=True)),
        "last": relative(net.head.norm(states[-1])[real], expected["states"][-1][real]),
        "maps": relative(maps[:, :, real], expected["maps"][:, :, real]),
    }
    return found | {"output": relative(out[real], expected.get("logits", expected["states"][-1])[real])}


@pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-12), ("float32", 2e-5)])
def test_states_maps_and_logits_are_those_of_transformers(made, relative, dtype, error):
    """Without padding, with padding behind and in front."""
    case, folder, model = made
    net = pj.load_pretrained(folder, dtype=dtype)
    place = np.arange(LENGTH)
    for mask in (place >= 0, place < 6, place >= 2):
        ids = np.where(mask, tokens_of(LENGTH), 0).astype(np.int32)
        expected = oracle.run(model, ids, mask)
        found = differences(net, ids, mask, expected, lambda a, b: relative(a, b.astype(dtype)))
        assert max(found.values()) < error, found
    assert ("logits" in expected) == case.logits


def test_other_lengths(double, tmp_path, relative):
    """One token, and more than a window."""
    model = oracle.make(CASES["Mistral"], tmp_path)
    net = pj.load_pretrained(tmp_path, dtype="float64")
    for length in (1, 20):
        expected = oracle.run(model, tokens_of(length))
        assert max(differences(net, tokens_of(length), None, expected, relative).values()) < 1e-12


@pytest.mark.parametrize("wrong", ["window", "rotary", "norm_k"])
def test_an_option_that_is_left_out_would_be_seen(double, wrong, tmp_path, relative):
    """What parity rests on: states of the oracle without one option are far from ours."""
    name = {"window": "Mistral", "rotary": "Llama", "norm_k": "Qwen3"}[wrong]
    model = oracle.make(CASES[name], tmp_path)
    net = pj.load_pretrained(tmp_path, dtype="float64")
    d = net.discretization
    attention = d.field.stacked.interaction
    object.__setattr__(attention, wrong, None)
    expected = oracle.run(model, tokens_of(LENGTH))
    assert relative(net.hidden_states(tokens_of(LENGTH))[-2], expected["states"][-2]) > 1e-3


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "Llama",
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "rope_parameters": None},
            "rope_type='dynamic'",
        ),
        ("Llama", {"rope_parameters": {"rope_type": "linear"}}, "has no 'factor'"),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "odd": 3}}, "odd=3"),
        ("Llama", {"hidden_act": "relu6"}, "hidden_act='relu6'"),
        ("Llama", {"num_key_value_heads": 3}, "num_key_value_heads=3; .* a divisor of num_attention_heads=4"),
        ("Llama", {"pretraining_tp": 2}, "pretraining_tp=2"),
        ("Llama", {"logit_cap": 30.0}, "logit_cap=30.0"),
        ("Llama", {"rope_interleaved": True}, "rope_interleaved=True"),
        ("Mistral", {"sliding_window": "wide"}, "sliding_window='wide'"),
        ("Qwen2", {"layer_types": ["chunked_attention"] * LAYERS}, "layer_types=.*chunked_attention"),
        ("Qwen2", {"sliding_window": None}, "sliding_window=None"),
        ("GPT-2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("GPT-2", {"add_cross_attention": True}, "add_cross_attention=True"),
        ("GPT-NeoX", {"rope_parameters": {"partial_rotary_factor": 0.4}}, "partial_rotary_factor"),
        ("GPT-NeoX", {"vocab_size": VOCAB + 1}, r"embed_in.weight \(29, 12\) instead of \(30, 12\)"),
    ],
)
def test_unsupported_options_are_refused_by_name(name, changes, words, double, tmp_path):
    oracle.make(CASES[name], tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=words):
        pj.load_pretrained(tmp_path)


def test_configurations_of_older_versions(double, tmp_path, relative):
    """`rope_theta` and `rope_scaling`, `rotary_pct` and `rotary_emb_base`, no `layer_types`; keys of released files that change
    nothing."""
    for name, drop, add in (
        (
            "Llama, biases, linear",
            ("rope_parameters",),
            {"rope_theta": 50.0, "rope_scaling": {"type": "linear", "factor": 3.0}},
        ),
        ("GPT-NeoX", ("rope_parameters",), {"rotary_pct": 0.5, "rotary_emb_base": 50}),
        ("Qwen2", ("layer_types",), {}),
        ("Llama", (), {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"a": 1}}),
        ("GPT-2", (), {"n_ctx": 16, "_num_labels": 1}),
    ):
        folder = tmp_path / name
        oracle.make(CASES[name], folder)
        new = pj.load_pretrained(folder).discretization.field.stacked.interaction
        file = folder / "config.json"
        config = {key: value for key, value in json.loads(file.read_text()).items() if key not in drop} | add
        file.write_text(json.dumps(config))
        old = pj.load_pretrained(folder).discretization.field.stacked.interaction
        assert old.rotary == new.rotary and (old.window is None) == (name != "Qwen2")
        np.testing.assert_array_equal(old.window, new.window)
