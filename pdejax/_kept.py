"""What reverse mode keeps of a step, by name, for `jax.checkpoint`; all else is computed once more."""

from typing import Any

# Of a block of attention scores: O(n), not O(n²).
ATTENTION = ("attention shift", "attention numerator", "attention normaliser")
# Whether a step ended in numbers: one flag, which all of the step would have to be computed again for.
KNOWN = "step known"
# What a term multiplies its weights with, where the result is needed again.
PRODUCT = "product with weights"


def keep_little(primitive: Any, /, *_: Any, **parameters: Any) -> bool:
    """Keep `ATTENTION` and `KNOWN`. JAX's own policy, `save_only_these_names`, fails for a primitive that has a parameter called
    `prim`, such as those of the tridiagonal solves."""
    return primitive.name == "name" and parameters["name"] in (*ATTENTION, KNOWN)


def keep_products(primitive: Any, /, *_: Any, **parameters: Any) -> bool:
    """Keep `PRODUCT`, too: reverse mode multiplies no weights twice."""
    return primitive.name == "name" and parameters["name"] in (*ATTENTION, KNOWN, PRODUCT)
