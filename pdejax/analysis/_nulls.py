"""Null models of hidden states: what is left of an agreement when the thing it should show is destroyed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, Shaped


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


def shuffle_features(u: Shaped[Array, "layers b n d"], key: PRNGKeyArray) -> Shaped[Array, "layers b n d"]:
    """Features in another order, the same for all tokens, sequences and layers: which feature is which is lost. Linear CKA and
    Procrustes distance do not see it, by construction."""
    return jnp.take(u, jax.random.permutation(key, u.shape[-1]), axis=-1)
