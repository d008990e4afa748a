"""The size of the differences between representations: what a noise is to be compared with."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from pdejax._check import number
from pdejax._trajectory import Trajectory
from pdejax.analysis._states import hidden_states
from pdejax.analysis.information._layers import pooled


def layer_spread(
    states: Trajectory | ArrayLike, *, mask: ArrayLike | None = None, pool: str | None = "mean"
) -> Float[Array, " layers"]:
    r"""$\sqrt{\mathrm{tr}\,\mathrm{Cov}(T_l)}$ of the pooled representation T_l over samples, in units of u, one per layer.

    Two samples are about √2 of it apart, whatever the width d. A noise σ per feature hides their difference where σ is of this
    size; the noise estimates of [`information_plane`][pdejax.analysis.information.information_plane] and
    [`layer_entropy`][pdejax.analysis.information.layer_entropy] saturate at ln N where σ is a small part of it, such as the
    root mean square of a feature, which is 1/√d of it.

    - `states (layers, b, n, d)`, `mask`, `pool`: as there; pool=None for rows `(layers, N, d)`.

    Raises as [`data_processing`][pdejax.analysis.information.data_processing] for bad states.
    """
    t, _ = pooled("layer_spread", states, mask, pool)
    return jnp.sqrt(jnp.sum(jnp.var(t, axis=1), axis=-1))


def unit_spread(
    states: Trajectory | ArrayLike, *, mask: ArrayLike | None = None, pool: str | None = "mean", least: float = 1e-3
) -> Float[Array, "layers *shape"]:
    """The states with every layer divided by its spread: the same noise σ then means the same in all layers and models.

    - `least`: a layer whose spread is a smaller part of its pooled states' size has collapsed, and is divided by this part of the
      size instead: what tells its samples apart is next to rounding, and counts for little against any σ.

    Otherwise as [`layer_spread`][pdejax.analysis.information.layer_spread], errors included; `ValueError` for a `least` that is
    not a number from 0 to 1.
    """
    number("unit_spread", "least", least, least=0, most=1, advice="it is a share of the states' size")
    t, _ = pooled("unit_spread", states, mask, pool)
    size = jnp.sqrt(jnp.mean(jnp.sum(t**2, axis=-1), axis=1))
    by = jnp.maximum(layer_spread(states, mask=mask, pool=pool), least * size)
    given = hidden_states("unit_spread", "states", states, mask)
    u = given.u if given.batched else given.u[:, 0]
    return u / jnp.where(by > 0, by, 1).reshape(-1, *(1,) * (u.ndim - 1))
