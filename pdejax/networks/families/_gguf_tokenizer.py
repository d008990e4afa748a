"""The tokenizer in the metadata of a GGUF file: byte-level BPE, built with the package `tokenizers`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from pdejax.networks.families._checkpoint import fault

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What one name in the metadata stands for.

    - `pattern`: how text is cut into words before BPE, that of GPT-2 where there is none. `digits`: each is a word of its own.
    - `whole`: a word that is in the vocabulary stays whole, whatever its merges. `begins`: a text begins with the token of the
      beginning where the metadata does not say. `composed`: text is brought to the composed form of Unicode, NFC.
    """

    pattern: str | None = None
    digits: bool = False
    whole: bool = False
    begins: bool = False
    composed: bool = False


_KINDS = {
    "gpt-2": _Kind(),
    "smollm": _Kind(digits=True),
    "llama-bpe": _Kind(_LLAMA3, whole=True, begins=True),
    "qwen2": _Kind(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"), composed=True),
}
_CONTROL, _USER_DEFINED = 3, 4
_PREFIX = "tokenizer.ggml."


def tokenizer_of(where: str, metadata: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return a function that makes the tokenizer, or None where it is of a kind that is not built here."""
    name = metadata.get(f"{_PREFIX}pre")
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None or metadata.get(f"{_PREFIX}model") != "gpt2":
        return None
    return functools.partial(_byte_level, where, metadata, kind)


def _byte_level(where: str, metadata: Mapping[str, Any], kind: _Kind) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    words, types, pairs = _vocabulary(where, metadata)
    vocab = {word: i for i, word in enumerate(words)}
    try:
        made = Tokenizer(models.BPE(vocab, pairs, fuse_unk=False, ignore_merges=kind.whole))
    except Exception as error:  # the package raises plain ones
        raise fault(where, f"the tokenizer in its metadata is damaged ({error}).") from None
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind.pattern is None)
    first: list[Any] = [] if kind.pattern is None else [pre_tokenizers.Split(Regex(kind.pattern), "isolated")]
    if kind.digits:
        first.append(pre_tokenizers.Digits(individual_digits=True))
    made.pre_tokenizer = pre_tokenizers.Sequence([*first, bytes_of_words])
    if kind.composed:
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    typed = list(zip(words, types, strict=True))
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word, t in typed if t == _CONTROL])
    made.add_tokens([AddedToken(word, normalized=False) for word, t in typed if t == _USER_DEFINED])
    ends = _ends(where, metadata, words, kind)
    if ends is not None:
        made.post_processor = ends
    return made


def _vocabulary(where: str, metadata: Mapping[str, Any]) -> tuple[list[str], list[int], list[tuple[str, str]]]:
    """Words, their types and merges; refused unless they are such lists."""

    def values(name: str, of: type, default: Any = None) -> list[Any]:
        found = metadata.get(f"{_PREFIX}{name}", default)
        if not isinstance(found, list) or not all(type(one) is of for one in found):
            raise fault(
                where, f"the tokenizer in its metadata is not whole: {_PREFIX}{name} is no list of {_WORDS_OF[of]}."
            )
        return found

    words, merges = values("tokens", str), values("merges", str)
    types = values("token_type", int, [1] * len(words))
    if not words or len(types) != len(words) or len(set(words)) != len(words):
        raise fault(
            where,
            f"the tokenizer in its metadata is not whole: {len(words)} tokens, {len(set(words))} of them different, and "
            f"{len(types)} types.",
        )
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise fault(where, f"the tokenizer in its metadata is damaged: a merge in {_PREFIX}merges is no pair of words.")
    return words, types, pairs


_WORDS_OF = {str: "words", int: "numbers"}


def _ends(where: str, metadata: Mapping[str, Any], words: list[str], kind: _Kind) -> Any:
    """What puts tokens before and after a text, or None."""
    from tokenizers.processors import TemplateProcessing

    known: list[Any] = []
    around: dict[str, list[str]] = {}
    for name, default in (("bos", kind.begins), ("eos", False)):
        added = metadata.get(f"{_PREFIX}add_{name}_token", default)
        if type(added) is not bool:
            raise fault(where, f"{_PREFIX}add_{name}_token={added!r}; it must be true or false.")
        around[name] = [name] if added else []
        if added:
            place = metadata.get(f"{_PREFIX}{name}_token_id")
            if type(place) is not int or not 0 <= place < len(words):
                raise fault(where, f"{_PREFIX}{name}_token_id={place!r} is none of {len(words)} tokens.")
            known.append({"id": name, "ids": [place], "tokens": [words[place]]})
    if not known:
        return None
    one, two = ([*around["bos"], f"${x}", *around["eos"]] for x in "AB")
    return TemplateProcessing(single=one, pair=[*one, *(f"{x}:1" for x in two)], special_tokens=known)
