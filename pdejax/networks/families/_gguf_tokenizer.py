"""The tokenizer in the metadata of a GGUF file: byte-level BPE, built with the package `tokenizers`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from pdejax.networks.families._checkpoint import fault

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How text is cut into words before BPE, by the name in the metadata: a pattern, or whether every digit is a word of its own.
_PATTERNS: dict[str, str | bool] = {
    "gpt-2": False,
    "smollm": True,
    "llama-bpe": _LLAMA3,
    "qwen2": _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),
}
_CONTROL, _USER_DEFINED = 3, 4


def tokenizer_of(where: str, metadata: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return a function that makes the tokenizer, or None where it is of a kind that is not built here."""
    known = metadata.get("tokenizer.ggml.model") == "gpt2" and metadata.get("tokenizer.ggml.pre") in _PATTERNS
    return functools.partial(_byte_level, where, metadata) if known else None


def _byte_level(where: str, metadata: Mapping[str, Any]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    words, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges")
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(words or ())
    if not words or merges is None or len(kinds) != len(words):
        raise fault(where, "the tokenizer in its metadata is not whole: it needs tokens, their types and merges.")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    try:
        made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, pairs, fuse_unk=False))
    except Exception as error:  # the package raises plain ones
        raise fault(where, f"the tokenizer in its metadata is damaged ({error}).") from None
    pattern = _PATTERNS[metadata["tokenizer.ggml.pre"]]
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=isinstance(pattern, bool))
    first: list[Any] = []
    if isinstance(pattern, str):
        first = [pre_tokenizers.Split(Regex(pattern), "isolated")]
    elif pattern:
        first = [pre_tokenizers.Digits(individual_digits=True)]
    made.pre_tokenizer = pre_tokenizers.Sequence([*first, bytes_of_words])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(
        [
            AddedToken(word, special=True, normalized=False)
            for word, kind in zip(words, kinds, strict=True)
            if kind == _CONTROL
        ]
    )
    made.add_tokens(
        [AddedToken(word, normalized=False) for word, kind in zip(words, kinds, strict=True) if kind == _USER_DEFINED]
    )
    begin = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token") and isinstance(begin, int) and begin < len(words):
        made.post_processor = processors.TemplateProcessing(
            single=f"{words[begin]} $A", pair=f"{words[begin]} $A $B", special_tokens=[(words[begin], begin)]
        )
    return made
