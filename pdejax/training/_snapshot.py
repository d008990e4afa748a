"""A state as NumPy arrays with names: what a checkpoint holds, and the way back."""

import hashlib
import json
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from pdejax.training._distributed import place

FORMAT = 1
Leaves = dict[str, np.ndarray]
State = TypeVar("State")


class Saved(NamedTuple):
    """The leaves of a state by name, and what was saved beside them."""

    step: int
    leaves: Leaves
    keys: dict[str, str]
    info: dict[str, Any]


def snapshot(step: int, state: PyTree, info: dict[str, Any], *, copy: bool = False) -> Saved:
    """The state on the host. Keys of `jax.random` are kept as numbers, with the name of their generator.

    Raises `TypeError` where `info` is not JSON and `ValueError` for a state split over processes.
    """
    leaves: Leaves = {}
    keys: dict[str, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            if not leaf.is_fully_replicated:
                raise ValueError(
                    f"{name} is split over processes; checkpoints hold states that every process has whole."
                )
            leaf = leaf.addressable_data(0)
        if _is_key(leaf):
            keys[name] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        leaves[name] = np.array(leaf) if copy else np.asarray(leaf)
    try:
        info = json.loads(json.dumps(info, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"what is saved beside the state must be JSON: {error}.") from error
    return Saved(step, leaves, keys, info)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def not_finite(saved: Saved, prefix: str = "params/") -> list[str]:
    """Names of the float leaves below `prefix` that hold NaN or infinity."""
    return [
        name
        for name, leaf in saved.leaves.items()
        if name.startswith(prefix) and jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.all(np.isfinite(leaf))
    ]


def rebuild(saved: Saved, like: State) -> State:
    """The state, with the structure and on the devices of `like`.

    Raises `ValueError` naming what differs where names, shapes, types or random generators do not agree.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    wrong = [f"{name} is not in the checkpoint" for name in names if name not in saved.leaves]
    wrong += [f"{name} is only in the checkpoint" for name in saved.leaves if name not in set(names)]
    leaves = []
    for name, (_, template) in zip(names, flat, strict=True):
        if name not in saved.leaves:
            continue
        value, key = saved.leaves[name], _is_key(template)
        model = jax.eval_shape(jax.random.key_data, template) if key else template
        wanted = (np.shape(model), jnp.result_type(model), str(jax.random.key_impl(template)) if key else None)
        found = (value.shape, value.dtype, saved.keys.get(name))
        if wanted != found:
            wrong.append(f"{name} is {_words(*found)} in the checkpoint and {_words(*wanted)} here")
        elif not wrong:
            leaves.append(_put(value, template))
    if wrong:
        wrong.sort(key=lambda text: not text.startswith("params/"))
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"the checkpoint of step {saved.step} is of another model or optimizer: {'; '.join(wrong[:5])}{more}."
        )
    return jax.tree_util.tree_unflatten(structure, leaves)


def _words(shape, dtype, key) -> str:
    return f"{jnp.dtype(dtype).name}{list(shape)}" + (f" (key {key})" if key else "")


def _put(value: np.ndarray, template: Any) -> Any:
    if not isinstance(template, jax.Array):
        return jnp.asarray(value.copy())
    if _is_key(template):
        data = _put(value, jax.random.key_data(template))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(template))
    # An array bound to no device stays so, or it could not be mixed with others that are.
    return place(value, template.sharding) if getattr(template, "committed", True) else jnp.asarray(value.copy())


def digest(saved: Saved) -> str:
    """sha256 of everything saved."""
    head = json.dumps([FORMAT, saved.step, saved.keys, saved.info], sort_keys=True)
    total = hashlib.sha256(head.encode())
    for name, leaf in sorted(saved.leaves.items()):
        total.update(f"\n{name} {leaf.dtype.name} {leaf.shape} ".encode())
        total.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


class Memory:
    """The latest state on the host, where no folder is given."""

    def __init__(self) -> None:
        self.saved: Saved | None = None

    def save(self, saved: Saved) -> None:
        self.saved = saved

    def load(self) -> Saved | None:
        return self.saved

    def close(self) -> None:
        pass
