import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdejax.data import Batches, Dataset
from pdejax.data._dataset import permutation


def numbered(count):
    """A set whose i-th example is the token i + 1."""
    tokens = np.arange(1, count + 1, dtype=np.uint32)[:, None]
    return Dataset(
        name="numbers",
        split="train",
        tokens=tokens,
        mask=tokens != 0,
        labels=np.arange(count),
        classes=tuple(map(str, range(count))),
        source="",
        license="",
    )


def taken(batches, steps):
    return [next(batches).labels.tolist() for _ in range(steps)]


@st.composite
def arrangements(draw):
    """Number of examples and the arguments of `Batches`, valid together."""
    processes = draw(st.integers(1, 4))
    size = processes * draw(st.integers(1, 5))
    drop_last = draw(st.booleans())
    count = size * draw(st.integers(1, 6)) + (draw(st.integers(0, size - 1)) if drop_last else 0)
    return (
        count,
        processes,
        {
            "batch_size": size,
            "seed": draw(st.integers(0, 2**64 - 1)),
            "shuffle": draw(st.booleans()),
            "drop_last": drop_last,
        },
    )


@settings(deadline=None, max_examples=60)
@given(arrangements())
def test_every_example_once_per_epoch(arrangement):
    count, _, options = arrangement
    batches = Batches(numbered(count), **options)
    for _ in range(3):
        seen = [label for batch in taken(batches, batches.per_epoch) for label in batch]
        assert len(seen) == len(set(seen)) == count - count % options["batch_size"]


@settings(deadline=None, max_examples=60)
@given(arrangements())
def test_processes_make_the_batch_of_one(arrangement):
    count, processes, options = arrangement
    data = numbered(count)
    one = Batches(data, **options)
    many = [Batches(data, **options, process_index=i, process_count=processes) for i in range(processes)]
    for whole in taken(one, 2 * one.per_epoch + 1):
        parts = [next(batches).labels.tolist() for batches in many]
        assert len({len(part) for part in parts}) == 1
        assert [label for part in parts for label in part] == whole
    assert all(batches.state() == one.state() for batches in many)


@settings(deadline=None, max_examples=60)
@given(arrangements(), st.integers(0, 40), st.integers(0, 40))
def test_after_restore_the_stream_is_the_same(arrangement, before, astray):
    count, processes, options = arrangement
    data = numbered(count)
    batches = Batches(data, **options)
    taken(batches, before)
    state = json.loads(json.dumps(batches.state()))
    expected = taken(batches, 25)
    other = Batches(data, **options)
    taken(other, astray)
    other.restore(state)
    assert taken(other, 25) == expected
    # Also on another number of processes.
    last = Batches(data, **options, process_index=processes - 1, process_count=processes)
    last.restore(state)
    share = [batch[len(batch) - len(batch) // processes :] for batch in expected]
    assert taken(last, 25) == share


def test_last_batch_is_smaller_or_left_out():
    full = Batches(numbered(10), 4, seed=0)
    assert full.per_epoch == 2 and [len(b) for b in taken(full, 4)] == [4, 4, 4, 4]
    ragged = Batches(numbered(10), 4, seed=0, drop_last=False)
    assert ragged.per_epoch == 3 and [len(b) for b in taken(ragged, 6)] == [4, 4, 2, 4, 4, 2]


def test_order_depends_on_seed_and_epoch():
    def order(seed, epoch):
        batches = Batches(numbered(50), 50, seed=seed)
        return taken(batches, epoch + 1)[-1]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4
    assert taken(Batches(numbered(6), 3, seed=0, shuffle=False), 3) == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]


def test_order_is_pinned():
    # What a checkpoint relies on: the same on every platform and version.
    assert permutation(10, 0, 0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert permutation(10, 2**64 - 1, 3).tolist() == [3, 2, 8, 0, 1, 6, 9, 5, 4, 7]


def test_order_is_uniform():
    # Each of the six orders of three examples, within four standard deviations.
    orders = [tuple(permutation(3, 5, epoch).tolist()) for epoch in range(6000)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts) < 4 * np.sqrt(6000 * 5 / 36)


def test_state_belongs_to_its_batches():
    data = numbered(20)
    state = Batches(data, 5, seed=1).state()
    with pytest.raises(ValueError, match="seed=1, here 2"):
        Batches(data, 5, seed=2).restore(state)
    with pytest.raises(ValueError, match="batch_size=5, here 4"):
        Batches(data, 4, seed=1).restore(state)
    with pytest.raises(ValueError, match="fingerprint"):
        Batches(data.subset(np.arange(20)[::-1]), 5, seed=1).restore(state)
    with pytest.raises(ValueError, match="lacks epoch"):
        Batches(data, 5, seed=1).restore({k: v for k, v in state.items() if k != "epoch"})
    with pytest.raises(ValueError, match="an epoch has 4 batches"):
        Batches(data, 5, seed=1).restore(state | {"step": 4})
    with pytest.raises(ValueError, match=r"epoch'\]=-1 must be an integer of at least 0"):
        Batches(data, 5, seed=1).restore(state | {"epoch": -1})


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"batch_size": 0}, ValueError, "batch_size=.* must be an integer of at least 1"),
        ({"batch_size": 2.0}, TypeError, "batch_size=.* must be an integer"),
        ({"batch_size": 11}, ValueError, "more than the 10 examples of 'train'"),
        ({"seed": -1}, ValueError, "seed=.* must be an integer in 0"),
        ({"seed": 2**64}, ValueError, "seed=.* must be an integer in 0"),
        ({"seed": None}, TypeError, "seed=.* must be an integer"),
        ({"process_count": 3}, ValueError, "not a multiple of process_count=3"),
        ({"process_index": 1}, ValueError, "process_index is 1"),
        ({"process_count": 4, "drop_last": False}, ValueError, "cannot be divided among process_count=4"),
    ],
)
def test_refuses(options, error, message):
    with pytest.raises(error, match=message):
        Batches(numbered(10), **({"batch_size": 4, "seed": 0} | options))
