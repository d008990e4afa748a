"""Real checkpoints: the figures of `transformers` and what the models are known to say."""

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import real_weights

import pdejax as pj
from pdejax.networks.families._checkpoint import Checkpoint
from pdejax.networks.families._load import network_of
from pdejax.networks.families._onnx import read_onnx

TEXTS = ("A man is eating food.", "Someone eats a meal.", "The stock market fell sharply today.")


@pytest.fixture(scope="module")
def minilm():
    [path] = real_weights.files("MiniLM")
    pytest.importorskip("tokenizers", reason="text needs tokenizers: pip install 'pdejax[pretrained]'")
    return path.parent


def embedding(net, text):
    """The sentence embedding: the mean of the last field over tokens, of length 1."""
    mean = jnp.mean(net(net.tokenize(text)), axis=0)
    return mean / jnp.linalg.norm(mean)


def test_minilm_says_which_sentences_are_alike(minilm):
    """No padding to 128, which the tokenizer's file asks for; two sentences of one meaning are close, a third is far."""
    net = pj.load_pretrained(minilm)
    assert len(net.tokenize(TEXTS[0])) == 8 and net.layers == 6 and net.embed.longest == 512
    a, b, c = (embedding(net, text) for text in TEXTS)
    assert float(a @ b) > 0.6 > 0.2 > max(float(a @ c), float(b @ c))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-12), ("float32", 2e-5)])
def test_minilm_is_that_of_transformers(minilm, relative, dtype, error):
    """Hidden states and maps of every layer."""
    torch = pytest.importorskip("torch", reason="the oracle needs torch: pip install 'pdejax[oracle]'")
    transformers = pytest.importorskip("transformers", reason="the oracle: pip install 'pdejax[oracle]'")
    model = transformers.AutoModel.from_pretrained(minilm, attn_implementation="eager").eval().to(torch.float64)
    net = pj.load_pretrained(minilm, dtype=dtype)
    ids = net.tokenize(TEXTS[0])
    expected = oracle.run(model, ids)
    _, states, maps = net.observe(ids)
    for ours, theirs in ((states, expected["states"]), (maps, expected["maps"])):
        assert max(relative(a, np.asarray(b, dtype)) for a, b in zip(ours, theirs, strict=True)) < error


# --- Weights in ONNX files --------------------------------------------------------------------------------------------

KOKORO = {
    "model_type": "albert",
    "vocab_size": 178,
    "embedding_size": 128,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-12,
}


def onnx_states(paths, given, names):
    """What onnxruntime gives for some values inside a graph, from the inputs on which they depend."""
    onnx = pytest.importorskip("onnx", reason="ONNX files need onnx: pip install 'pdejax[oracle]'")
    runtime = pytest.importorskip("onnxruntime", reason="the oracle: pip install 'pdejax[oracle]'")
    from onnx.utils import Extractor

    model = onnx.load_model_from_string(b"".join(path.read_bytes() for path in paths))
    part = Extractor(onnx.shape_inference.infer_shapes(model)).extract_model(list(given), list(names))
    return runtime.InferenceSession(part.SerializeToString()).run(list(names), given)


@pytest.mark.slow
def test_kokoro_is_an_albert(relative):
    """One layer applied twelve times. onnxruntime quantizes the states to 8 bits before every product, which ours does not do:
    every layer is near, and far from another layer's."""
    paths = real_weights.files("kokoro")
    pytest.importorskip("onnx", reason="ONNX files need onnx: pip install 'pdejax[oracle]'")
    checkpoint = Checkpoint("kokoro", KOKORO, read_onnx(paths, "encoder.bert."))
    net = network_of(checkpoint)
    assert isinstance(net.discretization.field, pj.MasterEquation) and net.layers == 12
    ids = np.random.default_rng(0).integers(1, 178, 24)
    layer = "/encoder/bert/encoder/albert_layer_groups.0/albert_layers.0/full_layer_layer_norm"
    names = ["/encoder/bert/encoder/embedding_hidden_mapping_in/Add_output_0"]
    names += [f"{layer}{'' if l == 0 else f'_{l}'}/LayerNormalization_output_0" for l in range(12)]
    theirs = onnx_states(paths, {"tokens": ids[None]}, names)
    ours = net.hidden_states(ids)
    errors = [relative(u, np.asarray(v[0])) for u, v in zip(ours, theirs, strict=True)]
    assert max(errors) < 0.1, errors
