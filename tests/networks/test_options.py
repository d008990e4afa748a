"""Options of configurations: what is off, what is refused by name, and values of the wrong kind."""

import itertools
import json

import numpy as np
import pytest
import stored
import test_heads

import pdejax as pj
from pdejax.networks import CheckpointError
from pdejax.networks.families import _config
from pdejax.networks.families._checkpoint import Checkpoint
from pdejax.networks.families._family import read_weights
from pdejax.networks.families._load import read_settings

DECODER = test_heads.DECODER


@pytest.fixture
def folder(tmp_path):
    """A folder with a small BERT."""
    return stored.bert(tmp_path)


@pytest.mark.parametrize("value", [False, 0, "", [], {}, True])
def test_of_an_unknown_option_no_value_is_off(folder, value):
    """`is_causal: false` of a decoder would be the other function."""
    config = stored.CONFIG | {"uses_the_other_function": value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="not known of BERT models: uses_the_other_function="):
        pj.load_pretrained(folder)


HARMLESS = {
    "bert": (
        "_num_labels adapters model_max_length sentence_transformers unsloth_fixed unsloth_version",
        ("position_embedding_type", "tie_word_embeddings", "uses_the_other_function", "is_decoder"),
    ),
    "gpt2": ("n_ctx n_special predict_special_tokens", ("tie_word_embeddings",)),
    "gpt_neox": ("attention_probs_dropout_prob hidden_dropout_prob", ("attention_bias", "tie_word_embeddings")),
    "llama": (
        "max_sequence_length",
        ("pretraining_tp", "rope_interleaved", "attention_bias", "mlp_bias", "tie_word_embeddings", "anything"),
    ),
    "qwen2": ("max_sequence_length", ("use_sliding_window", "max_window_layers", "tie_word_embeddings")),
    "qwen3": ("max_sequence_length", ("attention_bias", "use_sliding_window", "max_window_layers")),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_options_that_change_nothing(kind):
    """What no network reads, with any value; null, which gives nothing, is the default."""
    names, nulls = HARMLESS[kind]
    config = {"bert": stored.CONFIG, "gpt2": test_heads.GPT2, "gpt_neox": CONFIGS["GPT-NeoX"]}.get(
        kind, DECODER | {"model_type": kind}
    )
    plain = read_settings(Checkpoint("test", config, {}))[1]
    for value in (5, "x", {"a": 1}, True):
        assert read_settings(Checkpoint("test", config | dict.fromkeys(names.split(), value), {}))[1] == plain
    assert read_settings(Checkpoint("test", config | dict.fromkeys(nulls), {}))[1] == plain


@pytest.mark.parametrize(
    ("given", "first"), [({}, 28), ({"max_window_layers": None}, 28), ({"max_window_layers": 3}, 3)], ids=str
)
def test_the_first_layer_with_a_window(given, first):
    config = DECODER | {"model_type": "qwen2", "num_hidden_layers": 30, "use_sliding_window": True, "sliding_window": 4}
    windows = read_settings(Checkpoint("test", config | given, {}))[1].windows
    assert windows == tuple(4 if layer >= first else 2**31 - 1 for layer in range(30))


@pytest.mark.parametrize(("name", "same"), [("gelu_fast", "gelu_new"), ("gelu_python", "gelu")])
def test_names_of_one_activation(name, same):
    ours, theirs = (read_settings(Checkpoint("t", stored.CONFIG | {"hidden_act": x}, {}))[1] for x in (name, same))
    assert ours == theirs
    activations = pytest.importorskip("transformers.activations", reason="the oracle: pip install 'pdejax[oracle]'")
    torch = pytest.importorskip("torch")
    x = torch.linspace(-6, 6, 200, dtype=torch.float64)
    np.testing.assert_allclose(activations.ACT2FN[name](x), activations.ACT2FN[same](x), rtol=1e-8, atol=1e-10)


def test_options_that_are_known_have_one_value_that_is_off(folder):
    off = _config._OFF | {"is_causal": False}
    (folder / "config.json").write_text(json.dumps(stored.CONFIG | off))
    assert pj.load_pretrained(folder).layers == 3
    for key in off:
        for value in ({"a": 1}, 0, True):
            (folder / "config.json").write_text(json.dumps(stored.CONFIG | off | {key: value}))
            with pytest.raises(CheckpointError, match=f"config.json has {key}=.* not supported"):
                pj.load_pretrained(folder)


ROPE = {"rope_type": "yarn", "factor": 2.0}
DECODERS = {
    "is_causal: false": ("llama", {"is_causal": False}, "is_causal=False; .* must be True"),
    "layer_types: 5": ("qwen2", {"layer_types": 5}, "layer_types=5; .* 2 times 'full_attention'"),
    "layer_types: [[]]": ("qwen2", {"layer_types": [[]]}, "layer_types="),
    "windows: 5": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "layer_types": 5},
        "layer_types=5; .* 'sliding_attention'",
    ),
    "windows: [{}]": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "layer_types": [{}, 1]},
        "layer_types=.* 'sliding_attention'",
    ),
    "use_mrope": ("qwen2", {"use_mrope": True}, "use_mrope=True"),
    "no window": ("mistral", {}, "no 'sliding_window', which a Mistral model needs"),
    "rope: a list": ("llama", {"rope_parameters": [1]}, r"rope_parameters=\[1\]; .* a table of options"),
    "rope: false": ("llama", {"rope_scaling": False}, "rope_scaling=False; .* a table of options"),
    "rope: two": (
        "llama",
        {"rope_parameters": ROPE, "rope_scaling": {"rope_type": "default"}},
        "that of rope_parameters",
    ),
    "rope: a kind of lists": ("llama", {"rope_parameters": {"rope_type": [1]}}, r"rope_type=\[1\]"),
    "rope: a word": ("llama", {"rope_parameters": ROPE | {"factor": "2"}}, "factor='2'; .* one positive number"),
    "rope: a list of factors": ("llama", {"rope_parameters": ROPE | {"factor": [2]}}, r"factor=\[2\]"),
    "rope: a gain in words": ("llama", {"rope_parameters": ROPE | {"attention_factor": "1"}}, "attention_factor='1'"),
    "rope: true": ("llama", {"rope_parameters": ROPE | {"attention_factor": True}}, "attention_factor=True"),
    "rope: mscale": ("llama", {"rope_parameters": ROPE | {"mscale": [1], "mscale_all_dim": 1}}, r"mscale=\[1\]"),
    "rope: fast below slow": (
        "llama",
        {"rope_parameters": ROPE | {"beta_fast": 1, "beta_slow": 2}},
        "rotary positions of config.json, .* Rotary.yarn: fast",
    ),
    "rope: a small factor": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 0.5}},
        "rotary positions of config.json, .* factor",
    ),
    "rope: a huge share": ("gpt_neox", {"rotary_pct": 1e308}, r"partial_rotary_factor=1e\+308"),
    "a number beyond floats": ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps=1000"),
    "a huge number of layers": ("mistral", {"num_hidden_layers": 10**9, "sliding_window": 3}, "num_hidden_layers=10"),
}


@pytest.mark.parametrize("name", DECODERS)
def test_options_of_decoders_are_refused_by_name(tmp_path, name):
    """The configuration alone: no tensor is needed to refuse it."""
    kind, changes, words = DECODERS[name]
    config = {
        "model_type": kind,
        "vocab_size": 13,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 10,
        "max_position_embeddings": 16,
    }
    place = stored.folder(tmp_path / "checkpoint", config | changes, {})
    with pytest.raises(CheckpointError, match=f"^load_pretrained: checkpoint: .*{words}"):
        pj.load_pretrained(place)


# --- Values of any kind -----------------------------------------------------------------------------------------------

CONFIGS = {
    **{name: case[0] for name, case in (test_heads.TIED | test_heads.HEADED).items()},
    "Qwen2": DECODER | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 3},
    "Qwen3": DECODER | {"model_type": "qwen3"},
    "DINOv2": {k: v for k, v in test_heads.VIT.items() if k != "intermediate_size"} | {"model_type": "dinov2"},
}
MORE = (
    *(
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "layer_types",
        "sliding_window",
        "use_sliding_window",
        "head_dim",
    ),
    *(
        "max_window_layers",
        "num_key_value_heads",
        "hidden_act",
        "architectures",
        "id2label",
        "num_labels",
        "pad_token_id",
    ),
    *("tie_word_embeddings", "is_causal", "layer_norm_eps", "rms_norm_eps", "rotary_pct", "attention_bias", "n_inner"),
    *("mlp_ratio", "num_channels", "qkv_bias", "type_vocab_size", "total_ut_steps", "embedding_size", "pruned_heads"),
)
VALUES = (
    *(None, True, False, 0, 1, -1, 5, 1.5, -2.0, 1e308, 10**400, 2**40, float("nan"), float("inf"), "", "x"),
    *([], [1], ["a"], [[]], [None], {}, {"a": 1}),
    {"rope_type": "yarn", "factor": 1e300},
    {"rope_type": "yarn", "factor": 2, "beta_fast": 1e-300},
    {"rope_type": "yarn", "factor": 2, "rope_theta": 1.0},
    {"rope_type": "linear", "factor": 10**400},
    {"rope_theta": 1e-300},
)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_value_of_any_kind_is_taken_or_refused_in_words(name):
    """No other error than that of a checkpoint, whatever stands at a key; of tensors there are none, so that all are refused."""
    config = CONFIGS[name]
    for key, value in itertools.product({*config, *MORE}, VALUES):
        checkpoint = Checkpoint("test", config | {key: value}, {})
        with pytest.raises(CheckpointError, match=r"^load_pretrained: test: "):
            read_weights(*read_settings(checkpoint), checkpoint)
