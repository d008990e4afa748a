"""ListOps, the variant of the Long Range Arena: nested list operations whose value is a digit.

An expression such as `[MAX 3 [SM 4 5 ] 9 ]` is a sequence of tokens, each operator with its bracket being
one. Its value, 0 to 9, is the label. Operators: MIN, MAX, MED (the median, rounded down), SM (the sum modulo
10).

Sources: Nangia and Bowman, arXiv:1804.06028; Tay et al., arXiv:2011.04006.
"""

import operator
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Bool, Int32, Integer

from pdejax._check import integer

VOCABULARY = ("<pad>", *(str(digit) for digit in range(10)), "[MIN", "[MAX", "[MED", "[SM", "]")
"""The 16 tokens; a token's id is its place. 0 is padding."""

_IDS = {token: i for i, token in enumerate(VOCABULARY)}
_ZERO, _FIRST_OPERATOR, _CLOSE = _IDS["0"], _IDS["[MIN"], _IDS["]"]
_OPERATOR_PROBABILITY = 0.25

Expression = int | tuple[str, tuple[Any, ...]]
"""A digit, or an operator's name and its arguments, which are expressions."""


class ListOps(NamedTuple):
    """Expressions as token ids padded with 0, with a mask true at tokens, their values and their lengths."""

    tokens: Int32[np.ndarray, "count length"]
    mask: Bool[np.ndarray, "count length"]
    labels: Int32[np.ndarray, " count"]
    lengths: Int32[np.ndarray, " count"]


def generate(
    count: SupportsIndex,
    *,
    min_length: SupportsIndex,
    max_length: SupportsIndex,
    seed: SupportsIndex,
    max_depth: SupportsIndex = 10,
    max_args: SupportsIndex = 10,
) -> ListOps:
    """Return `count` different expressions with `min_length < length < max_length`, both strict.

    A tree is drawn from the root, at depth 1: a node at a depth less than `max_depth` is a uniform digit with
    probability 0.75, else an operator, uniform of four, with 2 to `max_args` arguments, uniform; a node at
    `max_depth` is a digit. The length is the number of digits plus twice the number of operators. A tree is
    kept if its length is in range and it is new. The Long Range Arena takes lengths 500 to 2000, where 8.3 %
    of the trees are kept; there the largest class has 17.0 % of the examples, and guessing by the root
    operator alone is right for 36.3 %.

    The same arguments give the same arrays on every platform, and a smaller `count` gives the first of them.
    For several splits without common examples, use [`load`][pdejax.data.load].

    **Arguments**

    - `count`: number of expressions.
    - `min_length`, `max_length`: bounds on the number of tokens. Rows are padded to `max_length`, never
      truncated.
    - `seed`: an integer, not negative.
    - `max_depth`, `max_args`: deepest level and largest number of arguments.

    **Returns**: `ListOps` with `tokens`, `mask` `(count, max_length)` and `labels`, `lengths` `(count,)`.

    Raises `ValueError` for bounds that no expression meets and when new expressions become too rare to find.
    """
    count, seed = integer("listops", "count", count, 1), integer("listops", "seed", seed, 0)
    source = Expressions(min_length, max_length, max_depth, max_args)
    tokens = np.zeros((count, source.max_length), dtype=np.int32)
    labels = np.zeros(count, dtype=np.int32)
    for row, (key, value) in enumerate(source.stream(count, seed, set())):
        tokens[row, : len(key)], labels[row] = np.frombuffer(key, dtype=np.uint8), value
    mask = tokens != 0
    return ListOps(tokens, mask, labels, mask.sum(axis=1, dtype=np.int32))


class Expressions:
    """The expressions of one range of lengths; the arguments, and what they raise, are those of `generate`."""

    def __init__(
        self, min_length: SupportsIndex, max_length: SupportsIndex, max_depth: SupportsIndex, max_args: SupportsIndex
    ):
        self.min_length = integer("listops", "min_length", min_length, 0)
        self.max_length = integer("listops", "max_length", max_length, 1)
        self.max_depth = integer("listops", "max_depth", max_depth, 1)
        self.max_args = integer("listops", "max_args", max_args, 2)
        _check_lengths(self.min_length, self.max_length, self.max_depth, self.max_args)

    def stream(self, count: int, seed: int, seen: set[bytes]) -> Iterator[tuple[bytes, int]]:
        """`count` expressions that are not in `seen`, to which they are added: token ids as bytes, and the value.

        Raises `ValueError` when new expressions become too rare to find.
        """
        # Only Random.random is promised to give the same sequence in every Python version.
        uniform = random.Random(seed).random
        least, most, depth, args = self.min_length, self.max_length, self.max_depth, self.max_args
        found, failures, patience = 0, 0, 200_000
        while found < count:
            drawn = _tree(uniform, most, depth, args)
            if drawn is not None and len(drawn) > least and (key := bytes(drawn)) not in seen:
                seen.add(key)
                found += 1
                failures = 0
                yield key, _value(drawn)
                continue
            failures += 1
            if failures == patience:
                raise ValueError(
                    f"found {found} of count={count} different expressions with {least} < length < {most} "
                    f"(max_depth={depth}, max_args={args}), and none in {patience} further draws: widen "
                    "min_length and max_length, or lower count"
                )


def to_text(tokens: Integer[np.ndarray, " length"] | Sequence[int]) -> str:
    """Return one expression in words, `[MAX 3 [SM 4 5 ] 9 ]`; padding is left out.

    Raises `ValueError` for ids outside the vocabulary.
    """
    ids = [operator.index(i) for i in tokens]
    wrong = [i for i in ids if not 0 <= i < len(VOCABULARY)]
    if wrong:
        raise ValueError(f"tokens must be ids in [0, {len(VOCABULARY) - 1}], got {wrong[0]}")
    return " ".join(VOCABULARY[i] for i in ids if i != 0)


def to_tokens(text: str) -> Int32[np.ndarray, " length"]:
    """Return the token ids of an expression in words, the inverse of `to_text`.

    Raises `ValueError` for other words.
    """
    words = text.split()
    wrong = [word for word in words if word not in _IDS or word == VOCABULARY[0]]
    if wrong:
        raise ValueError(f"text: {wrong[0]!r} is not a ListOps token; use {', '.join(VOCABULARY[1:])}")
    return np.array([_IDS[word] for word in words], dtype=np.int32)


def parse(text: str) -> Expression:
    """Return the tree of an expression in words: `("MAX", (3, ("SM", (4, 5)), 9))`.

    Raises `ValueError` for text that is not exactly one complete expression.
    """
    words = [VOCABULARY[i] for i in to_tokens(text)]
    expression, end = _parse(words, 0)
    if end != len(words):
        raise ValueError(f"text: {' '.join(words[end:])!r} follows a complete expression")
    return expression


def evaluate(expression: Expression | str) -> int:
    """Return the value of an expression, as a tree or in words, by recursion over its definition."""
    if isinstance(expression, str):
        return evaluate(parse(expression))
    if isinstance(expression, int):
        return expression
    name, arguments = expression
    values = [evaluate(argument) for argument in arguments]
    if name == "MIN":
        return min(values)
    if name == "MAX":
        return max(values)
    if name == "MED":
        return int(statistics.median(values))
    if name == "SM":
        return sum(values) % 10
    raise ValueError(f"expression: unknown operator {name!r}; use MIN, MAX, MED or SM")


def _draw(uniform: Callable[[], float], max_length: int, max_depth: int, max_args: int) -> tuple[list[int], int] | None:
    """Tokens and value of one tree, or `None` as soon as it must reach `max_length`."""
    tokens = _tree(uniform, max_length, max_depth, max_args)
    return None if tokens is None else (tokens, _value(tokens))


def _tree(uniform: Callable[[], float], max_length: int, max_depth: int, max_args: int) -> list[int] | None:
    """Tokens of one tree. Most are thrown away for their length, so that this loop is most of the work."""
    if max_depth < 2 or uniform() >= _OPERATOR_PROBABILITY:
        return [_ZERO + int(10 * uniform())]
    tokens = [_FIRST_OPERATOR + int(4 * uniform())]
    spread, innermost = max_args - 1, max_depth - 1
    missing = 2 + int(spread * uniform())  # arguments of the innermost open operator
    outer: list[int] = []  # the same of those around it
    depth = 1
    room = max_length - 2 - missing  # what is left beside the tokens that must come
    while room > 0:
        if depth < innermost and uniform() < _OPERATOR_PROBABILITY:
            tokens.append(_FIRST_OPERATOR + int(4 * uniform()))
            outer.append(missing - 1)
            missing = 2 + int(spread * uniform())
            room -= missing + 1
            depth += 1
            continue
        tokens.append(_ZERO + int(10 * uniform()))
        missing -= 1
        while missing == 0:
            tokens.append(_CLOSE)
            if not outer:
                return tokens
            missing = outer.pop()
            depth -= 1
    return None


def _value(tokens: Sequence[int]) -> int:
    """The value of a complete expression."""
    stack: list[list[int]] = [[]]
    for token in tokens:
        if token >= _FIRST_OPERATOR and token != _CLOSE:
            stack.append([token])
            continue
        if token == _CLOSE:
            kind, *values = stack.pop()
            value = _apply(kind - _FIRST_OPERATOR, values)
        else:
            value = token - _ZERO
        stack[-1].append(value)
    return stack[0][0]


def _apply(kind: int, values: list[int]) -> int:
    if kind == 0:
        return min(values)
    if kind == 1:
        return max(values)
    if kind == 2:
        values.sort()
        middle = len(values) // 2
        return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) // 2
    return sum(values) % 10


def _parse(words: list[str], start: int) -> tuple[Expression, int]:
    if start == len(words):
        raise ValueError("text: the expression is not complete")
    word, at = words[start], start + 1
    if word == "]":
        raise ValueError(f"text: unexpected ']' at word {start}")
    if not word.startswith("["):
        return int(word), at
    arguments: list[Expression] = []
    while at < len(words) and words[at] != "]":
        argument, at = _parse(words, at)
        arguments.append(argument)
    if at == len(words):
        raise ValueError(f"text: {word!r} at word {start} is not closed")
    if not arguments:
        raise ValueError(f"text: {word!r} at word {start} has no arguments")
    return (word[1:], tuple(arguments)), at + 1


def _check_lengths(min_length: int, max_length: int, max_depth: int, max_args: int) -> None:
    shortest, longest = min_length + 1, max_length - 1
    if shortest > longest:
        raise ValueError(
            f"no length lies strictly between min_length={min_length} and max_length={max_length}: "
            "max_length must be at least min_length + 2"
        )
    # Lengths are 1 (a digit), then 4 (an operator on two digits) and more, up to the full tree.
    depth = min(max_depth, 64)  # deep enough for any length, and the powers stay small
    largest = max_args ** (depth - 1) + 2 * sum(max_args**level for level in range(depth - 1))
    if shortest > largest or (shortest > 1 and longest < 4):
        raise ValueError(
            f"no expression has {min_length} < length < {max_length} with max_depth={max_depth} and "
            f"max_args={max_args}: lengths are 1, or 4 to {largest}"
        )
