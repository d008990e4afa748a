"""Tokens that lie on several devices: who has which, who the neighbours are, and sums over all of them."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

Layout = Literal["striped", "blocks"]
Seam = Literal["edge", "constant", "wrap"]


@dataclasses.dataclass(frozen=True)
class TokenAxis:
    """Describe how `length` tokens lie over the `devices` of the mesh axis `name`; used inside `jax.shard_map`.

    `layout="striped"`: token i lies on device i mod R (Brandon et al., arXiv 2311.09431), so that under a causal mask every
    device has as much to do as every other. `"blocks"`: device r has the tokens from rN/R on.
    """

    name: str
    devices: int
    length: int
    layout: Layout = "striped"

    @property
    def here(self) -> int:
        """Number of tokens on a device."""
        return self.length // self.devices

    def positions(self, device: Array | None = None) -> Int[Array, " n"]:
        """Positions in the sequence of the tokens of this device, or of another one, `(n,)`."""
        device = jax.lax.axis_index(self.name) if device is None else device
        local = jnp.arange(self.here, dtype=jnp.int32)
        device = device.astype(jnp.int32)
        return local * self.devices + device if self.layout == "striped" else local + device * self.here

    def turned(self, x, by: int):
        """What the device `by` places before has, by one exchange."""
        ring = [(r, (r + by) % self.devices) for r in range(self.devices)]
        return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, self.name, ring), x)

    def sum(self, x: Array) -> Array:
        """Sum over devices."""
        return jax.lax.psum(x, self.name)

    def own(self, x: Array) -> Array:
        """This device's part of values `(length, …)` per token that every device has."""
        return x[self.positions()]

    def neighbours(self, x: Array, seam: Seam) -> tuple[Array, Array]:
        """Values `(n, …)` of the tokens before and after those of this device. At the ends of the sequence: the end's own value
        (`"edge"`), 0 (`"constant"`) or that of the other end (`"wrap"`). Blocks exchange one token, stripes all of them."""
        before, after = (self._shifted(x, by) for by in (1, -1))
        if seam == "wrap":
            return before, after
        ghost = x if seam == "edge" else jnp.zeros_like(x)
        place = self.positions().reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(place == 0, ghost, before), jnp.where(place == self.length - 1, ghost, after)

    def _shifted(self, x: Array, by: int) -> Array:
        """Values of the tokens `by` = ±1 places before, around the ring."""
        if self.devices == 1:
            return jnp.roll(x, by, axis=0)
        if self.layout == "blocks":
            inner, edge = (x[:-1], x[-1:]) if by == 1 else (x[1:], x[:1])
            halo = self.turned(edge, by)
            return jnp.concatenate([halo, inner] if by == 1 else [inner, halo])
        # The token before lies on the device before, at the same place there; on the last one, one place before.
        other = self.turned(x, by)
        at_seam = jax.lax.axis_index(self.name) == (0 if by == 1 else self.devices - 1)
        return jnp.where(at_seam, jnp.roll(other, by, axis=0), other)
