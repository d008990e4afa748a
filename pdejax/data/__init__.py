"""Data as NumPy arrays in memory: `listops`, generated, and `digits`, bundled with scikit-learn."""

from pdejax.data import _digits as digits
from pdejax.data import _listops as listops

__all__ = ["digits", "listops"]
