"""Parts of a network from given numbers: terms and norms, and the discretizations of blocks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from pdejax._depth import DepthVarying, LayerStack
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax.networks.families._ends import Head, LastField, Logits
from pdejax.networks.families._family import Weights
from pdejax.solvers import LieTrotter, Retract
from pdejax.terms import LayerNorm, RMSNorm

T = TypeVar("T")


def below(weights: Weights, place: str) -> dict[str, Any]:
    """The weights of one part: those whose place begins with `place.`, by the rest of their names."""
    return {name.removeprefix(f"{place}."): w for name, w in weights.items() if name.startswith(f"{place}.")}


def filled(
    make: Callable[[PRNGKeyArray], T],
    weights: Mapping[str, Any],
    *,
    layers: int | None = None,
    constants: Sequence[str] = ("strength",),
) -> T:
    """Return what `make(key)` makes with given numbers in the place of its own; nothing is drawn.

    - `weights`: arrays by the dotted names of the leaves, such as `wq` or `norm.scale`. With `layers`, all have a leading axis
      of that length.
    - `constants`: leaves that keep the value that `make` gives them.

    Raises `ValueError` for leaves without numbers, numbers without a leaf, or another shape: a fault of a family's file.
    """
    skeleton = eqx.filter_eval_shape(make, jax.random.key(0))
    paths, tree = jax.tree_util.tree_flatten_with_path(skeleton)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    shapes = {name: leaf.shape for name, (_, leaf) in zip(names, paths, strict=True)}
    lead = () if layers is None else (layers,)
    kept = [name for name in names if name in constants and name not in weights]
    if set(names) - set(kept) != set(weights):
        raise ValueError(f"the leaves {sorted(set(names) - set(kept))} were given numbers for {sorted(weights)}.")
    wrong = [name for name, array in weights.items() if array.shape != (*lead, *shapes[name])]
    if wrong:
        raise ValueError(f"{[(n, weights[n].shape) for n in wrong]} should be {[(*lead, *shapes[n]) for n in wrong]}.")
    values = {name: on_device(array) for name, array in weights.items()}
    if kept:
        # Compiled for what is kept alone: what is drawn for the rest is never computed.
        fixed = jax.jit(lambda key: _leaves(make(key), kept))(jax.random.key(0))
        values |= {name: jnp.broadcast_to(value, (*lead, *value.shape)) for name, value in fixed.items()}
    return jax.tree.unflatten(tree, [values[name] for name in names])


def post_norm(
    attention: Any, feed_forward: Any, norms: tuple[Any, Any], layers: int, *, tied: bool = False
) -> Discretization:
    """Return the discretization of post-LN blocks, `u ← LN₁(u + A(u))`, `u ← LN₂(u + R(u))`: Lie–Trotter with Euler substeps
    and the norms as retractions, one step per layer over t ∈ [0, L].

    Terms and norms have a leading axis of layers; `tied` ones have none, and are the same in all layers: an autonomous field.
    """
    equation = MasterEquation(attention, feed_forward)
    field = equation if tied else DepthVarying(equation, float(layers))
    retractions = norms if tied else tuple(LayerStack(norm) for norm in norms)
    solver = LieTrotter(tuple(Retract(diffrax.Euler(), norm) for norm in retractions))
    return Discretization(field, solver, t1=float(layers), steps=layers)


def pre_norm(attention: Any, feed_forward: Any, layers: int, *, parallel: bool = False) -> Discretization:
    """Return the discretization of pre-LN blocks, `u ← u + A(u)`, `u ← u + R(u)`, the norms inside the terms: Lie–Trotter with
    Euler substeps; `parallel` blocks `u ← u + A(u) + R(u)` are Euler steps. One step per layer over t ∈ [0, L]."""
    field = DepthVarying(MasterEquation(attention, feed_forward), float(layers))
    return Discretization(field, "euler" if parallel else "lietrotter", t1=float(layers), steps=layers)


def decoder_head(words: jax.Array, weights: Weights, norm: Any, tied: bool) -> Head:
    """Return the head of a decoder after its last norm: tied to the table of words, of its own, `head.table`, or none."""
    if tied:
        return Logits(words, norm=norm)
    return Logits(on_device(weights["head.table"]), norm=norm) if "head.table" in weights else LastField(norm)


def layer_norm(dim: int, eps: float, weights: Mapping[str, Any], layers: int | None = None) -> LayerNorm:
    """Return a LayerNorm of width `dim` with these numbers, `scale` and `bias`."""
    return filled(lambda key: LayerNorm(dim, eps=eps), weights, layers=layers)


def rms_norm(dim: int, eps: float, weights: Mapping[str, Any], layers: int | None = None) -> RMSNorm:
    """Return an RMSNorm of width `dim` with these numbers, `scale`."""
    return filled(lambda key: RMSNorm(dim, eps=eps), weights, layers=layers)


def _leaves(module: Any, names: Sequence[str]) -> dict[str, Any]:
    paths, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(module, eqx.is_array))
    found = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}
    return {name: found[name] for name in names}


def on_device(array: Any) -> jax.Array:
    """The numbers in their own type; float64 ones as float32 where JAX has no float64."""
    if array.dtype == jnp.float64 and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        array = array.astype("float32")
    return jnp.asarray(array)
