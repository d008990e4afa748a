"""A field whose tokens lie on several devices."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from pdejax import _check
from pdejax._arguments import checked
from pdejax._depth import DepthVarying
from pdejax._equation import AbstractEquation, MasterEquation
from pdejax._types import Depth, Field
from pdejax.terms import FieldArgs
from pdejax.terms._base import holds_input
from pdejax.terms._token_axis import Layout, TokenAxis

_OWNER = "shard_tokens"


class ShardedEquation(AbstractEquation):
    """A `MasterEquation` on states whose tokens lie on the devices of a mesh; made by `shard_tokens`.

    It takes and returns whole arrays `(n, d)`, token j of which is the j-th of the layout: `place` and `collect` go between that
    and the sequence. n must be a multiple of the number of devices; the rest is padding, with a mask.
    """

    equation: MasterEquation
    mesh: Mesh = eqx.field(static=True)
    layout: Layout = eqx.field(static=True)

    def __call__(self, t: Depth, u: Field, args: FieldArgs | None = None) -> Field:
        axis, tokens = PartitionSpec(self._name), self._axis(u.shape[0])
        arrays, rest = eqx.partition(self.equation, eqx.is_array)
        mask = None if args is None else args.mask

        def here(arrays, t, u, mask):
            equation = eqx.combine(arrays, rest)
            given = FieldArgs(mask=mask)
            first, *others = (term.across(tokens)(t, u, given) for term in equation.terms)
            return sum(others, start=first)

        specs = (PartitionSpec(), PartitionSpec(), axis, axis)
        run = jax.shard_map(here, mesh=self.mesh, in_specs=specs, out_specs=axis)
        return run(arrays, jnp.asarray(t, u.dtype), u, mask)

    def place(self, u: Float[Array, "n *features"]) -> Float[Array, "n *features"]:
        """A sequence `(n, …)`, a state or a mask, in the layout, each token on its device."""
        ordered = jnp.asarray(u)[self.order(u.shape[0])]
        return jax.device_put(ordered, NamedSharding(self.mesh, PartitionSpec(self._name)))

    def collect(self, u: Float[Array, "n *features"]) -> Float[Array, "n *features"]:
        """The sequence that an array in the layout holds."""
        return u[np.argsort(self.order(u.shape[0]))]

    def order(self, n: int) -> np.ndarray:
        """Positions in the sequence of the tokens of the layout, `(n,)`."""
        self._axis(n)
        whole = np.arange(n)
        return whole.reshape(-1, self.mesh.size).T.ravel() if self.layout == "striped" else whole

    def names(self) -> tuple[str, ...]:
        return self.equation.names()

    def only(self, names: Sequence[str]) -> "ShardedEquation":
        return ShardedEquation(self.equation.only(names), self.mesh, self.layout)

    def looked_at(self) -> "ShardedEquation":
        return ShardedEquation(self.equation.looked_at(), self.mesh, self.layout)

    def damping(self) -> Float[Array, ""]:
        return self.equation.damping()

    def linear_rate(self) -> Float[Array, ""]:
        return self.equation.linear_rate()

    def couples_neighbours(self, n: int) -> bool:
        return self.equation.couples_neighbours(n)

    def no_linear_part(self) -> str:
        return "no transform goes over several devices: tokens that are sharded have no linear part to take apart"

    def check(self, shape: tuple[int, ...]) -> None:
        self.equation.check(shape)
        self._axis(shape[0])

    def describe(self) -> str:
        return f"{self.equation.describe()}, tokens on {self.mesh.size} devices"

    @property
    def _name(self) -> str:
        return self.mesh.axis_names[0]

    def _axis(self, n: int) -> TokenAxis:
        if n % self.mesh.size:
            raise ValueError(
                f"{_OWNER}: {n} tokens do not divide among {self.mesh.size} devices; pad them to a multiple, with a mask."
            )
        return TokenAxis(self._name, self.mesh.size, n, self.layout)


@checked
def shard_tokens(
    field: MasterEquation | DepthVarying,
    devices: Sequence[Any] | None = None,
    *,
    layout: Literal["striped", "blocks"] = "striped",
) -> ShardedEquation | DepthVarying:
    """Return the same field with its tokens on several devices, for sequences whose attention one device has no room for.

    Attention sends keys and values round a ring and never holds more than a block of scores; diffusion asks its neighbours for
    their ends; averages are summed over devices. The result is a field like any other: give it to `Discretization`, `simulate` it
    from `sharded.place(u0)`, differentiate it, and read `sharded.collect(u)`. Memory of a device grows as n over devices, also
    in reverse mode.

    - `field`: a `MasterEquation`, or a `DepthVarying` of one, without injection. `devices`: default all, those of other processes
      too.
    - `layout`: `"striped"`, token i on device i mod R, which shares the work of a causal mask out evenly; `"blocks"`, neighbours
      together, for which diffusion exchanges one token rather than all.

    Explicit solvers and splittings take it; those that take a linear part apart do not. Raises `ValueError` for a layout, for no
    device, and, when it is evaluated, for tokens that do not divide or terms that do not say how (`AbstractTerm.across`).
    Sources: arXiv 2310.01889 (ring attention), 2311.09431 (stripes).
    """
    _check.choice(_OWNER, "layout", layout, get_args(Layout))
    found = list(jax.devices() if devices is None else devices)
    if not found:
        raise ValueError(f"{_OWNER}: devices is empty; give at least one device, or None for all.")
    if field.needs_start or holds_input(field):
        raise ValueError(
            f"{_OWNER}: the field adds the state that its loop began with (injection), whose tokens are not spread over devices; "
            "give a field without."
        )
    mesh = Mesh(np.array(found), ("tokens",), axis_types=(AxisType.Auto,))
    if isinstance(field, DepthVarying):
        layers = _check.instance(
            _OWNER, "field.stacked", field.stacked, MasterEquation, "others are not known by token"
        )
        return eqx.tree_at(lambda f: f.stacked, field, ShardedEquation(layers, mesh, layout))
    return ShardedEquation(field, mesh, layout)
