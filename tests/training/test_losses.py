"""Losses against NumPy, and means of batches joined by their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

import pdejax as pj
from pdejax.data import Batch
from pdejax.training import Classification, LanguageModel, make_evaluate, split_model, start_training
from pdejax.training._step import make_optimizer

VOCAB, N, B, CLASSES = 7, 5, 4, 3


def transformer(**options):
    sizes = {"vocab": VOCAB, "dim": 8, "heads": 2, "layers": 2, "ffn": 16}
    return pj.Transformer(pj.Architecture(**sizes | options), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(1, VOCAB, (B, N)).astype(np.int32)


@pytest.fixture(scope="module")
def mask():
    return np.arange(N) < np.array([5, 3, 1, 4])[:, None]


def measured(task, model, batch):
    """The loss of a batch, and the logits of its sequences one by one, in one program."""

    @jax.jit
    def run(batch):
        loss, metrics = task.loss(model, batch, jax.random.key(0))
        return loss, metrics, jax.lax.map(lambda one: model(*one), (batch.inputs, batch.mask))

    loss, metrics, logits = run(batch)
    return loss, metrics, np.asarray(logits, float)


def classes_batch(tokens, mask):
    return Batch(tokens, mask, np.array([0, 2, 1, 2], np.int32))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classification_by_numpy(tokens, mask, smoothing):
    model, batch = transformer(head="classification", classes=CLASSES), classes_batch(tokens, mask)
    loss, metrics, logits = measured(Classification(label_smoothing=smoothing), model, batch)
    target = np.eye(CLASSES)[batch.labels] * (1 - smoothing) + smoothing / CLASSES
    expected = -np.mean(np.sum(target * log_softmax(logits, axis=1), axis=1))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(logits.argmax(1) == batch.labels), rtol=1e-6)


def test_language_model_by_numpy(tokens, mask):
    model = transformer(head="lm", causal=True)
    labels = np.random.default_rng(1).integers(0, VOCAB, (B, N)).astype(np.int32)
    loss, metrics, every = measured(LanguageModel(), model, Batch(tokens, mask, labels))
    terms, right = [], []
    for logits, m, y in zip(every, mask, labels, strict=True):
        for i in np.flatnonzero(m):
            terms.append(-log_softmax(logits[i])[y[i]])
            right.append(logits[i].argmax() == y[i])
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(right), rtol=1e-6)


def test_padding_does_not_count(tokens, mask):
    """Other tokens and labels at padded places change nothing."""
    model = transformer(head="lm", causal=True)
    other = np.where(mask, tokens, 3).astype(np.int32)
    task = LanguageModel()
    loss = jax.jit(lambda x: task.loss(model, Batch(x, mask, x), jax.random.key(0))[0])
    losses = [float(loss(x)) for x in (tokens, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_evaluation_joins_unequal_batches(tokens, mask):
    model, whole = transformer(head="classification", classes=CLASSES), classes_batch(tokens, mask)
    params, static = split_model(model)
    state = start_training(params, make_optimizer(learning_rate=1e-3), jax.random.key(0))
    evaluate = make_evaluate(Classification(), static)
    parts = [Batch(*(x[:3] for x in whole)), Batch(*(x[3:] for x in whole))]
    once, joined = evaluate(state, [whole]), evaluate(state, parts)
    assert once.keys() == joined.keys() == {"loss", "accuracy"}
    for name in once:
        assert joined[name] == pytest.approx(once[name], rel=1e-6)
    with pytest.raises(ValueError, match="no batches"):
        evaluate(state, [])


def test_evaluation_of_tokens_weighs_tokens(tokens, mask):
    params, static = split_model(transformer(head="lm", causal=True))
    state = start_training(params, make_optimizer(learning_rate=1e-3), jax.random.key(0))
    evaluate, whole = make_evaluate(LanguageModel(), static), Batch(tokens, mask, tokens)
    parts = [Batch(*(x[:1] for x in whole)), Batch(*(x[1:] for x in whole))]
    assert evaluate(state, parts)["loss"] == pytest.approx(evaluate(state, [whole])["loss"], rel=1e-6)


def test_half_precision_logits_are_widened():
    """A loss of bfloat16 logits is computed in float32: 300 equal classes give log 300, not its bfloat16 neighbour."""
    batch = Batch(np.ones((2, 1), np.int32), np.ones((2, 1), bool), np.zeros(2, np.int32))
    loss, _ = Classification().loss(lambda x, m: jnp.zeros(300, jnp.bfloat16), batch, jax.random.key(0))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.log(300), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_bad_smoothing(smoothing):
    with pytest.raises(ValueError, match=r"Classification: label_smoothing=.* must be one finite number ≥ 0 and < 1"):
        Classification(label_smoothing=smoothing)
