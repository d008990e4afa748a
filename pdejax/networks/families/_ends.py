"""The usual two ends of a network of text: tokens to the first field, and the last field to logits."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pdejax._check import traced
from pdejax._types import Field, Mask
from pdejax.solvers._written import one_line
from pdejax.terms import LayerNorm, RMSNorm
from pdejax.terms._reaction import ACTIVATIONS

Norm = LayerNorm | RMSNorm
# Activations by the names of Hugging Face's configurations, as those of `FeedForward`.
HIDDEN_ACT = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


class TextEmbedding(eqx.Module):
    r"""The first field $u_i = \mathrm{LN}(\text{words}[w_i] + \text{positions}[p_i] + \text{types}[s_i])\,P + b$, each part
    optional but the words.

    Shapes: `words (vocab, e)`, `positions (m, e)`, `types (k, e)`, `weight (e, d)`, `bias (d,)`.

    - `tokens`: ids `(n,)`, or `(n, 2)`: ids and token types side by side. Without types every token is of type 0.
    - `padding`: where positions are counted from the real tokens alone (RoBERTa), the id of padding: real tokens have the
      positions padding + 1, padding + 2, …, padding has the position `padding`. None: positions 0, 1, ….
    - `longest`: as many tokens as there are positions for. `dtype`: the type of the field; the tables keep theirs.

    Raises `TypeError`/`ValueError` for tokens that are no such ids, or too many.
    """

    words: Float[Array, "vocab e"]
    positions: Float[Array, "m e"] | None = None
    types: Float[Array, "k e"] | None = None
    norm: Norm | None = None
    weight: Float[Array, "e d"] | None = None
    bias: Float[Array, " d"] | None = None
    padding: int | None = eqx.field(static=True, default=None)
    longest: int = eqx.field(static=True, default=2**31 - 1)
    dtype: str = eqx.field(static=True, default="float32")

    __repr__ = one_line

    def __call__(self, tokens: Any) -> Field:
        return self._embedded(self._checked(tokens))

    @eqx.filter_jit
    def _embedded(self, tokens: Array) -> Field:
        ids = tokens if tokens.ndim == 1 else tokens[:, 0]
        u = self.words[ids].astype(self.dtype)
        if self.types is not None:
            u = u + self.types[jnp.zeros_like(ids) if tokens.ndim == 1 else tokens[:, 1]].astype(self.dtype)
        if self.positions is not None:
            u = u + self.positions[self._places(ids)].astype(self.dtype)
        if self.norm is not None:
            u = self.norm(u)
        if self.weight is not None:
            u = u @ self.weight.astype(self.dtype)
        return u if self.bias is None else u + self.bias.astype(self.dtype)[None]

    def _places(self, ids: Array) -> Array:
        if self.padding is None:
            return jnp.arange(ids.shape[0])
        real = (ids != self.padding).astype(ids.dtype)
        return jnp.cumsum(real) * real + self.padding

    def _checked(self, tokens: Any) -> Array:
        owner = "Network"
        found = tokens if traced(tokens) else np.asarray(tokens)
        both = " or (n, 2), ids and token types" if self.types is not None else ""
        if not jnp.issubdtype(found.dtype, jnp.integer):
            raise TypeError(
                f"{owner}: tokens has type {found.dtype}; it must be integers, (n,) ids{both}. net.tokenize(text) gives them."
            )
        good = found.ndim == 1 or (found.ndim == 2 and found.shape[1] == 2 and self.types is not None)
        if not good or not found.shape[0]:
            raise ValueError(
                f"{owner}: tokens has shape {found.shape}; it must be (n,) ids{both}, at least one; batches by jax.vmap."
            )
        if found.shape[0] > self.longest:
            raise ValueError(
                f"{owner}: tokens has {found.shape[0]} tokens, and this network has positions for {self.longest}; shorten the "
                "text, or cut it into pieces."
            )
        if not traced(found):
            _check_range(owner, "ids", found if found.ndim == 1 else found[:, 0], self.words.shape[0])
            if found.ndim == 2 and self.types is not None:
                _check_range(owner, "token types", found[:, 1], self.types.shape[0])
        return jnp.asarray(found)


def _check_range(owner: str, name: str, values: Any, size: int) -> None:
    if values.min() < 0 or values.max() >= size:
        raise ValueError(
            f"{owner}: tokens has {name} from {values.min()} to {values.max()}; they must be in 0 … {size - 1}."
        )


class Logits(eqx.Module):
    r"""From the last field to logits over the vocabulary, $T(u)\,E^\top + b$, with E the table of words where head and embedding
    are tied, and $T(u)$ a norm, or $\mathrm{LN}(\sigma(u W + c))$ of a masked language model, or nothing.

    Shapes: `table (vocab, e)`, `bias (vocab,)`, `weight (d, e)`, `offset (e,)`; the result `(n, vocab)`.
    """

    table: Float[Array, "vocab e"]
    bias: Float[Array, " vocab"] | None = None
    weight: Float[Array, "d e"] | None = None
    offset: Float[Array, " e"] | None = None
    norm: Norm | None = None
    activation: str = eqx.field(static=True, default="identity")

    __repr__ = one_line

    def __call__(self, u: Field, mask: Mask | None) -> Float[Array, "n vocab"]:
        del mask
        if self.weight is not None:
            u = u @ self.weight.astype(u.dtype)
            u = u if self.offset is None else u + self.offset.astype(u.dtype)[None]
            u = ACTIVATIONS[self.activation](u)
        if self.norm is not None:
            u = self.norm(u)
        logits = u @ self.table.astype(u.dtype).T
        return logits if self.bias is None else logits + self.bias.astype(u.dtype)[None]


class LastField(eqx.Module):
    """The last field as the output, through a norm where there is one: a network without a head."""

    norm: Norm | None = None

    __repr__ = one_line

    def __call__(self, u: Field, mask: Mask | None) -> Field:
        del mask
        return u if self.norm is None else self.norm(u)


Head = Callable[[Field, Mask | None], Array]
