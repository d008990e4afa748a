"""One pass for logits, states and maps: of one sequence or a batch, layers first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj

SIZES = {"dim": 8, "heads": 2, "layers": 3, "ffn": 12, "head": "classification", "classes": 4}
TOKENS = np.array([[3, 1, 10, 0, 7], [2, 2, 5, 0, 0]])
MASK = np.array([[True] * 5, [True, True, True, False, False]])


@pytest.fixture(scope="module")
def models():
    words = pj.Architecture(**SIZES, vocab=11)
    pixels = pj.Architecture(**SIZES, inputs=1)
    return {
        "words": pj.Transformer(words, rngs=nnx.Rngs(0)),
        "pixels": pj.Transformer(pixels, rngs=nnx.Rngs(0)),
        "field": pj.Simulator(pj.SimulatorConfig(words), key=jax.random.key(0)),
    }


@pytest.mark.parametrize("name", ["words", "field"])
def test_a_batch_is_its_sequences_behind_the_layers(models, name):
    model = models[name]
    logits, states, maps = jax.tree.map(np.asarray, pj.observe(model, TOKENS, MASK))
    assert logits.shape == (2, 4) and states.shape == (4, 2, 5, 8) and maps.shape == (3, 2, 2, 5, 5)
    for i, real in enumerate(MASK):
        own = jax.tree.map(np.asarray, model.observe(TOKENS[i], real))
        np.testing.assert_allclose(logits[i], own.logits, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(states[:, i][:, real], own.states[:, real], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(maps[:, i], own.maps, rtol=1e-5, atol=1e-6)
    assert not np.any(states[:, 1, 3:]) and np.all(np.any(states[:, 0], axis=-1))  # padding is 0, nothing else
    one = pj.observe(model, TOKENS[1], MASK[1])
    for whole, part in zip((logits[1], states[:, 1], maps[:, 1]), one, strict=True):
        np.testing.assert_allclose(part, whole, rtol=1e-5, atol=1e-6)


def test_only_what_is_wanted(models):
    full = pj.observe(models["words"], TOKENS)
    states = pj.observe(models["words"], TOKENS, logits=False, maps=False)
    assert states.logits is None and states.maps is None
    np.testing.assert_allclose(states.states, full.states, rtol=1e-6, atol=1e-6)
    assert pj.observe(models["words"], TOKENS, logits=False).logits is None


def test_values_of_one_feature_may_come_without_an_axis(models):
    values = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    found = pj.observe(models["pixels"], values, maps=False)
    again = pj.observe(models["pixels"], values[..., None], maps=False)
    assert found.states.shape == (4, 2, 5, 8)
    np.testing.assert_array_equal(found.states, again.states)
    assert pj.observe(models["pixels"], values[0], maps=False).states.shape == (4, 5, 8)


def test_models_of_other_making_give_what_they_have():
    class Mean:
        def __call__(self, tokens, mask):
            return jnp.mean(tokens.astype(jnp.float32))

        def hidden_states(self, tokens, mask):
            return jnp.ones((2, len(tokens), 3))

    found = pj.observe(Mean(), TOKENS, MASK, maps=False)
    assert found.logits.shape == (2,) and found.states.shape == (2, 2, 5, 3) and found.maps is None
    assert float(jnp.sum(found.states)) == 2 * 3 * MASK.sum()


@pytest.mark.parametrize(
    ("tokens", "mask", "error", "says"),
    [
        (np.array(3), None, ValueError, r"observe: tokens has shape \(\)"),
        (TOKENS[None], None, ValueError, r"tokens has shape \(1, 2, 5\); ids are \(n,\) or \(batch, n\)"),
        (TOKENS + 8, None, ValueError, "observe: tokens has ids from 8 to 18"),
        (TOKENS, MASK[0], ValueError, r"mask has shape \(5,\); it must be \(2, 5\)"),
        (TOKENS, MASK.astype(int), TypeError, "mask has type int"),
        (TOKENS, MASK & np.array([[True], [False]]), ValueError, "hides every token of sequence 1"),
        (TOKENS.astype(float), None, ValueError, "tokens has shape"),
    ],
)
def test_what_does_not_fit(models, tokens, mask, error, says):
    with pytest.raises(error, match=says):
        pj.observe(models["words"], tokens, mask)
