"""`Network`: what turns tokens into logits, its depth a `Discretization`."""

import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from pdejax import _check
from pdejax._arguments import checked
from pdejax._discretization import Discretization
from pdejax._maps import attention_maps
from pdejax._simulate import integrate
from pdejax._types import Field
from pdejax.models import Simulator, Transformer, lift, pair
from pdejax.models._ends import Embedding, checked_tokens
from pdejax.solvers._written import one_line

_OWNER = "Network"


class Network(eqx.Module):
    """A network of one sequence: `embed`, then its `discretization`, then `head`.

    - `embed(tokens) -> u0 (n, d)`: the initial field. `head(u, mask)`: the output, from the last field `(n, d)`.
    - `discretization`: field, solver and steps. Those that the network was made with give its own hidden states, to rounding;
      `net.replace(discretization=net.discretization.refine(2))(tokens)` is the same field at half the step.
    - `layers`: L, as many parts of the depth as there are hidden states after the embedding, however many steps they take.
    - `tokenizer`: a function of a text, or of two, that gives tokens; None without text.

    Batches by `jax.vmap`. A sweep over `refine(k)` compiles once for all k. Made by `pdejax.as_network` from a model or a folder
    that `pdejax train` left, by `pdejax.load_pretrained` from a checkpoint, and by `pdejax.network` from any list of layer
    functions.

    Raises `TypeError`/`ValueError` for parts that are no functions or layers that are no positive integer.
    """

    embed: Callable[..., Any]
    discretization: Discretization
    head: Callable[..., Any]
    layers: int = eqx.field(static=True)
    tokenizer: Callable[..., Any] | None = eqx.field(static=True)

    @checked
    def __init__(
        self,
        embed: Callable[..., Any],
        discretization: Discretization,
        head: Callable[..., Any],
        layers: int | None = None,
        tokenizer: Callable[..., Any] | None = None,
    ):
        for name, part in (("embed", embed), ("head", head)):
            if not callable(part):
                raise TypeError(f"{_OWNER}: {name} is a {type(part).__name__}; it must be a function.")
        _check.instance(_OWNER, "discretization", discretization, Discretization, "pdejax.lift(model) gives one")
        if layers is None:
            if not discretization.layers:
                raise ValueError(
                    f"{_OWNER}: the field has no layers of its own; give layers=…, how many states to show."
                )
            layers = len(discretization.layers)
        self.embed, self.discretization, self.head = embed, discretization, head
        self.layers, self.tokenizer = _check.integer(_OWNER, "layers", layers), tokenizer

    def replace(self, **changes: Any) -> "Network":
        """Return another network with some of `embed`, `discretization`, `head`, `layers` and `tokenizer` changed.

        Raises `TypeError` for another name, and as the constructor.
        """
        names = ("embed", "discretization", "head", "layers", "tokenizer")
        kept = {name: getattr(self, name) for name in names}
        unknown = sorted(set(changes) - set(kept))
        if unknown:
            raise TypeError(f"Network.replace: {unknown} are no parts of a network; there are {', '.join(kept)}.")
        return Network(**kept | changes)

    def tokenize(self, text: str, pair: str | None = None) -> Any:
        """Return the tokens of a text by the network's tokenizer: ids `(n,)`; of two texts, where the network has token types,
        ids and types `(n, 2)`.

        Raises `ValueError` without a tokenizer, for an empty text and for one with more tokens than the network takes.
        """
        if self.tokenizer is None:
            raise ValueError(
                "Network.tokenize: this network has no tokenizer. A checkpoint has one where its folder has a tokenizer.json and "
                "the package tokenizers is installed (pip install 'pdejax[pretrained]'); net.replace(tokenizer=…) gives another."
            )
        return self.tokenizer(text, pair)

    def __call__(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Any:
        """Return the output of the head: logits, or the last field `(n, d)` without a head.

        A field that blows up gives NaN. Raises what `embed` raises, and `ValueError`/`TypeError` for a mask that does not fit.
        """
        u0, mask = self._begin("Network.__call__", tokens, mask)
        end = integrate("Network.__call__", self.discretization, u0, mask=mask, save="end").us[-1]
        return _read(self.head, end, mask)

    def hidden_states(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Float[Array, "layers n d"]:
        """Return the fields `(L + 1, n, d)` at the depths t0 + l (t1 − t0)/L, l = 0 … L, the embedding first. Raises as a
        call."""
        return self._states("Network.hidden_states", *self._begin("Network.hidden_states", tokens, mask))

    def attention_maps(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Float[Array, "layers H n n"]:
        """Return attention weights `(L, H, n, n)` at the beginning of each of L parts of the depth; entry (l, h, i, j) is what
        query i gives key j. Raises as a call, and `ValueError` for a field without attention."""
        owner = "Network.attention_maps"
        u0, mask = self._begin(owner, tokens, mask)
        return _maps(owner, self.discretization, self._states(owner, u0, mask), mask)

    def observe(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> tuple[Any, Array, Array]:
        """Return `(net(tokens), hidden_states, attention_maps)` of one solve."""
        owner = "Network.observe"
        u0, mask = self._begin(owner, tokens, mask)
        states = self._states(owner, u0, mask)
        return _read(self.head, states[-1], mask), states, _maps(owner, self.discretization, states, mask)

    def _begin(self, owner: str, tokens: Any, mask: Any) -> tuple[Array, Any]:
        # Not inside jit: an embedding looks at the values of its tokens.
        u0 = self.embed(tokens)
        if getattr(u0, "ndim", 0) < 2:
            raise ValueError(
                f"{owner}: embed gave shape {getattr(u0, 'shape', None)}; the initial field must be (n, d)."
            )
        return u0, _check.token_mask(owner, mask, u0.shape[-2])

    def _states(self, owner: str, u0: Array, mask: Any) -> Array:
        d = self.discretization
        save: Any = "layers"
        if len(d.layers) != self.layers:
            if _check.traced(d.t0, d.t1):
                raise TypeError(f"{owner}: hidden states are shown at given depths, which t0 and t1 must be known for.")
            save = np.linspace(float(d.t0), float(d.t1), self.layers + 1)
        return integrate(owner, d, u0, mask=mask, save=save).us

    def __repr__(self) -> str:
        # A head that is tied to the embedding holds the same array.
        arrays = {id(x): x for x in jax.tree.leaves(eqx.filter(self, eqx.is_inexact_array))}
        numbers = sum(x.size for x in arrays.values())
        return f"Network of {numbers:,} numbers: {self.discretization!r}"


# Compiled apart from the solve, whose program serves every number of steps.
@eqx.filter_jit
def _read(head: Callable[..., Any], u: Array, mask: Any) -> Any:
    return head(u, mask)


def _maps(owner: str, d: Discretization, states: Array, mask: Any) -> Array:
    # The number of steps as an array, which one program serves too.
    return _compiled_maps(owner, d if d.adaptive else d.replace(steps=jnp.asarray(d.steps)), states, mask)


@eqx.filter_jit
def _compiled_maps(owner: str, d: Discretization, states: Array, mask: Any) -> Array:
    return attention_maps(owner, d, states, mask)


@checked
def as_network(model: Any, *, length: int | None = None) -> Network:
    """Give the network that a model is: embedding, discretization and head.

    - `model`: a `Transformer`, a `Simulator`, a `Network` (returned as it is), or the path of a folder that `pdejax train` left
      (its best model) or of a file that `pdejax.save_model` wrote.
    - `length`: number of tokens, for a simulator with diffusion, whose grid has one point per token.

    With the discretization it is given, `net(tokens, mask)`, `net.hidden_states` and `net.attention_maps` are the model's own,
    to rounding.

    Raises `TypeError` for anything else, `FileNotFoundError` where there is no such folder or file, `ValueError` where there is
    no model in it.
    """
    if isinstance(model, Network):
        return model
    if isinstance(model, str | os.PathLike):
        from pdejax.training._kept import saved_model  # not before it is asked for: training loads optax

        return as_network(saved_model("as_network", "model", model).model, length=length)
    if isinstance(model, Transformer):
        twin = pair(model, "shared")
        return Network(_Embed(twin.embedding), lift(model), twin.readout)
    if isinstance(model, Simulator):
        return Network(_Embed(model.embedding), model.discretization(length), model.readout, model.layers)
    raise TypeError(
        f"as_network: model is a {type(model).__name__}; give a Transformer, a Simulator, a training folder or a "
        "saved model's file. Layers of your own become one by pdejax.network([layer, …], embed=…, head=…)."
    )


class _Embed(eqx.Module):
    """An embedding that looks at its tokens first, as a model does."""

    embedding: Embedding

    __repr__ = one_line

    def __call__(self, tokens: Any) -> Field:
        return self.embedding(checked_tokens("Network", self.embedding.architecture, tokens))
