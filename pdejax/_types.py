"""Shape names used throughout: n tokens, d features, L layers, H heads, k saved depths."""

from typing import Any, Literal

from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

Field = Float[Array, "n d"]
Tokens = Int[Array, " n"]
Mask = Bool[Array, " n"]
Depth = Real[ArrayLike, ""]
Args = Any

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "tanh", "identity"]
