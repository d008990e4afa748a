"""`as_network`: a model of this library, or a folder that a training left, as a `Network`."""

import os
import pathlib
from typing import Any

import equinox as eqx

from pdejax._types import Field
from pdejax.models import Simulator, Transformer, lift, pair
from pdejax.models._ends import Embedding, checked_tokens
from pdejax.networks._network import Network


def as_network(model: Any, *, length: int | None = None) -> Network:
    """Give the network that a model is: embedding, discretization and head.

    - `model`: a `Transformer`, a `Simulator`, a `Network` (returned as it is), or the path of a folder that `pdejax train` left
      (its best model).
    - `length`: number of tokens, for a simulator with diffusion, whose grid has one point per token.

    With the discretization it is given, `net(tokens, mask)`, `net.hidden_states` and `net.attention_maps` are the model's own,
    to rounding.

    Raises `TypeError` for anything else, `FileNotFoundError` for a folder without a trained model.
    """
    if isinstance(model, Network):
        return model
    if isinstance(model, str | os.PathLike):
        from pdejax.training import load_trained  # not before it is asked for: training loads optax

        if not pathlib.Path(model).is_dir():
            raise FileNotFoundError(
                f"as_network: there is no folder {str(model)!r}; give a model, or a folder that `pdejax train --out` left."
            )
        return as_network(load_trained(model).model, length=length)
    if isinstance(model, Transformer):
        twin = pair(model, "shared")
        return Network(_Embed(twin.embedding), lift(model), twin.readout)
    if isinstance(model, Simulator):
        return Network(_Embed(model.embedding), model.discretization(length), model.readout, model.architecture.layers)
    raise TypeError(
        f"as_network: model is a {type(model).__name__}; give a Transformer, a Simulator or a training folder. Layers of your "
        "own become one by pdejax.network([layer, …], embed=…, head=…)."
    )


class _Embed(eqx.Module):
    """An embedding that looks at its tokens first, as a model does."""

    embedding: Embedding

    def __call__(self, tokens: Any) -> Field:
        return self.embedding(checked_tokens("Network", self.embedding.architecture, tokens))
