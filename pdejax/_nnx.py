"""Flax modules of users as functions of arrays alone: outside of this and of the models nothing closes over an nnx object."""

import sys
from typing import Any

import equinox as eqx


class SplitModule(eqx.Module):
    """An nnx module as a function of its first `takes` arguments and of its state, which is arrays alone."""

    graph: Any = eqx.field(static=True)
    state: Any
    takes: int = eqx.field(static=True)
    __name__: str = eqx.field(static=True)

    def __call__(self, *args: Any) -> Any:
        from flax import nnx

        return nnx.merge(self.graph, self.state)(*args[: self.takes])


def is_nnx(value: Any) -> bool:
    """Whether this is an nnx module; flax is not loaded to find out."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, nnx.Module)


def split(module: Any, takes: int) -> SplitModule:
    """The nnx module, which takes so many arguments, as a function."""
    from flax import nnx

    graph, state = nnx.split(module)
    return SplitModule(graph, nnx.to_pure_dict(state), takes, type(module).__name__)
