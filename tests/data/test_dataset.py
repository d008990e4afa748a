import numpy as np
import pytest

from pdejax.data import Dataset


def make(**changes):
    tokens = np.array([[1, 2, 3], [4, 5, 0], [6, 0, 0], [7, 8, 9]], dtype=np.uint8)
    given = {
        "name": "toy",
        "split": "train",
        "tokens": tokens,
        "mask": tokens != 0,
        "labels": np.array([0, 1, 1, 0]),
        "classes": ("no", "yes"),
        "source": "here",
        "license": "none",
        "texts": ("a", "b", "c", "d"),
    }
    return Dataset(**(given | changes))


def pixels(**changes):
    values = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    return make(tokens=None, values=values, mask=np.broadcast_to(True, (4, 3)), divisor=10, texts=None, **changes)


def test_take_widens():
    batch = make().take([2, 0, 2])
    assert batch.inputs.dtype == batch.labels.dtype == np.int32 and batch.mask.dtype == bool
    assert batch.inputs.tolist() == [[6, 0, 0], [1, 2, 3], [6, 0, 0]]
    assert batch.mask.tolist() == [[True, False, False], [True] * 3, [True, False, False]]
    assert batch.labels.tolist() == [1, 0, 1]
    # A copy: changing a batch leaves the set alone.
    batch.inputs[:] = 0
    assert make().tokens.max() == 9


def test_values_are_divided_when_taken():
    data = pixels()
    assert data.values.dtype == np.uint8
    batch = data.take(np.array([3]))
    assert batch.inputs.dtype == np.float32 and batch.inputs.shape == (1, 3, 2)
    np.testing.assert_array_equal(batch.inputs[0], (np.arange(18, 24) / 10).astype(np.float32).reshape(3, 2))
    np.testing.assert_array_equal(data.inputs[3], batch.inputs[0])
    assert (data.length, data.features, make().features) == (3, 2, None)


def test_subset():
    data = make().subset([3, 1])
    assert len(data) == 2 and data.texts == ("d", "b") and data.labels.tolist() == [0, 1]
    assert data.tokens.tolist() == [[7, 8, 9], [4, 5, 0]]
    with pytest.raises(ValueError, match="empty"):
        make().subset([])


def test_batches_are_all_examples_once_in_order():
    found = list(make().batches(3))
    assert [len(batch.labels) for batch in found] == [3, 1]
    np.testing.assert_array_equal(np.concatenate([b.inputs for b in found]), make().inputs)
    with pytest.raises(ValueError, match=r"batch_size=.* must be an integer of at least 1"):
        make().batches(0)


def test_arrays_are_read_only():
    data = make()
    with pytest.raises(ValueError, match="read-only"):
        data.tokens[0, 0] = 5
    with pytest.raises(AttributeError):
        data.labels = data.labels


def test_fingerprint_tells_contents_apart():
    assert make().fingerprint == make().fingerprint
    others = [
        make().subset([1, 0, 2, 3]),
        make(labels=np.array([0, 1, 1, 1])),
        make(vocabulary=tuple("abcdefghij")),
        make(classes=("yes", "no")),
    ]
    assert len({data.fingerprint for data in (make(), *others)}) == 5


def test_repr_and_len():
    assert repr(make()) == "Dataset('toy', 'train': tokens 4 × 3, 2 classes)"
    assert len(pixels()) == 4


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tokens": None}, "either tokens or values"),
        ({"values": np.zeros((4, 3, 1))}, "either tokens or values"),
        ({"tokens": np.zeros((0, 3), np.uint8), "mask": np.zeros((0, 3), bool)}, "'train' of 'toy' is empty"),
        ({"tokens": np.zeros((4, 3))}, "tokens must be integers with 2 axes, got float64"),
        ({"mask": np.ones((4, 2), bool)}, r"mask has shape \(4, 2\)"),
        ({"labels": np.zeros(3, int)}, r"labels have shape \(3,\)"),
        ({"labels": np.zeros(4)}, "labels must be integers"),
        ({"labels": np.array([0, 1, 2, 0])}, "labels go from 0 to 2"),
        ({"labels": np.array([0, -1, 1, 0])}, "labels go from -1 to 1"),
        ({"vocabulary": ("a", "b")}, "wrong vocabulary: tokens go up to 9"),
        ({"texts": ("a",)}, "texts has 1 entries"),
    ],
)
def test_arrays_must_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_mask_is_of_booleans():
    with pytest.raises(TypeError, match=r"mask=an array of shape .* must be an array of booleans"):
        make(mask=np.ones((4, 3)))


@pytest.mark.parametrize(
    "indices, error, message",
    [
        ([4], IndexError, r"index 4 is not in \[0, 4\)"),
        ([-1], IndexError, "index -1"),
        ([0.5], TypeError, "sequence of integers"),
        ([True, False], TypeError, "sequence of integers"),
        (3, TypeError, "sequence of integers"),
    ],
)
def test_take_refuses(indices, error, message):
    with pytest.raises(error, match=message):
        make().take(indices)
