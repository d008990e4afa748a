"""I(X; Y) by six estimators under one name."""

import inspect
from typing import Literal, get_args

import equinox as eqx
import jax
from jaxtyping import ArrayLike, PRNGKeyArray

from pdejax._check import choice
from pdejax.analysis.information._entropy import with_noise
from pdejax.analysis.information._estimate import Estimate
from pdejax.analysis.information._samples import continuous, is_labels
from pdejax.analysis.information.estimators._binned import binned_information
from pdejax.analysis.information.estimators._exact_gaussian import gaussian_information
from pdejax.analysis.information.estimators._kde import checked_noise, kde_information
from pdejax.analysis.information.estimators._ksg import ksg_information
from pdejax.analysis.information.trained._held_out import TRAINED, trained_information

Estimator = Literal["ksg", "binned", "kde", "gaussian", "infonce", "club"]
_COUNTED = {"ksg": ksg_information, "binned": binned_information, "gaussian": gaussian_information}


def mutual_information(
    x: ArrayLike,
    y: ArrayLike,
    estimator: str = "ksg",
    *,
    noise: ArrayLike | None = None,
    key: PRNGKeyArray | None = None,
    **options,
) -> Estimate:
    r"""I(X; Y) in nats from N independent pairs `x (N,)` or `(N, dx)`, `y (N,)` or `(N, dy)`; integers are class labels.

    | estimator | options | labels | kind | too low/high where |
    |---|---|---|---|---|
    | `"ksg"` | `k=3, variant=1, standardize=True` | one of the two | neither | low: I near ln N/k, many features |
    | `"binned"` | `bins=None, correction=True, edges="quantile"` | any | neither | high: few samples per cell |
    | `"kde"` | `bound="upper"` | one of the two | bound | needs the noiseless f(x) as y, and σ |
    | `"gaussian"` | | none | neither | exact for jointly Gaussian data alone |
    | `"infonce"` | `steps, batch_size, hidden, learning_rate` | any | lower | low: I above ln `batch_size` |
    | `"club"` | the same | one of the two | upper | high: sharp channels |

    See [`ksg_information`][pdejax.analysis.information.estimators.ksg_information],
    [`binned_information`][pdejax.analysis.information.estimators.binned_information],
    [`kde_information`][pdejax.analysis.information.estimators.kde_information],
    [`gaussian_information`][pdejax.analysis.information.estimators.gaussian_information],
    [`trained_information`][pdejax.analysis.information.trained.trained_information] for equations, limits, saturation and cost.

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
        return kde_information(x, y, noise=noise, **options)  # pyright: ignore[reportArgumentType]
    sigma = None
    if noise is not None:
        x, y, sigma = _with_noise(x, y, noise, None if key is None else jax.random.fold_in(key, 1), estimator)
    if estimator in TRAINED:
        found = trained_information(x, y, estimator, key=key, **options)  # pyright: ignore[reportArgumentType]
    else:
        found = _COUNTED[estimator](x, y, **options)
    return eqx.tree_at(lambda e: e.noise, found, sigma, is_leaf=lambda leaf: leaf is None)


def check_options(owner: str, estimator: str, options: dict) -> None:
    """`ValueError` for an unknown estimator, `TypeError` for an option that it does not have."""
    choice(owner, "estimator", estimator, get_args(Estimator))
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
