"""Families of checkpoints against `transformers`: states, maps and logits of small random models."""

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
    "RoBERTa": Case("RobertaForMaskedLM", SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}, logits=True),
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
    for length, real in ((LENGTH, LENGTH), (LENGTH, 6)):
        ids = tokens_of(length)
        mask = np.arange(length) < real
        expected = oracle.run(model, ids, mask)
        states = net.hidden_states(ids, mask)
        assert states.dtype == dtype and states.shape == (LAYERS + 1, length, DIM)
        found = differences(net, ids, mask, jax.tree.map(lambda x: x.astype(dtype), expected), relative)
        assert max(found.values()) < error, found
    assert ("logits" in expected) == case.logits
