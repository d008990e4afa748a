"""Text to tokens by the tokenizer of a checkpoint."""

from typing import Any

import numpy as np

from pdejax._arguments import checked


class Tokenizer:
    """A checkpoint's tokenizer: `tokens = tokenizer(text)`, `text = tokenizer.text(tokens)`.

    It adds what the checkpoint's file says (such as `[CLS]` and `[SEP]`); padding and truncation in that file are turned off.

    - `tokenizer`: a `tokenizers.Tokenizer`. `longest`: as many tokens as the network takes. `types`: whether pairs of texts are
      marked by token types.
    """

    def __init__(self, tokenizer: Any, longest: int, types: bool = False):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer, self.longest, self.types = tokenizer, longest, types

    @checked
    def __call__(self, text: str, pair: str | None = None) -> np.ndarray:
        """Return the ids `(n,)` of a text; of two texts, where the network has token types, ids and types `(n, 2)`.

        Raises `ValueError` for a text that is empty or has more tokens than the network takes.
        """
        owner = "tokenize"
        for name, value in (("text", text), ("pair", "x" if pair is None else pair)):
            if not value.strip():
                raise ValueError(f"{owner}: {name} is empty; give at least one word.")
        found = self.tokenizer.encode(text) if pair is None else self.tokenizer.encode(text, pair)
        ids = np.asarray(found.ids, np.int32)
        if not len(ids):
            raise ValueError(f"{owner}: the tokenizer finds no token in text={text[:40]!r}.")
        if len(ids) > self.longest:
            raise ValueError(
                f"{owner}: text has {len(ids)} tokens, and this network takes at most {self.longest}; shorten it, or cut it into "
                "pieces."
            )
        return np.stack([ids, np.asarray(found.type_ids, np.int32)], axis=1) if pair is not None and self.types else ids

    @checked
    def text(self, tokens: Any) -> str:
        """Return the text of ids `(n,)`, without what marks begin and end."""
        return self.tokenizer.decode([int(i) for i in np.asarray(tokens).ravel()])

    def __repr__(self) -> str:
        return f"Tokenizer of {self.tokenizer.get_vocab_size()} tokens"
