import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import pdejax
from pdejax.data import load, prepare
from pdejax.data._prepare import reachable

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name, split, options, message",
    [
        ("mnits", "train", {}, "name='mnits' must be one of .*did you mean 'mnist'"),
        ("cifar", "train", {}, "must be one of 'listops', 'mnist', 'newsgroups', 'digits'"),
        ("digits", "tests", {}, "split='tests' must be one of .*did you mean 'test'"),
        ("digits", "train", {"from": "pixels"}, "option of 'digits'='from' must be one of .*did you mean 'form'"),
        ("digits", "train", {"form": "pixel"}, "form='pixel' must be one of .*did you mean 'pixels'"),
        ("digits", "train", {"patch": 2}, "patch=2 is for form='patches'"),
        ("digits", "train", {"form": "patches", "patch": 3}, r"must divide the image's side 8: one of \[1, 2, 4, 8\]"),
        ("digits", "train", {"limit": 0}, "limit=.* must be an integer of at least 1"),
        ("digits", "train", {"seed": -1}, "seed=.* must be an integer in 0"),
        ("mnist", "train", {"validation": 60_000}, "validation=60000 must be an integer in 0"),
        ("mnist", "validation", {"validation": 0}, "split 'validation' is empty"),
        ("newsgroups", "validation", {"validation": 0}, "split 'validation' is empty"),
        ("newsgroups", "train", {"remove": ("header",)}, "did you mean 'headers'"),
        ("newsgroups", "train", {"remove": "headers"}, "must be a tuple"),
        ("newsgroups", "train", {"task": "language"}, "load: task='language' must be one of"),
        ("newsgroups", "train", {"length": 0}, "length=.* must be an integer of at least 1"),
        ("newsgroups", "train", {"task": "lm", "length": 1}, "length=.* must be an integer of at least 2"),
        ("newsgroups", "train", {"vocabulary_size": 2}, "vocabulary_size=.* must be an integer of at least 3"),
        ("listops", "train", {"lengths": "l100"}, "lengths='l100' must be one of .*did you mean 'l1000'"),
        ("listops", "train", {"min_length": 5}, "both min_length and max_length"),
        ("listops", "train", {"min_length": 5, "max_length": 9, "lengths": "short"}, "not both"),
        ("listops", "train", {"sizes": (1, 2)}, r"sizes=\(1, 2\) must be three numbers"),
        ("listops", "train", {"sizes": (1, 2, -3)}, r"sizes\[2\]=-3 must be an integer of at least 0"),
        ("listops", "validation", {"sizes": (5, 0, 5)}, "split 'validation' is empty"),
    ],
)
def test_refuses(name, split, options, message):
    with pytest.raises(ValueError, match=message):
        load(name, split, **options)


@pytest.mark.parametrize(
    "name, options",
    [
        ("digits", {"limit": 2.5}),
        ("digits", {"limit": True}),
        ("listops", {"prepared": "yes"}),
        ("newsgroups", {"vocabulary": 5}),
        ("mnist", {"download": "no"}),
    ],
)
def test_refuses_other_types(name, options, tmp_path):
    if name == "mnist":
        options = options | {"data_dir": tmp_path}
    with pytest.raises(TypeError, match=next(iter(options))):
        load(name, "train", **options)


def test_prepare_refuses():
    with pytest.raises(ValueError, match="name='digits' must be one of"):
        prepare("digits")
    with pytest.raises(ValueError, match="option of 'mnist'='form' must be one of"):
        prepare("mnist", form="pixels")


def test_digits_splits_are_the_set():
    parts = {split: load("digits", split) for split in ("train", "validation", "test")}
    assert {split: len(data) for split, data in parts.items()} == {"train": 1257, "validation": 180, "test": 360}
    values, labels = pdejax.data.digits.load()
    together = np.concatenate([data.inputs[..., 0] for data in parts.values()])
    marked = np.concatenate([np.concatenate([data.labels for data in parts.values()])[:, None], together], axis=1)
    expected = np.concatenate([labels[:, None], values], axis=1)
    rows = [sorted(map(tuple, array.tolist())) for array in (marked, expected)]
    assert rows[0] == rows[1]
    assert not np.array_equal(load("digits", "test", seed=1).labels, parts["test"].labels)
    assert load("digits", "test").fingerprint == parts["test"].fingerprint


def test_digits_patches_are_the_pixels():
    pixels, patches = load("digits", "test"), load("digits", "test", form="patches", patch=2)
    assert pixels.inputs.shape == (360, 64, 1) and patches.inputs.shape == (360, 16, 4)
    images = pixels.inputs.reshape(-1, 8, 8)
    for token in range(16):
        row, column = 2 * (token // 4), 2 * (token % 4)
        np.testing.assert_array_equal(
            patches.inputs[:, token], images[:, row : row + 2, column : column + 2].reshape(-1, 4)
        )
    assert patches.mask.all() and patches.mask.shape == (360, 16)


def test_limit_is_a_prefix():
    whole, some = load("digits", "train"), load("digits", "train", limit=7)
    assert len(some) == 7
    np.testing.assert_array_equal(some.inputs, whole.inputs[:7])


@pytest.fixture
def offline(monkeypatch):
    """No proxy, and a network that never answers."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    waiting = []
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: waiting.append(a) or time.sleep(5))
    return waiting


@pytest.mark.parametrize(
    "name, file", [("mnist", "train-images-idx3-ubyte.gz"), ("newsgroups", "20news-bydate.tar.gz")]
)
def test_offline_is_an_error_within_a_second(name, file, tmp_path, offline):
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match="cannot be reached") as error:
        load(name, "train", data_dir=tmp_path)
    assert time.perf_counter() - start < 1
    assert len(offline) == 1
    assert file in str(error.value) and str(tmp_path / "downloads" / "manual") in str(error.value)
    assert "https://" in str(error.value) and "manual_dir=" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"download": False}, {"manual_dir": "elsewhere"}])
def test_without_download_nobody_is_asked(options, tmp_path, offline):
    with pytest.raises(FileNotFoundError, match=r"20news-bydate\.tar\.xz, or 20news-bydate\.tar\.gz into"):
        load("newsgroups", "test", data_dir=tmp_path, **options)
    assert not offline


def test_reachable(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/file"
        assert reachable(url)
    assert not reachable(url)
    # A proxy that is not there.
    monkeypatch.setenv("http_proxy", url)
    assert not reachable("http://example.org/file")


def test_data_dir_from_the_environment(monkeypatch, tmp_path, offline):
    monkeypatch.setenv("PDEJAX_DATA", str(tmp_path / "here"))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "here")):
        load("mnist", "train", download=False)
    monkeypatch.delenv("PDEJAX_DATA")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "there"))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "there")):
        load("mnist", "train", download=False)


@pytest.mark.slow
def test_heavy_libraries_are_imported_when_needed(tmp_path):
    code = """
import sys, pdejax
from pdejax.data import load
load("listops", "test", sizes=(5, 5, 5))
try:
    load("mnist", "test", data_dir=".", download=False)
except FileNotFoundError:
    pass
print([m for m in ("tensorflow_datasets", "tensorflow", "sklearn", "PIL", "array_record") if m in sys.modules])
"""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
