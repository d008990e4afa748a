"""Folders with an ONNX file: the same network as from safetensors, parts of larger graphs, and what is refused."""

import json

import numpy as np
import pytest
import stored

import pdejax as pj
from pdejax.networks import CheckpointError
from pdejax.networks.families._onnx import read_onnx

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


FIRST, OTHER = np.eye(3, dtype=np.float32), np.ones((3, 3), np.float32)
BYTES, SCALE, ZERO = np.full((3, 3), 3, np.uint8), np.float32([0.5]), np.uint8([1])


def read(folder, nodes, tensors, prefix="", within=None):
    """What is read of nodes `(operation, inputs, name)` and named tensors."""
    helper, made = onnx.helper, onnx.numpy_helper.from_array
    made_nodes = [helper.make_node(kind, inputs, [f"y{i}"], name) for i, (kind, inputs, name) in enumerate(nodes)]
    graph = helper.make_graph(made_nodes, "g", [], [], [made(np.asarray(x), n) for n, x in tensors])
    (folder / "x.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    found = read_onnx([folder / "x.onnx"], prefix, within=within)
    return {name: tensor.read() for name, tensor in found.items()}


TWO = [("MatMul", ["x", "onnx::a"], "/enc/q/MatMul"), ("MatMul", ["x", "onnx::b"], "/enc/q/MatMul_1")]
WHOLE = [("MatMulInteger", ["x", "w_quantized", "z", "w_zero_point"], "/enc/q/MatMul_quant")]
TABLE = [("Gather", ["t_quantized", "ids"], "/g"), ("DequantizeLinear", ["y0", "t_scale", "t_zero_point"], "/d")]
# What cannot be told of a file, and the words.
UNTOLD = [
    (TWO, [("onnx::a", FIRST), ("onnx::b", OTHER)], "two tensors that are 'enc.q.weight', one of them 'onnx::b'"),
    (TWO[:1], [("onnx::a", FIRST), ("enc.q.weight", OTHER)], "two tensors that are 'enc.q.weight'"),
    (WHOLE, [("w_quantized", BYTES), ("w_zero_point", ZERO)], "the scale of 'enc.q.weight' is not stored"),
    (WHOLE, [("w_quantized", BYTES), ("w_scale", SCALE)], "the zero point of 'enc.q.weight' is not stored"),
    (WHOLE, [("w_quantized", BYTES), ("w_scale", np.ones(5)), ("w_zero_point", ZERO)], "do not fit its shape"),
    (TABLE, [("t_quantized", BYTES), ("t_zero_point", ZERO)], "the scale of 't' is not stored"),
    (TABLE, [("t_quantized", BYTES), ("t_scale", SCALE)], "the zero point of 't' is not stored"),
    (
        TABLE,
        [("t_quantized", BYTES), ("t_scale", SCALE), ("t_zero_point", ZERO), ("t", FIRST)],
        "two tensors that are 't'",
    ),
]


@pytest.mark.parametrize(("nodes", "tensors", "words"), UNTOLD)
def test_tensors_that_cannot_be_told_are_refused_in_words(tmp_path, nodes, tensors, words):
    """Not where they are in a part of the graph that is not read."""
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path, nodes, tensors)
    assert read(tmp_path, nodes, [*tensors, ("other.b", FIRST)], "other.").keys() == {"b"}
    assert "other.b" in read(tmp_path, nodes, [*tensors, ("other.b", FIRST)], within="other.")


def test_tensors_of_one_name_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"two tensors of one name \(a\)"):
        read(tmp_path, [], [("a", FIRST), ("a", FIRST)])


def test_what_can_be_told_is_read(tmp_path):
    """One matrix in two places, or under its own name beside; nodes without their inputs; 8 bits without a zero point."""
    same = read(tmp_path, TWO, [("onnx::a", FIRST), ("onnx::b", FIRST), ("enc.q.weight", FIRST)])
    np.testing.assert_array_equal(same["enc.q.weight"], FIRST)
    again = [TWO[0], ("MatMul", ["x", "onnx::a"], "/enc/q_1/MatMul"), ("MatMul", ["x"], "/m"), ("Gather", [], "/g")]
    again += [("DequantizeLinear", [], "/d")]
    assert read(tmp_path, again, [("onnx::a", FIRST)]).keys() == {"enc.q.weight"}
    whole = [("MatMulInteger", ["x", "w_quantized"], "/enc/q/MatMul_quant")]
    found = read(tmp_path, whole, [("w_quantized", BYTES), ("w_scale", SCALE)])
    np.testing.assert_array_equal(found["enc.q.weight"], np.full((3, 3), 1.5))


def test_a_name_that_is_there_already_is_not_given_again(arrays, tmp_path):
    """A tensor may be renamed to what it is called, not over another."""
    name = "embeddings.position_embeddings.weight"
    other = "embeddings.word_embeddings.weight"
    with pytest.raises(CheckpointError, match=f"{name!r}, which the ONNX file has under that name already"):
        pj.load_pretrained(write(tmp_path / "a", model(arrays), {"names": {name: [other]}}))
