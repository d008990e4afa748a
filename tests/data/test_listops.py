import numpy as np
import pytest

from pdejax.data import listops
from pdejax.data.listops import _draw


@pytest.fixture(scope="module")
def short():
    return listops.generate(500, min_length=10, max_length=60, seed=3)


@pytest.fixture(scope="module")
def arena():
    return listops.generate(1000, min_length=500, max_length=2000, seed=0)


def texts(data):
    return [listops.to_text(row) for row in data.tokens]


def test_vocabulary_is_fixed():
    assert listops.VOCABULARY[0] == "<pad>"
    assert listops.VOCABULARY[1:11] == tuple("0123456789")
    assert listops.VOCABULARY[11:] == ("[MIN", "[MAX", "[MED", "[SM", "]")


def test_record(short):
    assert short.tokens.shape == short.mask.shape == (500, 60)
    assert short.tokens.dtype == short.labels.dtype == short.lengths.dtype == np.int32
    assert short.mask.dtype == bool
    assert short.lengths.min() > 10 and short.lengths.max() < 60
    columns = np.arange(60)
    np.testing.assert_array_equal(short.mask, columns[None] < short.lengths[:, None])
    np.testing.assert_array_equal(short.tokens > 0, short.mask)
    assert short.tokens.max() == 15


def test_bounds_are_strict_and_reached():
    data = listops.generate(400, min_length=10, max_length=14, seed=0)
    assert set(data.lengths.tolist()) == {11, 12, 13}


def test_labels_are_the_values_of_the_expressions(short):
    assert [listops.evaluate(text) for text in texts(short)] == short.labels.tolist()


def test_text_round_trip(short):
    for row, length, text in zip(short.tokens, short.lengths, texts(short), strict=True):
        np.testing.assert_array_equal(listops.to_tokens(text), row[:length])


@pytest.mark.parametrize(
    "text, value",
    [
        ("7", 7),
        ("[MIN 4 2 9 ]", 2),
        ("[MAX 4 2 9 ]", 9),
        ("[MED 9 1 4 ]", 4),
        ("[MED 2 9 ]", 5),
        ("[MED 9 1 4 6 ]", 5),
        ("[SM 9 9 5 ]", 3),
        ("[MAX 3 [SM 4 9 ] [MIN 8 [MED 6 7 ] ] ]", 6),
    ],
)
def test_evaluate_by_hand(text, value):
    assert listops.evaluate(text) == value


def test_parse():
    assert listops.parse("[MAX 3 [SM 4 5 ] 9 ]") == ("MAX", (3, ("SM", (4, 5)), 9))


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not complete"),
        ("[MAX 3 4", "not closed"),
        ("[MAX 3 4 ] 5", "follows"),
        ("[MAX ]", "no arguments"),
        ("] 3", "unexpected"),
        ("[MEAN 3 4 ]", "not a ListOps token"),
        ("<pad>", "not a ListOps token"),
    ],
)
def test_parse_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        listops.parse(text)


def test_no_duplicates(short):
    assert len(set(texts(short))) == 500
    # All ten single digits, each once: without the check this would repeat some.
    digits = listops.generate(10, min_length=0, max_length=2, seed=0)
    assert sorted(digits.labels.tolist()) == list(range(10))


def test_deterministic_with_a_stable_prefix(short):
    again = listops.generate(500, min_length=10, max_length=60, seed=3)
    for a, b in zip(short, again, strict=True):
        assert a.tobytes() == b.tobytes()
    fewer = listops.generate(100, min_length=10, max_length=60, seed=3)
    np.testing.assert_array_equal(fewer.tokens, short.tokens[:100])
    other = listops.generate(100, min_length=10, max_length=60, seed=4)
    assert not np.array_equal(other.tokens, fewer.tokens)


def test_depth_and_arguments_are_bounded():
    def shape(tree, level=1):
        if isinstance(tree, int):
            return level, 0
        parts = [shape(argument, level + 1) for argument in tree[1]]
        return max(p[0] for p in parts), max(len(tree[1]), *(p[1] for p in parts))

    data = listops.generate(300, min_length=4, max_length=40, seed=1, max_depth=3, max_args=4)
    shapes = [shape(listops.parse(text)) for text in texts(data)]
    assert max(s[0] for s in shapes) == 3
    assert {s[1] for s in shapes} == {2, 3, 4}


def test_draw_distribution():
    # A quarter of the roots are operators, uniform of four, with 2..10 uniform arguments.
    import random

    uniform, draws = random.Random(0).random, 20_000
    roots = [_draw(uniform, 10**9, 2, 10) for _ in range(draws)]
    operators = [tokens for tokens, _ in roots if len(tokens) > 1]
    assert abs(len(operators) / draws - 0.25) < 4 * np.sqrt(0.25 * 0.75 / draws)
    kinds = np.bincount([tokens[0] - 11 for tokens in operators], minlength=4) / len(operators)
    assert np.all(abs(kinds - 1 / 4) < 4 * np.sqrt(3 / 16 / len(operators)))
    arguments = np.bincount([len(tokens) - 2 for tokens in operators], minlength=11)[2:] / len(operators)
    assert arguments.shape == (9,)
    assert np.all(abs(arguments - 1 / 9) < 4 * np.sqrt(8 / 81 / len(operators)))
    digits = np.bincount([value for tokens, value in roots if len(tokens) == 1], minlength=10)
    assert np.all(abs(digits / digits.sum() - 0.1) < 4 * np.sqrt(0.09 / digits.sum()))


def test_early_stop_rejects_exactly_what_is_too_long():
    import random

    full, stopped = [], []
    for seed in range(300):
        full.append(_draw(random.Random(seed).random, 10**9, 10, 10))
        stopped.append(_draw(random.Random(seed).random, 60, 10, 10))
    assert [d is None for d in stopped] == [len(d[0]) >= 60 for d in full]
    assert all(s is None or s == f for s, f in zip(stopped, full, strict=True))


def test_arena_labels_and_baselines(arena):
    # Percent of each label at lengths 500 to 2000, from a larger independent sample.
    expected = np.array([17.0, 9.0, 7.7, 8.1, 9.1, 8.7, 8.0, 7.5, 8.2, 16.7]) / 100
    found = np.bincount(arena.labels, minlength=10) / 1000
    assert np.all(abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 1000))
    # Guessing the most frequent label of the root operator.
    right = sum(np.bincount(arena.labels[arena.tokens[:, 0] == root]).max() for root in range(11, 15))
    assert abs(right / 1000 - 0.363) < 4 * np.sqrt(0.363 * 0.637 / 1000)


def test_arena_values(arena):
    assert [listops.evaluate(text) for text in texts(arena)[:200]] == arena.labels[:200].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("longest, acceptance", [(2000, 0.0831), (1000, 0.0445)])
def test_arena_acceptance(longest, acceptance):
    import random

    uniform, draws = random.Random(1).random, 20_000
    kept = 0
    for _ in range(draws):
        drawn = _draw(uniform, longest, 10, 10)
        kept += drawn is not None and len(drawn[0]) > 500
    assert abs(kept / draws - acceptance) < 4 * np.sqrt(acceptance * (1 - acceptance) / draws)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"count": 0}, "count=.* must be an integer of at least 1"),
        ({"min_length": 60}, "strictly between"),
        ({"min_length": 59}, "strictly between"),
        ({"min_length": -1}, "min_length=.* must be an integer of at least 0"),
        ({"max_depth": 0}, "max_depth=.* must be an integer of at least 1"),
        ({"max_args": 1}, "max_args=.* must be an integer of at least 2"),
        ({"seed": -1}, "seed=.* must be an integer of at least 0"),
        ({"max_depth": 1}, "no expression has 10 < length < 60"),
        ({"max_depth": 2, "max_args": 3}, "lengths are 1, or 4 to 5"),
        ({"min_length": 1, "max_length": 4}, "no expression has 1 < length < 4"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"count": 5, "min_length": 10, "max_length": 60, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        listops.generate(**arguments)


def test_counts_must_be_integers():
    with pytest.raises(TypeError):
        listops.generate(2.5, min_length=10, max_length=60, seed=0)


def test_gives_up_when_there_are_too_few():
    with pytest.raises(ValueError, match="found 10 of count=11 different expressions"):
        listops.generate(11, min_length=0, max_length=2, seed=0)


def test_to_text_refuses_foreign_ids():
    with pytest.raises(ValueError, match=r"ids in \[0, 15\], got 16"):
        listops.to_text([3, 16])
