"""The digits bundled with scikit-learn as three splits."""

import numpy as np

from pdejax._check import integer
from pdejax.data._batches import permutation
from pdejax.data._dataset import Dataset
from pdejax.data._images import check_form, sequences
from pdejax.data.digits import load as load_digits

_SIZES = {"train": 1257, "validation": 180, "test": 360}


def load_split(
    split: str, *, form: str = "pixels", patch: int | None = None, seed: int = 0, limit: int | None = None
) -> Dataset:
    """See `load`. The set has no splits of its own: they are cut from one order that `seed` determines."""
    patch = check_form(form, patch, 8, 4)
    values, labels = load_digits()
    order = permutation(len(labels), integer("load", "seed", seed, 0, 2**64 - 1), 0)
    start = 0
    for name, size in _SIZES.items():
        if name == split:
            order = order[start : start + size][:limit]
            break
        start += size
    images = np.round(values[order] * 16).astype(np.uint8).reshape(-1, 8, 8)
    inputs = sequences(images, patch)
    return Dataset(
        name="digits",
        split=split,
        values=inputs,
        divisor=16,
        mask=np.broadcast_to(True, inputs.shape[:2]),
        labels=labels[order],
        classes=tuple(str(digit) for digit in range(10)),
        source="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, doi:10.24432/C50P49, as bundled "
        "with scikit-learn",
        license="CC BY 4.0",
    )
