"""Checkpoints as they are stored: precisions, shards, older names, tokenizers; and what is refused, in words."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import stored

import pdejax as pj
from pdejax.networks import CheckpointError
from pdejax.networks.families import _checkpoint
from pdejax.networks.families._load import read_checkpoint, read_settings
from pdejax.networks.families._safetensors import read_safetensors

IDS = np.asarray([2, 9, 4, 17, 3], np.int32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a small BERT in float32."""
    return stored.bert(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of that folder to damage."""
    return pathlib.Path(shutil.copytree(whole, tmp_path / "checkpoint"))


# --- What is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16"])
def test_tensors_are_those_written(tmp_path, kind):
    """Every number of every type, by the file's own bytes."""
    stored.bert(tmp_path, kind)
    read = read_safetensors(tmp_path / "model.safetensors")
    for name, array in stored.arrays().items():
        found = read[name].read()
        assert read[name].kind == kind == found.dtype.name
        np.testing.assert_array_equal(found, array.astype(found.dtype))


def test_tensors_are_those_of_the_safetensors_package(tmp_path):
    package = pytest.importorskip("safetensors.numpy", reason="compares with the package safetensors")
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.zeros((0, 4), np.float32), "c": np.asarray(3, np.int64)}
    package.save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "np"})
    read = read_safetensors(tmp_path / "x.safetensors")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name].read(), array)
        assert read[name].shape == array.shape


def test_weights_keep_their_type_and_the_field_has_the_asked_one(tmp_path):
    """bfloat16 weights in a float32 computation give what the same numbers in float32 give."""
    (tmp_path / "half").mkdir(), (tmp_path / "full").mkdir()
    half = pj.load_pretrained(stored.bert(tmp_path / "half", "bfloat16"))
    full = stored.bert(tmp_path / "full")
    rounded = {name: array.astype("bfloat16").astype("float32") for name, array in stored.arrays().items()}
    stored.write(full / "model.safetensors", rounded)
    assert half.discretization.field.stacked.interaction.wq.dtype == "bfloat16" == half.embed.words.dtype
    ours, theirs = half(IDS), pj.load_pretrained(full)(IDS)
    assert ours.dtype == "float32" and ours.shape == (5, 29)
    np.testing.assert_array_equal(ours, theirs)


def test_the_makers_own_files_beside_it_are_left_out(folder, whole):
    """Mistral's folders hold the model twice; without the one file or an index nothing says which."""
    single, theirs = folder / "model.safetensors", folder / "consolidated.00.safetensors"
    shutil.copy(single, theirs)
    np.testing.assert_array_equal(pj.load_pretrained(folder)(IDS), pj.load_pretrained(whole)(IDS))
    single.rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(stored.arrays(), "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert pj.load_pretrained(folder).layers == 3
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"several checkpoints: consolidated\.00\.safetensors, model-00001"):
        pj.load_pretrained(folder)


def test_shards_with_an_index_and_older_names(folder, whole):
    """Two files with an index, `gamma` and `beta`, a prefix, a pooler and a buffer: the same network."""
    arrays = {name: array.astype("float32") for name, array in stored.arrays().items()}
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    named = {}
    for name, array in arrays.items():
        for new, before in old.items():
            name = name.replace(new, before)
        named[name if name.startswith("cls.") else f"bert.{name}"] = array
    named |= {"bert.pooler.dense.weight": np.zeros((12, 12)), "bert.embeddings.position_ids": np.arange(16)}
    names = list(named)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, inside in parts.items():
        stored.write(folder / file, {name: named[name] for name in inside})
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(pj.load_pretrained(folder)(IDS), pj.load_pretrained(whole)(IDS))
    checkpoint = read_checkpoint(folder)
    family, settings = read_settings(checkpoint)
    left_out = family.left_out(settings, checkpoint)
    assert left_out.keys() == {"bert.pooler.dense.weight", "bert.embeddings.position_ids"}
    assert all("pooler" in reason or "buffer" in reason for reason in left_out.values())


def test_tied_layers_are_an_autonomous_field(tmp_path):
    """ALBERT: one field for all depths, so that more depth is more of the same, and steps are the layers."""
    from pdejax.networks.families import _albert
    from pdejax.networks.families._config import Config

    config = stored.CONFIG | {"model_type": "albert", "embedding_size": 7}
    settings = _albert.FAMILY.settings(Config(config, "test", "ALBERT"))
    rng = np.random.default_rng(0)
    stored.write(
        tmp_path / "model.safetensors",
        {line.name: rng.standard_normal(line.shape) * 0.3 for line in _albert.FAMILY.tensors(settings)},
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    net = pj.load_pretrained(tmp_path, dtype="float64")
    d = net.discretization
    assert isinstance(d.field, pj.MasterEquation) and d.steps == 3 == d.t1 == net.layers
    states = net.hidden_states(IDS)
    deeper = net.replace(discretization=d.replace(t1=6.0, steps=6), layers=6).hidden_states(IDS)
    np.testing.assert_allclose(deeper[:4], states, rtol=1e-12)
    again = pj.simulate(d, states[-1]).us[-1]
    np.testing.assert_allclose(deeper[-1], again, rtol=1e-11)


def test_token_types(whole):
    """Types in a second column; all zeros are what is left out."""
    net = pj.load_pretrained(whole)
    both = np.stack([IDS, np.zeros_like(IDS)], axis=1)
    np.testing.assert_array_equal(net(both), net(IDS))
    both[3:, 1] = 1
    moved = net.embed(both) - net.embed(IDS)
    assert float(np.abs(moved[:3]).max()) == 0 and float(np.abs(moved[3:]).max()) > 0.01


# --- Text -------------------------------------------------------------------------------------------------------------


def test_text(folder):
    """No padding and no truncation, whatever the tokenizer's file says; pairs with their types."""
    pytest.importorskip("tokenizers", reason="text needs tokenizers: pip install 'pdejax[pretrained]'")
    stored.tokenizer(folder)
    net = pj.load_pretrained(folder)
    assert net.tokenize("w5 w6").tolist() == [2, 5, 6, 3]
    assert net.tokenize("w5", "w6 w7").tolist() == [[2, 0], [5, 0], [3, 0], [6, 1], [7, 1], [3, 1]]
    assert len(net.tokenize(" ".join(["w5"] * 14))) == 16
    assert net.tokenizer.text(net.tokenize("w5 w6")) == "w5 w6"
    for text, words in (("", "text is empty"), ("  \n", "text is empty"), ("w5 " * 15, "17 tokens, .* at most 16")):
        with pytest.raises(ValueError, match=f"tokenize: .*{words}"):
            net.tokenize(text)
    with pytest.raises(ValueError, match="tokenize: pair is empty"):
        net.tokenize("w5", "")


def test_a_tokenizer_of_another_vocabulary_is_refused(folder):
    pytest.importorskip("tokenizers", reason="text needs tokenizers: pip install 'pdejax[pretrained]'")
    stored.tokenizer(folder, words=31)
    with pytest.raises(CheckpointError, match="ids up to 30, and the network has a vocabulary of 29"):
        pj.load_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(CheckpointError, match=r"tokenizer.json: it is no file of the tokenizers package"):
        pj.load_pretrained(folder)


def test_a_network_without_text_says_so(whole):
    net = pj.load_pretrained(whole)
    with pytest.raises(ValueError, match="this network has no tokenizer"):
        net.tokenize("w5")


@pytest.mark.parametrize(
    ("tokens", "kind", "words"),
    [
        ([2, 29], ValueError, r"ids from 2 to 29; they must be in 0 … 28"),
        ([-1, 3], ValueError, "ids from -1 to 3"),
        ([2.0, 3.0], TypeError, "must be integers"),
        ([], TypeError, "must be integers"),
        (np.zeros((0,), int), ValueError, "at least one"),
        (np.zeros((3, 3), int), ValueError, r"shape \(3, 3\); it must be \(n,\) ids or \(n, 2\)"),
        ([[2, 0], [3, 2]], ValueError, "token types from 0 to 2"),
        (np.zeros(17, int), ValueError, "17 tokens, and this network has positions for 16"),
    ],
)
def test_tokens_that_do_not_fit(whole, tokens, kind, words):
    net = pj.load_pretrained(whole)
    with pytest.raises(kind, match=f"Network: tokens has .*{words}"):
        net(tokens)


# --- What is refused --------------------------------------------------------------------------------------------------


def edited(**changes):
    """Change keys of config.json; None takes one away."""

    def edit(folder):
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return edit


def rewritten(change):
    """Change the tensors before they are written."""

    def edit(folder):
        arrays = {name: array.astype("float32") for name, array in stored.arrays().items()}
        stored.write(folder / "model.safetensors", change(arrays) or arrays)

    return edit


def headed(change):
    """Change the header of the file."""

    def edit(folder):
        arrays = {name: array.astype("float32") for name, array in stored.arrays().items()}
        stored.write(folder / "model.safetensors", arrays, change)

    return edit


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def begin(length):
    def edit(folder):
        path = folder / "model.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])

    return edit


def header_text(written):
    """A file of this header alone."""
    return lambda folder: (folder / "model.safetensors").write_bytes(len(written).to_bytes(8, "little") + written)


def set_entry(key, value):
    return headed(lambda header: header["cls.predictions.bias"].update({key: value}))


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without(arrays, name):
    return {key: array for key, array in arrays.items() if key != name}


def nan(arrays):
    arrays["encoder.layer.1.output.dense.bias"][3] = np.nan


Q = "encoder.layer.1.attention.self.query.weight"
FAULTS = {
    # config.json
    "no configuration": (lambda f: (f / "config.json").unlink(), FileNotFoundError, "there is no config.json"),
    "no JSON": (text("config.json", "{'a': 1"), CheckpointError, "config.json: it is no JSON"),
    "a list": (text("config.json", "[1]"), CheckpointError, "holds a list, not a table"),
    "another family": (edited(model_type="t5"), CheckpointError, "model_type='t5'; known are albert, bert"),
    "no family": (edited(model_type=None), CheckpointError, 'has no model_type; add it, such as "model_type": "bert"'),
    "a missing key": (edited(hidden_size=None), CheckpointError, "no 'hidden_size', which a BERT model needs"),
    "a word for a number": (edited(hidden_size="12"), CheckpointError, "hidden_size='12'; .* an integer"),
    "a fraction of a layer": (edited(num_hidden_layers=2.5), CheckpointError, "num_hidden_layers=2.5; .* an integer"),
    "heads that do not divide": (edited(num_attention_heads=5), CheckpointError, "a divisor of hidden_size=12"),
    "another activation": (edited(hidden_act="quick_gelu"), CheckpointError, "hidden_act='quick_gelu'; .*'gelu_new'"),
    "relative positions": (
        edited(position_embedding_type="relative_key"),
        CheckpointError,
        "position_embedding_type='relative_key'; .*'absolute': not supported",
    ),
    "a decoder": (edited(is_decoder=True), CheckpointError, "is_decoder=True; .* must be False"),
    "an unknown option": (
        edited(house={"factor": 2}),
        CheckpointError,
        r"not known of BERT models: house=.*ignore=\('house',\)",
    ),
    "a bad norm": (edited(layer_norm_eps=-1.0), CheckpointError, "layer_norm_eps=-1.0; .* one positive number"),
    # Tensors and configuration
    "fewer layers": (edited(num_hidden_layers=2), CheckpointError, r"unexpected: encoder.layer.2.*\(16 in all\)"),
    "more layers": (edited(num_hidden_layers=4), CheckpointError, r"missing: encoder.layer.3.*\(16 in all\)"),
    "another width": (
        edited(intermediate_size=24),
        CheckpointError,
        r"another shape: .*\(20, 12\) instead of \(24, 12\)",
    ),
    "a missing tensor": (rewritten(lambda a: without(a, Q)), CheckpointError, f"missing: {Q}"),
    "a missing part of the head": (
        rewritten(lambda a: without(a, "cls.predictions.bias")),
        CheckpointError,
        "missing: cls.predictions.bias",
    ),
    "an unexpected tensor": (
        rewritten(lambda a: a | {"adapter.weight": np.zeros((2, 12), np.float32)}),
        CheckpointError,
        "unexpected: adapter.weight",
    ),
    "two of one name": (
        rewritten(lambda a: a | {f"bert.{Q}": a[Q]}),
        CheckpointError,
        "two tensors stand for 'encoder.layer.1",
    ),
    "quantized": (
        rewritten(lambda a: a | {Q: a[Q].astype("int8")}),
        CheckpointError,
        rf"no real numbers: {Q} \(int8\)",
    ),
    "NaN": (rewritten(nan), CheckpointError, "'encoder.layer.1.output.dense.bias' has 1 NaN or infinite entries of 12"),
    # The file
    "cut off": (cut, CheckpointError, "model.safetensors: .* cut off or damaged; download it again"),
    "empty": (text("model.safetensors", ""), CheckpointError, "a file of 0"),
    "a short word": (text("model.safetensors", "abc"), CheckpointError, "a file of 3"),
    "a huge header": (begin(2**62), CheckpointError, "the header should have 4611686018427387904 bytes"),
    "a header past the end": (begin(10**6), CheckpointError, "the header should have 1000000 bytes"),
    "a header cut short": (begin(300), CheckpointError, "the header is no JSON"),
    "another type": (set_entry("dtype", "F8_E4M3"), CheckpointError, "type F8_E4M3, which is not read; there are F64"),
    "a wrong type": (set_entry("dtype", "F64"), CheckpointError, "has 116 bytes instead of 232"),
    "a wrong shape": (set_entry("shape", [30]), CheckpointError, "has 116 bytes instead of 120"),
    "a negative shape": (set_entry("shape", [-29]), CheckpointError, r"has shape \[-29\]"),
    "an offset beyond the file": (
        set_entry("data_offsets", [10**9, 10**9 + 116]),
        CheckpointError,
        "should end at byte .* cut off or damaged",
    ),
    "an overlap": (set_entry("data_offsets", [0, 116]), CheckpointError, "overlaps the one before it|leaves a gap"),
    "three offsets": (set_entry("data_offsets", [0, 1, 2]), CheckpointError, "has data_offsets"),
    "an entry without a type": (
        headed(lambda h: h["cls.predictions.bias"].pop("dtype")),
        CheckpointError,
        "has no dtype, shape and data_offsets",
    ),
    "a type that is a list": (set_entry("dtype", []), CheckpointError, r"has type \[\], which is not read"),
    "a shape beyond any memory": (
        set_entry("shape", [2**62, 2**62, 0]),
        CheckpointError,
        "'cls.predictions.bias' has shape .* more than any memory holds",
    ),
    "a header that is nested deeply": (
        header_text(b'{"a": ' + b"[" * 100_000),
        CheckpointError,
        "model.safetensors: the header is nested too deeply",
    ),
    "a tensor twice in a header": (
        header_text(b'{"a": {}, "b": {}, "a": {}}'),
        CheckpointError,
        "model.safetensors: the header has a key twice: a;",
    ),
    "a header that is no text": (header_text(b'{"\xff": 1}'), CheckpointError, "the header is no JSON"),
    "a configuration that is nested deeply": (
        text("config.json", '{"a": ' + "[" * 100_000),
        CheckpointError,
        "config.json: it is nested too deeply",
    ),
    "a key twice": (
        text("config.json", '{"model_type": "bert", "model_type": "albert"}'),
        CheckpointError,
        "config.json: it has a key twice: model_type;",
    ),
    "bytes after the last tensor": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"12"),
        CheckpointError,
        "the tensors end 2 bytes before the file does",
    ),
    "an entry that is a number": (headed(lambda h: h.update({Q: 3})), CheckpointError, "has no dtype"),
    # The folder
    "pickled weights": (pickled, CheckpointError, r"pytorch_model.bin\) are pickled, which can run any code"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        FileNotFoundError,
        "there are no weights in the folder",
    ),
    "two checkpoints": (
        lambda f: shutil.copy(f / "model.safetensors", f / "other.safetensors"),
        CheckpointError,
        r"several checkpoints: model.safetensors, other.safetensors\. Move all but one of them away\.",
    ),
    "a GGUF file beside it": (
        text("m.gguf", "x"),
        CheckpointError,
        "several checkpoints: m.gguf, model.safetensors. Give the",
    ),
    "a missing shard": (
        text("model.safetensors.index.json", '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
        FileNotFoundError,
        "names files that are not there: model-00001-of-00002.safetensors",
    ),
    "an index out of the folder": (
        text("model.safetensors.index.json", '{"weight_map": {"a": "../model.safetensors"}}'),
        CheckpointError,
        "no weight_map from tensors to files of the folder",
    ),
    "an index of other tensors": (
        text("model.safetensors.index.json", '{"weight_map": {"a": "model.safetensors"}}'),
        CheckpointError,
        "do not name the same tensors: a, ",
    ),
}


# What only the numbers show.
OF_NUMBERS = ("NaN",)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_said_in_one_sentence_before_a_tensor_is_read(folder, name, monkeypatch):
    """The function and the file or key, by headers alone; no path of this machine in the message."""
    damage, kind, words = FAULTS[name]
    damage(folder)
    if name not in OF_NUMBERS:
        monkeypatch.setattr(np, "memmap", stored.unread)
    with pytest.raises(kind, match=words) as caught:
        pj.load_pretrained(folder)
    said = str(caught.value)
    assert said.startswith("load_pretrained: ") and str(folder.parent) not in said and "\n" not in said


def test_the_tests_would_see_a_tensor_that_is_read(whole, monkeypatch):
    monkeypatch.setattr(np, "memmap", stored.unread)
    with pytest.raises(AssertionError, match="a tensor was read"):
        pj.load_pretrained(whole)


def test_an_option_that_is_known_to_change_nothing(folder):
    edited(house_style="plain")(folder)
    with pytest.raises(CheckpointError, match="house_style='plain'"):
        pj.load_pretrained(folder)
    assert pj.load_pretrained(folder, ignore=("house_style",)).layers == 3


def test_weights_that_would_not_fit(folder, monkeypatch):
    """Refused by the sizes in the headers, before a number is read."""
    monkeypatch.setattr(np, "memmap", stored.unread)
    monkeypatch.setattr(_checkpoint, "free_memory", lambda: 1000)
    with pytest.raises(MemoryError, match=r"the weights take 0.0 GiB of memory and 0.0 GiB are free"):
        pj.load_pretrained(folder)


@pytest.mark.parametrize(
    ("available", "limit", "current", "inactive", "free"),
    [(9000, "max", 0, 0, 9000), (9000, "5000000", 4000000, 3000000, 4000000 // 1024), (100, "5000000", 0, 0, 100)],
)
def test_free_memory(tmp_path, monkeypatch, available, limit, current, inactive, free):
    """The smaller of what the system and the control group leave; files kept in memory that nobody uses count as free."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 99999 kB\nMemAvailable: {available} kB\n")
    for name, text in (
        ("memory.max", limit),
        ("memory.current", str(current)),
        ("memory.stat", f"anon 5\nactive_file 7\ninactive_file {inactive}\n"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(_checkpoint, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(_checkpoint, "_LIMIT", tmp_path / "memory.max")
    assert _checkpoint.free_memory() // 1024 == free


def test_a_path_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="`hf download google/bert --local-dir bert`"):
        pj.load_pretrained("google/bert")
    with pytest.raises(FileNotFoundError, match="nothing is downloaded here"):
        pj.load_pretrained("nowhere")
    with pytest.raises(CheckpointError, match="this is neither"):
        pj.load_pretrained(__file__)


def test_float64_needs_jax_to_have_it(whole):
    import jax

    with jax.enable_x64(False), pytest.raises(ValueError, match="jax_enable_x64"):
        pj.load_pretrained(whole, dtype="float64")
