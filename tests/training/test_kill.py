"""A process that trains is killed again and again, at any moment, and ends with what it would have without."""

import csv
import random
import time

import numpy as np
import pytest
from stand_in import live, open_nursery, start

from pdejax.training._checkpoints import Checkpoints, restore
from pdejax.training._metrics import read_metrics

KILLS = 10


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    errors = tmp_path_factory.mktemp("nursery") / "stderr.txt"
    with open_nursery(errors) as process:
        process.errors = errors
        yield process


def columns(folder, name):
    with open(folder / name) as file:
        return [{k: v for k, v in row.items() if k != "examples_per_second"} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_kill_at_any_moment(tmp_path, nursery):
    """At most `save_every` steps are lost, never the last good checkpoint, and no row is missing or there twice."""
    options = {"steps": 240, "save_every": 6, "keep": 2, "log_every": 4, "eval_every": 9, "best": ["loss", "min"]}
    _, whole = live(nursery, {**options, "folder": str(tmp_path / "whole")})
    assert whole["stopped"] == "done"
    folder = tmp_path / "part"
    options |= {"folder": str(folder), "pause": 0.01}
    reports = []
    generator = random.Random(int(time.time()))
    before, landed, lives = 0, 0, 0
    while landed < KILLS and lives < 3 * KILLS:
        lives += 1
        kill = ("start", generator.uniform(0, 1.5)) if lives % 3 == 0 else ("begun", generator.uniform(0, 0.4))
        last, outcome = live(nursery, options, kill)
        if outcome is not None:
            break
        landed += 1
        if (folder / "checkpoints").is_dir():
            reader = Checkpoints(folder / "checkpoints", report=reports.append, mode="min", read_only=True)
            found = reader.load()
            if found is None:
                assert last == 0
                continue
            assert found.step >= before and last - found.step <= options["save_every"], (kill, last, found.step)
            if lives % 4 == 0 and reader.best():
                assert reader.load("best").step == reader.best()[0]
            before = found.step
    assert landed >= 5 and reports == []
    assert before > 0
    _, outcome = live(nursery, {**options, "pause": 0.0})
    assert outcome["stopped"] == "done" and outcome["problems"] == []
    assert (outcome["weights"], outcome["loss"]) == (whole["weights"], whole["loss"])
    for name in ("metrics.csv", "evaluations.csv"):
        assert columns(folder, name) == columns(tmp_path / "whole", name)
    assert [row["step"] for row in columns(folder, "metrics.csv")] == [str(n) for n in range(1, 241)]
    one, two = (Checkpoints(path / "checkpoints", mode="min", read_only=True) for path in (folder, tmp_path / "whole"))
    assert one.steps() == two.steps() and one.best() == two.best()
    for name, leaf in one.load().leaves.items():
        assert leaf.tobytes() == two.load().leaves[name].tobytes()
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert left == sorted(str(step) for step in one.steps())


@pytest.mark.slow
def test_kill_while_rows_are_half_written(tmp_path, nursery):
    """Rows after the checkpoint, the last of them cut: as a kill leaves them when it comes between two blocks."""
    options = {"steps": 20, "save_every": 10, "log_every": 3}
    _, whole = live(nursery, {**options, "folder": str(tmp_path / "whole")})
    folder = tmp_path / "part"
    options["folder"] = str(folder)
    live(nursery, {**options, "steps": 17})
    (folder / "checkpoints" / "17").rename(tmp_path / "gone")
    with open(folder / "metrics.csv", "r+") as file:
        file.truncate(file.seek(0, 2) - 7)
    _, outcome = live(nursery, options)
    assert outcome["loss"] == whole["loss"] and outcome["weights"] == whole["weights"]
    assert columns(folder, "metrics.csv") == columns(tmp_path / "whole", "metrics.csv")


@pytest.mark.slow
def test_sigterm_saves_the_step_it_came_in(tmp_path, nursery):
    options = {"steps": 30, "save_every": 100, "folder": str(tmp_path / "run")}
    _, outcome = live(nursery, {**options, "stop_at": 7})
    assert (outcome["stopped"], outcome["step"]) == ("interrupted", 7)
    state = restore(tmp_path / "run", start())
    assert int(state.step) == 7
    weights = np.asarray(state.params["layers"][0]["w"])
    assert weights.tobytes().hex() == outcome["weights"]
    assert "Interrupted after step 7" in nursery.errors.read_text()
    _, outcome = live(nursery, options)
    assert outcome["stopped"] == "done"
    assert read_metrics(tmp_path / "run" / "metrics.csv")["step"].tolist() == list(range(1, 31))
    _, plain = live(nursery, {"steps": 30})
    assert plain["weights"] == outcome["weights"] and plain["loss"] == outcome["loss"]
