"""The mesh axes of `jax.shard_map` over which values differ: the carry of a loop must say them from its start."""

from typing import Any

import equinox as eqx
import jax


def varying(*trees: Any) -> frozenset[str]:
    """Names of the mesh axes of `jax.shard_map` over which an array, or the shape of one, in these trees differs."""
    arrays = (x for x in jax.tree.leaves(trees) if eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct))
    return frozenset().union(*(jax.typeof(x).mat.varying for x in arrays))


def same_axes(tree: Any, others: Any) -> Any:
    """`tree` with arrays that differ over every axis that `tree` or `others` differ over, as the carry of a loop must."""
    axes = varying(tree, others)
    if not axes:
        return tree

    def one(x):
        missing = tuple(sorted(axes - varying(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing and eqx.is_array(x) else x

    return jax.tree.map(one, tree)
