import hashlib
import io
import json
import os
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdejax.models import (
    Architecture,
    MultilayerSimulator,
    MultilayerSimulatorConfig,
    Simulator,
    SimulatorConfig,
    Transformer,
    load_model,
    save_model,
)
from pdejax.models import _saving as module


@pytest.fixture(scope="module")
def model():
    config = Architecture(vocab=5, dim=4, heads=2, layers=2, ffn=3, norm="peri", head="classification", classes=3)
    return Transformer(config, rngs=nnx.Rngs(0))


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.npz"
    save_model(path, model, {"seed": 3})
    return path


def sealed(archive: io.BytesIO) -> bytes:
    """The bytes of a zip archive with the comment that load_model asks for."""
    with zipfile.ZipFile(archive, "a") as file:
        file.comment = b"sha256=" + b"0" * 64
    content = archive.getvalue()[:-64]
    return content + hashlib.sha256(content).hexdigest().encode()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip(model, tmp_path, dtype):
    original = model.astype(dtype)
    metadata = {"step": 12, "loss": 0.25, "dataset": "listops", "lengths": [10, 200]}
    save_model(tmp_path / "model", original, metadata)
    loaded, found = load_model(str(tmp_path / "model"))
    assert found == metadata
    assert loaded.architecture == original.architecture
    parameters = loaded.parameters()
    assert parameters.keys() == original.parameters().keys()
    for name, value in original.parameters().items():
        assert parameters[name].dtype == value.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(parameters[name], value)
    tokens = np.array([0, 4, 2])
    np.testing.assert_array_equal(loaded(tokens), original(tokens))


@pytest.mark.parametrize("kind", [Simulator, MultilayerSimulator])
def test_simulators_come_back_whole(kind, tmp_path):
    """The configuration with what it settled, and every parameter; rates that were not asked for are not there."""
    settings = SimulatorConfig if kind is Simulator else MultilayerSimulatorConfig
    config = settings.of(
        vocab=5,
        dim=4,
        heads=2,
        layers=2,
        ffn=3,
        steps=4,
        diffusion="scalar",
        norm="post",
        gamma=0.3,
        embedding_scale=2.0,
    )
    original = kind(config, key=jax.random.key(1))
    save_model(tmp_path / "model", original, {"seed": 1})
    loaded, found = load_model(tmp_path / "model")
    assert type(loaded) is kind and loaded.config == config and found == {"seed": 1}
    for name, value in original.parameters().items():
        np.testing.assert_array_equal(loaded.parameters()[name], value)
    np.testing.assert_array_equal(loaded.embed(np.array([1, 4])), original.embed(np.array([1, 4])))


def test_a_model_of_before_the_embedding_had_a_scale(model, tmp_path):
    """Its configuration does not name the scale: it is 1."""
    save_model(tmp_path / "new", model)
    with zipfile.ZipFile(tmp_path / "new") as new:
        header = json.loads(new.read("header.json"))
    assert header["model"]["config"].pop("embedding_scale") == 1.0
    archive = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "new") as new, zipfile.ZipFile(archive, "w") as old:
        old.writestr("header.json", json.dumps(header))
        for name in new.namelist()[1:]:
            old.writestr(name, new.read(name))
    (tmp_path / "old").write_bytes(sealed(archive))
    assert load_model(tmp_path / "old")[0].architecture == model.architecture


def test_an_unknown_kind(saved):
    archive = io.BytesIO()
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(archive, "w") as new:
        new.writestr("header.json", old.read("header.json").replace(b'"Transformer"', b'"Perceptron"'))
    saved.write_bytes(sealed(archive))
    with pytest.raises(ValueError, match="kind 'Perceptron' is unknown"):
        load_model(saved)


def test_same_model_same_bytes(model, saved, tmp_path):
    save_model(tmp_path / "again.npz", model, {"seed": 3})
    assert (tmp_path / "again.npz").read_bytes() == saved.read_bytes()


def test_is_an_ordinary_npz(model, saved):
    with np.load(saved, allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["head/kernel"], model.parameters()["head/kernel"])


def test_no_metadata(model, tmp_path):
    save_model(tmp_path / "model.npz", model)
    assert load_model(tmp_path / "model.npz")[1] == {}


def test_any_flipped_byte_is_found(saved):
    content = saved.read_bytes()
    positions = [*range(0, len(content), 7), *range(len(content) - 400, len(content))]
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 0x20
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged|does not end in a model's digest"):
            load_model(saved)


@pytest.mark.parametrize("kept", [0, 1, 64, 71, 1000, -1, -64, -71, -200])
def test_a_truncated_file_is_found(saved, kept):
    content = saved.read_bytes()
    saved.write_bytes(content[:kept])
    with pytest.raises(ValueError, match="cut short"):
        load_model(saved)
    saved.write_bytes(content + b"\n")
    with pytest.raises(ValueError, match="digest"):
        load_model(saved)


def test_another_version(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_VERSION", 99)
    save_model(tmp_path / "model.npz", model)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has version 99 and this pdejax reads version 1"):
        load_model(tmp_path / "model.npz")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"write one with pdejax\.save_model"):
        load_model(tmp_path / "nothing.npz")


def test_other_files(tmp_path):
    path = tmp_path / "other"
    path.write_text("not a checkpoint, and longer than the seventy-one bytes that a checkpoint's digest takes")
    with pytest.raises(ValueError, match="no pdejax model"):
        load_model(path)
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(100))
    with pytest.raises(ValueError, match="no pdejax model"):
        load_model(path)
    archive = io.BytesIO()
    np.savez(archive, a=np.zeros(3))
    path.write_bytes(sealed(archive))
    with pytest.raises(ValueError, match="is not a pdejax model"):
        load_model(path)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("header.json", '{"format": "something else", "version": 1}')
    path.write_bytes(sealed(archive))
    with pytest.raises(ValueError, match="format 'something else'"):
        load_model(path)


def test_nothing_is_unpickled(saved):
    archive = io.BytesIO()
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(archive, "w") as new:
        new.writestr("header.json", old.read("header.json"))
        with new.open("head/bias.npy", "w") as entry:
            np.lib.format.write_array(entry, np.array([print, None]), allow_pickle=True)
    saved.write_bytes(sealed(archive))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        load_model(saved)


def test_a_failed_write_leaves_the_old_file(model, saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(saved, model.astype("float64"))
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["model.npz"]


def test_missing_folder(model, tmp_path):
    with pytest.raises(ValueError, match=r"folder .* does not exist; create it first"):
        save_model(tmp_path / "nowhere" / "model.npz", model)


def test_metadata_must_be_json(model, tmp_path):
    with pytest.raises(TypeError, match="metadata must consist of what JSON can hold"):
        save_model(tmp_path / "model.npz", model, {"weights": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_float64_needs_x64(model, tmp_path):
    save_model(tmp_path / "model.npz", model.astype("float64"))
    with jax.enable_x64(False), pytest.raises(ValueError, match="needs JAX's 64-bit mode"):
        load_model(tmp_path / "model.npz")
