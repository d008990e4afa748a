"""Handwritten digits, 8 by 8 pixels, without a download."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32


class Digits(NamedTuple):
    """1797 images as sequences of 64 pixels, row by row, in [0, 1], and their classes 0 to 9."""

    values: Float32[np.ndarray, "count pixels"]
    labels: Int32[np.ndarray, " count"]


def load() -> Digits:
    """Return the digits of `sklearn.datasets.load_digits`: values `(1797, 64)`, labels `(1797,)`.

    Pixels are counts 0 to 16 divided by 16, exact in float32. Good for tests and first runs, too easy for
    claims, and not MNIST. One image `values[i]` is an input of a `Transformer` with `inputs=1`.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, doi:10.24432/C50P49.
    """
    # Imported here because it takes seconds.
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    return Digits(np.asarray(values / 16.0, dtype=np.float32), np.asarray(labels, dtype=np.int32))
