"""One sequence of real input: of every data set, of a text, of an array; and what is refused."""

import pathlib

import numpy as np
import pytest

from pdejax.data import digits, listops, load
from pdejax.data._example import encoder_of, example, example_of_file

FILES = pathlib.Path(__file__).parents[3] / "shared" / "data"
TEXT = "The cat sat. The dog sat, the cat ran!"


def test_expressions_and_digits_need_no_files():
    found = example("listops", index=3, length=12)
    text, value = found.source.removeprefix("ListOps: ").split(" = ")
    assert listops.to_tokens(text).tolist() == found.tokens.tolist() and listops.evaluate(text) == int(value)
    assert len(found.tokens) == 12 and found.vocab == 16
    image = example("digits", index=1800)
    np.testing.assert_array_equal(image.tokens, digits.load().values[3][:, None])
    assert image.vocab is None and image.source == f"digits image 3 of class {digits.load().labels[3]}"


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("digits", {"form": "patches", "patch": 4}, (4, 16)),
        ("listops", {"min_length": 3, "max_length": 12, "sizes": (300, 64, 64)}, None),
    ],
)
def test_with_options_it_is_an_example_of_the_test_split(name, options, shape):
    found = example(name, index=7, options=options)
    test = load(name, "test", **options)
    batch = test.take(np.asarray([7]))
    np.testing.assert_array_equal(found.tokens, batch.inputs[0][batch.mask[0]])
    assert shape is None or found.tokens.shape == shape
    assert found.source.startswith(f"{name}, test split, number 7 of class {test.classes[int(batch.labels[0])]}, ")
    # Beyond the split it begins anew.
    again = example(name, index=len(test) * 3 + 5, options=options)
    assert again.tokens.shape[-1:] == found.tokens.shape[-1:] or again.tokens.ndim == 1


@pytest.mark.parametrize("name, word", [("mnist", "train-images"), ("newsgroups", "20news-bydate")])
def test_sets_that_are_not_there_are_refused_with_what_to_do(name, word, tmp_path):
    options = {"data_dir": str(tmp_path), "manual_dir": str(tmp_path / "none"), "download": False}
    with pytest.raises(FileNotFoundError, match=rf"{word}.*manual_dir="):
        example(name, options=options)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("mnist", (49, 16)), ("newsgroups", (12,))])
def test_the_original_files(name, shape, tmp_path):
    """Prepared from where they lie; an image in patches, the first words of a post."""
    if not (FILES / name).is_dir():
        pytest.skip(f"the original files of {name} are not beside the repository")
    found = example(name, length=12, options={"data_dir": str(tmp_path), "manual_dir": str(FILES / name)})
    assert found.tokens.shape == shape and found.source.startswith(f"{name}, test split, number 0 of class")
    assert (found.vocab is None) == (name == "mnist")


def test_a_text_has_the_words_of_its_own(tmp_path):
    (tmp_path / "own.txt").write_text(TEXT, encoding="utf-8")
    found = example_of_file(tmp_path / "own.txt", length=6)
    # By frequency, then alphabet: the (3), cat, sat (2 each), "." and "!" …; 0 and 1 are padding and unknown.
    assert found.source == "own.txt, its first 6 words" and found.tokens[[0, 1, 2, 4]].tolist() == [2, 3, 4, 2]
    assert len(set(found.tokens.tolist())) == 5 and found.vocab == 9
    (tmp_path / "expression").write_text("[MAX 3 [SM 4 5 ] 9 ]")
    read = example_of_file(tmp_path / "expression", encode=encoder_of("listops", {}, "test"))
    np.testing.assert_array_equal(read.tokens, listops.to_tokens("[MAX 3 [SM 4 5 ] 9 ]"))


@pytest.mark.parametrize(
    ("array", "shape", "vocab"),
    [
        (np.array([3, 0, 5, 5]), (4,), 6),
        (np.array([0.5, 1.0, -2.0], np.float32), (3, 1), None),
        (np.ones((5, 7)), (5, 7), None),
        (np.ones((5, 7), np.uint8), (5, 7), None),
    ],
)
def test_arrays_are_ids_or_values(array, shape, vocab, tmp_path):
    np.save(tmp_path / "array.npy", array)
    np.savez(tmp_path / "array.npz", array)
    for name in ("array.npy", "array.npz"):
        found = example_of_file(tmp_path / name)
        assert found.tokens.shape == shape and found.vocab == vocab
        np.testing.assert_array_equal(found.tokens, array.reshape(shape))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npy", b"no array", "cannot be read as an array"),
        ("a.npz", {"x": np.ones(3), "y": np.ones(3)}, "holds 2 arrays, x, y, and must hold one"),
        ("a.npy", np.ones((2, 2, 2)), r"holds float64 \(2, 2, 2\); it must be token ids"),
        ("a.npy", np.array(["a", "b"]), "it must be token ids"),
        ("a.npy", np.array([1]), "n at least 2"),
        ("a.npy", np.ones((3, 0)), "n at least 2"),
        ("a.npy", np.array([1, -1]), "token ids are from 0 on"),
        ("a.npy", np.array([1.0, np.nan]), "NaN or infinities"),
        ("a.txt", b"\xff\xfe\x00", "no text in UTF-8"),
        ("a.txt", b"one", "has 1 words; at least 2"),
    ],
)
def test_files_that_are_refused(name, content, words, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content)
    with pytest.raises(ValueError, match=f"Study: file='{name}'.*{words}"):
        example_of_file(path, owner="Study")


def test_no_file_and_no_words(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Study: file='.*none' does not exist"):
        example_of_file(tmp_path / "none", owner="Study")
    with pytest.raises(ValueError, match="takes images of digits, not a text"):
        encoder_of("digits", {}, "Study")
