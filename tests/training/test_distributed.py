"""Data-parallel training: several devices and several processes give the curve of one."""

import csv
import socket
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stand_in import Rows, live, make_step, open_nursery, start

from pdejax.training._checkpoints import Checkpoints
from pdejax.training._distributed import any_process, data_mesh, initialize_distributed, replicate, shard_batch, share
from pdejax.training._fit import fit


def plain(steps=12, **options):
    return fit(start(), make_step(), Rows(**options), steps=steps, progress=False)


def test_a_mesh_of_one_device_changes_nothing(tmp_path):
    mesh = data_mesh()
    assert mesh.axis_names == ("data",) and mesh.size == jax.device_count()
    whole = plain()

    def train(steps):
        return fit(
            start(), make_step(), Rows(), steps=steps, progress=False, mesh=mesh, folder=tmp_path,
            report=lambda text: None,
        )  # fmt: skip

    train(5)
    result = train(12)
    np.testing.assert_array_equal(result.history["loss"], whole.history["loss"])
    assert result.state.params["bias"].sharding.is_fully_replicated


def test_batches_and_states_on_a_mesh():
    mesh = data_mesh(jax.devices()[:1])
    inputs, labels = shard_batch((np.arange(6.0).reshape(3, 2), np.arange(3)), mesh)
    np.testing.assert_array_equal(inputs, np.arange(6.0).reshape(3, 2))
    assert labels.sharding.spec == jax.sharding.PartitionSpec("data")
    state = start(2)
    copied = replicate(state, mesh)
    assert jax.tree.structure(copied) == jax.tree.structure(state)
    assert jnp.issubdtype(copied.key.dtype, jax.dtypes.prng_key)
    assert jax.random.key_data(copied.key).tolist() == jax.random.key_data(state.key).tolist()
    with pytest.raises(ValueError, match="devices is empty"):
        data_mesh([])
    assert share({"a": 1}) == {"a": 1} and any_process(True) and not any_process(False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("here", 2, 0), "coordinator='here' must be 'host:port'"),
        (("here:", 2, 0), "coordinator='here:'"),
        (("here:99999", 2, 0), "coordinator='here:99999'"),
        (("http://here:80", 2, 0), "coordinator='http://here:80'"),
        (("a:b:80", 2, 0), "coordinator='a:b:80'"),
        (("[::x]:80", 2, 0), "coordinator="),
        ((None, 2, 0), "coordinator=None"),
        (("here:80", 0, 0), "num_processes=0 must be an integer of at least 1"),
        (("here:80", 2.0, 0), "num_processes=2.0"),
        (("here:80", 2, -1), "process_id=-1"),
        (("here:80", 2, True), "process_id=True"),
        (("here:80", 2, 2), "process_id=2 must be less than num_processes=2"),
    ],
)
def test_initialize_refuses(arguments, words):
    with pytest.raises((TypeError, ValueError), match=words.replace("[", r"\[")):
        initialize_distributed(*arguments)


def test_one_process_needs_no_others():
    initialize_distributed("[::1]:12355", 1, 0)
    assert jax.process_count() == 1


def free_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def nurseries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nurseries")
    with open_nursery(folder / "0.txt") as one, open_nursery(folder / "1.txt") as two:
        yield one, two


def together(nurseries, options, each=({}, {})):
    """The outcomes of two processes that train together, each with its part of every batch."""
    outcomes = [None, None]
    address = free_address()

    def run(index):
        mine = options | {"address": address, "rows": {"index": index, "count": 2}} | each[index]
        outcomes[index] = live(nurseries[index], mine)[1]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=100)
    assert None not in outcomes, "a process did not end well"
    return outcomes


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(tmp_path, nurseries):
    """And go on together from the checkpoint of process 0, in a folder that the other never touches."""
    expected = plain(16).history["loss"]
    options = {"steps": 9, "save_every": 4, "log_every": 3, "folder": str(tmp_path / "run"), "best": ["loss", "min"]}
    first = together(nurseries, options)
    assert [outcome["files"] == [] for outcome in first] == [False, True]
    away = {"folder": str(tmp_path / "elsewhere")}  # as on a machine without the folder
    rest = together(nurseries, {**options, "steps": 16}, each=({}, away))
    assert not (tmp_path / "elsewhere").exists()
    assert rest[0]["weights"] == rest[1]["weights"] and rest[0]["stopped"] == rest[1]["stopped"] == "done"
    np.testing.assert_allclose(rest[0]["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(rest[1]["loss"], expected[9:], rtol=1e-5)
    assert rest[0]["best"] == rest[1]["best"]
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == [str(n) for n in range(1, 17)]
    assert Checkpoints(tmp_path / "run" / "checkpoints", mode="min", read_only=True).load().step == 16


@pytest.mark.slow
def test_two_processes_stop_together(tmp_path, nurseries):
    """One of them is told to end, and both save the same step; then the loss is NaN, and both return the same state."""
    options = {"steps": 40, "save_every": 10, "log_every": 4, "folder": str(tmp_path / "run")}
    stopped = together(nurseries, options, each=({}, {"stop_at": 5}))
    assert [(o["stopped"], o["step"]) for o in stopped] == [("interrupted", 8)] * 2
    bad = together(nurseries, {**options, "bad_at": 15})
    assert [(o["stopped"], o["step"]) for o in bad] == [("nan", 10)] * 2
    assert bad[0]["weights"] == bad[1]["weights"]
    good = plain(10).state.params["layers"][0]["w"]
    np.testing.assert_allclose(np.frombuffer(bytes.fromhex(bad[1]["weights"]), np.float32), good, rtol=1e-5)


TWO_DEVICES = """
import json, sys
import jax, numpy as np
from stand_in import Rows, make_step, start
from pdejax.training._distributed import data_mesh, replicate, shard_batch
from pdejax.training._fit import fit

assert jax.device_count() == 2
losses = []
for mesh, part in ((None, None), (data_mesh(), None), (data_mesh(), sys.argv[1])):
    options = {"mesh": mesh, "progress": False, "report": lambda text: None}
    if part is not None:
        fit(start(), make_step(), Rows(), steps=5, folder=part, **options)
    result = fit(start(), make_step(), Rows(), steps=12, folder=part, **options)
    losses.append(result.history["loss"].tolist())
    kinds = {str(leaf.sharding) for leaf in jax.tree.leaves(result.state.params)}
    if mesh is not None:
        assert all(leaf.sharding.device_set == set(jax.devices()) for leaf in jax.tree.leaves(result.state.params)), kinds
        assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(result.state.params)), kinds
mesh = data_mesh()
batch = shard_batch(next(Rows()), mesh)
text = make_step().lower(replicate(start(), mesh), batch).compile().as_text()
try:
    shard_batch(np.ones((3, 2)), mesh)
except ValueError as error:
    print(json.dumps({"losses": losses, "error": str(error), "reduces": "all-reduce" in text}))
"""


@pytest.mark.slow
def test_two_devices_give_the_curve_of_one(tmp_path):
    import json
    import os
    import pathlib
    import subprocess
    import sys

    environment = {
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path]),
        "PATH": os.environ["PATH"],
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
    }
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    one, two, resumed = found["losses"]
    np.testing.assert_allclose(two, one, rtol=1e-5)
    np.testing.assert_array_equal(resumed, two)
    assert found["reduces"], "the batch was not split"
    assert "shape (3, 2) does not divide among 2 devices" in found["error"] and "multiple of 2" in found["error"]
