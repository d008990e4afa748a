"""I(X; Y) by six estimators under one name."""

import inspect
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from pdejax._check import traced
from pdejax.analysis.information._binned import binned_information
from pdejax.analysis.information._club import CLUB
from pdejax.analysis.information._entropy import with_noise
from pdejax.analysis.information._estimate import InformationEstimate, record
from pdejax.analysis.information._exact_gaussian import gaussian_information
from pdejax.analysis.information._fit import fit
from pdejax.analysis.information._infonce import InfoNCE
from pdejax.analysis.information._kde import checked_noise, kde_information
from pdejax.analysis.information._ksg import ksg_information
from pdejax.analysis.information._samples import continuous, is_labels, labels, paired, standard

Estimator = Literal["ksg", "binned", "kde", "gaussian", "infonce", "club"]
TRAINED = ("infonce", "club")
_COUNTED = {"ksg": ksg_information, "binned": binned_information, "gaussian": gaussian_information}


def mutual_information(
    x: ArrayLike,
    y: ArrayLike,
    estimator: str = "ksg",
    *,
    noise: ArrayLike | None = None,
    key: PRNGKeyArray | None = None,
    **options,
) -> InformationEstimate:
    r"""I(X; Y) in nats from N independent pairs `x (N,)` or `(N, dx)`, `y (N,)` or `(N, dy)`; integers are class labels.

    | estimator | options | labels | kind | too low/high where |
    |---|---|---|---|---|
    | `"ksg"` | `k=3, variant=1, standardize=True` | one of the two | neither | low: I near ln N/k, many features |
    | `"binned"` | `bins=None, correction=True, edges="quantile"` | any | neither | high: few samples per cell |
    | `"kde"` | `bound="upper"` | one of the two | bound | needs the noiseless f(x) as y, and σ |
    | `"gaussian"` | | none | neither | exact for jointly Gaussian data alone |
    | `"infonce"` | `steps, batch_size, hidden, learning_rate` | any | lower | low: I above ln `batch_size` |
    | `"club"` | the same | one of the two | upper | high: sharp channels |

    See [`ksg_information`][pdejax.analysis.information.ksg_information],
    [`binned_information`][pdejax.analysis.information.binned_information],
    [`kde_information`][pdejax.analysis.information.kde_information],
    [`gaussian_information`][pdejax.analysis.information.gaussian_information],
    [`trained_information`][pdejax.analysis.information.trained_information] for equations, limits, saturation and cost.

    `noise` σ > 0 asks for I(X; Y + σξ), ξ ~ N(0, 1) on every feature: it is drawn with `key` and added, for `"kde"` it
    stands in the formula instead. It goes on the representation: y, or x where y holds labels. A noiseless smooth
    function of a continuous X has infinite information (claim C10); pairs with `noise=None` should hold their noise
    already.

    Under `jit` (estimator, options static) values are not looked at; the estimators say what degenerate data give.
    Raises `TypeError`/`ValueError` for an unknown estimator or option, bad samples, a missing key, a σ that is not
    positive, labels where none can be, or fewer pairs than the estimator needs.
    """
    check_options("mutual_information", estimator, options)
    if estimator == "kde":
        return kde_information(x, y, noise=noise, **options)
    sigma = None
    if noise is not None:
        x, y, sigma = _with_noise(x, y, noise, None if key is None else jax.random.fold_in(key, 1), estimator)
    if estimator in TRAINED:
        found = trained_information(x, y, estimator, key=key, **options)
    else:
        found = _COUNTED[estimator](x, y, **options)
    return eqx.tree_at(lambda e: e.noise, found, sigma, is_leaf=lambda leaf: leaf is None)


def check_options(owner: str, estimator: str, options: dict) -> None:
    """`ValueError` for an unknown estimator, `TypeError` for an option that it does not have."""
    if estimator not in get_args(Estimator):
        raise ValueError(f"{owner}: estimator={estimator!r} is unknown; choose one of {get_args(Estimator)}.")
    function = {**_COUNTED, "kde": kde_information}.get(estimator, trained_information)
    taken = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    taken = [name for name in taken if name not in ("noise", "key")]
    wrong = [name for name in options if name not in taken]
    if wrong:
        raise TypeError(
            f'{owner}: "{estimator}" has no option {", ".join(wrong)}; it has {", ".join(taken) or "none"}.'
        )


def _with_noise(x, y, noise, key, estimator: str):
    owner = f'mutual_information with "{estimator}"'
    if is_labels(x) and is_labels(y):
        raise ValueError(f"{owner}: noise is for floats; x and y are both labels.")
    on_x = is_labels(y)
    clean = continuous(owner, "x" if on_x else "y", x if on_x else y)
    sigma = checked_noise(owner, noise, clean.dtype)
    noisy = with_noise(owner, clean, sigma, key)
    return (noisy, y, sigma) if on_x else (x, noisy, sigma)


def trained_information(
    x: ArrayLike,
    y: ArrayLike,
    estimator: str = "infonce",
    *,
    key: PRNGKeyArray,
    steps: int = 500,
    batch_size: int = 128,
    hidden: int = 32,
    learning_rate: float = 3e-3,
    classes: int | None = None,
) -> InformationEstimate:
    """[`InfoNCE`][pdejax.analysis.information.InfoNCE] or [`CLUB`][pdejax.analysis.information.CLUB] trained on a
    random half of the pairs, and its mean over batches of the other half, which it has not seen.

    Features are centred and scaled (information does not depend on it); labels become one-hot rows, and for CLUB the
    condition. `limit` is ln `batch_size` for InfoNCE, inf for CLUB; `saturated` if most batches are; `samples` counts
    all pairs. Batches hold `batch_size` pairs, or what half of the pairs allow. `classes` (labels below it) is needed
    under tracing only.

    Trains for `steps` batches: compile and run take seconds; O(steps · batch_size · hidden · (dx + dy + hidden)) time
    and a score table of batch_size². Raises `TypeError`/`ValueError` for bad samples, a missing key, fewer than 8
    pairs, or sizes below 1.
    """
    owner = "trained_information"
    if estimator not in TRAINED:
        raise ValueError(f"{owner}: estimator={estimator!r} is unknown; choose one of {TRAINED}.")
    if key is None:
        raise ValueError(f'{owner}: "{estimator}" is trained from random numbers; give key=jax.random.key(...).')
    if estimator == "club" and is_labels(y):
        if is_labels(x):
            raise TypeError(f'{owner}: x and y are both labels, which no Gaussian describes; take "binned".')
        x, y = y, x  # q describes the floats, given the labels
    x, y = _rows(owner, "x", x, classes), _rows(owner, "y", y, classes)
    count = paired(owner, x, y)
    if count < 8:
        raise ValueError(
            f"{owner}: {count} pairs are too few to train on one half and test on the other; give 8 or more."
        )
    x, y = standard(x), standard(y.astype(x.dtype))
    split, made, own = jax.random.split(key, 3)
    make = InfoNCE if estimator == "infonce" else CLUB
    start = make(x.shape[1], y.shape[1], hidden, key=made)
    order = jax.random.permutation(split, count)
    train, test = order[: count // 2], order[count // 2 :]
    trained, _ = fit(
        start, x[train], y[train], key=own, steps=steps, batch_size=batch_size, learning_rate=learning_rate
    )
    return _held_out(trained, x[test], y[test], min(batch_size, count // 2), count)


@eqx.filter_jit
def _held_out(trained, x: Array, y: Array, size: int, count: int) -> InformationEstimate:
    batches = x.shape[0] // size
    kept = batches * size
    # The record's text and count are static: only numbers go through the map.
    values, saturated, limit = lax.map(
        lambda pair: (lambda e: (e.value, e.saturated, e.limit))(trained.estimate(*pair)),
        (x[:kept].reshape(batches, size, -1), y[:kept].reshape(batches, size, -1)),
    )
    kind = "lower" if isinstance(trained, InfoNCE) else "upper"
    return record(jnp.mean(values), limit[0], jnp.mean(saturated.astype(values.dtype)) > 0.5, kind, count, None)


def _rows(owner: str, name: str, value: ArrayLike, classes: int | None) -> Array:
    if not is_labels(value):
        return continuous(owner, name, value)
    y = labels(owner, name, value)
    if traced(y):
        if classes is None:
            raise ValueError(f"{owner}: {name} are traced labels; give classes=, their number, with labels below it.")
        codes, count = y, classes
    else:
        seen, codes = jnp.unique(y, return_inverse=True)
        count = len(seen)
    return jax.nn.one_hot(codes, max(count, 2), dtype=jnp.result_type(float))
