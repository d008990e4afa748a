"""Real checkpoints: the figures of `transformers` and what the models are known to say."""

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
