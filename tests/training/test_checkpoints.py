"""Checkpoints: exact, verified, in bounded number, and never half."""

import json
import logging
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stand_in import Rows, make_step, start

from pdejax.training._checkpoints import CheckpointError, Checkpoints, _reason, not_finite, rebuild, restore, snapshot
from pdejax.training._fit import fit
from pdejax.training._step import TrainState


def odd_state():
    """Every kind of leaf, tuples and empty branches."""
    params = {
        "a/b": jnp.asarray([[1.5, -0.0], [jnp.pi, 1e-30]], jnp.float32),
        "half": jnp.asarray([1.25, -3e38], jnp.bfloat16),
        "list": [jnp.asarray(2**40, jnp.int64), (jnp.asarray([True, False]), None)],
        "none": jnp.zeros((0, 3), jnp.float32),
        "wave": jnp.asarray([1 + 2j], jnp.complex64),
    }
    keys = jax.random.split(jax.random.key(1, impl="rbg"), 3)
    return TrainState(jnp.asarray(3, jnp.int32), params, (keys, {}), jax.random.key(2), {"x": jnp.float32(4)})


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    one, other = snapshot(0, a, {}), snapshot(0, b, {})
    assert one.keys == other.keys and one.leaves.keys() == other.leaves.keys()
    for name, leaf in one.leaves.items():
        twin = other.leaves[name]
        assert (leaf.dtype, leaf.shape, leaf.tobytes()) == (twin.dtype, twin.shape, twin.tobytes()), name


def saved(step, value=None):
    state = TrainState(jnp.asarray(step), {"w": jnp.full((200,), step, jnp.float32)}, (), jax.random.key(step))
    return snapshot(step, state, {"value": value, "data": {"taken": step}})


def test_every_leaf_comes_back_to_the_bit(tmp_path):
    state = odd_state()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(snapshot(3, state, {"data": {"n": [1, 0.1, None, "é"]}}))
    found = Checkpoints(tmp_path, read_only=True).load()
    assert found.info == {"data": {"n": [1, 0.1, None, "é"]}} and found.step == 3
    equal(rebuild(found, jax.tree.map(jnp.zeros_like, state)), state)
    assert rebuild(found, state).key.dtype == state.key.dtype
    assert sorted(found.leaves) == [
        "extra/x",
        "key",
        "opt_state/0",
        "params/a/b",
        "params/half",
        "params/list/0",
        "params/list/1/0",
        "params/none",
        "params/wave",
        "step",
    ]


def test_a_snapshot_outlives_donation():
    state = start()
    kept = snapshot(0, state, {}, copy=True)
    before = {name: leaf.copy() for name, leaf in kept.leaves.items()}
    step, batches = make_step(), Rows()
    for _ in range(3):
        state, _ = step(state, next(batches))
    jax.block_until_ready(state.params)
    for name, leaf in kept.leaves.items():
        np.testing.assert_array_equal(leaf, before[name])


def test_not_finite():
    state = TrainState(
        jnp.asarray(0),
        {"good": jnp.ones(2), "count": jnp.arange(2), "bad": jnp.asarray([1, np.inf]), "half": jnp.bfloat16(np.nan)},
        {"moment": jnp.asarray(np.inf)},  # optimizers begin with infinities
        jax.random.key(0),
    )
    assert not_finite(snapshot(0, state, {})) == ["params/bad", "params/half"]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (None, [5, 6, 7]),
        ("max", [2, 4, 6, 7]),
        ("min", [1, 3, 5, 7]),
    ],
)
def test_which_are_kept(tmp_path, mode, expected):
    values = {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.8, 5: 0.3, 6: 0.7, 7: None}
    checkpoints = Checkpoints(tmp_path, keep=3, mode=mode)
    for step, value in values.items():
        checkpoints.save(saved(step, value))
        assert step in checkpoints.steps()
        if step == 4:  # what is ranked is on the disk
            checkpoints = Checkpoints(tmp_path, keep=3, mode=mode)
    assert checkpoints.steps() == expected
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == expected
    if mode is not None:
        assert checkpoints.best() == sorted(expected[:-1], key=values.__getitem__, reverse=mode == "max")
        assert checkpoints.load("best").step == checkpoints.best()[0]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_earliest_of_equal_ones_is_best(tmp_path, mode):
    """As training counts: a value that is met again is no new best, and the checkpoint of the best step stays."""
    checkpoints = Checkpoints(tmp_path, keep=1, mode=mode)
    for step in (1, 2, 3):
        checkpoints.save(saved(step, 0.5))
    assert checkpoints.best() == [1, 3] and checkpoints.steps() == [1, 3]
    assert checkpoints.load("best").step == 1


@pytest.mark.slow
def test_any_flipped_byte_is_noticed(tmp_path):
    """One bit of each file, twice: another state is never read."""
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    Checkpoints(whole).save(saved(1))
    good = saved(1)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    noticed = set()
    random = np.random.default_rng(0)
    for file in files:
        content = (whole / file).read_bytes()
        if not content:
            continue
        for place in random.integers(len(content), size=2).tolist():
            shutil.rmtree(damaged, ignore_errors=True)
            shutil.copytree(whole, damaged)
            changed = bytearray(content)
            changed[place] ^= 1 << int(random.integers(8))
            (damaged / file).write_bytes(changed)
            try:
                found = Checkpoints(damaged, read_only=True).load()
            except CheckpointError as error:
                assert "step 1" in str(error) and "damaged" in str(error)
                noticed.add(str(file))
                continue
            assert found is not None and found.info == good.info and found.keys == good.keys
            for name, leaf in good.leaves.items():
                assert found.leaves[name].tobytes() == leaf.tobytes(), file
    assert any("/d/" in name for name in noticed) and any("record" in name for name in noticed)


def test_what_orbax_alone_would_not_notice(tmp_path):
    """Noise is stored as it is, so that a changed byte is just another number; the checksum tells."""
    import orbax.checkpoint as ocp

    noise = jax.random.bits(jax.random.key(0), (50_000,), jnp.uint32)
    state = TrainState(jnp.asarray(1), {"w": noise}, (), jax.random.key(1))
    Checkpoints(tmp_path / "checkpoints").save(snapshot(1, state, {}))
    damage(tmp_path / "checkpoints", 1)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        found = manager.restore(1, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
    assert np.sum(np.asarray(found["params/w"]) != np.asarray(noise)) == 1
    with pytest.raises(CheckpointError, match="do not match its sha256 checksum"):
        restore(tmp_path, state, 1)


def test_what_was_saved_beside_the_state_is_covered_too(tmp_path):
    Checkpoints(tmp_path).save(saved(1))
    [record] = (tmp_path / "1" / "record").glob("metadata")
    text = record.read_text()
    assert text.count('"taken": 1') == 1
    record.write_text(text.replace('"taken": 1', '"taken": 2'))
    with pytest.raises(CheckpointError, match="do not match its sha256 checksum"):
        Checkpoints(tmp_path).load()
    record.write_text(text)
    assert Checkpoints(tmp_path).load().info["data"] == {"taken": 1}


def damage(folder, step):
    """Turn over a byte in the largest files, which hold the numbers: which of several is read is the library's choice."""
    files = [path for path in (folder / str(step)).rglob("d/*") if path.is_file()]
    most = max(path.stat().st_size for path in files)
    for target in (path for path in files if 2 * path.stat().st_size > most):
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 255
        target.write_bytes(content)


@pytest.mark.slow
def test_the_one_before_a_damaged_checkpoint_is_taken(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        checkpoints.save(saved(step))
    damage(tmp_path / "checkpoints", 3)
    reports = []
    reader = Checkpoints(tmp_path / "checkpoints", report=reports.append, read_only=True)
    assert reader.load().step == 2 and reader.steps() == [1, 2, 3]
    assert len(reports) == 1 and "step 3" in reports[0] and "damaged" in reports[0]
    with pytest.raises(CheckpointError, match="step 3"):
        reader.load(3)
    with pytest.warns(UserWarning, match="step 3 .* damaged"):
        equal(restore(tmp_path, rebuild(saved(1), odd_like())), rebuild(saved(2), odd_like()))
    for step in (1, 2):
        damage(tmp_path / "checkpoints", step)
    reports.clear()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read: .* step 3 .* step 2 .* step 1 "):
        reader.load()
    assert reports == []
    for _ in range(2):  # nothing is moved away or begun anew
        with pytest.raises(CheckpointError, match="can be read"):
            Checkpoints(tmp_path / "checkpoints").load(set_aside=True)


def odd_like():
    return TrainState(jnp.asarray(0), {"w": jnp.zeros((200,), jnp.float32)}, (), jax.random.key(0))


def test_training_goes_on_from_the_one_before(tmp_path):
    def train(steps):
        said = []
        result = fit(
            start(),
            make_step(),
            Rows(),
            steps=steps,
            folder=tmp_path,
            save_every=4,
            progress=False,
            report=said.append,
        )
        return result, said

    train(12)
    damage(tmp_path / "checkpoints", 12)
    result, said = train(20)
    assert "step 12" in said[0] and "damaged" in said[0] and said[1].startswith("Going on from step 8")
    assert result.problems and (tmp_path / "damaged" / "12").is_dir()
    plain = fit(start(), make_step(), Rows(), steps=20, progress=False)
    equal(result.state, plain.state)
    np.testing.assert_array_equal(result.history["loss"], plain.history["loss"])
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps() == [12, 16, 20]


def test_leftovers_of_a_kill_do_no_harm(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(saved(1))
    checkpoints.save(saved(2))
    # in the middle of a save, of a deletion, and what another program put there
    shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
    shutil.copytree(tmp_path / "1", tmp_path / "trash" / "1")
    (tmp_path / "notes.txt").write_text("mine")
    again = Checkpoints(tmp_path)
    assert again.steps() == [1, 2] and again.load().step == 2
    again.save(saved(3))
    assert again.steps() == [1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3", "notes.txt"]


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(saved(1, 0.25))
    checkpoints.save(saved(1, 0.75))
    assert Checkpoints(tmp_path).load().info["value"] == 0.75


def test_an_error_that_is_not_the_disks_is_raised(tmp_path, monkeypatch):
    import orbax.checkpoint

    def broken(*arguments, **options):
        raise ValueError("unsupported")

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(orbax.checkpoint.CheckpointManager, "save", broken)
    with pytest.raises(ValueError, match="unsupported"):
        checkpoints.save(saved(1))


def test_restore_says_what_it_needs(tmp_path):
    like = odd_like()
    with pytest.raises(ValueError, match="which='last'"):
        restore(tmp_path, like, "last")
    with pytest.raises(ValueError, match="has no checkpoints; give the folder"):
        restore(tmp_path, like)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="has no checkpoints"):
        restore(tmp_path, like)
    Checkpoints(tmp_path / "checkpoints").save(saved(1))
    with pytest.raises(ValueError, match="evaluate while training"):
        restore(tmp_path, like, "best")


def test_an_unreadable_folder_is_not_called_damaged(tmp_path, monkeypatch):
    import orbax.checkpoint

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(saved(1))

    def forbidden(*arguments, **options):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(orbax.checkpoint.CheckpointManager, "restore", forbidden)
    with pytest.raises(PermissionError):
        checkpoints.load()


def test_the_log_stays_quiet_and_as_it_was(tmp_path, caplog):
    logger = logging.getLogger("absl")
    level = logger.level
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(saved(1))
    damage(tmp_path, 1)
    with pytest.raises(CheckpointError):
        checkpoints.load()
    assert logger.level == level and not [r for r in caplog.records if r.levelno >= logging.WARNING]


FULL = """
import json, resource, sys
import jax, jax.numpy as jnp
from pdejax.training._checkpoints import CheckpointError, Checkpoints
from pdejax.training._checkpoints import snapshot
from pdejax.training._step import TrainState

def saved(step, size):
    state = TrainState(jnp.asarray(step), {"w": jax.random.normal(jax.random.key(step), (size,))}, (), jax.random.key(1))
    return snapshot(step, state, {"value": None})

checkpoints = Checkpoints(__import__("pathlib").Path(sys.argv[1]))
checkpoints.save(saved(1, 100))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
said = []
for step in (2, 2, 3):
    try:
        checkpoints.save(saved(step, 300_000))
    except CheckpointError as error:
        said.append(str(error))
steps = checkpoints.steps()
checkpoints.save(saved(4, 100))
checkpoints.close()
print(json.dumps([said, steps]))
"""


@pytest.mark.parametrize(
    "notes", ["[os_error_code='27'] [file='a: b']", "[tensorstore_spec='a: {}'] [os_error_code='27']"]
)
def test_the_reason_is_the_systems_words(notes):
    """The library beneath adds notes after them, in no fixed order."""
    error = ValueError(
        f"RESOURCE_EXHAUSTED: Error writing 300 bytes to file 11: File too large {notes} [source: c.cc:7]"
    )
    assert _reason(error) == "File too large"


@pytest.mark.slow
def test_a_file_system_that_refuses(tmp_path):
    """The kernel refuses to write more than so many bytes in a file, as it would on a full disk."""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said, steps = json.loads(done.stdout)
    assert said == [f"cannot save the checkpoint of step {n}: File too large" for n in (2, 2, 3)]
    assert steps == [1]
    # Standard error is not looked at: orbax closes its event loop at the first refused write, and tensorstore's
    # other writes may then complain there of the closed loop, or finish before and say nothing.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "4"]
    assert Checkpoints(tmp_path).load(1).step == 1
