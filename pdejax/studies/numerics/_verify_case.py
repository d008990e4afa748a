"""What the verification's cases share: the record of one comparison, and how a case is integrated."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pdejax._discretization import Discretization
from pdejax._equation import AbstractEquation
from pdejax._simulate import simulate
from pdejax.terms import Attention, FeedForward

TIGHT = "dopri8 1e-13"  # how `solve` is named in the table
REACHED = 1e-10  # what such a solve reaches on these cases with room for another machine's rounding
ROUNDING = 1e-12  # a few operations in float64
TOLERANCE = 1e-13
KEY = 2408_09523


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison with a closed form: `error` against what is `expected` of it at most (both relative, unless the case
    says otherwise)."""

    case: str
    scheme: str
    error: float
    expected: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.error <= self.expected)  # NaN never passes


def solve(
    equation: AbstractEquation,
    u0: Array,
    t1: float,
    save: Sequence[float] | None = None,
    mask: Array | None = None,
) -> Array:
    """The field at t1 `(n, d)`, or at the depths `save` `(k, n, d)`, by a tight-tolerance solve."""
    trajectory = simulate(
        Discretization(equation, "dopri8", t1=t1, rtol=TOLERANCE, atol=1e-2 * TOLERANCE),
        u0,
        mask=mask,
        save="end" if save is None else save,
    )
    us = jnp.where(trajectory.complete, trajectory.us, jnp.nan)
    return us[-1] if save is None else us


def relative(value: Any, exact: Any) -> float:
    """‖value − exact‖ / ‖exact‖, Euclidean over all entries. Shapes must agree."""
    a, b = np.asarray(value, float), np.asarray(exact, float)
    if a.shape != b.shape:
        raise AssertionError(f"compared shapes {a.shape} and {b.shape}")
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def normal(seed: int, *shape: int) -> Array:
    """The same standard normal numbers on every machine and in every version."""
    return jnp.asarray(np.random.default_rng([KEY, seed]).standard_normal(shape))


def attention(logit: float, value: Array, **options: Any) -> Attention:
    r"""One head with logits a⟨x, y⟩, a = `logit`, and value matrix V, W_V = I, W_O = V: $\sum_j K_{ij} u_j V$."""
    dim = value.shape[0]
    term = Attention(dim, key=jax.random.key(0), **options)
    eye = jnp.eye(dim)
    return with_weights(term, wq=(logit * dim**0.5) * eye[:, None], wk=eye[:, None], wv=eye[:, None], wo=value[None])


def reaction(w1: Array, w2: Array, b1: Array, b2: Array, **options: Any) -> FeedForward:
    """A feed-forward term without activation, so that it is linear: M = w1 @ w2, b = b1 @ w2 + b2."""
    term = FeedForward(w1.shape[0], w1.shape[1], key=jax.random.key(0), activation="identity", **options)
    return with_weights(term, w1=w1, w2=w2, b1=b1, b2=b2)


def with_weights(term: Any, **weights: Array) -> Any:
    """The term with these arrays instead of its random ones."""
    return eqx.tree_at(lambda t: [getattr(t, name) for name in weights], term, list(weights.values()))
