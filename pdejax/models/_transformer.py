"""The discrete Transformer, layer by layer."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from pdejax._arguments import checked
from pdejax._check import instance, token_mask
from pdejax._products import keep_products
from pdejax._types import Field, Mask
from pdejax.models._architecture import Architecture, model_text
from pdejax.models._block import Block, apply_norm, attention_mask, make_norm
from pdejax.models._ends import checked_field, checked_tokens, require_x64, sinusoidal
from pdejax.models._observe import Observed


class Transformer(nnx.Module):
    """A Transformer encoder or decoder in `flax.nnx`, one sequence at a time.

    The forms a layer can take are tabulated in [`Architecture`][pdejax.models.Architecture]. The L
    layers are stored stacked, with a leading axis L, and applied by one `jax.lax.scan`: compile time does not
    grow with depth. Batches by `jax.vmap`: `jax.vmap(model)(tokens, mask)`.

    With `loops`, layers are gone through again with the same weights, every pass is trained, and states and maps are those of
    all passes: L is then `architecture.depth`.

    Symbols: n tokens, d = `dim`, H = `heads`, d_k = d/H, L = `layers`.

    Initial weights: LeCun normal for every kernel (variance 1/fan-in; for the square attention projections
    this is also Xavier's), zero biases, unit scales, token embedding N(0, 1), so that E and P are of
    comparable size, learned positions N(0, 0.02²).

    **Masks** are `(n,)` booleans, true at valid tokens. A masked token is removed as a *key* (attention
    weight exactly 0) and from the mean before a classification head. As a *query* it is still computed: its
    row is finite and reaches no valid token. In a causal model a masked token with no valid token before it
    has no key at all; its row carries no meaning.

    **Arguments**

    - `architecture`: an [`Architecture`][pdejax.models.Architecture].
    - `rngs`: `flax.nnx.Rngs(seed)`.

    Raises `ValueError` for a float64 model while JAX's 64-bit mode is off.

    Sources: v1 (9)-(13), v2 (2), (5), (6), (19); arXiv:1706.03762; pre-LN arXiv:2002.04745; peri-LN
    arXiv:2502.02732; Macaron arXiv:1906.02762; rotary positions arXiv:2104.09864.
    """

    @checked
    def __init__(self, architecture: Architecture, *, rngs: nnx.Rngs):
        instance(
            "Transformer", "architecture", architecture, Architecture, "make one by pdejax.Architecture(vocab=…, dim=…)"
        )
        require_x64(architecture)
        options = {"dtype": architecture.dtype, "param_dtype": architecture.param_dtype, "rngs": rngs}
        self.architecture = architecture
        if architecture.vocab is not None:
            unit = nnx.initializers.normal(1.0)
            self.embedding = nnx.Embed(architecture.vocab, architecture.dim, embedding_init=unit, **options)
        else:
            assert architecture.inputs is not None
            self.embedding = nnx.Linear(architecture.inputs, architecture.dim, **options)
        learned = architecture.positions == "learned"
        self.positions = nnx.Param(_learned_positions(architecture, rngs)) if learned else None
        self.layers = _stack(architecture, rngs)
        normed = architecture.head != "none" and architecture.norm in ("pre", "peri")
        self.final_norm = make_norm(architecture, rngs) if normed else None
        size = architecture.classes if architecture.head == "classification" else architecture.vocab
        self.head = nnx.Linear(architecture.dim, size or 0, **options) if architecture.head != "none" else None

    def __repr__(self) -> str:
        return model_text("Transformer", self.architecture, sum(value.size for value in self.parameters().values()))

    def __str__(self) -> str:  # Flax has one of its own, of 190 lines
        return repr(self)

    def embed(self, tokens: ArrayLike) -> Field:
        """Return the initial field u(·, 0) = s E + P, shape `(n, d)`; v2 (2).

        E is the row of the embedding table, or the linear map of a continuous input, and s the architecture's
        `embedding_scale` (1 by default: no factor √d). P is zero for `rotary` and `none`; for `sinusoidal`, at position p
        and feature 2i or 2i+1, the sine or cosine of p / 10000^(2i/d) (arXiv:1706.03762 §3.5).

        `tokens`: integer ids `(n,)`, or values `(n, inputs)`, also `(n,)` when `inputs` is 1.

        Raises `ValueError`/`TypeError` for a wrong shape or dtype, no tokens, more than `max_length` tokens,
        an id outside the vocabulary and NaN or infinite values; values are checked only outside `jit` and
        `vmap`.
        """
        return self._embed(checked_tokens("Transformer", self.architecture, tokens))

    def _embed(self, x: Array) -> Field:
        u = self.embedding(x if self.architecture.vocab is not None else x.astype(self.architecture.dtype))
        if self.architecture.embedding_scale != 1:
            u = self.architecture.embedding_scale * u
        if self.positions is not None:
            return u + self.positions[...][: u.shape[0]].astype(u.dtype)
        if self.architecture.positions == "sinusoidal":
            return u + jnp.asarray(sinusoidal(*u.shape), dtype=u.dtype)
        return u

    def run(self, u0: ArrayLike, mask: ArrayLike | None = None) -> Float[Array, "layers n d"]:
        """Return all L + 1 states `(L + 1, n, d)` from an initial field `(n, d)`; the first one is `u0`.

        Raises `ValueError`/`TypeError` for a field or mask of the wrong shape or dtype, NaN or infinite
        values, and a mask without a valid token.
        """
        u0 = checked_field("Transformer", self.architecture, u0, self.architecture.dtype)
        return self._states(u0, token_mask("Transformer", mask, u0.shape[0]))

    def hidden_states(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Float[Array, "layers n d"]:
        """Return all states `(L + 1, n, d)`: the embedding first, then the output of each layer.

        The states are those of the residual stream: the normalization before a head is not applied to the
        last. Raises as `embed` and `run`.
        """
        return self._states(*self._begin(tokens, mask))

    def attention_maps(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Float[Array, "layers H n n"]:
        """Return attention weights `(L, H, n, n)`: entry (l, h, i, j) is the weight query i gives key j.

        Rows sum to 1; in float32 at least. Raises as `embed` and `run`.
        """
        maps = self._apply(*self._begin(tokens, mask), maps=True)[2]
        assert maps is not None
        return maps

    def observe(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Observed:
        """Return logits, `hidden_states` and `attention_maps` of one pass; for a batch see `pdejax.observe`."""
        u0, valid = self._begin(tokens, mask)
        u, states, maps = self._apply(u0, valid, states=True, maps=True)
        assert states is not None
        return Observed(self.readout(u, valid), states, maps)

    def __call__(self, tokens: ArrayLike, mask: ArrayLike | None = None) -> Float[Array, "..."]:
        """Class logits `(classes,)`, token logits `(n, vocab)`, or without a head the last state `(n, d)`.

        Raises as `embed` and `run`.
        """
        u0, valid = self._begin(tokens, mask)
        return self.readout(self._apply(u0, valid)[0], valid)

    def _begin(self, tokens: ArrayLike, mask: ArrayLike | None) -> tuple[Field, Mask | None]:
        """The initial field and the mask; both are checked before anything is computed."""
        x = checked_tokens("Transformer", self.architecture, tokens)
        valid = token_mask("Transformer", mask, x.shape[0])
        return self._embed(x), valid

    def readout(self, u: Field, mask: Mask | None = None) -> Float[Array, "..."]:
        """Return logits from the last state `(n, d)`, or without a head that state after the last normalization."""
        if self.final_norm is not None:
            u = apply_norm(self.final_norm, u)
        if self.head is None:
            return u
        if self.architecture.head == "classification":
            u = u.mean(axis=0) if mask is None else u.mean(axis=0, where=mask[:, None])
        return self.head(u)

    def layer_weights(self) -> dict[str, Any]:
        """Return the weights of all layers as arrays with a leading axis L.

        `wq`, `wk`, `wv` `(L, d, H, dk)`, `wo` `(L, H, dk, d)`; `bq`, `bk`, `bv` `(L, H, dk)` and `bo` `(L,
        d)`, or `None`; `w1` `(L, d, ffn)`, `b1`, `w2` `(L, ffn, d)`, `b2`; `norm1`, `norm2`, `norm1_out`,
        `norm2_out`: a dict of `scale` `(L, d)` and `bias` `(L, d)` (`None` for RMSNorm), or `None`. `norm1`
        belongs to attention and `norm2` to the feed-forward; a parallel block has one norm, returned as both.
        """
        layers = self.layers
        attention, feed_forward = layers.attention, layers.feed_forward
        weights: dict[str, Any] = {}
        for name, part in (
            ("q", attention.q),
            ("k", attention.k),
            ("v", attention.v),
            ("o", attention.out),
            ("1", feed_forward.first),
            ("2", feed_forward.second),
        ):
            weights["w" + name] = part.kernel[...]
            weights["b" + name] = None if part.bias is None else part.bias[...]
        for name in ("norm1", "norm2", "norm1_out", "norm2_out"):
            weights[name] = _norm_weights(getattr(layers, name))
        if self.architecture.block == "parallel":
            weights["norm2"] = weights["norm1"]
        return weights

    def parameters(self) -> dict[str, Array]:
        """Return every parameter by its path, such as `layers/attention/q/kernel`."""
        return {name: variable.get_value() for name, variable in _variables(self).items()}

    @classmethod
    def from_parameters(cls, architecture: Architecture, parameters: Mapping[str, ArrayLike]) -> "Transformer":
        """Return the model with these parameters, named and shaped as `parameters()` gives them.

        Raises `ValueError` for names that are missing or too many and for shapes that differ.
        """
        model = nnx.eval_shape(lambda: cls(architecture, rngs=nnx.Rngs(0)))
        variables = _variables(model)
        missing = sorted(variables.keys() - parameters.keys())
        unknown = sorted(parameters.keys() - variables.keys())
        if missing or unknown:
            raise ValueError(f"parameters do not belong to this architecture: missing {missing}, unknown {unknown}")
        for name, variable in variables.items():
            value = jnp.asarray(parameters[name], dtype=architecture.param_dtype)
            expected = variable.get_value().shape
            if value.shape != expected:
                raise ValueError(
                    f"parameter {name!r} must have shape {expected} for this architecture, got {value.shape}"
                )
            variable.set_value(value)
        return model

    def with_parameters(self, parameters: Mapping[str, ArrayLike]) -> "Transformer":
        """Return the model with its parameters replaced by these, named and shaped as `parameters()` gives them."""
        return Transformer.from_parameters(self.architecture, parameters)

    def astype(self, dtype: DTypeLike) -> "Transformer":
        """Return a copy of the model with weights and computation in `float32` or `float64`."""
        architecture = self.architecture.replace(dtype=dtype, param_dtype=dtype)
        require_x64(architecture)
        return Transformer.from_parameters(architecture, self.parameters())

    def _states(self, u0: Field, mask: Mask | None) -> Float[Array, "layers n d"]:
        states = self._apply(u0, mask, states=True)[1]
        assert states is not None
        return states

    def _apply(
        self, u0: Field, mask: Mask | None, *, states: bool = False, maps: bool = False
    ) -> tuple[Field, Array | None, Array | None]:
        graph, weights = nnx.split(self.layers)
        a = self.architecture
        loop = _Loop(a.loops, a.prelude, a.layers - a.coda, a.injection == "add")
        return _scan_layers(graph, weights, u0, mask, a.causal, (states, maps), loop)


class _Loop(NamedTuple):
    """Which layers, `first` to before `stop`, are gone through how often, and whether the state before them is added."""

    passes: int
    first: int
    stop: int
    inject: bool


# Compiled here, once per architecture and shape: lax.scan outside jit would compile anew at every call.
@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
def _scan_layers(
    graph: Any, weights: Any, u0: Field, mask: Mask | None, causal: bool, collect: tuple[bool, bool], loop: _Loop
) -> tuple[Field, Array | None, Array | None]:
    """The last state, and where they are wanted the first with those of all layers, and the attention maps."""
    allowed = attention_mask(mask, u0.shape[0], causal)

    # Gradients keep the matrix products of a layer and compute what is cheap again: less memory, and on a CPU less time.
    @functools.partial(jax.checkpoint, policy=keep_products, prevent_cse=False)
    def layer(u, layer_weights):
        block = nnx.merge(graph, layer_weights)
        u, maps = block(u, allowed, collect[1])
        return u, (u if collect[0] else None, maps)

    def with_start(states):
        return None if states is None else jnp.concatenate([u0[None], states])

    if loop.passes == 1:
        last, (states, maps) = jax.lax.scan(layer, u0, weights)
        return last, with_start(states), maps

    def part(first, stop):
        return jax.tree.map(lambda w: w[first:stop], weights)

    core = part(loop.first, loop.stop)

    start, before = jax.lax.scan(layer, u0, part(0, loop.first))

    def once(u, _):
        return jax.lax.scan(layer, u + start if loop.inject else u, core)

    u, found = jax.lax.scan(once, start, length=loop.passes)
    last, after = jax.lax.scan(layer, u, part(loop.stop, None))
    # (passes, layers, …) as one axis of depth.
    found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
    states, maps = jax.tree.map(lambda *parts: jnp.concatenate(parts), before, found, after)
    return last, with_start(states), maps


def _variables(model: Transformer) -> dict[str, nnx.Variable]:
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): variable for path, variable in state}


def _stack(architecture: Architecture, rngs: nnx.Rngs) -> Block:
    @nnx.split_rngs(splits=architecture.layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(rngs):
        return Block(architecture, rngs=rngs)

    return create(rngs)


def _learned_positions(architecture: Architecture, rngs: nnx.Rngs) -> Array:
    small = nnx.initializers.normal(0.02)
    return small(rngs.params(), (architecture.max_length, architecture.dim), architecture.param_dtype)


def _norm_weights(norm: nnx.LayerNorm | nnx.RMSNorm | None) -> dict[str, Array | None] | None:
    if norm is None:
        return None
    assert norm.scale is not None
    bias = getattr(norm, "bias", None)
    return {"scale": norm.scale[...], "bias": None if bias is None else bias[...]}
