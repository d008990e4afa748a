import numpy as np

from pdejax.data import digits


def test_load():
    values, labels = digits.load()
    assert values.shape == (1797, 64) and values.dtype == np.float32
    assert labels.shape == (1797,) and labels.dtype == np.int32
    assert values.min() == 0.0 and values.max() == 1.0
    # Sixteenths, exactly.
    np.testing.assert_array_equal(values * 16, np.round(values * 16))
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_pixels_are_in_reading_order():
    values, labels = digits.load()
    # The first image is a zero: dark in the middle, bright around it, blank at both sides.
    image = values[0].reshape(8, 8)
    assert labels[0] == 0
    assert image[:, 0].sum() == 0 and image[:, 7].sum() == 0
    assert image[3:5, 3].max() < 0.2 < image[3:5, 2].min()
