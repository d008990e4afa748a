import dataclasses
import hashlib
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pdejax.data import listops, load, majority_accuracy, prepare, root_operator_accuracy
from pdejax.data._prepare import is_prepared

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {"min_length": 3, "max_length": 30, "sizes": (300, 40, 50), "seed": 7}


def rows(data):
    return [bytes(row[row > 0].astype(np.uint8)) for row in data.tokens]


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_splits():
    parts = {split: load("listops", split, **SMALL) for split in ("train", "validation", "test")}
    assert [len(data) for data in parts.values()] == [300, 40, 50]
    everything = [row for data in parts.values() for row in rows(data)]
    assert len(set(everything)) == 390
    for data in parts.values():
        assert data.tokens.dtype == np.uint8 and data.tokens.shape[1] == 30
        np.testing.assert_array_equal(data.mask, data.tokens > 0)
        lengths = data.mask.sum(axis=1)
        assert lengths.min() > 3 and lengths.max() < 30
        texts = [listops.to_text(row) for row in data.tokens]
        assert [listops.evaluate(text) for text in texts] == data.labels.tolist()
        assert data.vocabulary == listops.VOCABULARY and data.classes == tuple("0123456789")


@pytest.mark.slow
def test_duplicates_across_splits_are_really_removed():
    # There are 10 + 400 expressions of less than 5 tokens: nearly all are wanted, so that each split draws many of another.
    parts = [
        load("listops", s, min_length=0, max_length=5, sizes=(200, 100, 100)) for s in ("train", "validation", "test")
    ]
    assert len({row for data in parts for row in rows(data)}) == 400
    with pytest.raises(ValueError, match="found 100 of count=101"):
        load("listops", "train", min_length=0, max_length=5, sizes=(101, 110, 200), max_depth=2, max_args=2)


def test_seeds_and_splits_differ():
    streams = {
        (seed, split): tuple(rows(load("listops", split, lengths="short", sizes=(20, 20, 20), seed=seed)))
        for seed in range(3)
        for split in ("train", "validation", "test")
    }
    assert len({row for stream in streams.values() for row in stream}) == 9 * 20


def test_rerun_and_limit():
    whole = load("listops", "train", **SMALL)
    assert load("listops", "train", **SMALL).fingerprint == whole.fingerprint
    some = load("listops", "train", limit=12, **SMALL)
    np.testing.assert_array_equal(some.tokens, whole.tokens[:12])
    assert len(load("listops", "test", limit=10**6, **SMALL)) == 50


def test_examples_are_pinned():
    # What published seeds rely on.
    data = load("listops", "train", lengths="short", sizes=(2, 1, 1))
    assert [listops.to_text(row) for row in data.tokens] == [
        "[MAX 4 3 4 2 2 9 8 [MIN 8 7 0 [SM [MIN 3 [MIN 5 5 6 7 7 2 5 ] ] 4 ] ] ]",
        "[SM 3 3 [MIN 0 2 [MIN 1 6 ] 5 8 4 5 9 9 4 ] 2 0 ]",
    ]


def test_baselines_by_hand():
    train = listops.ListOps(
        np.array([[13, 1], [13, 2], [13, 3], [12, 1], [12, 1]]), None, np.array([4, 4, 5, 6, 6]), None
    )
    roots, labels = [13, 12, 11, 13, 13, 13], np.array([4, 6, 4, 5, 5, 5])
    test = listops.ListOps(np.array([[root, 9] for root in roots]), None, labels, None)
    # 4 and 6 are equally frequent: the smaller, which two of the labels are; not 5, the majority of the test set itself.
    assert majority_accuracy(train, test) == 2 / 6
    # Right, right, right by the majority of all that was trained on (a root that is new), then wrong.
    assert root_operator_accuracy(train, test) == 3 / 6


def test_baselines_refuse():
    digits = load("digits", "test")
    with pytest.raises(ValueError, match="train has no tokens"):
        root_operator_accuracy(digits, digits)
    assert majority_accuracy(digits, digits) == np.bincount(digits.labels).max() / 360
    data = load("listops", "test", **SMALL)
    language = dataclasses.replace(data, labels=data.tokens.astype(np.int32), classes=data.vocabulary)
    with pytest.raises(ValueError, match="one class for each example"):
        majority_accuracy(data, language)


@pytest.mark.slow
def test_baselines_of_the_arena():
    # 17.0 % and 36.3 % were measured on 96,000 examples; here within four standard deviations of a proportion of 2000.
    data = listops.generate(4000, min_length=500, max_length=2000, seed=1)
    train, test = (listops.ListOps(*(array[half] for array in data)) for half in (slice(2000), slice(2000, None)))
    for found, expected in ((majority_accuracy(train, test), 0.170), (root_operator_accuracy(train, test), 0.363)):
        assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 2000)


def test_prepared_is_generated_and_byte_identical(tmp_path, capsys):
    for name in ("a", "b"):
        for split in ("train", "validation", "test"):
            kept = load("listops", split, data_dir=tmp_path / name, **SMALL)
            made = load("listops", split, **SMALL)
            assert kept.fingerprint == made.fingerprint
            np.testing.assert_array_equal(kept.tokens, made.tokens)
            # Once more, from the arrays.
            again = load("listops", split, data_dir=tmp_path / name, limit=9, **SMALL)
            np.testing.assert_array_equal(again.tokens, made.tokens[:9])
    assert capsys.readouterr().out == ""
    first, second = digests(tmp_path / "a" / "list_ops"), digests(tmp_path / "b" / "list_ops")
    assert first == second and len(first) > 4
    assert any("array_record" in name for name in first)


def test_damaged_arrays_are_made_anew(tmp_path):
    made = load("listops", "train", **SMALL)
    load("listops", "train", data_dir=tmp_path, **SMALL)
    (path,) = (tmp_path / "pdejax_arrays").glob("*.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    for damaged in (bytes(content), bytes(content[:1000]), b""):
        path.write_bytes(damaged)
        assert load("listops", "train", data_dir=tmp_path, **SMALL).fingerprint == made.fingerprint
        assert path.read_bytes() != damaged


def test_arrays_that_cannot_be_kept_warn(tmp_path):
    (tmp_path / "pdejax_arrays").write_text("in the way")
    with pytest.warns(UserWarning, match="could not keep the arrays"):
        data = load("listops", "test", data_dir=tmp_path, **SMALL)
    assert len(data) == 50


def test_builder_configurations(tmp_path):
    from pdejax.data._builders import ListOps, listops_config
    from pdejax.data._sources import ListOpsSettings

    assert {config.name: config.settings[:3] for config in ListOps.BUILDER_CONFIGS} == {
        "short": (10, 200, (96_000, 2_000, 2_000)),
        "l1000": (500, 1000, (96_000, 2_000, 2_000)),
        "l2000": (500, 2000, (96_000, 2_000, 2_000)),
    }
    assert listops_config(ListOpsSettings(500, 1000)).name == "l1000"
    names = {
        listops_config(ListOpsSettings(10, 200, seed=1)).name,
        listops_config(ListOpsSettings(10, 200, (9, 9, 9))).name,
        "short",
    }
    assert len(names) == 3
    builder = prepare("listops", data_dir=tmp_path, **SMALL)
    assert builder.is_prepared() and builder.info.splits["train"].num_examples == 300
    example = builder.as_data_source("test")[0]
    np.testing.assert_array_equal(example["tokens"], np.frombuffer(rows(load("listops", "test", **SMALL))[0], np.uint8))


def test_a_missing_file_is_not_prepared(tmp_path):
    builder = prepare("listops", data_dir=tmp_path, **SMALL)
    folder = pathlib.Path(builder.data_path)
    assert is_prepared(folder)
    (file,) = folder.glob("*train.array_record*")
    file.unlink()
    assert not is_prepared(folder)
    assert len(load("listops", "train", data_dir=tmp_path, **SMALL)) == 300
    assert is_prepared(folder)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="prepared as tfrecord"):
        prepare("listops", data_dir=tmp_path, **SMALL)


CHILD = """
from pdejax.data import prepare
prepare("listops", min_length=10, max_length=60, sizes=({size}, 10, 10), data_dir="data")
"""


def child(folder, size):
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.format(size=size)],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_killed_while_preparing(tmp_path):
    process = child(tmp_path, 8_000)
    deadline = time.monotonic() + 60
    # TFDS builds its note on the configuration, in `.config`, in such a folder too.
    while not (left := list((tmp_path / "data").glob("list_ops/from*/incomplete.*"))) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    (left,) = left
    assert left.exists()
    target = left.parent / "1.0.0"
    assert not target.exists() and not is_prepared(target)
    # The next one finishes, and clears away what was left.
    options = {"min_length": 10, "max_length": 60, "sizes": (8_000, 10, 10), "data_dir": tmp_path / "data"}
    assert len(load("listops", "test", **options)) == 10
    assert is_prepared(target) and not left.exists()


@pytest.mark.slow
def test_two_processes_prepare_at_once(tmp_path):
    processes = [child(tmp_path, 3000) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors.decode()
    (folder,) = (tmp_path / "data" / "list_ops").glob("from*")
    assert is_prepared(folder / "1.0.0") and not list(folder.glob("incomplete.*"))
