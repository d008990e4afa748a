"""What an analysis of hidden states takes, a trajectory or an array with depth in front; null models of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray, Shaped

from pdejax._arguments import checked
from pdejax._check import concretely, traced
from pdejax._trajectory import Trajectory


class States(NamedTuple):
    """Hidden states of a batch: `u (layers, b, n, d)`, `mask (b, n)` True at real tokens, and whether a batch was given."""

    u: Float[Array, "layers b n d"]
    mask: Bool[Array, "b n"]
    batched: bool


@concretely
def hidden_states(owner: str, name: str, value: Trajectory | ArrayLike, mask: ArrayLike | None = None) -> States:
    """Hidden states `(layers, n, d)` or `(layers, b, n, d)`, or a `Trajectory` of either (one under `jax.vmap` has its batch
    in front and is turned), and their mask `(n,)` or `(b, n)`; a mask of one sequence serves the whole batch.

    Raises `TypeError`/`ValueError`, which name `owner` and `name`, for other shapes or types, no layer, token or feature, a
    sequence without a real token, a trajectory that diverged or ended early, or values at real tokens that are not finite.
    Values that JAX traces are not looked at.
    """
    if isinstance(value, Trajectory):
        value = _of_trajectory(owner, name, value)
    u = jnp.asarray(value)
    if not jnp.issubdtype(u.dtype, jnp.floating):
        raise TypeError(f"{owner}: {name} has type {u.dtype}; hidden states are real floating-point numbers.")
    if u.ndim not in (3, 4):
        raise ValueError(
            f"{owner}: {name} has shape {u.shape}; it must be (layers, n, d) or (layers, batch, n, d). One layer u (n, d) is "
            "u[None]."
        )
    if 0 in u.shape:
        raise ValueError(
            f"{owner}: {name} has shape {u.shape}; it needs at least one layer, sequence, token and feature."
        )
    batched = u.ndim == 4
    u = u if batched else u[:, None]
    real = token_mask(owner, mask, u.shape[1], u.shape[2])
    if not traced(u, real):
        _check_finite(owner, name, np.asarray(u), np.asarray(real))
    return States(u, real, batched)


def paired_states(
    owner: str,
    names: tuple[str, str],
    a: Trajectory | ArrayLike,
    b: Trajectory | ArrayLike,
    mask: ArrayLike | None = None,
) -> tuple[States, States]:
    """Hidden states of two systems at the same layers, sequences and tokens; features may differ in number.

    Raises what `hidden_states` raises, and `ValueError` where the two do not match.
    """
    first, second = hidden_states(owner, names[0], a, mask), hidden_states(owner, names[1], b, mask)
    here, there = first.u.shape, second.u.shape
    if here[:3] != there[:3] or first.batched != second.batched:
        shown = [s.u.shape if s.batched else (s.u.shape[0], *s.u.shape[2:]) for s in (first, second)]
        advice = ""
        if here[0] != there[0]:
            advice = " Depth differs: take the layers both have, such as every second of the longer (us[::2])."
        raise ValueError(
            f"{owner}: {names[0]} has shape {shown[0]} and {names[1]} {shown[1]}; layers, sequences and tokens must match."
            f"{advice}"
        )
    return first, second


@concretely
def token_mask(owner: str, mask: ArrayLike | None, sequences: int, tokens: int) -> Bool[Array, "b n"]:
    """The mask as `(b, n)`, checked: boolean, of that shape or `(n,)`, with a real token in every sequence."""
    if mask is None:
        return jnp.ones((sequences, tokens), bool)
    found = jnp.asarray(mask)
    if found.dtype != jnp.bool_:
        raise TypeError(f"{owner}: mask has type {found.dtype}; it must be boolean, True at real tokens.")
    if found.shape not in ((tokens,), (sequences, tokens)):
        raise ValueError(f"{owner}: mask has shape {found.shape}; it must be ({tokens},) or ({sequences}, {tokens}).")
    found = jnp.broadcast_to(found, (sequences, tokens))
    if not traced(found) and not np.all(np.any(np.asarray(found), axis=1)):
        empty = int(np.argmin(np.any(np.asarray(found), axis=1)))
        raise ValueError(f"{owner}: sequence {empty} has no real token in mask; leave it out.")
    return found


def _check_finite(owner: str, name: str, u: np.ndarray, real: np.ndarray) -> None:
    """Raise unless all real tokens are finite. By NumPy, which looks at known values even inside a trace."""
    # Known states are nearly always finite throughout: then no masked copy is made.
    if np.all(np.isfinite(u)):
        return
    good = np.all(np.isfinite(u) | ~real[None, :, :, None], axis=(1, 2, 3))
    if not np.all(good):
        raise ValueError(
            f"{owner}: {name} has values that are not finite at real tokens, first in layer {int(np.argmin(good))}; analyse the "
            "layers before it, or mask the tokens."
        )


def _of_trajectory(owner: str, name: str, trajectory: Trajectory) -> Array:
    u = trajectory.us
    if not hasattr(u, "ndim"):
        raise TypeError(
            f"{owner}: {name} is a trajectory of {type(u).__name__}; give the array of one field, (layers, n, d)."
        )
    done, diverged = trajectory.complete, trajectory.diverged
    if not traced(done, diverged):
        if np.any(np.asarray(diverged)):
            raise ValueError(
                f"{owner}: {name} is a trajectory that diverged (at depth {jnp.asarray(trajectory.blowup_time)}); analyse "
                "us[:k], the layers before that."
            )
        if not np.all(np.asarray(done)):
            raise ValueError(
                f"{owner}: {name} is a trajectory that ended before t1; raise max_steps, or analyse us[:k]."
            )
    return jnp.moveaxis(u, 0, 1) if trajectory.ts.ndim == 2 and u.ndim == 4 else u


@checked
@jax.jit
def shuffle_tokens(
    u: Shaped[Array, "layers b n d"], mask: Bool[Array, "b n"], key: PRNGKeyArray
) -> Shaped[Array, "layers b n d"]:
    """Every sequence's real tokens in another order, the same at all layers; padding stays where it is. Which token is which
    is lost, their set is kept."""

    def order(mask, key):
        # Real places, in order, receive the real tokens in a random order.
        noise = jax.random.uniform(key, mask.shape)
        drawn = jnp.argsort(jnp.where(mask, noise, 2.0))  # the real tokens, shuffled, then the padding
        places = jnp.argsort(jnp.where(mask, 0, 1), stable=True)
        return jnp.zeros_like(places).at[places].set(drawn)

    orders = jax.vmap(order)(mask, jax.random.split(key, mask.shape[0]))
    return jnp.take_along_axis(u, orders[None, :, :, None], axis=2)


@checked
def shuffle_features(u: Shaped[Array, "layers b n d"], key: PRNGKeyArray) -> Shaped[Array, "layers b n d"]:
    """Features in another order, the same for all tokens, sequences and layers: which feature is which is lost. Linear CKA and
    Procrustes distance do not see it, by construction."""
    return jnp.take(u, jax.random.permutation(key, u.shape[-1]), axis=-1)
