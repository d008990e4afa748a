"""Words as token ids."""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer

from pdejax._arguments import checked
from pdejax._check import integer
from pdejax.runs._files import whole_file

PAD, UNKNOWN = "<pad>", "<unknown>"
_FORMAT = "pdejax vocabulary 1"
# Letters and digits with apostrophes inside, and the ends of sentences. None of them contains < or >.
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[.!?]")


@checked
@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Lower-case words as ids: 0 is padding, 1 any word that is not in the vocabulary.

    A word is a run of letters and digits, with apostrophes inside, or one of `.`, `!`, `?`. All else separates words.

    - `words`: the vocabulary; a word's id is its place.

    Raises `ValueError` unless the first two are `<pad>` and `<unknown>` and all differ.
    """

    words: tuple[str, ...]

    def __post_init__(self):
        object.__setattr__(self, "words", tuple(self.words))
        if self.words[:2] != (PAD, UNKNOWN):
            raise ValueError(f"words must begin with {PAD!r}, {UNKNOWN!r}; got {self.words[:2]}")
        if len(set(self.words)) != len(self.words):
            twice = next(word for word, times in collections.Counter(self.words).items() if times > 1)
            raise ValueError(f"words holds {twice!r} twice")

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "Tokenizer":
        """Return the `size - 2` most frequent words of the texts, or fewer; of equals the first in the alphabet."""
        size = integer("Tokenizer", "vocabulary_size", size, 3)
        counts: collections.Counter[str] = collections.Counter()
        for text in texts:
            counts.update(split_words(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls((PAD, UNKNOWN, *ranked[: size - 2]))

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        return f"Tokenizer({len(self)} words, {self.fingerprint})"

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the words, the first 16 hexadecimal digits."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()[:16]

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word that a text can hold."""
        return {word: i for i, word in enumerate(self.words) if i > 1}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text's words."""
        ids = self.ids
        return [ids.get(word, 1) for word in split_words(text)]

    def encode_all(self, texts: Sequence[str], length: int) -> Integer[np.ndarray, "count {length}"]:
        """Return rows of the first `length` words of each text, padded with 0. A text without words is one unknown word."""
        length = integer("Tokenizer", "length", length, 1)
        rows = np.zeros((len(texts), length), dtype=np.min_scalar_type(len(self) - 1))
        for row, text in zip(rows, texts, strict=True):
            found = self.encode(text)[:length] or [1]
            row[: len(found)] = found
        return rows

    def decode(self, ids: Sequence[int] | Integer[np.ndarray, " n"]) -> str:
        """Return the words of these ids with spaces between, padding left out. Raises `ValueError` for other ids."""
        chosen = np.asarray(ids)
        wrong = chosen[(chosen < 0) | (chosen >= len(self))]
        if wrong.size:
            raise ValueError(
                f"ids must be in [0, {len(self) - 1}], got {wrong[0]}: were they made with another vocabulary?"
            )
        return " ".join(self.words[i] for i in chosen if i != 0)

    def check(self, vocabulary: Sequence[str] | None) -> None:
        """Raise `ValueError` unless `vocabulary`, of a data set or of a model, is this one."""
        if vocabulary is None:
            raise ValueError("wrong vocabulary: the data have none, so they are not the words of this tokenizer")
        other = tuple(vocabulary)
        if other != self.words:
            pairs = zip(self.words, other, strict=False)
            differ = next((f"id {i} is {a!r} here and {b!r} there" for i, (a, b) in enumerate(pairs) if a != b), "")
            raise ValueError(
                f"wrong vocabulary: {len(self)} words here, {len(other)} there{'; ' * bool(differ)}{differ}. Load the data "
                "with vocabulary= the tokenizer that the model was trained with"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, whole or not at all."""
        content = {"format": _FORMAT, "fingerprint": self.fingerprint, "words": self.words}
        with whole_file(pathlib.Path(path)) as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=0).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read what `save` wrote. Raises `ValueError` for another or an altered file, `FileNotFoundError` for none."""
        try:
            content: Any = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not a vocabulary: {error}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"{path} is not a vocabulary: its format must be {_FORMAT!r}")
        words = content.get("words")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{path} is not a vocabulary: its words must be a list of strings")
        tokenizer = cls(tuple(words))
        if tokenizer.fingerprint != content.get("fingerprint"):
            raise ValueError(
                f"{path}: wrong vocabulary, its words do not have the fingerprint {content.get('fingerprint')}"
            )
        return tokenizer


def split_words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())
