"""GGUF files: header, numbers and metadata beside the package `gguf`; the order of rotary pairs; and what is refused."""

import json
import pathlib
import struct

import numpy as np
import pytest
import real_weights
import stored

from pdejax.networks import CheckpointError, load_pretrained
from pdejax.networks.families import _llama
from pdejax.networks.families._config import Config
from pdejax.networks.families._family import read_weights
from pdejax.networks.families._gguf import read_gguf, read_gguf_file
from pdejax.networks.families._gguf_tokenizer import tokenizer_of
from pdejax.networks.families._load import read_settings

gguf = pytest.importorskip("gguf", reason="GGUF files need the package gguf: pip install 'pdejax[pretrained]'")
HEADS, GROUPS, DIM, VOCAB, FFN = 4, 2, 32, 70, 64
WORDS = [*"abcdefghij", "Ġ", "ab", "abc", "Ġa", "<|end|>", "<|user|>"]


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    size = DIM // HEADS
    shapes = {"token_embd.weight": (VOCAB, DIM), "output_norm.weight": (DIM,)}
    for l in range(2):
        shapes |= {
            f"blk.{l}.attn_norm.weight": (DIM,),
            f"blk.{l}.attn_q.weight": (HEADS * size, DIM),
            f"blk.{l}.attn_k.weight": (GROUPS * size, DIM),
            f"blk.{l}.attn_v.weight": (GROUPS * size, DIM),
            f"blk.{l}.attn_output.weight": (DIM, HEADS * size),
            f"blk.{l}.ffn_norm.weight": (DIM,),
            f"blk.{l}.ffn_gate.weight": (FFN, DIM),
            f"blk.{l}.ffn_up.weight": (FFN, DIM),
            f"blk.{l}.ffn_down.weight": (DIM, FFN),
        }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def written(path: pathlib.Path, **options) -> pathlib.Path:
    """A small llama file by the package's own writer: matrices quantized by blocks of 32, norms in float32."""
    writer = gguf.GGUFWriter(path, options.get("architecture", "llama"))
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(DIM)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(DIM // HEADS)
    if "scaling" in options:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(options.get("pre", "smollm"))
    writer.add_token_list(WORDS)
    writer.add_token_types([1] * (len(WORDS) - 2) + [3, 4])
    writer.add_token_merges(["a b", "ab c", "Ġ a"])
    for name, array in (tensors() | options.get("more", {})).items():
        kind = options.get("kind", gguf.GGMLQuantizationType.Q8_0)
        if array.ndim == 1 or kind is None:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return written(tmp_path_factory.mktemp("gguf") / "m.gguf")


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1", None])
def test_numbers_and_metadata_are_those_of_the_package(tmp_path, kind):
    kind = None if kind is None else gguf.GGMLQuantizationType[kind]
    path = written(tmp_path / "m.gguf", kind=kind)
    metadata, found = read_gguf(path)
    reader = gguf.GGUFReader(path)
    assert found.keys() == {tensor.name for tensor in reader.tensors} == tensors().keys()
    for tensor in reader.tensors:
        ours = found[tensor.name].read()
        assert ours.shape == tensors()[tensor.name].shape == found[tensor.name].shape
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(ours.shape)
        np.testing.assert_array_equal(ours.astype(np.float32), theirs)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            assert metadata[key] == field.contents() or metadata[key] == pytest.approx(field.contents(), rel=1e-7)
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-5


def test_rows_of_queries_and_keys_are_put_back(whole):
    """The inverse of what llama.cpp's converter does to a matrix whose rotary pairs are (j, j + dk/2)."""
    _, stored = read_gguf(whole)
    found = read_gguf_file(whole).tensors
    for name, heads, ours in (("attn_q", HEADS, "q_proj"), ("attn_k", GROUPS, "k_proj"), ("attn_v", 0, "v_proj")):
        there = stored[f"blk.1.{name}.weight"].read()
        here = found[f"model.layers.1.self_attn.{ours}.weight"].read()
        if not heads:
            np.testing.assert_array_equal(here, there)
            continue
        size = here.shape[0] // heads
        for head in range(heads):
            for j in range(size // 2):
                for half in (0, 1):
                    np.testing.assert_array_equal(
                        here[head * size + half * (size // 2) + j], there[head * size + 2 * j + half]
                    )


def test_the_configuration_is_that_of_hugging_face(whole):
    config = read_gguf_file(whole).config
    assert config["model_type"] == "llama" and config["tie_word_embeddings"] is True
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (HEADS, GROUPS, 8)
    assert (config["vocab_size"], config["hidden_size"], config["num_hidden_layers"]) == (VOCAB, DIM, 2)


SIZE = 6
FOLDER = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": SIZE,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50.0,
    "tie_word_embeddings": False,
}


def both_forms(folder: pathlib.Path, kind: str, **options) -> tuple[pathlib.Path, pathlib.Path]:
    """One decoder with heads of a size of their own as a folder and as a GGUF file, names by the package, rows of queries and
    keys of a llama in neighbouring pairs, as llama.cpp's converter turns them."""
    family = {"llama": _llama.FAMILY, "qwen2": _llama.QWEN2, "qwen3": _llama.QWEN3}[kind]
    config = FOLDER | {"model_type": kind}
    settings = family.settings(Config(config, "test", kind))
    rng = np.random.default_rng(0)
    shapes = {name: line.shape for line in family.tensors(settings) for name in line.names(settings.layers)}
    arrays = {
        name if name.startswith("lm_head") else f"model.{name}": rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    (folder / "folder").mkdir()
    (folder / "folder" / "config.json").write_text(json.dumps(config))
    stored.write(folder / "folder" / "model.safetensors", arrays)
    writer = gguf.GGUFWriter(folder / "m.gguf", kind)
    writer.add_block_count(2)
    writer.add_context_length(32)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(10)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50.0)
    writer.add_key_length(SIZE)
    writer.add_value_length(options.get("value", SIZE))
    if "turned" in options:
        writer.add_rope_dimension_count(options["turned"])
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, kind.upper()), 2)
    for name, array in arrays.items():
        heads = {"q_proj": 2, "k_proj": 1}.get(name.split(".")[-2], 0) if kind == "llama" else 0
        if heads:
            array = array.reshape(heads, 2, SIZE // 2, 8).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "folder", folder / "m.gguf"


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("turned", [{}, {"turned": SIZE}], ids=["unsaid", "said"])
def test_a_file_and_a_folder_of_the_same_numbers_are_one_network(tmp_path, kind, turned):
    folder, file = both_forms(tmp_path, kind, **turned)
    ids = np.asarray([3, 1, 4, 1, 5, 9], np.int32)
    ours, theirs = (load_pretrained(path).observe(ids) for path in (file, folder))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_heads_that_are_not_all_of_one_size_are_refused(tmp_path):
    for name, options, words in (
        ("turned", {"turned": 4}, "rope.dimension_count=4, and a head has 6 features: partial rotary positions"),
        ("value", {"value": 4}, "attention.value_length=4, and a head has 6 features: values of another size"),
    ):
        (tmp_path / name).mkdir()
        with pytest.raises(CheckpointError, match=words):
            load_pretrained(both_forms(tmp_path / name, "qwen3", **options)[1])


def test_text(whole):
    """Byte-level BPE with merges, digits on their own, words of control whole."""
    pytest.importorskip("tokenizers", reason="text needs tokenizers: pip install 'pdejax[pretrained]'")
    made = read_gguf_file(whole).tokenizer()
    # Merges in their order: "a b" comes before "Ġ a".
    assert made.encode("abc abd a").tokens == ["abc", "Ġ", "ab", "d", "Ġa"]
    assert made.encode("ab<|end|>a").ids == [11, 14, 0]
    assert made.decode([12, 13, 1, 14]) == "abc ab"


def bytes_at(place: int, value: bytes):
    def edit(path):
        data = bytearray(path.read_bytes())
        data[place : place + len(value)] = value
        path.write_bytes(data)

    return edit


def in_table(name: str, after: int, value: bytes):
    """Change what stands some bytes after a tensor's name in the table."""

    def edit(path):
        place = path.read_bytes().index(name.encode()) + len(name) + after
        bytes_at(place, value)(path)

    return edit


def offset_of(path, name: str) -> int:
    data = path.read_bytes()
    place = data.index(name.encode()) + len(name) + 16
    return struct.unpack_from("<Q", data, place)[0]


def cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


NORM = "blk.0.attn_norm.weight"
FAULTS = {
    "cut off": (cut, "should end at byte .* cut off or damaged"),
    "cut in the header": (
        lambda p: p.write_bytes(p.read_bytes()[:200]),
        "the header ends past the end|in a file of 200",
    ),
    "empty": (lambda p: p.write_bytes(b""), "it has 0 bytes"),
    "another kind of file": (bytes_at(0, b"ELF!"), "does not begin with GGUF"),
    "version 1": (bytes_at(4, struct.pack("<I", 1)), "version 1 of GGUF"),
    "the other byte order": (bytes_at(4, struct.pack(">I", 3)), "version 50331648 of GGUF"),
    "a huge number of tensors": (bytes_at(8, struct.pack("<Q", 2**60)), "speaks of 1152921504606846976 tensors"),
    "a huge number of keys": (bytes_at(16, struct.pack("<Q", 2**60)), "speaks of 1152921504606846976 keys"),
    "a huge word": (
        lambda p: bytes_at(p.read_bytes().index(b"<|end|>") - 8, struct.pack("<Q", 2**60))(p),
        "the header ends past the end of the file",
    ),
    "a word that is no text": (
        lambda p: bytes_at(p.read_bytes().index(b"<|end|>"), b"\xff")(p),
        "a string before byte .* is no text",
    ),
    "a huge key": (bytes_at(24, struct.pack("<Q", 2**60)), "the header ends past the end of the file"),
    "a type of metadata": (bytes_at(24 + 8 + 20, struct.pack("<I", 77)), "has type 77, which GGUF has not there"),
    "many axes": (in_table(NORM, 0, struct.pack("<I", 9)), "has 9 axes, and GGUF allows 4"),
    "a huge shape": (in_table(NORM, 4, struct.pack("<Q", 2**50)), "should end at byte .* cut off or damaged"),
    "a type of tensors": (
        in_table(NORM, 12, struct.pack("<I", 999)),
        "of type 999, which the package gguf does not know",
    ),
    "an offset beyond the file": (in_table(NORM, 16, struct.pack("<Q", 2**40)), "should end at byte .* cut off"),
    "an overlap": (in_table(NORM, 16, struct.pack("<Q", 0)), "tensor .* overlaps the one before it"),
    "an offset that is not aligned": (
        lambda p: in_table(NORM, 16, struct.pack("<Q", offset_of(p, NORM) + 4))(p),
        f"tensor '{NORM}' is not aligned",
    ),
    "a gap": (
        lambda p: in_table(NORM, 16, struct.pack("<Q", offset_of(p, NORM) + 32))(p),
        "tensor .* (leaves a gap|overlaps the one) before it",
    ),
    "bytes after the last tensor": (
        lambda p: p.write_bytes(p.read_bytes() + bytes(64)),
        "the tensors end 64 bytes before the file does",
    ),
    "a tensor twice": (
        lambda p: bytes_at(p.read_bytes().index(b"blk.1.attn_norm"), b"blk.0.attn_norm")(p),
        f"tensor '{NORM}' is there twice",
    ),
    "a key twice": (
        lambda p: bytes_at(p.read_bytes().index(b"llama.context_length"), b"general.architecture")(p),
        "its metadata has 'general.architecture' twice",
    ),
    "a shape beyond any memory": (
        lambda p: in_table("blk.0.attn_q.weight", 4, struct.pack("<QQ", 2**62, 2**62))(p),
        "'blk.0.attn_q.weight' .* has shape|more than any memory holds",
    ),
    "lists in lists in lists": (
        lambda p: bytes_at(52, struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 40)(p),
        "has type 9, which GGUF has not there",
    ),
    "blocks that do not fit": (
        lambda p: (in_table(NORM, 12, struct.pack("<I", 8))(p), in_table(NORM, 4, struct.pack("<Q", 33))(p)),
        "has shape .33,., which is no number of blocks",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_damaged_file_is_refused_in_one_sentence_before_a_tensor_is_read(whole, tmp_path, name, monkeypatch):
    monkeypatch.setattr(np, "memmap", stored.unread)
    path = tmp_path / "m.gguf"
    path.write_bytes(whole.read_bytes())
    damage, words = FAULTS[name]
    damage(path)
    with pytest.raises(CheckpointError, match=f"m.gguf: .*{words}") as caught:
        load_pretrained(path)
    assert str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)


def test_any_byte_of_the_header_may_be_damaged(whole, tmp_path):
    """A file whose header is changed at random is read, or refused in words."""
    rng = np.random.default_rng(0)
    data = whole.read_bytes()
    end, path, refused = data.index(b"blk.1.ffn_down.weight") + 60, tmp_path / "m.gguf", 0
    for _ in range(200):
        damaged = bytearray(data)
        for place in rng.integers(0, end, rng.integers(1, 4)):
            damaged[place] = rng.choice([0, 1, 128, 255])
        path.write_bytes(damaged)
        try:
            checkpoint = read_gguf_file(path)
            read_weights(*read_settings(checkpoint), checkpoint)
        except CheckpointError as error:
            assert str(error).startswith("load_pretrained: m.gguf: ")
            refused += 1
    assert refused > 100


def test_two_tensors_of_one_name_in_other_words_are_refused(tmp_path):
    more = {"model.norm.weight": np.ones(DIM, np.float32)}
    with pytest.raises(CheckpointError, match=r"two tensors stand for 'model.norm.weight'"):
        load_pretrained(written(tmp_path / "m.gguf", more=more))


# Tokenizers in the metadata, and an independent one: what a text becomes.
def tokens_of(metadata, **changes):
    metadata = {f"tokenizer.ggml.{key}": value for key, value in (metadata | changes).items()}
    made = tokenizer_of("m.gguf", metadata)()
    return lambda text: made.encode(text).tokens


VOCABULARY = {
    "model": "gpt2",
    "pre": "llama-bpe",
    # "abc" is a word that no merges lead to.
    "tokens": ["a", "b", "c", "ab", "abc", "Ã", "©", "Ã©", "e", "Ì", "ģ", "<|begin|>", "<|end|>"],
    "token_type": [1] * 11 + [3, 3],
    "merges": ["a b", "Ã ©"],
    "bos_token_id": 11,
    "eos_token_id": 12,
}


@pytest.mark.parametrize(
    ("changes", "text", "words"),
    [
        ({}, "abc", ["<|begin|>", "abc"]),
        ({"add_bos_token": False}, "abc", ["abc"]),
        ({"add_bos_token": True, "add_eos_token": True}, "abc", ["<|begin|>", "abc", "<|end|>"]),
        ({"pre": "gpt-2"}, "abc", ["ab", "c"]),
        ({"pre": "smollm", "add_bos_token": True}, "abc", ["<|begin|>", "ab", "c"]),
        ({"pre": "qwen2"}, "e\u0301", ["Ã©"]),
        ({"pre": "gpt-2"}, "e\u0301", ["e", "Ì", "ģ"]),
    ],
    ids=str,
)
def test_kinds_of_tokenizers(changes, text, words):
    """Of llama-bpe a word of the vocabulary stays whole and a beginning is put before, unless the metadata says otherwise; of
    Qwen2 an e with an accent is one letter however it is written."""
    pytest.importorskip("tokenizers", reason="text needs tokenizers: pip install 'pdejax[pretrained]'")
    assert tokens_of(VOCABULARY, **changes)(text) == words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"merges": [1, 2]}, "tokenizer.ggml.merges is no list of words"),
        ({"merges": None}, "tokenizer.ggml.merges is no list of words"),
        ({"merges": ["ab"]}, "no pair of words"),
        ({"merges": ["a q"]}, "the tokenizer in its metadata is damaged"),
        ({"tokens": [1, 2]}, "tokenizer.ggml.tokens is no list of words"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "2 tokens, 1 of them different, and 2 types"),
        ({"token_type": ["1"] * 13}, "tokenizer.ggml.token_type is no list of numbers"),
        ({"token_type": [1]}, "13 tokens, 13 of them different, and 1 types"),
        ({"bos_token_id": 13}, "bos_token_id=13 is none of 13 tokens"),
        ({"add_eos_token": True, "eos_token_id": None}, "eos_token_id=None is none of 13 tokens"),
        ({"add_bos_token": 3}, "add_bos_token=3; it must be true or false"),
    ],
    ids=str,
)
def test_a_damaged_tokenizer_is_refused_in_words(changes, words):
    pytest.importorskip("tokenizers", reason="text needs tokenizers: pip install 'pdejax[pretrained]'")
    with pytest.raises(CheckpointError, match=f"load_pretrained: m.gguf: .*{words}"):
        tokens_of(VOCABULARY, **changes)


def test_what_is_not_supported_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"options that are not supported: llama.rope.scaling.type='yarn'"):
        load_pretrained(written(tmp_path / "scaled.gguf", scaling=True))
    with pytest.raises(CheckpointError, match=r"general.architecture='mamba'; GGUF files are read of llama"):
        load_pretrained(written(tmp_path / "other.gguf", architecture="mamba"))
    assert read_gguf_file(written(tmp_path / "words.gguf", pre="viking")).tokenizer is None


def test_of_the_real_file_the_header_alone_is_read(monkeypatch):
    """A vocabulary of 49 152 words and its merges."""
    [path] = real_weights.files("SmolLM2")
    monkeypatch.setattr(np, "memmap", stored.unread)
    checkpoint = read_gguf_file(path)
    assert checkpoint.config["num_hidden_layers"] == 30 and len(checkpoint.tensors) == 272
