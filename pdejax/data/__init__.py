"""Data as NumPy arrays in memory: `load` gives a split of a set by name, `Batches` feeds it to training.

`listops`, generated, and `digits`, bundled with scikit-learn, need no download.
"""

from typing import TYPE_CHECKING

from pdejax._lazy import attach

if TYPE_CHECKING:
    from pdejax.data import digits as digits
    from pdejax.data import listops as listops
    from pdejax.data._baselines import majority_accuracy as majority_accuracy
    from pdejax.data._baselines import root_operator_accuracy as root_operator_accuracy
    from pdejax.data._baselines import tfidf_accuracy as tfidf_accuracy
    from pdejax.data._dataset import Batch as Batch
    from pdejax.data._dataset import Batches as Batches
    from pdejax.data._dataset import Dataset as Dataset
    from pdejax.data._load import load as load
    from pdejax.data._load import prepare as prepare
    from pdejax.data._tokenizer import Tokenizer as Tokenizer
else:
    __getattr__, __dir__ = attach(__name__)
