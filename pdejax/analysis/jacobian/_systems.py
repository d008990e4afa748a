"""What is differentiated: the maps of a discretization, a model or a network, real tokens alone."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from pdejax._arguments import checked
from pdejax._check import finite, spoken_by, traced
from pdejax._depth import DepthVarying
from pdejax._discretization import Discretization
from pdejax._equation import AbstractEquation
from pdejax._simulate import loop_begins
from pdejax._step_maps import AbstractMaps, SolverSteps, steps_of, without_padding
from pdejax._types import Mask
from pdejax.analysis._states import token_mask
from pdejax.models._pairing import functional
from pdejax.terms._base import at_least_float32, learned

Loss = Callable[[Array, Array | None, Mask | None], Array]


def is_system(value: Any) -> bool:
    """Whether this is a discretization, or a model that has one."""
    return isinstance(value, Discretization) or hasattr(functional(value), "discretization")


def discretization_of(owner: str, system: Any, n: int | None = None) -> Discretization:
    """The discretization itself, or that of a model on `n` tokens. Raises `TypeError` for anything else."""
    if isinstance(system, Discretization):
        return system
    found = getattr(functional(system), "discretization", None)
    found = found(n) if callable(found) else found
    if not isinstance(found, Discretization):
        raise TypeError(
            f"{owner}: the system is a {type(system).__name__}; give a Discretization, such as "
            "pdejax.Discretization(field, 'rk4', t1=…, steps=…), a Network, a Transformer or a Simulator; layers of your own "
            "become a Network by pdejax.network([layer, …])."
        )
    return found


def layers_of(owner: str, system: Any, d: Discretization) -> int:
    """Number of layers of a system: a model's own, else those of piecewise-constant weights."""
    found = len(d.layers) if system is d else functional(system).layers
    if not found:
        raise ValueError(
            f"{owner}: the discretization has no layers; give step=0 … {d.steps - 1}, a step of its solver."
        )
    return found


def model_maps(owner: str, system: Any, u0: Any, mask: Any) -> tuple[SolverSteps, Array, Mask | None]:
    """The steps of a discretization, or the layers of a model, from a state `(n, d)`; the state, and the mask."""
    d = discretization_of(owner, system, np.shape(u0)[-2] if np.ndim(u0) > 1 else None)
    return steps_of(owner, d, u0, mask, count=None if system is d else layers_of(owner, system, d))


class System(eqx.Module):
    """One sequence at a time: `end(flow of maps(u, mask), mask)` with `u = begin(inputs)` is what the system computes.

    `model`: a discretization, whose inputs are states and whose output is the last one; or a model as a pytree. `headed`: whether
    the output is something else than a state, such as logits.
    """

    model: Any
    depths: int | None = eqx.field(static=True)
    headed: bool = eqx.field(static=True)

    @property
    def plain(self) -> bool:
        """Whether this is a discretization alone."""
        return isinstance(self.model, Discretization)

    def begin(self, inputs: Array, mask: Mask | None) -> Array:
        """The initial state, zeros at padding; of a model in single precision at least."""
        u = inputs if self.plain else self.model.embed(inputs)
        return without_padding(u.astype(at_least_float32(u.dtype)), mask)

    def maps(self, u: Array, mask: Mask | None, start: Array | None = None) -> AbstractMaps:
        """The maps from this state, prepared for derivatives; inside jit. `start`: what a loop adds, if it is known already."""
        d = self._discretization(u)
        count = self.depths if self.plain else layers_of("system", self.model, d)
        return steps_of("system", d if start is None else d.given(start), u, mask, count=count)[0].ready(u)

    def before_loop(self, u: Array, count: int) -> int:
        """How many of `count` maps lead to the state that a loop adds; 0 where that is the first state or lies within a map."""
        d = self._discretization(u)
        return (loop_begins(d, count) or 0) if d.field.needs_start else 0

    def _discretization(self, u: Array) -> Discretization:
        return discretization_of("system", self.model, u.shape[-2] if u.ndim > 1 else None)

    def end(self, u: Array, mask: Mask | None) -> Array:
        """What the loss sees: logits, or the last state with zeros at padding."""
        out = u if self.plain else self.model.head(u, mask)
        return out if self.headed else without_padding(out, mask)

    def trained(self) -> PyTree[bool]:
        """True at the parameters: those that a model names, else the weights of read-in, field, solver and read-out."""
        marked = jax.tree.map(lambda _: False, self)

        if self.plain:
            return eqx.tree_at(lambda s: s.model.field, marked, learned(self.model.field))
        if hasattr(self.model, "trainable"):
            return eqx.tree_at(lambda s: s.model, marked, self.model.trainable())

        def parts(s: System) -> tuple[Any, ...]:
            d = s.model.discretization
            return s.model.embed, d.field, d.solver, s.model.head

        return eqx.tree_at(parts, marked, tuple(learned(part) for part in parts(self)))


class Examples(eqx.Module):
    """A batch ready for a system: inputs `(b, ...)`, labels `(b, ...)` or None, masks `(b, n)`."""

    inputs: Array
    labels: Array | None
    mask: Array | None
    batched: bool = eqx.field(static=True)


def as_system(
    owner: str, system: Any, inputs: Any, labels: Any, mask: Any, depths: int | None
) -> tuple[System, Examples]:
    """A discretization or model and its batch, checked; one sequence is a batch of one.

    Raises `TypeError`/`ValueError`, which name `owner`, for what does not fit.
    """
    if isinstance(inputs, eqx.Module) or not is_system(system):
        where = inputs if isinstance(inputs, eqx.Module) else system
        raise TypeError(
            f"{owner}: {'inputs' if where is inputs else 'the system'} is a {type(where).__name__}; the first argument is a "
            "Discretization, a Network (pdejax.network([layer, …]) makes one of layers of your own), a Transformer or a "
            "Simulator, the second its inputs."
        )
    x = jnp.asarray(inputs)
    if x.size == 0:
        raise ValueError(f"{owner}: inputs has shape {x.shape}; give at least one sequence with a token.")
    model = functional(system)
    found = System(model, depths, False)
    if depths is not None and not found.plain:
        raise ValueError(
            f"{owner}: depths={depths} belongs to a discretization; a model is looked at between its layers."
        )
    batched = _is_batch(owner, found, x)
    x = x if batched else x[None]
    ids = jnp.issubdtype(x.dtype, jnp.integer)
    real = None if mask is None else token_mask(owner, mask, x.shape[0], x.shape[1] if ids else x.shape[-2])
    x = _clean(owner, x, real)
    if labels is not None:
        labels = jnp.asarray(labels)
        labels = labels if batched else labels[None]
        if not labels.ndim or labels.shape[0] != x.shape[0]:
            raise ValueError(
                f"{owner}: labels has shape {labels.shape} for {x.shape[0]} sequences; give one entry each."
            )
    _check_first(owner, found, x, None if real is None else real[0])
    if not found.plain:
        u = eqx.filter_eval_shape(model.embed, x[0])
        output = eqx.filter_eval_shape(model.head, u, None if real is None else real[0])
        found = System(model, depths, getattr(model, "headed", output.shape != u.shape))
    return found, Examples(x, labels, real, batched)


def _is_batch(owner: str, system: System, x: Array) -> bool:
    """Whether there is an axis of sequences in front: of ids by the number of axes, of states by what the field takes."""
    ids = jnp.issubdtype(x.dtype, jnp.integer)
    if system.plain and x.ndim > 2:
        try:
            system.model.field.check(x.shape[1:])
            return True
        except ValueError:
            return False
    axes = 2 if ids and not system.plain else 3
    if x.ndim not in (axes - 1, axes):
        raise ValueError(
            f"{owner}: inputs has shape {x.shape}; give one sequence ({axes - 1} axes) or a batch ({axes} axes)."
        )
    return x.ndim == axes


def _check_first(owner: str, system: System, x: Array, mask: Array | None) -> None:
    """Read in one sequence, and those with the smallest and the largest number, so that what does not fit says so."""
    if system.plain:
        steps_of(owner, system.model, x[0], mask, count=system.depths)
        return
    if traced(x):
        jax.eval_shape(system.model.embed, x[0])
        return
    flat = np.asarray(x).reshape(x.shape[0], -1)
    for row in {int(flat.min(axis=1).argmin()), int(flat.max(axis=1).argmax())}:
        with spoken_by(owner, "inputs does not fit the model: "):
            system.model.embed(x[row])


def _clean(owner: str, x: Array, mask: Array | None) -> Array:
    """Zeros (id 0) at padding; what is real must be finite."""
    if mask is not None:
        shape = mask.shape if x.ndim == 2 else (mask.shape[0], *(1,) * (x.ndim - 3), mask.shape[1], 1)
        x = jnp.where(jnp.broadcast_to(mask.reshape(shape), x.shape), x, jnp.zeros((), x.dtype))
    if jnp.issubdtype(x.dtype, jnp.floating):
        finite(owner, "inputs", x, "clean it, or mask the tokens")
    return x


def cross_entropy(logits: Array, label: Array | None, mask: Mask | None) -> Array:
    """Of a class from logits `(classes,)`, or the mean over real tokens from `(n, vocab)`; float32 at least."""
    logits = logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)
    assert label is not None
    found = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    if logits.ndim == 1 or mask is None:
        return jnp.mean(found)
    return jnp.sum(jnp.where(mask, found, 0)) / jnp.sum(mask.astype(found.dtype))


def default_loss(owner: str, system: System, loss: Loss | None, labels: Array | None) -> Loss:
    """The loss given, or cross-entropy where the system has logits and there are labels."""
    if loss is None:
        if not system.headed:
            raise ValueError(
                f"{owner}: there are no logits, so give loss=…, a function (output, label, mask) -> scalar."
            )
        if labels is None or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(f"{owner}: cross-entropy needs whole-number labels; give labels, or a loss of your own.")
        return cross_entropy
    if not callable(loss):
        raise TypeError(
            f"{owner}: loss is a {type(loss).__name__}; it must be a function (output, label, mask) -> scalar."
        )
    return loss


def layer_norms(gradients: PyTree[Array]) -> Array | None:
    """Euclidean norms `(L,)` of the gradients of each layer's parameters, told by the leading axis of what lies under `layers`
    (Flax, coupled layers) or `stacked` (`DepthVarying`, `Simulator`); None where weights serve all depths."""
    squares = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        names = {str(getattr(key, "key", getattr(key, "name", ""))) for key in path}
        # Weights of a solver, such as the norms after a step, are stacked in a `LayerStack`.
        if ({"layers", "stacked"} & names or {"solver", "value"} <= names) and leaf.ndim:
            squares.append(jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim))))
    if not squares or len({s.shape for s in squares}) != 1:
        return None
    return jnp.sqrt(jnp.sum(jnp.stack(squares), axis=0))


@checked
def shuffle_weights(system: Any, *, key: PRNGKeyArray) -> Any:
    """Make a null model: the same model or discretization with the entries of every weight matrix in a random order, layer
    by layer.

    Sizes and the distribution of the entries stay; what was learned or designed is lost. Vectors (biases, scales, rates) keep
    their place. Raises `TypeError` for something without weight matrices, such as a plain function.
    """
    return _with_matrices("shuffle_weights", "shuffle", system, key, _permuted)


def shuffled_on_host(system: Any, *, key: PRNGKeyArray) -> Any:
    """`shuffle_weights` in orders that NumPy draws, outside of `jit`: sorting random numbers on a CPU takes many times as long,
    minutes for a hundred million weights."""

    def permuted(key, entries):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
        return rng.permutation(np.asarray(entries))

    return _with_matrices("shuffle_weights", "shuffle", system, key, permuted, host=True)


def drawn_weights(system: Any, *, key: PRNGKeyArray) -> Any:
    """The same model or discretization with every weight matrix drawn anew, Gaussian, of its own mean square, layer by layer.
    Vectors stay. Raises `TypeError` for something without weight matrices."""
    return _with_matrices("drawn_weights", "draw", system, key, _gaussian)


def _permuted(key: PRNGKeyArray, entries: Array) -> Array:
    return jax.random.permutation(key, entries)


def _gaussian(key: PRNGKeyArray, entries: Array) -> Array:
    kind = at_least_float32(entries.dtype)
    size, drawn = jnp.sqrt(jnp.mean(entries.astype(kind) ** 2)), jax.random.normal(key, entries.shape, kind)
    # The mean square itself, not on average: a Gaussian matrix of this size is then one of the draws.
    return (size / jnp.sqrt(jnp.mean(drawn**2)) * drawn).astype(entries.dtype)


def _with_matrices(
    owner: str, what: str, system: Any, key: PRNGKeyArray, change: Callable[..., Any], host: bool = False
) -> Any:
    """A system with `change(key, entries)` in the place of every matrix's entries; on the `host` it is a function of NumPy."""
    if isinstance(system, Discretization):
        field = _with_matrices(owner, what, system.field, key, change, host)
        return system.replace(field=field, split=system.split, adjoint=system.adjoint)
    if not isinstance(system, eqx.Module) and hasattr(system, "with_parameters"):
        named = system.parameters()
        return system.with_parameters(
            {name: _changed(leaf, name, key, i, change, host) for i, (name, leaf) in enumerate(named.items())}
        )
    leaves, structure = jax.tree_util.tree_flatten_with_path(system)
    source = sources(getattr(system, "stacked", None))
    name = system.describe() if isinstance(system, AbstractEquation) else type(system).__name__
    marks = jax.tree.leaves(learned(system))
    if not isinstance(system, eqx.Module) or not any(
        mark and x.ndim >= 2 for mark, (_, x) in zip(marks, leaves, strict=True)
    ):
        raise TypeError(f"{owner}: {name} has no weight matrices to {what}; give a null of your own.")
    return jax.tree.unflatten(
        structure,
        [
            _changed(leaf, jax.tree_util.keystr(path), key, i, change, host, source) if mark else leaf
            for i, (mark, (path, leaf)) in enumerate(zip(marks, leaves, strict=True))
        ],
    )


def sources(stacked: Any) -> Any:
    """Which stored layer each layer of a stack is, `(L,)`, where the stack is that of a `layer_field`, else None."""
    return getattr(getattr(stacked, "function", None), "source", None)


def draw_keys(stack: DepthVarying, key: PRNGKeyArray) -> dict[int, Array]:
    """Keys `(L,)` with which `drawn_weights` draws each layer of the matrices of a stack, by their place among its leaves:
    `draw_layer(key, entries)` gives one layer's. Copies of one stored layer, as those of a `layer_field`, have one key."""
    source = sources(stack.stacked)
    return {
        i: _layer_keys(jax.random.fold_in(key, i), leaf.shape[0], source)
        for i, (mark, leaf) in enumerate(zip(jax.tree.leaves(learned(stack)), jax.tree.leaves(stack), strict=True))
        if mark and leaf.ndim >= 3
    }


def _layer_keys(key: PRNGKeyArray, count: int, source: Any) -> Array:
    keys = jax.random.split(key, count)
    return keys if source is None else keys[source]


def draw_layer(key: PRNGKeyArray, entries: Array) -> Array:
    """A Gaussian matrix of the mean square of `entries`, as `drawn_weights` draws it."""
    return _gaussian(key, entries.ravel()).reshape(entries.shape)


def _changed(
    leaf: Any,
    name: str,
    key: PRNGKeyArray,
    index: int,
    change: Callable[..., Any],
    host: bool,
    source: Any = None,
) -> Any:
    if not eqx.is_inexact_array(leaf):
        return leaf
    layered = "layers" in name or "stacked" in name
    if leaf.ndim < (3 if layered else 2):
        return leaf
    key = jax.random.fold_in(key, index)
    if not layered:
        return change(key, leaf.ravel()).reshape(leaf.shape)
    keys = _layer_keys(key, leaf.shape[0], source)
    if host:
        made = np.empty(leaf.shape, leaf.dtype)
        for i, layer in enumerate(np.asarray(leaf)):
            made[i] = change(keys[i], layer.ravel()).reshape(layer.shape)
        return jnp.asarray(made)
    return _by_layer(change, keys, leaf)


@eqx.filter_jit
def _by_layer(change: Callable[..., Array], keys: Array, leaf: Array) -> Array:
    """`change` of every layer's entries, one layer after another: what it needs on the way is there for one alone."""
    return jax.lax.map(lambda x: change(x[0], x[1].ravel()).reshape(x[1].shape), (keys, leaf))
