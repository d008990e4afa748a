"""Data sets by name."""

import inspect
from collections.abc import Callable
from typing import Any

from pdejax._arguments import checked
from pdejax._check import choice, integer
from pdejax.data import _images, _listops, _newsgroups
from pdejax.data._dataset import Dataset
from pdejax.data._prepare import SPLITS

_SETS: dict[str, Callable[..., Dataset]] = {
    "listops": _listops.load_split,
    "mnist": _images.mnist_split,
    "newsgroups": _newsgroups.load_split,
    "digits": _images.digits_split,
}

_FILES: dict[str, Callable[..., Any]] = {
    "listops": _listops.prepare,
    "mnist": _images.prepare,
    "newsgroups": _newsgroups.prepare,
}


@checked
def load(name: str, split: str, *, limit: int | None = None, **options: Any) -> Dataset:
    """Return a split of a data set, as arrays in memory.

    | `name`       | examples (train, validation, test) | inputs                                   | classes |
    |--------------|------------------------------------|------------------------------------------|---------|
    | `listops`    | 96,000, 2,000, 2,000, generated    | tokens of nested list operations         | 10      |
    | `digits`     | 1,257, 180, 360, no download       | 8 × 8 pixels, one by one or in patches   | 10      |
    | `mnist`      | 55,000, 5,000, 10,000              | 28 × 28 pixels, one by one or in patches | 10      |
    | `newsgroups` | 10,183, 1,131, 7,532               | words of documents                       | 20      |

    The test split is the set's own. Where it has no validation split, one is drawn from its training split.

    **Arguments**

    - `name`, `split`: from the table; `"train"`, `"validation"` or `"test"`.
    - `limit`: only the first examples.
    - `options`, by name:
        - `listops`: `lengths` (`"short"`, tokens 10 to 200, `"l1000"`, 500 to 1000, or `"l2000"`, 500 to 2000, both ends
          excluded), or `min_length` and `max_length`; `sizes`, three numbers; `seed`; `max_depth`, `max_args`;
          `prepared`: keep the set in files (`True`) or generate it anew each time (`False`; the default without
          `data_dir`, while the set has at most 20 million places for tokens); `data_dir`.
        - `digits`: `form` (`"pixels"`, a token for each, or `"patches"`), `patch` (side of a patch, default 4 of 8);
          `seed` of the splits.
        - `mnist`: the same with default `patch` 7 of 28; `validation`, how many; `seed` of that choice; `data_dir`,
          `manual_dir`, `download`.
        - `newsgroups`: `remove` (of `"headers"`, `"footers"`, `"quotes"`; all three by default); `task`
          (`"classification"`, or `"lm"`, where labels are the next tokens); `length`, most tokens of a document (256), the
          first ones; `vocabulary_size` (10,000), or `vocabulary`, a `Tokenizer` or its file; `validation`, `seed`,
          `data_dir`, `manual_dir`, `download`.
        - `data_dir`: where prepared sets are kept; default `$PDEJAX_DATA`, `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
        - `manual_dir`: a folder with the original archives, to be used instead of a download.
        - `download`: `True` tries for minutes, `False` never; by default the server is first asked whether it is there.

    Raises `ValueError` for unknown names, splits and options, an empty split, and an archive whose checksum is wrong, and
    `FileNotFoundError` when a set is neither prepared nor found, naming the files and where to put them.
    """
    loader = _SETS[choice("load", "name", name, _SETS)]
    choice("load", "split", split, SPLITS)
    _check_options(name, loader, options)
    if limit is not None:
        limit = integer("load", "limit", limit, 1)
    return loader(split, limit=limit, **options)


@checked
def prepare(name: str, **options: Any) -> Any:
    """Return the builder of TensorFlow Datasets for `"listops"`, `"mnist"` or `"newsgroups"`, its files written if they are not.

    For use without [`load`][pdejax.data.load], which does this by itself: `prepare("listops", lengths="l2000")`, then
    `.as_data_source("train")`. The files are array_record files, all or none of them, and the same on every run.

    **Arguments**: of the options of `load`, those that determine the files: for `listops` all but `prepared`, for
    `newsgroups` `remove`, and for all `data_dir`, `manual_dir`, `download`. Raises as `load`.
    """
    make = _FILES[choice("load", "name", name, _FILES)]
    _check_options(name, make, options)
    return make(**options)


def _check_options(name: str, function: Callable[..., Any], options: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    allowed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "limit"]
    for option in options:
        choice("load", f"option of {name!r}", option, allowed)
