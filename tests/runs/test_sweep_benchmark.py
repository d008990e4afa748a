"""The benchmark that kills a sweep: what it would call lost, kept twice or different is planted; the kept result is read."""

import argparse
import json
import os
import pathlib
import runpy

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "sweep.py"))
KEPT = ROOT / "benchmarks" / "results" / "sweep" / "resume.json"


def plant(folder, *numbers):
    (folder / "done").mkdir(parents=True, exist_ok=True)
    (folder / "sweep.zarr" / "c").mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / "done" / f"{number}.json").write_text(json.dumps({"runs": 5, "seconds": 2.0, "digest": str(number)}))
        (folder / "sweep.zarr" / "c" / str(number)).write_bytes(bytes([number]))


def seen(folder):
    return {number: BENCHMARK["_stamp"](folder, number) for number in BENCHMARK["marks"](folder)}


def test_a_chunk_that_is_kept_twice_or_lost_is_seen(tmp_path):
    plant(tmp_path, 0, 1, 3)
    before = seen(tmp_path)
    plant(tmp_path, 2)
    assert BENCHMARK["twice"](tmp_path, before, 4) == {"rewritten": 0, "lost": 0}
    # Written again, with the same words, a moment later.
    path = tmp_path / "done" / "1.json"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert BENCHMARK["twice"](tmp_path, before, 4) == {"rewritten": 1, "lost": 0}
    (tmp_path / "done" / "3.json").unlink()
    assert BENCHMARK["twice"](tmp_path, before, 4) == {"rewritten": 1, "lost": 1}


def test_stores_that_differ_are_told(tmp_path):
    files, apart = BENCHMARK["files"], BENCHMARK["apart"]
    for name in ("a", "b", "c", "d"):
        plant(tmp_path / name, 0, 1)
    (tmp_path / "b" / "sweep.zarr" / "c" / "1").write_bytes(b"other")
    (tmp_path / "c" / "sweep.zarr" / "c" / "1").unlink()
    (tmp_path / "c" / "sweep.zarr" / "c" / "5").write_bytes(b"more")
    (tmp_path / "d" / "sweep.zarr" / "c" / "1.partial").write_bytes(b"half")
    reference = files(tmp_path / "a")
    found = {name: apart(reference, tmp_path / name) for name in ("a", "b", "c", "d")}
    assert found == {"a": (0, 0), "b": (1, 0), "c": (1, 1), "d": (0, 0)}


def test_kills_go_on_after_a_stop(tmp_path, monkeypatch):
    """Stopped at the third kill: the first two and what was whole then are still known, and are not made again."""
    given = argparse.Namespace(seed=0, kills=4, work=tmp_path)
    made = []

    class Process:
        def poll(self):
            return 0

        def kill(self):
            plant(tmp_path / "killed", len(made))

        def wait(self):
            return -9

    def start(*_):
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return Process()

    names = BENCHMARK["kills"].__globals__
    monkeypatch.setitem(names, "start", start)
    monkeypatch.setattr(names["time"], "sleep", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        BENCHMARK["kills"](given, tmp_path / "killed", 50)
    log, found = BENCHMARK["kills"](given, tmp_path / "killed", 50)
    assert [kill["chunks"] for kill in log] == [1, 2, 3, 4] and len(made) == 5 and sorted(found) == [1, 2, 4, 5]
    assert found == seen(tmp_path / "killed")


def test_the_kept_sweep_on_devices_and_processes_is_that_of_one():
    found = json.loads(KEPT.with_name("devices.json").read_text())
    assert set(found["sweeps"]) == {"undisturbed", "devices", "processes"} and found["devices"] == 8
    assert found["identical"] and all(sweep["runs"] == found["runs"] >= 100_000 for sweep in found["sweeps"].values())


def test_the_kept_sweep_was_killed_and_is_the_one_left_alone():
    found = json.loads(KEPT.read_text())
    sweeps, killed = found["sweeps"], found["sweeps"]["killed"]
    log = killed["kills"]
    assert found["identical"] and killed["rewritten"] == killed["lost"] == 0
    assert len(log) == 10 and all(kill["status"] == -9 for kill in log)
    counts = [kill["chunks"] for kill in log]
    assert counts == sorted(counts) and counts[-1] + killed["chunks_here"] == found["chunks"]
    for sweep in sweeps.values():
        assert sweep["runs"] == found["runs"] >= 100_000 and sweep["chunks"] == found["chunks"]
        assert sweep["seconds"] + sum(kill["after_seconds"] for kill in sweep.get("kills", [])) < 3600
