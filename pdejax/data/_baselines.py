"""What can be reached without a Transformer: every report prints these beside its accuracy."""

import numpy as np
from jaxtyping import Integer

from pdejax._arguments import checked
from pdejax.data._dataset import Dataset
from pdejax.data.listops import ListOps


@checked
def majority_accuracy(train: Dataset | ListOps, test: Dataset | ListOps) -> float:
    """Return accuracy on `test` of the class most frequent in `train`; 17.0 % for ListOps of 500 to 2000 tokens."""
    return _accuracy(
        np.zeros(len(_labels(train)), int), _labels(train), np.zeros(len(_labels(test)), int), _labels(test)
    )


@checked
def root_operator_accuracy(train: Dataset | ListOps, test: Dataset | ListOps) -> float:
    """Return accuracy on `test` of the class most frequent in `train` under the same first token, for ListOps the root operator.

    36.3 % for ListOps of 500 to 2000 tokens: as much as published for Transformers (arXiv:2011.04006, table 1), so that
    only what exceeds it shows that a model computes.

    Raises `ValueError` for sets without tokens.
    """
    for name, data in (("train", train), ("test", test)):
        if data.tokens is None:
            raise ValueError(f"{name} has no tokens, so no root operator: use ListOps")
    assert train.tokens is not None and test.tokens is not None
    return _accuracy(train.tokens[:, 0], _labels(train), test.tokens[:, 0], _labels(test))


@checked
def tfidf_accuracy(train: Dataset, test: Dataset) -> float:
    """Return accuracy on `test` of logistic regression on the TF-IDF of words, fitted to `train`, on the same texts.

    scikit-learn's `TfidfVectorizer` with sublinear counts, words in two documents or more and no stop words, then
    `LogisticRegression` with C = 10: a few seconds. 69 % for posts without headers, footers and quotes.

    Raises `ValueError` for sets without texts.
    """
    for name, data in (("train", train), ("test", test)):
        if data.texts is None or data.labels.ndim != 1:
            raise ValueError(f"{name} has no texts with classes: use load('newsgroups', ...)")
    # Imported here because it takes seconds.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(sublinear_tf=True, min_df=2, max_df=0.5, stop_words="english")
    model = LogisticRegression(C=10.0, solver="saga", tol=0.01, random_state=0)
    model.fit(words.fit_transform(train.texts), train.labels)
    return float(model.score(words.transform(test.texts), test.labels))


def _labels(data: Dataset | ListOps) -> Integer[np.ndarray, " count"]:
    if data.labels.ndim != 1:
        raise ValueError(f"labels have shape {data.labels.shape}; a baseline needs one class for each example")
    return data.labels


def _accuracy(keys: np.ndarray, labels: np.ndarray, test_keys: np.ndarray, test_labels: np.ndarray) -> float:
    """Of guessing the most frequent label of the key, or of all for a key that is new."""
    overall = np.bincount(labels).argmax()
    guesses = {key: np.bincount(labels[keys == key]).argmax() for key in np.unique(keys)}
    guessed = np.array([guesses.get(key, overall) for key in test_keys])
    return float(np.mean(guessed == test_labels))
