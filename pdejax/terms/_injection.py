"""The state that a loop began with, added again before every pass."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from pdejax._check import traced
from pdejax._types import Depth, Field
from pdejax.terms._base import AbstractTerm, FieldArgs, check_features


class Injection(AbstractTerm):
    r"""A source that is constant in the layer that begins a pass, and 0 in the others: $\rho\,e$ with e the state that the loop
    begins with, the embedding or what a prelude makes of it.

    Over a layer of length 1/ρ it adds e, however many steps the layer takes. `rate` ρ; `gate`: 1 where a pass begins, else 0, of
    a stack of layers `(K,)`; `value (n, d)`: e, of a stack `(K, n, d)`, or None until `given(start)` puts it in.
    """

    value: Float[Array, "..."] | None
    gate: Int[Array, "..."]
    rate: float = eqx.field(static=True)
    role: ClassVar[str] = "injection"
    label: ClassVar[str] = "injection"

    def __call__(self, t: Depth, u: Field, args: FieldArgs | None) -> Field:
        del t, args
        if self.value is None:
            raise ValueError(
                "this field adds the state that its loop began with, which is not known here; give the discretization of one "
                "input: d.given(start), such as pdejax.lift(model).given(model.hidden_states(tokens, mask)[p]) with p the number "
                "of layers before the loop."
            )
        return (self.rate * self.gate.astype(u.dtype)) * self.value.astype(u.dtype)

    def damping(self) -> Float[Array, ""]:
        return jnp.zeros(())

    def check(self, n: int, d: int) -> None:
        if self.value is None:
            return
        check_features("Injection", self.value.shape[-1], d)
        if self.value.shape[-2] != n:
            raise ValueError(f"Injection: it adds a state of {self.value.shape[-2]} tokens, but the field has {n}.")

    def learned(self) -> PyTree[bool]:
        """False throughout: what is added is a part of the input."""
        return jax.tree.map(lambda _: False, self)

    @property
    def needs_start(self) -> bool:
        return self.value is None

    def given(self, start: Array) -> "Injection":
        if self.value is not None:
            return self
        return Injection(jnp.broadcast_to(start, (*self.gate.shape, *start.shape)), self.gate, self.rate)

    def lipschitz(self, radius: float, n: int, norm: str = "token_max", spread: float = 0.0) -> float:
        """0: it does not depend on the state."""
        del radius, n, norm, spread
        return 0.0

    def growth(self, n: int, norm: str = "token_max") -> tuple[float, float] | None:
        """(0, f), f the norm of what it adds per unit depth."""
        del n
        if self.value is None or traced(self.value, self.gate):
            return None
        sizes = np.linalg.norm(np.asarray(self.value, float), axis=-1)
        size = np.max(sizes) if norm == "token_max" else np.sqrt(np.mean(sizes**2))
        return 0.0, float(self.rate * int(self.gate) * size)
