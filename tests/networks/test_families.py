"""Families of checkpoints against `transformers`: states, maps and logits of small random models."""

import json

import jax
import numpy as np
import oracle
import pytest
from oracle import DIM, HEADS, LAYERS, LENGTH, VOCAB, Case

import pdejax as pj

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": DIM,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
CASES = {
    "BERT": Case("BertForMaskedLM", SIZES | {"layer_norm_eps": 1e-3}, logits=True),
    "BERT without a head": Case("BertModel", SIZES | {"hidden_act": "gelu_new"}),
    "BERT, untied": Case("BertForMaskedLM", SIZES | {"hidden_act": "relu", "tie_word_embeddings": False}, logits=True),
    # The head's activation is GELU whatever that of the blocks.
    "RoBERTa": Case(
        "RobertaForMaskedLM", SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "hidden_act": "relu"}, logits=True
    ),
    "DistilBERT": Case(
        "DistilBertForMaskedLM",
        {
            "vocab_size": VOCAB,
            "dim": DIM,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": 20,
            "max_position_embeddings": 16,
        },
        logits=True,
    ),
    "ALBERT": Case("AlbertForMaskedLM", SIZES | {"embedding_size": 7}, logits=True),
    "ALBERT without a head": Case("AlbertModel", SIZES | {"embedding_size": 7, "hidden_act": "gelu"}),
}


@pytest.fixture(scope="session", params=CASES)
def made(request, tmp_path_factory):
    """A case, its folder and the model of transformers."""
    folder = tmp_path_factory.mktemp("model")
    case = CASES[request.param]
    return case, folder, oracle.make(case, folder)


def tokens_of(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(2, VOCAB, length).astype(np.int32)


def differences(net, ids, mask, expected, relative) -> dict[str, float]:
    """Relative differences, maps and logits included."""
    out, states, maps = net.observe(ids, mask)
    return {
        "states": max(relative(a, b) for a, b in zip(states, expected["states"], strict=True)),
        "maps": relative(maps, expected["maps"]),
        "output": relative(out, expected.get("logits", expected["states"][-1])),
    }


@pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-12), ("float32", 2e-5)])
def test_states_maps_and_logits_are_those_of_transformers(made, relative, dtype, error):
    """Layer by layer, with and without padding, in both precisions."""
    case, folder, model = made
    net = pj.load_pretrained(folder, dtype=dtype)
    for length, real in ((LENGTH, 6), (4, 4)):
        mask = np.arange(length) < real
        ids = np.where(mask, tokens_of(length), model.config.pad_token_id)
        expected = oracle.run(model, ids, mask)
        states = net.hidden_states(ids, mask)
        assert states.dtype == dtype and states.shape == (LAYERS + 1, length, DIM)
        found = differences(net, ids, mask, jax.tree.map(lambda x: x.astype(dtype), expected), relative)
        assert max(found.values()) < error, found
    assert ("logits" in expected) == case.logits


@pytest.mark.parametrize("name", ["BERT without a head", "ALBERT without a head"])
def test_pairs_of_texts(name, tmp_path, relative):
    """Token types side by side with the ids."""
    model = oracle.make(CASES[name], tmp_path)
    ids, types = tokens_of(LENGTH), np.asarray([0, 0, 0, 0, 1, 1, 1, 1, 1], np.int32)
    expected = oracle.run(model, ids, token_type_ids=types)
    found = pj.load_pretrained(tmp_path, dtype="float64").hidden_states(np.stack([ids, types], axis=1))
    assert relative(found, expected["states"]) < 1e-12
    alone = oracle.run(model, ids)["states"]
    assert relative(alone, expected["states"]) > 1e-3


def test_a_map_that_is_wrong_by_a_little_would_be_seen(tmp_path, relative):
    """What the tolerances can tell: another epsilon of the norms, and the other form of GELU."""
    model = oracle.make(CASES["BERT without a head"], tmp_path)
    expected = oracle.run(model, tokens_of(4))["states"]
    for key, value in (("layer_norm_eps", 1e-5), ("hidden_act", "gelu")):
        config = json.loads((tmp_path / "config.json").read_text())
        other = tmp_path / key
        other.mkdir()
        (other / "config.json").write_text(json.dumps(config | {key: value}))
        (other / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
        found = pj.load_pretrained(other, dtype="float64").hidden_states(tokens_of(4))
        assert relative(found, expected) > 1e-7
