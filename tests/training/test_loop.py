"""The loop: resumed to the same bits, stopped by NaN, signals and patience, and clear about what it refuses."""

import concurrent.futures
import csv
import errno
import json
import os
import pathlib
import re
import signal
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from stand_in import OPTIMIZER, Rows, evaluate, make_step, start

from pdejax.training._checkpoints import CheckpointError, Checkpoints, restore
from pdejax.training._fit import fit
from pdejax.training._metrics import read_metrics
from pdejax.training._step import TrainState, merge_model, split_model


def train(folder=None, *, steps=20, step=None, batches=None, state=None, **options):
    options = {"progress": False, "report": lambda text: None, "save_every": 5, "log_every": 4} | options
    return fit(
        start() if state is None else state,
        make_step() if step is None else step,
        Rows() if batches is None else batches,
        steps=steps,
        folder=folder,
        **options,
    )


def columns(folder, name="metrics.csv", without=("examples_per_second",)):
    """The file as strings, without what differs from run to run."""
    with open(pathlib.Path(folder) / name) as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def same(a, b):
    """Trees equal to the bit, keys included."""

    def raw(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(raw(x)).tobytes() == np.asarray(raw(y)).tobytes()


def twin(steps=20, bad_at=None):
    """The same training, by the same program, as a bare loop: losses and the last state."""
    state, step, batches, losses = start(), make_step(bad_at), Rows(), []
    for _ in range(steps):
        state, metrics = step(state, next(batches))
        losses.append(str(metrics["loss"]))
    return state, losses


def test_is_the_bare_loop(tmp_path):
    state, losses = twin()
    result = train(tmp_path)
    same(result.state, state)
    assert result.stopped == "done" and result.step == 20 and result.problems == ()
    rows = columns(tmp_path)
    assert [row["loss"] for row in rows] == losses
    assert [row["step"] for row in rows] == [str(n) for n in range(1, 21)]
    assert list(rows[0])[:5] == ["step", "epoch", "loss", "accuracy", "gradient_norm"]
    assert rows[3]["epoch"] == "1.33333" and {"layer_gradient_norms_0", "layer_gradient_norms_1"} < set(rows[0])
    for name in ("layer_gradient_norms_0", "layer_gradient_norms_1"):
        assert np.all(result.history[name] > 0)
    norms = np.hypot(result.history["layer_gradient_norms_0"], result.history["layer_gradient_norms_1"])
    np.testing.assert_allclose(norms, result.history["gradient_norm"], rtol=1e-6)


@pytest.mark.parametrize("first", [10, 7])
def test_resumes_to_the_bit(tmp_path, first):
    whole = train(tmp_path / "whole", evaluate=evaluate, best=("loss", "min"), eval_every=3)
    part = train(tmp_path / "part", steps=first, evaluate=evaluate, best=("loss", "min"), eval_every=3)
    assert part.step == first
    rest = train(tmp_path / "part", evaluate=evaluate, best=("loss", "min"), eval_every=3)
    assert columns(tmp_path / "part") == columns(tmp_path / "whole")
    same(rest.state, whole.state)
    assert rest.history.keys() == whole.history.keys()
    for name in rest.history.keys() - {"examples_per_second"}:
        np.testing.assert_array_equal(rest.history[name], whole.history[name])
    assert (rest.best_step, rest.best_value) == (whole.best_step, whole.best_value)
    # the shorter run was evaluated at its end as well
    wanted = [row for row in rest.evaluations if row["step"] % 3 == 0 or row["step"] == 20]
    assert wanted == whole.evaluations


def test_a_finished_run_is_left_alone(tmp_path):
    train(tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()
    batches = Rows()
    again = train(tmp_path, batches=batches)
    assert again.stopped == "done" and again.step == 20 and batches.taken == 20
    same(again.state, twin()[0])
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = train(evaluate=evaluate, best=("accuracy", "max"))
    assert list(tmp_path.iterdir()) == [] and result.files == ()
    same(result.state, twin()[0])
    assert [row["step"] for row in result.evaluations] == [5, 10, 15, 20]


def model_of(kind, rngs):
    if kind == "flax":
        return nnx.Linear(5, 2, rngs=rngs)
    return eqx.nn.MLP(5, 2, 3, 1, key=jax.random.key(0), dtype=jnp.float32)


@pytest.mark.parametrize("kind", ["flax", "equinox"])
def test_models_of_both_kinds_resume_to_the_bit(tmp_path, kind):
    params, static = split_model(model_of(kind, nnx.Rngs(0)))
    optimizer = optax.adamw(0.01, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree))

    def step(state, batch):
        def loss(params):
            out = jax.vmap(merge_model(params, static))(jnp.asarray(batch[0]))
            return jnp.mean(jnp.square(out[:, 0] - batch[1]))

        value, gradients = jax.value_and_grad(loss)(state.params)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), {"loss": value}

    step = jax.jit(step)

    def new():
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key(1))

    whole = train(tmp_path / "whole", step=step, state=new(), steps=8)
    train(tmp_path / "part", step=step, state=new(), steps=4)
    rest = train(tmp_path / "part", step=step, state=new(), steps=8)
    same(rest.state, whole.state)
    same(restore(tmp_path / "whole", new()), whole.state)
    assert columns(tmp_path / "part") == columns(tmp_path / "whole")


@pytest.mark.parametrize("bad_at", [1, 4, 7, 10, 17])
@pytest.mark.parametrize("kept", [True, False])
def test_nan_stops_with_the_last_good_state(tmp_path, bad_at, kept):
    said = []
    folder = tmp_path if kept else None
    result = train(folder, step=make_step(bad_at), report=said.append)
    good = (bad_at - 1) // 5 * 5
    assert result.stopped == "nan" and result.step == good
    same(result.state, twin(good, bad_at)[0])
    assert f"the loss is nan at step {bad_at}" in said[-1] and f"step {good}" in said[-1]
    assert result.problems and np.isnan(result.history["loss"][-1]) and len(result.history["loss"]) == bad_at
    if kept:
        assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps()[-1] == good
        same(restore(tmp_path, start()), twin(good, bad_at)[0])
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert summary["stopped"] == "nan" and summary["last"]["loss"] is None
        # with the cause gone the run goes on from there
        again = train(tmp_path)
        assert again.stopped == "done" and columns(tmp_path)[bad_at - 1]["loss"] == twin()[1][bad_at - 1]


def test_nan_is_seen_at_the_next_fetch():
    taken = []
    train(step=make_step(6), log_every=4, save_every=100, on_step=lambda n, *_: taken.append(n))
    assert taken[-1] == 8


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    """The loss of the bad step was still finite."""
    inner = make_step(donate=False)

    def step(state, batch):
        state, metrics = inner(state, batch)
        if int(state.step) == 10:
            state = state._replace(params=jax.tree.map(lambda x: x * jnp.float32(jnp.inf), state.params))
        return state, metrics

    said = []
    result = train(tmp_path, step=step, report=said.append)
    assert result.stopped == "nan" and result.step == 5
    assert "after step 10 parameters are not finite (params/bias, params/layers/0/w)" in said[-1]
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps() == [0, 5]
    with pytest.raises(ValueError, match="not finite before the first step: params/layers/0/w"):
        train(tmp_path / "other", state=start(scale=np.nan))


def test_examples_per_second_are_those_of_all_steps_since_the_last_look(monkeypatch):
    """Half a second a step, eight rows each: 16 a second. Metrics are looked at after steps 1, 5, 10 and 15, the newest left
    for the next time; what is measured between 5 and 10 are the steps 5 to 9."""
    clock = {"now": 100.0}
    monkeypatch.setattr("pdejax.training._fit.time.perf_counter", lambda: clock["now"])

    def half_a_second(n, state, metrics):
        clock["now"] += 0.5

    result = train(steps=20, save_every=100, log_every=5, on_step=half_a_second)
    speed = result.history["examples_per_second"]
    np.testing.assert_allclose(speed[4:14], 16.0)
    assert speed[0] == 16.0


def test_the_best_and_the_latest_are_kept(tmp_path):
    values = iter([1, 5, 3, 4, 2, 0])
    result = train(
        tmp_path,
        steps=30,
        keep=2,
        evaluate=lambda state: {"score": next(values)},
        best=("score", "max"),
    )
    assert Checkpoints(tmp_path / "checkpoints", read_only=True, mode="max").steps() == [10, 20, 30]
    assert (result.best_step, result.best_value) == (10, 5.0)
    same(restore(tmp_path, start(), "best"), twin(10)[0])
    same(restore(tmp_path, start()), twin(30)[0])
    same(restore(tmp_path, start(), 20), twin(20)[0])
    with pytest.raises(ValueError, match=r"which=15: there is no such step in .* \[10, 20, 30\]"):
        restore(tmp_path, start(), 15)


def test_a_new_best_is_saved_between_checkpoints(tmp_path):
    values = iter([3.0, 1.0, 2.0, np.nan])
    result = train(
        tmp_path,
        steps=8,
        save_every=100,
        eval_every=2,
        evaluate=lambda state: {"loss": next(values)},
        best=("loss", "min"),
    )
    assert (result.best_step, result.best_value) == (4, 1.0)
    assert Checkpoints(tmp_path / "checkpoints", read_only=True, mode="min").steps() == [2, 4, 8]
    same(restore(tmp_path, start(), "best"), twin(4)[0])


def test_patience_also_across_a_resume(tmp_path):
    scores = [1, 2, 3, 2, 2.5, 3, 9, 9]

    def score(state):
        return {"score": scores[int(state.step) // 2 - 1]}

    options = {"eval_every": 2, "evaluate": score, "best": ("score", "max"), "patience": 3}
    whole = train(tmp_path / "whole", **options)
    assert (whole.stopped, whole.step, whole.best_step) == ("patience", 12, 6)
    train(tmp_path / "part", steps=8, **options)
    rest = train(tmp_path / "part", **options)
    assert (rest.stopped, rest.step, rest.best_step) == ("patience", 12, 6)
    same(restore(tmp_path / "part", start()), twin(12)[0])
    same(restore(tmp_path / "part", start(), "best"), twin(6)[0])  # whose score step 12 has again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_later(tmp_path, number):
    def send(n, state, metrics):
        if n == 7:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    said = []
    result = train(tmp_path, on_step=send, report=said.append)
    assert signal.getsignal(number) is before
    assert result.stopped == "interrupted" and result.step == 7
    same(result.state, twin(7)[0])
    assert "Interrupted after step 7" in said[-1] and str(tmp_path) in said[-1]
    rest = train(tmp_path)
    assert rest.stopped == "done"
    same(rest.state, twin()[0])
    assert [row["loss"] for row in columns(tmp_path)] == twin()[1]


def test_a_second_signal_quits_at_once(tmp_path):
    def send(n, state, metrics):
        if n == 7:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on_step=send)
    assert signal.getsignal(signal.SIGINT) is before
    assert train(tmp_path).stopped == "done"
    assert [row["loss"] for row in columns(tmp_path)] == twin()[1]


def test_trains_outside_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(train()))
    thread.start()
    thread.join()
    same(found[0].state, twin()[0])


def test_batches_that_end(tmp_path):
    class Few(Rows):
        def __next__(self):
            if self.taken == 7:
                raise StopIteration
            return Rows.__next__(self)

    result = train(tmp_path, batches=Few())
    assert result.stopped == "exhausted" and result.step == 7
    same(restore(tmp_path, start()), twin(7)[0])
    assert train(tmp_path, batches=Few()).step == 7


def test_a_thread_is_stopped_by_asking(tmp_path):
    """Signals do not reach it; what is asked after every step does, and nothing is lost."""
    seen = []
    asked = {"on_step": lambda n, state, metrics: seen.append(n), "stop": lambda: len(seen) >= 7, "report": seen.count}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        result = pool.submit(train, tmp_path, **asked).result()
    assert result.stopped == "interrupted" and result.step == 7
    same(train(tmp_path).state, twin()[0])


def test_another_configuration_is_refused(tmp_path):
    config = {"seed": 0, "model": {"dim": 8, "layers": [1, 2]}}
    train(tmp_path, steps=4, config=config)
    with pytest.raises(ValueError) as error:
        train(tmp_path, config={"seed": 1, "model": {"dim": 8, "layers": [1, 3]}, "new": None})
    for part in (
        "config.seed is 0 there and 1 here",
        "config.model.layers is [1, 2] there and [1, 3] here",
        "config.new is '(none)' there and None here",
    ):
        assert part in str(error.value)
    assert "dim" not in str(error.value)
    with pytest.raises(ValueError, match="best is None there"):
        train(tmp_path, config=config, evaluate=evaluate, best=("loss", "min"))
    with pytest.raises(ValueError, match=re.escape("config is '(none)' there and None here")):
        train(tmp_path)
    assert train(tmp_path, config=config).stopped == "done"  # more steps are no other run
    with pytest.raises(TypeError, match="JSON"):
        train(tmp_path / "new", config={"path": pathlib.Path("x")})


def test_another_model_is_refused(tmp_path):
    train(tmp_path, steps=5)
    params = {"layers": [{"w": jnp.zeros((4,), jnp.float32)}], "offset": jnp.zeros((), jnp.float32)}
    other = start()._replace(params=params, opt_state=OPTIMIZER.init(params))
    with pytest.raises(ValueError) as error:
        train(tmp_path, state=other)
    text = str(error.value)
    assert "params/offset is not in the checkpoint" in text and "params/bias is only in the checkpoint" in text
    assert train(tmp_path).stopped == "done"  # nothing was lost by it
    wide = start()._replace(params=jax.tree.map(lambda x: x.astype(jnp.float64), start().params))
    with pytest.raises(ValueError, match=r"params/layers/0/w is float32\[5\] in the checkpoint and float64\[5\] here"):
        restore(tmp_path, wide)
    with pytest.raises(ValueError, match=r"key is .*fry.*rbg"):
        restore(tmp_path, start()._replace(key=jax.random.key(0, impl="rbg")))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps=0"),
        ({"steps": 2.5}, TypeError, "steps=2.5"),
        ({"save_every": -1}, ValueError, "save_every=-1"),
        ({"log_every": True}, TypeError, "log_every=True"),
        ({"keep": 0}, ValueError, "keep=0"),
        ({"eval_every": 3}, ValueError, "eval_every=3 has nothing to evaluate"),
        ({"best": ("loss", "min")}, ValueError, "needs evaluate"),
        ({"best": "loss", "evaluate": evaluate}, TypeError, "best='loss'"),
        ({"best": ("loss", "least"), "evaluate": evaluate}, ValueError, "'max' or 'min'"),
        ({"best": ("f1", "max"), "evaluate": evaluate}, ValueError, r"\['accuracy', 'loss'\] and not 'f1'"),
        ({"patience": 3, "evaluate": evaluate}, ValueError, "patience=3 needs best"),
        ({"patience": 3}, ValueError, "patience=3 has nothing to evaluate"),
        ({"stop": True}, TypeError, "stop=True must be a function"),
    ],
)
def test_bad_arguments(options, error, words):
    with pytest.raises(error, match=words):
        train(**options)


def test_bad_batches_steps_and_folders(tmp_path):
    with pytest.raises(TypeError, match=r"generator without state\(\) and restore\(\)"):
        train(tmp_path, batches=(b for b in [1]))
    with pytest.raises(ValueError, match=r"\['accuracy'\]; 'loss' is missing"):
        train(step=lambda state, batch: (state, {"accuracy": jnp.float32(1)}))
    with pytest.raises(ValueError, match=r"'map' has shape \(2, 2\)"):
        train(step=lambda state, batch: (state, {"loss": jnp.float32(1), "map": jnp.ones((2, 2))}))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match=r"folder .*file is a file; give a folder"):
        train(file)

    class Odd(Rows):
        def state(self):
            return {"a": object()}

    with pytest.raises(TypeError, match="must be JSON"):
        train(tmp_path / "odd", batches=Odd())


def no_space(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_training_outlives_a_full_disk(tmp_path, monkeypatch):
    """Saves from step 6 to 14 fail; the checkpoint of step 5 stays, and that of 15 is written again."""
    import orbax.checkpoint

    whole = orbax.checkpoint.CheckpointManager.save

    def switch(n, state, metrics):
        monkeypatch.setattr(orbax.checkpoint.CheckpointManager, "save", no_space if 6 <= n < 15 else whole)
        if n == 11:
            same(restore(tmp_path, start()), twin(5)[0])

    said = []
    result = train(tmp_path, on_step=switch, report=said.append)
    assert result.stopped == "done"
    same(result.state, twin()[0])
    assert len(said) == 1 and "cannot save the checkpoint of step 10: No space left on device" in said[0]
    assert result.problems == (said[0][:-1],)
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps() == [5, 15, 20]
    same(restore(tmp_path, start()), twin()[0])


def test_a_full_disk_at_the_start_is_an_error(tmp_path, monkeypatch):
    import orbax.checkpoint

    monkeypatch.setattr(orbax.checkpoint.CheckpointManager, "save", no_space)
    with pytest.raises(CheckpointError, match="step 0: No space left"):
        train(tmp_path)


def test_files_and_summary(tmp_path):
    result = train(tmp_path, evaluate=evaluate, best=("accuracy", "max"), config={"seed": 3})
    assert {pathlib.Path(f).name for f in result.files} == {
        "run.json",
        "metrics.csv",
        "evaluations.csv",
        "summary.json",
        "tensorboard",
        "checkpoints",
    }
    assert all(os.path.exists(f) for f in result.files)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"] == {"seed": 3} and summary["step"] == 20 and summary["stopped"] == "done"
    assert summary["last"]["loss"] == result.history["loss"][-1]
    assert summary["best_value"] == max(row["accuracy"] for row in result.evaluations)
    assert summary["examples_per_second"] > 0 and summary["versions"]["jax"] == jax.__version__
    found = read_metrics(tmp_path / "evaluations.csv")
    np.testing.assert_array_equal(found["accuracy"], [row["accuracy"] for row in result.evaluations])


def test_lost_metrics_are_told(tmp_path):
    train(tmp_path, steps=10)
    (tmp_path / "metrics.csv").unlink()
    said = []
    result = train(tmp_path, report=said.append)
    assert "metrics.csv has 0 of the 10 steps" in said[1]
    same(result.state, twin()[0])
    assert [row["step"] for row in columns(tmp_path)] == [str(n) for n in range(11, 21)]
