"""Folders with an ONNX file: the same network as from safetensors, parts of larger graphs, and what is refused."""

import json

import numpy as np
import pytest
import stored

import pdejax as pj
from pdejax.networks import CheckpointError

onnx = pytest.importorskip("onnx", reason="ONNX files need onnx: pip install 'pdejax[pretrained]'")
IDS = np.asarray([2, 9, 4, 17, 3], np.int32)
# What an export names by its node: matrices of linear maps, all that are stored (out, in).
TABLES = ("embeddings.",)


def model(arrays, prefix="", extra=(), whole=()):
    """Bytes of an ONNX file as an export leaves it: matrices without names, multiplied by a node of their module's name."""
    helper, made = onnx.helper, onnx.numpy_helper.from_array
    tensors, nodes = [made(array, name) for name, array in extra], []
    for i, (name, array) in enumerate(arrays.items()):
        array = array.astype(np.float32)
        module, _, kind = name.rpartition(".")
        if kind == "weight" and array.ndim == 2 and not name.startswith(TABLES):
            tensors.append(made(np.ascontiguousarray(array.T), f"onnx::MatMul_{i}"))
            place = "/" + f"{prefix}{module}".replace(".", "/")
            nodes.append(helper.make_node("MatMul", [f"x{i}", f"onnx::MatMul_{i}"], [f"y{i}"], f"{place}/MatMul"))
        else:
            tensors.append(made(array, name if name in whole else prefix + name))
    graph = helper.make_graph(nodes, "g", [], [], tensors)
    return helper.make_model(graph).SerializeToString()


def write(folder, content, layout=None, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    config = stored.CONFIG | changes | ({} if layout is None else {"onnx": layout})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return pj.load_pretrained(stored.bert(tmp_path_factory.mktemp("whole"))).hidden_states(IDS)


@pytest.fixture(scope="module")
def arrays():
    return stored.arrays()


def test_a_folder_with_an_onnx_file_is_the_network_of_its_safetensors(arrays, expected, tmp_path):
    folder = write(tmp_path / "a", model(arrays))
    for path in (folder, folder / "model.onnx"):
        np.testing.assert_array_equal(pj.load_pretrained(path).hidden_states(IDS), expected)


def test_a_part_of_a_larger_graph_with_names_that_were_lost(arrays, expected, tmp_path):
    """Positions cut in two, as an export that folds their interpolation leaves them; a decoder beside the encoder."""
    name = "embeddings.position_embeddings.weight"
    rest = {n: array for n, array in arrays.items() if n != name}
    pieces = [("lost_1", arrays[name].astype(np.float32)[:, :5]), ("lost_2", arrays[name].astype(np.float32)[:, 5:])]
    content = model(rest, "encoder.", [*pieces, ("decoder.weight", np.ones((3, 3), np.float32))])
    layout = {"prefix": "encoder.", "names": {name: ["lost_1", "lost_2"]}}
    found = pj.load_pretrained(write(tmp_path / "a", content, layout)).hidden_states(IDS)
    np.testing.assert_array_equal(found, expected)
    # Strict as of safetensors: without the prefix the rest of the graph is unexpected.
    with pytest.raises(CheckpointError, match=r"unexpected: decoder\.weight"):
        pj.load_pretrained(
            write(
                tmp_path / "b",
                model(rest, "", [*pieces, ("decoder.weight", np.ones((3, 3), np.float32))]),
                {"names": layout["names"]},
            )
        )


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ({"prefix": "decoder."}, "no tensor of model.onnx has a name that begins with 'decoder.'"),
        ({"names": {"a": ["none_1"]}}, "'a' is stored as none_1, which the ONNX file has not"),
        ({"names": {"a": []}}, "must be a name, or a list of names"),
        (
            {"names": {"a": ["embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"]}},
            "differ beside the second axis",
        ),
        ({"file": "x"}, "must be a table with prefix, names or both"),
        ({"prefix": 3}, "prefix must be a text"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_in_words(arrays, tmp_path, layout, words):
    with pytest.raises(CheckpointError, match=words):
        pj.load_pretrained(write(tmp_path / "a", model(arrays), layout))


def test_files_that_are_no_checkpoint_are_refused_in_words(arrays, tmp_path):
    folder, content = tmp_path / "a", model(arrays)
    for damaged, words in (
        (b"", "no ONNX model"),
        (content[: len(content) // 2], "no ONNX model"),
        (b"\xff" * 99, "no ONNX"),
    ):
        with pytest.raises(CheckpointError, match=words):
            pj.load_pretrained(write(folder, damaged))
    write(folder, content)
    (folder / "other.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"several checkpoints: model\.onnx, other\.onnx"):
        pj.load_pretrained(folder)
    assert pj.load_pretrained(folder / "other.onnx").layers == 3
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        pj.load_pretrained(folder / "model.onnx")
    outside = onnx.load_model_from_string(content)
    outside.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(CheckpointError, match="lie in a file beside it"):
        pj.load_pretrained(write(tmp_path / "b", outside.SerializeToString()))
    # Wrong configuration: named, as of safetensors.
    with pytest.raises(CheckpointError, match="of another shape"):
        pj.load_pretrained(write(tmp_path / "c", content, vocab_size=30))
