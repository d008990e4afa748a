"""Metrics: exact decimals, files that survive kills and full disks, TensorBoard's own reader, and no waiting on the device."""

import errno
import io
import math
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stand_in import Rows, evaluate, make_step, start

from pdejax.training import _fit, _metrics
from pdejax.training._fit import fit
from pdejax.training._metrics import Guard, Progress, Table, clock, fetch, read_metrics


def rows(*steps):
    return [{"step": float(n), "loss": n / 10, "flag": 1.0} for n in steps]


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_fetch_keeps_every_bit(backend, monkeypatch):
    """Also on the way by which metrics come from an accelerator."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    values = [0.1, 1 / 3, 1e-45, -0.0, 3.4e38, math.nan, -math.inf]
    for dtype in (jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16):
        array = jnp.asarray(values, jnp.float64).astype(dtype)
        [row] = fetch([{"x": array}])
        back = np.array([row[f"x_{i}"] for i in range(len(values))]).astype(array.dtype)
        assert back.tobytes() == np.asarray(array).tobytes()
    assert fetch([{"loss": jnp.float32(0.1), "n": jnp.int32(3), "b": jnp.asarray(True), "plain": 2}]) == [
        {"loss": 0.1, "n": 3.0, "b": 1.0, "plain": 2.0}
    ]


def test_table_on_disk(tmp_path):
    path = tmp_path / "metrics.csv"
    table = Table(path, 0)
    table.append(rows(1, 2))
    table.append(rows(3), sync=True)
    assert path.read_text() == "step,loss,flag\n1,0.1,1\n2,0.2,1\n3,0.3,1\n"
    again = Table(path, 3)
    assert again.rows() == table.rows() == rows(1, 2, 3)
    np.testing.assert_array_equal(again.arrays()["loss"], [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(read_metrics(path)["loss"], [0.1, 0.2, 0.3])


@pytest.mark.parametrize("cut", range(0, 40))
def test_table_cut_anywhere_goes_on_without_a_gap(tmp_path, cut):
    """A file that ends after any byte, as a kill or a crash may leave it, continued from the last whole row."""
    path = tmp_path / "metrics.csv"
    Table(path, 0).append(rows(1, 2, 3))
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    table = Table(path, 3)
    assert table.length == max(whole[:cut].count(b"\n") - 1, 0)
    table.append(rows(*range(table.length + 1, 5)))
    assert path.read_bytes() == whole + b"4,0.4,1\n"


def test_table_drops_later_rows_and_rubbish(tmp_path):
    path = tmp_path / "metrics.csv"
    Table(path, 0).append(rows(1, 2, 3, 4))
    assert Table(path, 2).rows() == rows(1, 2)
    assert path.read_text().endswith("\n2,0.2,1\n")
    for rubbish in ("2,0.2,1\n", "x,y,z\n", "3,0.3\n", "3,0.3,1,5\n", "\n", ",0.3,1\n"):
        with open(path, "a") as file:
            file.write(rubbish + "3,0.3,1\n")
        assert Table(path, 9).rows() == rows(1, 2), rubbish
    path.write_bytes(b"\xff\x00not a table")
    assert Table(path, 9).rows() == [] and path.read_bytes() == b""


def test_table_takes_new_columns(tmp_path):
    path = tmp_path / "metrics.csv"
    table = Table(path, 0)
    table.append([{"step": 1.0, "loss": 0.5}, {"step": 2.0, "loss": math.nan, "extra": 7.0}])
    table.append([{"step": 3.0, "extra": 8.0, "last": 9.0}])
    assert path.read_text() == "step,loss,extra,last\n1,0.5,,\n2,nan,7,\n3,,8,9\n"
    again = Table(path, 3)
    np.testing.assert_array_equal(again.arrays()["extra"], [math.nan, 7, 8])
    np.testing.assert_array_equal(read_metrics(path)["last"], [math.nan, math.nan, 9])


def test_table_waits_for_room_on_the_disk(tmp_path, monkeypatch):
    """A write that fails half way leaves nothing behind; the rows are written when there is room again."""
    path = tmp_path / "metrics.csv"
    table = Table(path, 0)
    table.append(rows(1))

    class Full(io.FileIO):
        def write(self, content):
            if len(content) > 4:
                return io.FileIO.write(self, content[:4])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(_metrics, "open", lambda path, mode, buffering: Full(path, mode), raising=False)
        for n in (2, 3):
            with pytest.raises(OSError, match="No space"):
                table.append(rows(n))
            assert path.read_text() == "step,loss,flag\n1,0.1,1\n"
    table.append(rows(4))
    assert read_metrics(path)["step"].tolist() == [1, 2, 3, 4]
    assert table.rows() == rows(1, 2, 3, 4)


def test_a_failing_file_is_reported_once_until_it_works():
    said = []
    guard = Guard(said.append)

    def fail():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    results = [guard("metrics.csv", write) for write in (fail, fail, lambda: None, fail)]
    assert results == [False, False, True, False]
    assert len(said) == 2 and said[0].startswith("cannot write metrics.csv: No space left on device.")


def test_metrics_outlive_a_full_disk(tmp_path, monkeypatch):
    whole, said = _metrics._append, []

    def refuse(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def switch(n, state, metrics):
        monkeypatch.setattr(_metrics, "_append", refuse if 3 <= n < 9 else whole)

    result = fit(
        start(), make_step(), Rows(), steps=12, folder=tmp_path, log_every=2, progress=False, report=said.append,
        on_step=switch,
    )  # fmt: skip
    assert result.stopped == "done" and len(said) == 1 and "metrics.csv" in said[0]
    assert read_metrics(tmp_path / "metrics.csv")["step"].tolist() == list(range(1, 13))


def test_tensorboard_reads_the_curves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def train(steps):
        return fit(
            start(),
            make_step(),
            Rows(),
            steps=steps,
            folder=tmp_path,
            save_every=6,
            log_every=2,
            evaluate=evaluate,
            progress=False,
            report=lambda text: None,
        )

    first = train(9)
    # as after a kill: points beyond the checkpoint that the run goes on from
    for step in (9,):
        for folder in (tmp_path / "checkpoints").glob(f"{step}*"):
            folder.rename(tmp_path / "gone")
    result = train(12)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/layer_gradient_norms_1", "evaluation/accuracy", "train/examples_per_second"} <= tags
    points = {event.step: event.value for event in events.Scalars("train/loss")}
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == sorted(set(steps)) and steps[-1] == 12 and {1, 3, 6, 7} <= set(steps)
    for step, value in points.items():
        assert value == np.float32(result.history["loss"][step - 1])
    assert [event.step for event in events.Scalars("evaluation/accuracy")] == [6, 12]
    assert [row["step"] for row in first.evaluations] == [6, 9]


def test_training_outlives_event_files(tmp_path, monkeypatch):
    from pdejax.training._metrics import EventWriter

    def full(self, event):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def switch(n, state, metrics):
        if n == 5:
            monkeypatch.setattr(EventWriter, "write", full)

    said = []
    result = fit(
        start(), make_step(), Rows(), steps=20, folder=tmp_path, log_every=2, progress=False, report=said.append,
        on_step=switch,
    )  # fmt: skip
    assert result.stopped == "done" and len(said) == 1 and "cannot write TensorBoard events: No space left" in said[0]
    assert len(result.history["loss"]) == 20


def test_without_tensorboardx(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    said = []
    result = fit(
        start(), make_step(), Rows(), steps=2, folder=tmp_path, progress=False, report=said.append, tensorboard=True
    )
    assert said == ["tensorboardX is not installed: no TensorBoard events are written."]
    assert result.stopped == "done" and not (tmp_path / "tensorboard").exists()


def test_the_device_is_not_waited_for_at_every_step(monkeypatch):
    """Every step is recorded, and yet only so often is anything fetched; the newest step is left running."""
    fetched, taken = [], []

    def spy(pending):
        fetched.append((len(taken), len(pending)))
        return fetch(pending)

    monkeypatch.setattr(_fit, "fetch", spy)
    result = fit(
        start(), make_step(), Rows(), steps=100, log_every=25, progress=False, on_step=lambda n, *_: taken.append(n)
    )
    assert fetched == [(1, 1), (25, 23), (50, 25), (75, 25), (100, 26)]
    assert len(result.history["loss"]) == 100


def test_recording_takes_little_time(tmp_path):
    """Per step, beside what the same loop takes without recording, in the median of alternating runs."""
    step, count = make_step(donate=False), 400
    state = start()
    batch = next(Rows())
    jax.block_until_ready(step(state, batch))

    def bare():
        began = time.perf_counter()
        here, batches = state, Rows()
        for _ in range(count):
            here, _ = step(here, next(batches))
        jax.block_until_ready(here)
        return time.perf_counter() - began

    def recorded(i):
        inner = []

        def on_step(n, *_):
            if n in (1, count):
                inner.append(time.perf_counter())

        fit(state, step, Rows(), steps=count, folder=tmp_path / str(i), progress=False, on_step=on_step)
        return inner[1] - inner[0]

    found = sorted(recorded(i) - bare() for i in range(5))
    assert found[2] / count < 1e-3


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_and_in_a_file(monkeypatch):
    values = {"loss": 1.23456, "accuracy": 0.5, "examples_per_second": 321.0, "gradient_norm": 7.0}
    screen, file = Screen(), io.StringIO()
    bar = Progress(100, 20, True, stream=screen)
    bar.update(60, values)
    bar.write("a message")
    bar.close()
    shown = screen.getvalue()
    assert "60/100" in shown and "loss 1.235" in shown and "accuracy 0.5000" in shown and "321 examples/s" in shown
    assert "a message\n" in shown
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines = Progress(100, 20, True, stream=file)
    for second, step in ((15, 25), (25, 30), (27, 35), (35, 40), (90, 100)):
        now[0] = float(second)
        lines.update(step, values)
    lines.close()
    assert file.getvalue().splitlines() == [
        "step 25/100  loss 1.235  accuracy 0.5000  321 examples/s",
        "step 30/100  loss 1.235  accuracy 0.5000  321 examples/s  0:02:20 left",
        "step 40/100  loss 1.235  accuracy 0.5000  321 examples/s  0:01:20 left",
        "step 100/100  loss 1.235  accuracy 0.5000  321 examples/s  0:00:00 left",
    ]
    silent = io.StringIO()
    quiet = Progress(10, 0, False, stream=silent)
    quiet.update(10, values)
    assert silent.getvalue() == ""
    assert clock(3723.4) == "1:02:03"


def test_progress_goes_to_standard_error(capsys, tmp_path):
    fit(start(), make_step(), Rows(), steps=3, folder=tmp_path)
    fit(start(), make_step(), Rows(), steps=3, folder=tmp_path, progress=False)
    shown = capsys.readouterr()
    assert shown.out == ""
    first, second = shown.err.splitlines()
    assert first.startswith("step 3/3  loss ") and second == f"Going on from step 3 in {tmp_path}."


def test_importing_the_loop_stays_light():
    """orbax, tensorboardX and tqdm are loaded when they are used."""
    names = ("_fit", "_checkpoints", "_metrics", "_distributed")
    for name in names:
        source = (pathlib.Path(_fit.__file__).parent / f"{name}.py").read_text()
        top = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
        assert top and not [line for line in top if any(w in line for w in ("orbax", "tensorboardX", "tqdm"))]
