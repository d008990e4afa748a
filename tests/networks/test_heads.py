"""Heads of checkpoints: tied ones whose table is stored twice, ones that are missing, and bare models."""

import json

import numpy as np
import pytest
import stored

import pdejax as pj
from pdejax.networks import CheckpointError
from pdejax.networks.families._load import read_checkpoint, read_settings

DECODER = {
    "vocab_size": 13,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 10,
    "max_position_embeddings": 16,
}
DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": 13,
    "dim": 8,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 10,
    "max_position_embeddings": 16,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 13, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
VIT = {
    "model_type": "vit",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 10,
    "image_size": 8,
    "patch_size": 4,
}
IDS = np.asarray([2, 9, 4, 7, 3], np.int32)
WORDS = "embeddings.word_embeddings.weight"
# Configuration, the tensor that is stored twice, and the other name.
TIED = {
    "BERT": (stored.CONFIG, WORDS, "cls.predictions.decoder.weight"),
    "BERT, bias": (stored.CONFIG, "cls.predictions.bias", "cls.predictions.decoder.bias"),
    "RoBERTa": (stored.CONFIG | {"model_type": "roberta"}, WORDS, "lm_head.decoder.weight"),
    "RoBERTa, bias": (stored.CONFIG | {"model_type": "roberta"}, "lm_head.bias", "lm_head.decoder.bias"),
    "ALBERT": (stored.CONFIG | {"model_type": "albert", "embedding_size": 7}, WORDS, "predictions.decoder.weight"),
    "DistilBERT": (DISTILBERT, WORDS, "vocab_projector.weight"),
    "GPT-2": (GPT2, "wte.weight", "lm_head.weight"),
    "GPT-NeoX": (
        DECODER | {"model_type": "gpt_neox", "rotary_pct": 0.5, "tie_word_embeddings": True},
        "embed_in.weight",
        "embed_out.weight",
    ),
    "Llama": (
        DECODER | {"model_type": "llama", "tie_word_embeddings": True},
        "embed_tokens.weight",
        "lm_head.weight",
    ),
    "Ouro": (
        DECODER | {"model_type": "ouro", "tie_word_embeddings": True},
        "embed_tokens.weight",
        "lm_head.weight",
    ),
}


@pytest.mark.parametrize("name", TIED)
def test_a_table_that_is_stored_twice_must_be_the_same(name, tmp_path):
    """What the configuration ties is compared, number by number; a head of its own is not dropped as a copy."""
    config, original, copy = TIED[name]
    arrays = stored.arrays(config)
    place = stored.folder(tmp_path, config, arrays | {copy: arrays[original]})
    checkpoint = read_checkpoint(place)
    family, settings = read_settings(checkpoint)
    assert family.left_out(settings, checkpoint) == {copy: f"a copy of {original}, to which it is tied"}
    assert pj.load_pretrained(place).layers
    other = arrays[original].copy()
    other.flat[-1] += 1e-3
    stored.folder(tmp_path, config, arrays | {copy: other})
    with pytest.raises(
        CheckpointError, match=rf"'{copy}' should be a copy of '{original}'.* apart in 1 of {other.size}"
    ):
        pj.load_pretrained(place)
    stored.folder(tmp_path, config, arrays | {copy: other[:-1]})
    with pytest.raises(CheckpointError, match=rf"'{copy}' .* of shapes "):
        pj.load_pretrained(place)


def test_a_head_of_its_own_is_used_where_the_configuration_says_so(tmp_path):
    config = DECODER | {"model_type": "llama", "tie_word_embeddings": False}
    arrays = stored.arrays(config)
    net = pj.load_pretrained(stored.folder(tmp_path, config, arrays))
    last = net.replace(head=lambda u, mask: net.head.norm(u))(IDS)
    np.testing.assert_allclose(net(IDS), last @ arrays["lm_head.weight"].T.astype(np.float32), rtol=1e-5, atol=1e-5)


# Configuration, tensors of the head, and names of architectures with and without one.
HEADED = {
    "BERT": (stored.CONFIG, "cls.predictions", ["BertForMaskedLM"], ["BertModel"]),
    "DistilBERT": (DISTILBERT, "vocab_", ["DistilBertForMaskedLM"], ["DistilBertModel"]),
    "Llama": (DECODER | {"model_type": "llama"}, "lm_head", ["LlamaForCausalLM"], ["LlamaModel"]),
    "Mistral": (
        DECODER | {"model_type": "mistral", "num_key_value_heads": 1, "sliding_window": None},
        "lm_head",
        ["MyMistral"],
        ["MistralModel"],
    ),
    "GPT-2": (GPT2 | {"tie_word_embeddings": False}, "lm_head", ["GPT2LMHeadModel"], ["GPT2Model"]),
    "GPT-NeoX": (
        DECODER | {"model_type": "gpt_neox", "rotary_pct": 0.5},
        "embed_out",
        ["GPTNeoXForCausalLM"],
        ["GPTNeoXModel"],
    ),
    "Ouro": (DECODER | {"model_type": "ouro"}, "lm_head", ["OuroForCausalLM"], ["OuroModel"]),
    "ViT": (VIT, "classifier", ["ViTForImageClassification"], ["ViTModel"]),
}
CAUSAL = ("Llama", "Mistral", "GPT-2", "GPT-NeoX", "Ouro")


@pytest.mark.parametrize("name", HEADED)
def test_a_missing_head_is_refused_unless_the_model_is_a_bare_one(name, tmp_path):
    config, head, headed, bare = HEADED[name]
    bodies = {key: array for key, array in stored.arrays(config).items() if not key.startswith(head)}
    place = stored.folder(tmp_path, config | {"architectures": bare}, bodies)
    assert pj.load_pretrained(place).layers
    stored.folder(tmp_path, config | {"architectures": headed}, bodies)
    with pytest.raises(CheckpointError, match=rf"missing: {head}.*architectures=\['{headed[0]}'\] speaks of a head"):
        pj.load_pretrained(place)
    stored.folder(tmp_path, config, bodies)
    if name in CAUSAL:
        with pytest.raises(CheckpointError, match=f"missing: {head}.*architectures=None"):
            pj.load_pretrained(place)
    else:
        assert pj.load_pretrained(place).layers


@pytest.mark.parametrize(("name", "tied"), [*((name, False) for name in CAUSAL), ("Llama", True), ("GPT-2", True)])
def test_a_classifier_of_texts_is_its_decoder_without_a_head(name, tied, tmp_path):
    """The head for classes is not read, as of encoders: the output is the last field through the final norm."""
    config, head, _, [bare] = HEADED[name]
    config = config | {"tie_word_embeddings": tied}
    bodies = {key: array for key, array in stored.arrays(config).items() if not key.startswith(head)}
    plain = pj.load_pretrained(stored.folder(tmp_path / "bare", config | {"architectures": [bare]}, bodies))(IDS)
    kind = bare.removesuffix("Model") + "ForSequenceClassification"
    place = stored.folder(
        tmp_path / "classes", config | {"architectures": [kind]}, bodies | {"score.weight": np.ones((3, 8))}
    )
    checkpoint = read_checkpoint(place)
    family, settings = read_settings(checkpoint)
    reason = "the head of a task, which neither hidden states nor the last field pass through"
    assert family.left_out(settings, checkpoint) == {"score.weight": reason}
    np.testing.assert_array_equal(pj.load_pretrained(place)(IDS), plain)
    assert plain.shape == (5, 8)


def test_architectures_are_names(tmp_path):
    stored.bert(tmp_path)
    for value in (5, [5], "BertModel"):
        (tmp_path / "config.json").write_text(json.dumps(stored.CONFIG | {"architectures": value}))
        with pytest.raises(CheckpointError, match=r"architectures=.* a list of names"):
            pj.load_pretrained(tmp_path)
