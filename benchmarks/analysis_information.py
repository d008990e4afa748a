"""Cases for benchmarks/analysis.py: information estimates against scikit-learn at N = 2000."""

import jax.numpy as jnp
import numpy as np

SAMPLES = 2000


def cases() -> list[tuple]:
    """(name, ours, reference, tolerance): functions without arguments that return one number; |ours − reference| ≤ tolerance."""
    from sklearn.feature_selection import mutual_info_classif, mutual_info_regression
    from sklearn.metrics import mutual_info_score

    from pdejax.analysis.information._counting import binned_information
    from pdejax.analysis.information._neighbours import ksg_information

    rng = np.random.default_rng(0)
    x = rng.standard_normal(SAMPLES)
    y = 0.8 * x + 0.6 * rng.standard_normal(SAMPLES)
    labels = (y > 0).astype(int) + (y > 1)
    here_x, here_y, here_labels = jnp.asarray(x), jnp.asarray(y), jnp.asarray(labels)
    bins = 20

    def cells(values: np.ndarray) -> np.ndarray:
        edges = np.quantile(values, np.arange(1, bins) / bins)
        return np.searchsorted(edges, values, side="right")

    # In float32 a distance may round to either side of a radius: a few counts of 2000.
    tolerance = 1e-9 if here_x.dtype == jnp.float64 else 1e-3
    return [
        (
            "KSG k=3, N=2000",
            lambda: float(ksg_information(here_x, here_y).value),
            lambda: float(mutual_info_regression(x[:, None], y, n_neighbors=3, random_state=0)[0]),
            tolerance,
        ),
        (
            "KSG k=3 with labels, N=2000",
            lambda: float(ksg_information(here_x, here_labels).value),
            lambda: float(mutual_info_classif(x[:, None], labels, n_neighbors=3, random_state=0)[0]),
            tolerance,
        ),
        (
            "binned 20 × 20, N=2000",
            lambda: float(binned_information(here_x, here_y, bins=bins, correction=False).value),
            lambda: float(mutual_info_score(cells(x), cells(y))),
            tolerance,
        ),
    ]
