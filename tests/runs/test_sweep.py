"""Sweeps: the manifest, what is measured, resuming, shards, and what is refused."""

import dataclasses
import functools
import gc
import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import planted_sweep
import pytest
import xarray as xr
from planted_sweep import STEPS, files, held, sweep

from pdejax.runs import ResultError
from pdejax.runs._parts import Parts
from pdejax.runs.sweep import Chunk, Sweep, collect_sweep, find_shard, open_sweep, run_sweep, submit_sweep
from pdejax.runs.sweep import _store as store_module

HERE = pathlib.Path(__file__).parent


def small(**changes):
    given = {"measure": lambda key, *, x: {"y": x * x}, "axes": {"x": (1.0, 2.0, 3.0)}, "dims": {"y": ()}}
    return Sweep(**{**given, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("zarr")
    path = tmp_path_factory.mktemp("sweep")
    progress = run_sweep(sweep, path)
    assert progress.complete and progress.runs == sweep.runs == 280 and progress.rate > 0
    return path


def test_chunks_are_a_partition_of_the_grid():
    for chunk, seeds, static in ((25, 10, ("stages",)), (1, 3, ()), (1000, 10, ()), (7, 10, ("stages", "rate"))):
        made = Sweep(
            measure=planted_sweep.decay, axes=sweep.axes, static=static, seeds=seeds, chunk=chunk, dims={"above": ()}
        )
        hit = np.zeros(made.shape, int)
        for number, one in enumerate(made.chunks()):
            hit[one.region] += 1
            assert one.number == number and one.runs <= chunk and one.shape == hit[one.region].shape
            for name in made.constants:  # one program per chunk
                assert one.shape[made.grid.index(name)] == 1
            # A region of a zarr store with these chunks: it begins on the grid of chunks.
            assert all(a % size == 0 for a, size in zip(one.start, made.chunk_shape, strict=True))
        assert (hit == 1).all()
        for count in (1, 2, 3, 5):
            shares = [made.share(i, count) for i in range(count)]
            assert sorted((c for share in shares for c in share), key=lambda c: c.number) == list(made.chunks())
    assert sweep.chunk_shape == (2, 1, 1, 10)  # 25 runs at most: ten seeds of two rates


def test_shards_have_dear_and_cheap_programs_alike():
    axes = {"x": tuple(map(float, range(8))), "n": (1, 100)}
    made = small(measure=lambda key, x, n: {"square": x**n}, axes=axes, static=("n",), chunk=1)
    for i in range(2):
        values = [made.values("n")[chunk.start[1]] for chunk in made.share(i, 2)]
        assert values.count(100) == 4 == values.count(1)


def test_data_are_the_closed_form(folder):
    data = open_sweep(folder)
    assert data.end.dims == ("rate", "stages", "kind", "seed", "component") and data.above.dtype.kind == "i"
    np.testing.assert_array_equal(data.component, STEPS)
    for seed in range(10):
        start = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(0), seed), (3,)))
        for stages in (4, 5):
            for kind, sign in (("decay", -1), ("growth", 1)):
                found = data.sel(seed=seed, stages=stages, kind=kind)
                factor = (1 + sign * np.asarray(data.rate) / stages) ** stages
                np.testing.assert_allclose(found.end, factor[:, None] * start, rtol=1e-13)
                np.testing.assert_array_equal(found.above, (found.end > 0).sum("component"))
                np.testing.assert_allclose(found.softmax.sum("component"), 1, rtol=1e-14)


def test_xarray_opens_it_by_itself(folder):
    with xr.open_zarr(folder / "sweep.zarr", chunks=None) as data:
        assert list(data.kind.values) == ["decay", "growth"] and data.sizes["seed"] == 10
        assert data.attrs["sweep"] == "sweep"
        assert float(data.sel(rate=0.4, kind="decay", stages=4, seed=3).end.std()) > 0


def test_in_memory_the_same(folder, tmp_path):
    parts = Parts(tmp_path, "identity")
    data = collect_sweep(sweep, parts=parts)
    kept = open_sweep(folder)
    for name in sweep.dims:
        np.testing.assert_array_equal(data[name], kept[name])
        assert data[name].dims == kept[name].dims and data[name].dtype == kept[name].dtype
    assert len(list(tmp_path.glob("parts/*/sweep-*.npz"))) == len(sweep.chunks())


def test_only_what_is_missing_is_measured(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    again = run_sweep(sweep, tmp_path)
    assert again.measured == 0 and again.complete and again.rate is None and again.kept_seconds > 0
    # One chunk without its mark, one whose file is gone, one whose file is damaged, one with other numbers than its mark.
    (tmp_path / "done" / "3.json").unlink()
    chunks = sweep.chunks()
    paths = [tmp_path / "sweep.zarr" / "end" / "c" / chunk_file(chunk) for chunk in chunks]
    paths[5].unlink()
    paths[7].write_bytes(paths[7].read_bytes()[:20])
    shutil.copy(paths[10], paths[11])
    told = []
    again = run_sweep(sweep, tmp_path, report=told.append)
    assert again.measured == 4 and again.runs == sum(chunks[i].runs for i in (3, 5, 7, 11)) and again.complete
    assert told[0] == "12 of 16 chunks are there" and told[-1].startswith("4 of 4 chunks, ")
    assert files(tmp_path) == files(folder)
    # Without looking at the data only marks count.
    paths[5].unlink()
    assert run_sweep(sweep, tmp_path, verify=False).measured == 0


def chunk_file(chunk: Chunk) -> str:
    place = [start // size for start, size in zip(chunk.start, sweep.chunk_shape, strict=True)]
    return "/".join(map(str, (*place, 0)))


def test_shards_in_folders_of_their_own_are_copied_together(folder, tmp_path):
    for i in range(3):
        progress = run_sweep(sweep, tmp_path / str(i), shard=f"{i}/3")
        assert not progress.complete and progress.measured == progress.done == len(sweep.share(i, 3))
        shutil.copytree(tmp_path / str(i), tmp_path / "all", dirs_exist_ok=True)
    assert run_sweep(sweep, tmp_path / "all").measured == 0
    assert files(tmp_path / "all") == files(folder)


def test_what_another_process_is_at_is_left_to_it(folder, tmp_path):
    """Two processes with one and the same share never write one chunk."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for number in (2, 4):
        (tmp_path / "done" / f"{number}.json").unlink()
    with held(tmp_path, 2):
        progress = run_sweep(sweep, tmp_path)
        assert progress.measured == 1 and progress.done == 15 and not (tmp_path / "done" / "2.json").exists()
    assert run_sweep(sweep, tmp_path).measured == 1


def test_another_sweep_is_not_mixed_in(folder):
    other = dataclasses.replace(sweep, base=1)
    with pytest.raises(ResultError, match=r"holds another sweep: base differs. Give another folder"):
        run_sweep(other, folder)
    other = dataclasses.replace(sweep, given={"a": 1}, chunk=40)
    with pytest.raises(ResultError, match="chunk, given differ"):
        run_sweep(other, folder)
    bound = [functools.partial(planted_sweep.decay, unused=number) for number in (1, 1, 2)]
    keys = [dataclasses.replace(sweep, measure=measure).identity()["key"] for measure in bound]
    assert keys[0] == keys[1] != keys[2]
    with pytest.raises(ResultError, match="is not there; run a sweep"):
        open_sweep(folder / "nothing")


def test_a_measuring_function_in_python(tmp_path):
    pytest.importorskip("zarr")
    calls = []

    def measure(seed, *, name, x):
        calls.append((seed, name, x))
        return {"y": {"square": x**2, "cube": x**3}[name], "twice": np.full(2, seed)}

    made = Sweep(
        measure=measure, axes={"name": ("square", "cube"), "x": (2, 3)}, seeds=2, base=5, traced=False, chunk=3,
        dims={"y": (), "twice": ("i",)}, coords={"i": (0, 1)},
    )  # fmt: skip
    data = run_sweep(made, tmp_path).dataset()
    assert data.y.values.tolist() == [[[4, 4], [9, 9]], [[8, 8], [27, 27]]]
    assert data.twice.sel(seed=1).values.tolist() == [[[6, 6], [6, 6]], [[6, 6], [6, 6]]]
    assert len(calls) == len(set(calls)) == 8 and all(type(x) is int for _, _, x in calls)
    calls.clear()  # what it closes over is part of what it is
    assert run_sweep(made, tmp_path).measured == 0 and not calls


def test_a_grid_that_does_not_divide_is_padded():
    made = small(seeds=1, chunk=2, lanes=None)
    np.testing.assert_array_equal(collect_sweep(made).y[:, 0], [1.0, 4.0, 9.0])
    made = small(
        axes={"x": (True, False), "n": (1, 2, 3)}, measure=lambda key, *, x, n: {"y": jnp.where(x, 0, n)}, lanes=4
    )
    np.testing.assert_array_equal(collect_sweep(made).y[..., 0], [[0, 0, 0], [1, 2, 3]])


SHARDS = [
    ({}, (0, 1, "")),
    ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}, (2, 4, "SLURM_ARRAY_TASK_ID")),
    ({"SLURM_ARRAY_TASK_ID": "20", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "10"},
     (1, 3, "SLURM_ARRAY_TASK_ID")),
    ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "5"}, (2, 5, "SLURM_PROCID")),
    # A batch script is one process of a job of eight, whether or not its own step is named.
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1, "")),
    ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"},
     (1, 2, "SLURM_ARRAY_TASK_ID")),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, (0, 1, "")),
    ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3"},
     (5, 6, "SLURM_ARRAY_TASK_ID and SLURM_PROCID")),
    ({"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}, (1, 2, "SKYPILOT_NODE_RANK")),
    ({"JAX_PROCESS_ID": "1", "JAX_NUM_PROCESSES": "4"}, (1, 4, "JAX_PROCESS_ID")),
    ({"JAX_PROCESS_ID": "1"}, (0, 1, "")),
]  # fmt: skip


@pytest.mark.parametrize(("variables", "found"), SHARDS)
def test_launchers_say_which_shard(variables, found):
    assert find_shard(None, variables) == found
    assert find_shard("1/7", variables) == (1, 7, "--shard")


def test_every_process_of_an_array_of_steps_has_a_shard_of_its_own():
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_PROCID")
    given = {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_STEP_NUM_TASKS": "4"}
    found = [find_shard(None, {**given, names[0]: str(a), names[1]: str(b)})[:2] for a in range(3) for b in range(4)]
    assert found == [(i, 12) for i in range(12)]


@pytest.mark.parametrize(
    ("text", "variables", "words"),
    [
        ("4/4", {}, "shard='4/4' must be 'i/n' with 0 ≤ i < n"),
        ("1", {}, "shard='1' must be"),
        ("-1/2", {}, "shard='-1/2' must be"),
        (None, {"SKYPILOT_NODE_RANK": "2", "SKYPILOT_NUM_NODES": "2"}, "SKYPILOT_NODE_RANK=2 and SKYPILOT_NUM_NODES=2 are no"),
        (None, {"SLURM_PROCID": "x", "SLURM_STEP_NUM_TASKS": "2"}, "SLURM_PROCID=x and"),
        (None, {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3"}, "give --shard i/n"),
    ],
)  # fmt: skip
def test_no_shard_is_guessed(text, variables, words):
    with pytest.raises(ValueError, match=words):
        find_shard(text, variables)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"measure": 3}, "Sweep: measure=3 must be a function"),
        ({"axes": {}}, "axes is empty"),
        ({"axes": {"x": ()}}, r"axes\['x'\]=\(\) must be one or more numbers"),
        ({"axes": {"x": (1.0, 1.0)}}, "has a value twice"),
        ({"axes": {"x": (1.0, float("nan"))}}, "not finite"),
        ({"axes": {"seed": (1, 2)}}, "an axis is called 'seed'"),
        ({"static": ("z",)}, "Sweep: static='z' must be one of 'x'"),
        ({"dims": {}}, "dims is empty"),
        ({"dims": {"y": ("t",)}}, "axis 't' without coords"),
        ({"dims": {"x": ()}}, "both measured and an axis"),
        ({"seeds": 0}, "Sweep: seeds=0"),
        ({"chunk": 0}, "Sweep: chunk=0"),
        ({"lanes": 0}, "Sweep: lanes=0"),
    ],
)
def test_bad_sweeps(changes, words):
    with pytest.raises((TypeError, ValueError), match=words):
        small(**changes)


@pytest.mark.bad_input
def test_a_function_that_gives_something_else():
    with pytest.raises(ValueError, match=r"measure gives \['y'\], but dims has 'z'"):
        collect_sweep(small(dims={"z": ()}))
    with pytest.raises(ValueError, match=r"'y' of shape \(\); by dims and coords it must be \(2,\)"):
        collect_sweep(small(dims={"y": ("t",)}, coords={"t": (0, 1)}))


def test_without_zarr_it_says_what_to_install(tmp_path, monkeypatch):
    def missing(name):
        if name == "zarr":
            raise ImportError(name)
        return importlib.import_module(name)

    monkeypatch.setattr(store_module.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"needs zarr: pip install 'pdejax\[sweep\]'"):
        run_sweep(small(), tmp_path)
    assert collect_sweep(small()).y.shape == (3, 1)  # in memory it needs none


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_submitit_runs_every_shard(folder, tmp_path):
    pytest.importorskip("submitit")
    jobs = submit_sweep(sweep, tmp_path, jobs=2, cluster="debug")
    assert [job.result().shard for job in jobs] == [(0, 2), (1, 2)]
    gc.collect()  # submitit leaves the files of its logs open
    assert files(tmp_path) == files(folder)


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    path = os.pathsep.join([str(HERE), *sys.path])
    return {"PYTHONPATH": path, "PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **more}


def start(folder: pathlib.Path, devices: int = 1, **more: str) -> subprocess.Popen:
    command = [sys.executable, str(HERE / "planted_sweep.py"), str(folder)]
    return subprocess.Popen(command, env=environment(devices, **more), stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_eight_devices_give_the_bits_of_one(folder, tmp_path):
    with start(tmp_path, 8) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
    assert process.returncode == 0 and "devices 8, done 16 of 16" in printed
    assert files(tmp_path) == files(folder)
    mark = json.loads((tmp_path / "done" / "0.json").read_text())
    assert mark["devices"] == 8 and mark["runs"] == 20


@pytest.mark.slow
def test_two_processes_in_one_folder_give_the_bits_of_one(folder, tmp_path):
    both = [start(tmp_path, JAX_PROCESS_ID=str(i), JAX_NUM_PROCESSES="2") for i in range(2)]
    printed = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "shard 0/2, 8 of 8 chunks" in printed[0] and "shard 1/2, 8 of 8 chunks" in printed[1]
    assert "done 16 of 16" in max(printed, key=lambda text: text.count("done 16 of 16"))
    assert files(tmp_path) == files(folder)


@pytest.mark.slow
def test_killed_ten_times_and_resumed_to_the_same_bits(folder, tmp_path):
    """SIGKILL after each chunk that is told of, some while the next is measured and some while it is written."""
    finished = 0
    for kill in range(10):
        with start(tmp_path) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if " of " in line and "chunks, " in line:
                    finished += 1
                    break
            process.kill()
        # Whoever is killed while writing leaves a chunk without its mark: here one is made half as well.
        if kill == 5:
            chunk = sweep.chunks()[finished]
            half = tmp_path / "sweep.zarr" / "end" / "c" / chunk_file(chunk)
            half.parent.mkdir(parents=True, exist_ok=True)
            half.write_bytes(b"half")
        assert process.returncode == -9
    marks = len(list((tmp_path / "done").glob("*.json")))
    assert finished == 10 and 10 <= marks < len(sweep.chunks())
    progress = run_sweep(sweep, tmp_path)
    assert progress.complete and progress.measured == len(sweep.chunks()) - marks
    assert files(tmp_path) == files(folder)
