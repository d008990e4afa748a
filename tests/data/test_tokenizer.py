import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdejax.data import Tokenizer

TEXTS = ("The cat saw the dog. The dog ran!", "Don't run, dog", "A cat's 2 lives: 2 -- 3?")


def test_most_frequent_words_first_then_the_alphabet():
    tokenizer = Tokenizer.train(TEXTS, 100)
    words = ["the", "dog", "2", "!", ".", "3", "?", "a", "cat", "cat's", "don't", "lives", "ran", "run", "saw"]
    # the and dog three times each: the alphabet decides.
    words[:2] = ["dog", "the"]
    assert tokenizer.words == ("<pad>", "<unknown>", *words)
    assert Tokenizer.train(TEXTS, 5).words == tokenizer.words[:5]
    assert Tokenizer.train(TEXTS[::-1], 100) == tokenizer


def test_encode():
    tokenizer = Tokenizer.train(TEXTS, 5)
    assert tokenizer.words == ("<pad>", "<unknown>", "dog", "the", "2")
    assert tokenizer.encode("THE big dog, 2") == [3, 1, 2, 4]
    # The two special words cannot be written.
    assert tokenizer.encode("<pad> <unknown>") == [1, 1]
    assert tokenizer.decode([3, 1, 2, 4, 0, 0]) == "the <unknown> dog 2"


def test_encode_all_keeps_the_first_words():
    tokenizer = Tokenizer.train(TEXTS, 5)
    rows = tokenizer.encode_all(["the dog the", "--", "2", ""], 2)
    assert rows.tolist() == [[3, 2], [1, 0], [4, 0], [1, 0]]
    assert rows.dtype == np.uint8
    large = Tokenizer(("<pad>", "<unknown>", *(f"w{i}" for i in range(300))))
    assert large.encode_all(["w299"], 1).tolist() == [[301]]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(), min_size=1), st.integers(3, 50))
def test_any_text(texts, size):
    tokenizer = Tokenizer.train(texts, size)
    assert len(tokenizer) <= size
    for text in texts:
        ids = tokenizer.encode(text)
        assert all(1 <= i < len(tokenizer) for i in ids)
        # Known words survive, the rest is unknown: decoding again gives the same ids.
        assert [i for i in tokenizer.encode(tokenizer.decode(ids)) if i != 1] == [i for i in ids if i != 1]


def test_save_and_load(tmp_path):
    tokenizer = Tokenizer.train((*TEXTS, "façade ÿ"), 100)
    path = tmp_path / "words.json"
    tokenizer.save(path)
    again = Tokenizer.load(path)
    assert again == tokenizer and again.fingerprint == tokenizer.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["words.json"]
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["words"][:2] == ["<pad>", "<unknown>"] and "façade" in content["words"]


def test_load_refuses(tmp_path):
    path = tmp_path / "words.json"
    Tokenizer.train(TEXTS, 100).save(path)
    good = json.loads(path.read_text())

    def refused(content, message):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(ValueError, match=message):
            Tokenizer.load(path)

    refused(path.read_text()[:50], "is not a vocabulary")
    refused(["a"], "is not a vocabulary: its format")
    refused(good | {"format": "other"}, "its format must be 'pdejax vocabulary 1'")
    refused(good | {"words": "abc"}, "must be a list of strings")
    refused(good | {"words": good["words"][:-1]}, "wrong vocabulary")
    refused(good | {"words": good["words"][1:]}, "words must begin with '<pad>', '<unknown>'")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(path)


def test_wrong_vocabulary():
    tokenizer = Tokenizer.train(TEXTS, 8)
    tokenizer.check(tokenizer.words)
    with pytest.raises(ValueError, match="wrong vocabulary: 8 words here, 5 there"):
        tokenizer.check(Tokenizer.train(TEXTS, 5).words)
    with pytest.raises(ValueError, match="id 2 is 'dog' here and 'x' there"):
        tokenizer.check(("<pad>", "<unknown>", "x", *tokenizer.words[3:]))
    with pytest.raises(ValueError, match="the data have none"):
        tokenizer.check(None)
    with pytest.raises(ValueError, match=r"ids must be in \[0, 7\], got 8"):
        tokenizer.decode([3, 8])


def test_words_must_differ():
    with pytest.raises(ValueError, match="holds 'a' twice"):
        Tokenizer(("<pad>", "<unknown>", "a", "b", "a"))
    with pytest.raises(ValueError, match=r"vocabulary_size=.* must be an integer of at least 3"):
        Tokenizer.train(TEXTS, 2)
