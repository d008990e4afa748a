"""Shape names used throughout: n tokens, d features, L layers, H heads, k saved depths."""

from typing import Any

from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from pdejax._activation import Activation as Activation

Field = Float[Array, "n d"]
Tokens = Int[Array, " n"]
Mask = Bool[Array, " n"]
Depth = Real[ArrayLike, ""]
Args = Any
