import gzip
import hashlib
import pathlib
import shutil

import numpy as np
import pytest

from pdejax.data import _sources, load

FILES = pathlib.Path(__file__).parents[3] / "shared" / "data" / "mnist"
needs_files = pytest.mark.skipif(not FILES.is_dir(), reason="the original MNIST files are not beside the repository")


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Archives of 30 and 12 random images in place of the original, with their checksums."""

    random = np.random.default_rng(0)
    folder = tmp_path / "archives"
    folder.mkdir()
    arrays, archives = {}, []
    for archive in _sources.MNIST_ARCHIVES:
        count = 30 if "train" in archive.filename else 12
        shape = (count, 28, 28) if "images" in archive.filename else (count,)
        arrays[archive.filename] = random.integers(0, 256 if len(shape) > 1 else 10, shape, dtype=np.uint8)
        content = idx(arrays[archive.filename])
        (folder / archive.filename).write_bytes(content)
        archives.append(archive._replace(sha256=hashlib.sha256(content).hexdigest()))
    from pdejax.data import _builders

    monkeypatch.setattr(_sources, "MNIST_ARCHIVES", tuple(archives))
    monkeypatch.setattr(_builders, "_PARTS", {"train": (*archives[:2], 30), "test": (*archives[2:], 12)})
    return folder, list(arrays.values())


def labelled(images, labels):
    """Label by image: TFDS keeps an order of its own."""
    return {image.tobytes(): label for image, label in zip(images, labels.tolist(), strict=True)}


def options(tmp_path, small, **more):
    return {"data_dir": tmp_path / "data", "manual_dir": small[0], "validation": 6} | more


def test_splits_hold_the_images(tmp_path, small):
    images, labels, test_images, test_labels = small[1]
    test = load("mnist", "test", **options(tmp_path, small))
    assert labelled(test.values, test.labels) == labelled(test_images, test_labels)
    train, validation = (load("mnist", split, **options(tmp_path, small)) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (24, 6)
    found = labelled(train.values, train.labels) | labelled(validation.values, validation.labels)
    assert found == labelled(images, labels)
    other = load("mnist", "validation", **options(tmp_path, small, seed=1))
    assert other.fingerprint != validation.fingerprint
    assert len(load("mnist", "train", **options(tmp_path, small, validation=0))) == 30
    assert len(load("mnist", "train", **options(tmp_path, small, limit=5))) == 5


def test_pixels_and_patches(tmp_path, small):
    pixels = load("mnist", "test", **options(tmp_path, small))
    images = pixels.values.reshape(12, 28, 28)
    assert set(labelled(images, pixels.labels)) == {image.tobytes() for image in small[1][2]}
    assert pixels.values.dtype == np.uint8
    batch = pixels.take([3])
    assert batch.inputs.shape == (1, 784, 1) and batch.inputs.dtype == np.float32 and batch.mask.all()
    np.testing.assert_array_equal(batch.inputs.ravel(), (images[3].ravel() / 255).astype(np.float32))
    for patch in (4, 7, 14):
        data = load("mnist", "test", **options(tmp_path, small, form="patches", patch=patch))
        per_side = 28 // patch
        assert data.values.shape == (12, per_side**2, patch**2)
        for token in range(per_side**2):
            row, column = patch * (token // per_side), patch * (token % per_side)
            expected = images[:, row : row + patch, column : column + patch].reshape(12, -1)
            np.testing.assert_array_equal(data.values[:, token], expected)
    assert load("mnist", "test", **options(tmp_path, small, form="patches")).length == 16


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_damaged_archive(damage, tmp_path, small):
    path = small[0] / "t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    else:
        content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz has the wrong checksum"):
        load("mnist", "train", **options(tmp_path, small))
    assert not (tmp_path / "data").exists()


def test_wrong_content_leaves_nothing_half_prepared(tmp_path, small, monkeypatch):
    from pdejax.data import _builders

    # The checksums are right; the training part is written before the test part is found to be wrong.
    parts = dict(_builders._PARTS)
    parts["test"] = (*parts["test"][:2], 13)
    monkeypatch.setattr(_builders, "_PARTS", parts)
    with pytest.raises(ValueError, match=r"holds an array of shape \(12, 28, 28\); it must be \(13, 28, 28\)"):
        load("mnist", "train", **options(tmp_path, small))
    assert [p for p in (tmp_path / "data" / "mnist").iterdir() if p.is_dir()] == []
    assert not (tmp_path / "data" / "pdejax_arrays").exists()


def test_download(tmp_path, small, serve, monkeypatch):
    from pdejax.data import _builders

    url, requests = serve(small[0])
    archives = [archive._replace(url=f"{url}/{archive.filename}") for archive in _sources.MNIST_ARCHIVES]
    monkeypatch.setattr(_sources, "MNIST_ARCHIVES", tuple(archives))
    monkeypatch.setattr(_builders, "_PARTS", {"train": (*archives[:2], 30), "test": (*archives[2:], 12)})
    path = small[0] / "train-images-idx3-ubyte.gz"
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    with pytest.raises(ValueError, match="has the wrong checksum"):
        load("mnist", "test", data_dir=tmp_path / "data")
    assert len(requests) == 4
    path.write_bytes(good)
    data = load("mnist", "test", data_dir=tmp_path / "data")
    assert labelled(data.values, data.labels) == labelled(*small[1][2:])
    # Only the wrong one had to come again.
    assert len(requests) == 5


def test_one_file_missing(tmp_path, small):
    (small[0] / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-labels-idx1-ubyte\.gz"):
        load("mnist", "train", **options(tmp_path, small))


@needs_files
@pytest.mark.slow
def test_original_files(tmp_path):
    parts = {s: load("mnist", s, data_dir=tmp_path, manual_dir=FILES) for s in ("train", "validation", "test")}
    assert {split: len(data) for split, data in parts.items()} == {"train": 55_000, "validation": 5_000, "test": 10_000}
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert (np.bincount(parts["train"].labels) + np.bincount(parts["validation"].labels)).tolist() == counts
    assert np.bincount(parts["test"].labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # Mean and standard deviation that everybody normalizes with.
    pixels = np.concatenate([parts["train"].values, parts["validation"].values]).astype(float) / 255
    assert abs(pixels.mean() - 0.1307) < 5e-5 and abs(pixels.std() - 0.3081) < 5e-5
    # The test images and labels, read from the files by hand.
    content = gzip.decompress((FILES / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((FILES / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    expected = {content[784 * i : 784 * (i + 1)]: label for i, label in enumerate(labels)}
    assert labelled(parts["test"].values, parts["test"].labels) == expected
    # TensorFlow Datasets' own name reads what was prepared.
    import tensorflow_datasets as tfds

    source = tfds.data_source("mnist", data_dir=str(tmp_path), split="test", download=False)
    np.testing.assert_array_equal(source[7]["image"].ravel(), parts["test"].values[7].ravel())
    # Now without the archives, from the arrays.
    shutil.rmtree(tmp_path / "mnist")
    again = load("mnist", "test", data_dir=tmp_path, download=False)
    assert again.fingerprint == parts["test"].fingerprint
