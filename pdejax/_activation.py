"""Names of the activation functions, without JAX: the command line reads them."""

from typing import Literal

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "tanh", "identity"]
