"""Training runs whole, on digits: kept, interrupted, resumed, read back, refused."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

import pdejax as pj
from pdejax.training import TrainConfig, load_trained, read_metrics, train
from pdejax.training._kept import saved_model

SMALL = {
    "dataset": "digits",
    "data": {"form": "patches", "patch": 4},
    "dim": 8,
    "heads": 2,
    "layers": 2,
    "ffn": 16,
    "batch_size": 32,
    "steps": 12,
    "eval_every": 6,
    "save_every": 4,
    "learning_rate": 3e-3,
}


def quiet(config):
    return train(config, progress=False, report=lambda text: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return quiet(TrainConfig(**SMALL, out=str(folder))), folder


def test_what_a_run_leaves(run):
    result, folder = run
    assert result.fit.stopped == "done" and result.fit.step == 12
    assert result.parameters == 16 * 8 + 8 + 2 * (4 * 64 + 2 * 128 + 16 + 8 + 32) + 16 + 80 + 10
    history = read_metrics(folder / "metrics.csv")
    np.testing.assert_array_equal(history["step"], np.arange(1, 13))
    for name in ("loss", "accuracy", "gradient_norm", "layer_gradient_norms_0", "layer_gradient_norms_1"):
        assert np.all(np.isfinite(history[name]))
    kept = json.loads((folder / "result.json").read_text())
    assert kept["test"] == result.test and kept["parameters"] == result.parameters
    assert str(folder) not in (folder / "result.json").read_text()
    picture = (folder / "curves.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 20_000


def test_the_baseline_is_the_majority(run):
    result, _ = run
    train_set, test_set = (pj.data.load("digits", split) for split in ("train", "test"))
    most = np.bincount(train_set.labels).argmax()
    assert result.baselines == {"majority class": pytest.approx(np.mean(test_set.labels == most))}


def test_the_model_is_read_back(run):
    result, folder = run
    trained = load_trained(folder)
    assert trained.step == result.fit.best_step
    assert trained.config == dataclasses.replace(result.config, out=None)
    test = pj.data.load("digits", "test", **SMALL["data"])
    batch = test.take(np.arange(len(test)))
    logits = np.asarray(jax.vmap(trained.model)(batch.inputs, batch.mask))
    assert result.test["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == batch.labels), abs=1e-6)
    assert load_trained(folder, "latest").step == 12
    text = repr(trained)
    assert (
        text.startswith(f"trained on digits, seed 0, step {trained.step} of 12; test ") and len(text.splitlines()) == 5
    )
    assert (
        repr(result).startswith("digits transformer seed 0: done at step 12, ") and len(repr(result).splitlines()) == 5
    )
    assert repr(result.fit).startswith("FitResult(done at step 12: loss ") and len(repr(result.fit)) < 200


def test_a_run_leaves_its_model_in_one_file(run):
    """`checkpoints` are to go on from, `model.npz` is the model: whatever takes one takes the other."""
    result, folder = run
    model, about = pj.load_model(folder / "model.npz")
    assert about["step"] == result.fit.best_step and about["test"] == result.test
    found, config, step = saved_model("test", "model", folder / "model.npz")
    assert config == load_trained(folder).config and step == result.fit.best_step
    tokens = pj.data.load("digits", "test", **SMALL["data"]).take(np.arange(1)).inputs[0]
    expected = load_trained(folder).model(tokens)
    for taken in (model, found, pj.as_network(folder), pj.as_network(folder / "model.npz")):
        np.testing.assert_allclose(taken(tokens), expected, rtol=1e-5, atol=1e-6)
    pj.save_model(folder / "own.npz", model)
    assert saved_model("test", "model", folder / "own.npz")[1:] == (None, None)
    with pytest.raises(FileNotFoundError, match=r"as_network: model='nowhere.npz' does not exist; give a folder"):
        pj.as_network("nowhere.npz")


def test_the_same_run_twice_is_the_same(run, tmp_path):
    result, folder = run
    again = quiet(TrainConfig(**SMALL, out=str(tmp_path)))
    assert again.test == result.test

    def without_speed(path):
        return [line.rsplit(",", 1)[0] for line in (path / "metrics.csv").read_text().splitlines()]

    assert without_speed(tmp_path) == without_speed(folder)


def test_resuming_gives_the_same_run(run, tmp_path, monkeypatch):
    """Interrupted after step 7, saved there, and started again."""
    import os
    import signal

    from pdejax.training import _run

    result, folder = run
    original = _run.fit

    def interrupted(*arguments, **options):
        def on_step(n, state, metrics):
            if n == 7:
                os.kill(os.getpid(), signal.SIGINT)

        return original(*arguments, **options, on_step=on_step)

    monkeypatch.setattr(_run, "fit", interrupted)
    config = TrainConfig(**SMALL, out=str(tmp_path))
    first = quiet(config)
    assert first.fit.stopped == "interrupted" and first.fit.step == 7 and first.test == {}
    monkeypatch.setattr(_run, "fit", original)
    second = quiet(config)
    assert second.fit.stopped == "done" and second.test == result.test
    np.testing.assert_array_equal(
        read_metrics(tmp_path / "metrics.csv")["loss"], read_metrics(folder / "metrics.csv")["loss"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"model": "simulator", "solver": "rk4", "steps_per_layer": 2},
        {"model": "bare"},
        {"model": "full"},
        {"model": "multilayer"},
        {"model": "simulator", "precision": "bfloat16"},
        {"bottleneck": "club", "decay": 1e-4},
        {"bottleneck": "paper", "signs": "v1 (3)"},
        {"bottleneck": "barber_agakov", "bottleneck_layer": 1, "model": "simulator", "norm": "post"},
    ],
)
def test_every_kind_of_run(options, tmp_path):
    config = TrainConfig(**SMALL | {"steps": 30, "eval_every": 30} | options, out=str(tmp_path))
    result = quiet(config)
    losses = result.fit.history["loss"]
    assert result.fit.stopped == "done" and np.all(np.isfinite(losses))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) or options.get("signs") == "v1 (3)"
    back = load_trained(tmp_path, "latest")
    batch = pj.data.load("digits", "test", **SMALL["data"]).take(np.arange(8))
    found = jax.vmap(back.model)(batch.inputs, batch.mask)
    assert found.shape == (8, 10) and bool(np.all(np.isfinite(np.asarray(found, np.float32))))
    if "bottleneck" in options:
        assert np.all(np.isfinite(result.fit.history["information"]))


@pytest.mark.slow
def test_a_field_is_fitted_to_a_trained_transformer(run, tmp_path):
    _, folder = run
    config = TrainConfig(
        **SMALL | {"steps": 60, "eval_every": 20}, model="simulator", teacher=str(folder), out=str(tmp_path)
    )
    result = quiet(config)
    first, last = result.fit.evaluations[0], result.fit.evaluations[-1]
    assert last["hidden_error"] < 0.7 * result.fit.history["hidden_error"][0]
    assert last["loss"] < first["loss"]
    assert str(folder) not in (tmp_path / "result.json").read_text()
    saved = json.loads((tmp_path / "run.json").read_text())["config"]
    assert saved["teacher"] == folder.name and len(saved["teacher_parameters"]) == 16


def test_a_loss_that_is_not_finite_stops_with_the_last_good_model(tmp_path):
    said = []
    config = TrainConfig(**SMALL | {"optimizer": "sgd", "learning_rate": 1e30, "steps": 40}, out=str(tmp_path))
    result = train(config, progress=False, report=said.append)
    assert result.fit.stopped == "nan" and result.fit.step < 40
    assert any("last good checkpoint" in text for text in said)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result.fit.state.params))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"limits": 3}}, ValueError, r"limits"),
        ({"data": {"limit": 0}}, ValueError, r"limit"),
        ({"batch_size": 5000}, ValueError, r"batch_size=5000.*1257|batch_size=5000.*1,257"),
        ({"options": {"widths": 3}}, TypeError, r"widths"),
        ({"heads": 3}, ValueError, r"heads"),
        ({"teacher": "no/such/folder", "model": "simulator"}, FileNotFoundError, r"no/such/folder"),
        ({"dataset": "newsgroups", "data": {"download": False, "data_dir": "nowhere"}}, FileNotFoundError, r"20news"),
    ],
)
def test_what_does_not_fit_is_said_before_training(changes, error, message):
    with pytest.raises(error, match=message):
        quiet(TrainConfig(**SMALL | changes))


def test_another_run_in_the_same_folder_is_refused(run):
    _, folder = run
    with pytest.raises(ValueError, match=r"learning_rate"):
        quiet(TrainConfig(**SMALL | {"learning_rate": 1e-2}, out=str(folder)))


def test_where_data_lie_is_no_part_of_the_run():
    from pdejax.training._run import _identity

    here, there = (
        TrainConfig(dataset="mnist", data={"form": "patches", "manual_dir": place, "data_dir": place})
        for place in ("here", "there")
    )
    assert _identity(here) == _identity(there) and "here" not in json.dumps(_identity(here))


def test_folders_without_a_model_are_refused(run, tmp_path):
    _, folder = run
    with pytest.raises(ValueError, match=r"config\.json"):
        load_trained(tmp_path)
    with pytest.raises(ValueError, match=r"which='first'"):
        load_trained(folder, "first")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        load_trained(tmp_path)


def test_other_configurations_are_refused():
    with pytest.raises(TypeError, match="config=an object of type dict must be a TrainConfig"):
        train({"dataset": "digits"})


REAL = pathlib.Path(__file__).parents[3] / "shared" / "data" / "newsgroups"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the 20 Newsgroups archive is not beside the repository")
def test_a_language_model_learns_frequencies(tmp_path):
    """Forty steps on real text: from the uniform log(vocabulary) some way down to the entropy of single words."""
    data = {
        "length": 32,
        "vocabulary_size": 300,
        "manual_dir": str(REAL),
        "data_dir": str(tmp_path / "data"),
        "limit": 2000,
    }
    config = TrainConfig(
        **SMALL
        | {"dataset": "newsgroups", "data": data, "task": "lm", "steps": 40, "eval_every": 20, "learning_rate": 1e-2},
        out=str(tmp_path / "run"),
    )
    result = quiet(config)
    assert result.fit.stopped == "done" and result.baselines == {}
    assert result.fit.history["loss"][0] > 0.95 * np.log(300) > result.test["loss"] + 0.5
    assert "manual_dir" not in (tmp_path / "run" / "result.json").read_text()
