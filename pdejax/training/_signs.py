"""How the parameter flow of v1 signs decay and information, without JAX: as (14), (3) and line 33 of Algorithm 1 print it."""

from typing import Literal

Signs = Literal["v1 (14)", "v1 (3)", "algorithm 1"]
