"""What stands beside other architectures: the network that training began with, and guessing, each answered another way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_papers_stored import stored

from pdejax.data import load
from pdejax.models import pair
from pdejax.studies.papers import STUDIES
from pdejax.studies.papers._architectures import guessing, measure
from pdejax.studies.papers._experiment import Models, Settings, Trained
from pdejax.training import LanguageModel, TrainConfig, build_model

TRAIN = {
    **{"dataset": "listops", "dim": 8, "ffn": 16, "layers": 2, "heads": 2, "steps": 4, "batch_size": 8},
    "data": {"min_length": 3, "max_length": 8, "sizes": (64, 16, 16)},
}


def measured(settings, monkeypatch, folder, seed):
    """What is measured of seed 0 where the network has the first weights of this seed, and nothing is trained."""

    def trained(self, config):
        if config.teacher is not None:
            return Trained(pair(network, "distilled", key=jax.random.key(7)), config, folder, {})
        return Trained(network, config, folder, {"accuracy": 0.5})

    network = drawn(seed)
    monkeypatch.setattr(Models, "trained", trained)
    monkeypatch.setattr(Models, "together", lambda self, configs: None)
    return measure(settings, 0, Models(folder))


def drawn(seed):
    return build_model(TrainConfig(**TRAIN, seed=seed), load("listops", "train", **TRAIN["data"]))


@pytest.fixture(scope="module")
def settings():
    return Settings(examples=6, student_steps=1, options={"architectures": {"own": TRAIN}})


def by_hand(seed):
    """Pearson's correlation of all entries of the real tokens of each layer and the one before, of the network of this seed."""
    batch, model = load("listops", "test", **TRAIN["data"]).take(np.arange(6)), drawn(seed)
    us = [np.asarray(model.hidden_states(x, m))[:, m] for x, m in zip(batch.inputs, batch.mask, strict=True)]
    layers = np.concatenate([u.reshape(len(u), -1) for u in us], axis=1)
    return [np.corrcoef(a, b)[0, 1] for a, b in zip(layers[1:], layers[:-1], strict=True)]


def test_adjacent_layers_stand_beside_those_that_training_began_with(settings, monkeypatch, tmp_path):
    """A network of seed 3 in the place of the trained one of seed 0: each correlation is its own network's."""
    found = measured(settings, monkeypatch, tmp_path, 3)
    np.testing.assert_allclose(found["own/adjacent"], by_hand(3), atol=2e-5)
    np.testing.assert_allclose(found["own/adjacent/null"], by_hand(0), atol=2e-5)
    assert np.max(np.abs(found["own/adjacent"] - found["own/adjacent/null"])) > 1e-3
    assert np.all(np.abs(found["own/adjacent/shuffled"]) < np.abs(found["own/adjacent"]))
    same = measured(settings, monkeypatch, tmp_path, 0)
    np.testing.assert_array_equal(same["own/adjacent"], same["own/adjacent/null"])


def test_guessing_is_by_what_was_seen_and_counts_what_accuracy_counts(tmp_path):
    """Of next tokens with padding: the accuracy, as training measures it, of logits that always say the one most frequent."""
    sets = [load("listops", split, **TRAIN["data"]) for split in ("train", "test")]
    train, test = (
        dataclasses.replace(data, labels=data.tokens, classes=data.vocabulary, name="language") for data in sets
    )
    counts = {}
    for labels, mask in zip(train.labels, train.mask, strict=True):
        for label, real in zip(labels, mask, strict=True):
            counts[int(label)] = counts.get(int(label), 0) + bool(real)
    most = max(counts, key=lambda label: counts[label])
    assert not train.mask.all() and np.bincount(np.ravel(train.labels)).argmax() != most  # padding alone would win
    always = jax.nn.one_hot(most, len(train.classes))
    batch = test.take(np.arange(len(test)))
    _, metrics = LanguageModel().loss(lambda x, m: jnp.tile(always, (len(x), 1)), batch, jax.random.key(0))
    assert guessing(train, test) == pytest.approx(float(metrics["accuracy"]), rel=1e-6)
    # Of classes: the one most frequent in training, which need not be that of the test split.
    classes = np.bincount(sets[0].labels, minlength=10)
    one = dataclasses.replace(sets[1], labels=np.full_like(sets[1].labels, classes.argmin()))
    assert guessing(sets[0], one) == 0 and guessing(sets[0], sets[0]) == classes.max() / len(sets[0])


@pytest.mark.parametrize(("change", "said"), [(0.2, "surely higher"), (-0.2, "surely lower"), (0.0, "not surely")])
def test_training_moves_adjacent_layers_only_where_the_whole_interval_says_so(change, said):
    saved, evidence = stored("architectures")
    rng = np.random.default_rng(0)
    for one in evidence:
        one["causal decoder/adjacent/null"] = np.full(4, 0.5)
        one["causal decoder/adjacent"] = 0.5 + change + 0.02 * rng.standard_normal(4)
        one["causal decoder/test/guess"] = np.asarray(0.25)
    found = STUDIES["architectures"].judge(Settings(**saved["config"]), evidence)
    assert f"({said}" in found.sentence.partition("Adjacent layers correlate")[2].partition("causal decoder")[2]
    [accuracy] = [row for row in found.rows if row.quantity == "accuracy, causal decoder"]
    assert accuracy.null_name == "most frequent token" and float(accuracy.null) == 0.25
    assert "the most frequent token 0.250 [0.250, 0.250]" in found.sentence
