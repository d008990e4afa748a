"""Data as NumPy arrays in memory: `load` gives a split of a set by name, `Batches` feeds it to training.

`listops`, generated, and `digits`, bundled with scikit-learn, need no download.
"""

from pdejax.data import _digits as digits
from pdejax.data import _listops as listops
from pdejax.data._baselines import majority_accuracy, root_operator_accuracy, tfidf_accuracy
from pdejax.data._batch import Batch
from pdejax.data._batches import Batches
from pdejax.data._dataset import Dataset
from pdejax.data._load import load, prepare
from pdejax.data._tokenizer import Tokenizer

__all__ = [
    "Batch",
    "Batches",
    "Dataset",
    "Tokenizer",
    "digits",
    "listops",
    "load",
    "majority_accuracy",
    "prepare",
    "root_operator_accuracy",
    "tfidf_accuracy",
]
