"""GGUF files: header, numbers and metadata beside the package `gguf`; the order of rotary pairs; and what is refused."""

import pathlib
import struct
import time

import numpy as np
import pytest
import real_weights

from pdejax.networks import CheckpointError, load_pretrained
from pdejax.networks.families._gguf import read_gguf, read_gguf_file

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
    for name, array in tensors().items():
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
    "a type of metadata": (bytes_at(24 + 8 + 20, struct.pack("<I", 77)), "has type 77, which GGUF has not"),
    "many axes": (in_table(NORM, 0, struct.pack("<I", 9)), "has 9 axes, and GGUF allows 4"),
    "a huge shape": (in_table(NORM, 4, struct.pack("<Q", 2**50)), "should end at byte .* cut off or damaged"),
    "a type of tensors": (
        in_table(NORM, 12, struct.pack("<I", 999)),
        "of type 999, which the package gguf does not know",
    ),
    "an offset beyond the file": (in_table(NORM, 16, struct.pack("<Q", 2**40)), "should end at byte .* cut off"),
    "blocks that do not fit": (
        lambda p: (in_table(NORM, 12, struct.pack("<I", 8))(p), in_table(NORM, 4, struct.pack("<Q", 33))(p)),
        "has shape .33,., which is no number of blocks",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_damaged_file_is_refused_in_one_sentence_within_a_second(whole, tmp_path, name):
    path = tmp_path / "m.gguf"
    path.write_bytes(whole.read_bytes())
    damage, words = FAULTS[name]
    damage(path)
    begun = time.process_time()
    with pytest.raises(CheckpointError, match=f"m.gguf: .*{words}") as caught:
        load_pretrained(path)
    assert time.process_time() - begun < 1
    assert str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_not_supported_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"options that are not supported: llama.rope.scaling.type='yarn'"):
        load_pretrained(written(tmp_path / "scaled.gguf", scaling=True))
    with pytest.raises(CheckpointError, match=r"general.architecture='mamba'; GGUF files are read of llama"):
        load_pretrained(written(tmp_path / "other.gguf", architecture="mamba"))
    assert read_gguf_file(written(tmp_path / "words.gguf", pre="viking")).tokenizer is None


def test_the_real_file_is_read_within_a_second():
    """A vocabulary of 49 152 words and its merges: the header alone."""
    [path] = real_weights.files("SmolLM2")
    begun = time.process_time()
    checkpoint = read_gguf_file(path)
    assert time.process_time() - begun < 1
    assert checkpoint.config["num_hidden_layers"] == 30 and len(checkpoint.tensors) == 272
