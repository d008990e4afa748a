"""What a Transformer is made of, checked before anything is built."""

import dataclasses
import difflib
import math
import operator
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax.typing import DTypeLike

from pdejax._types import Activation

Norm = Literal["pre", "post", "peri", "none"]
NormType = Literal["layernorm", "rmsnorm"]
BlockForm = Literal["sequential", "parallel", "macaron"]
Residual = Literal["add", "gated", "none"]
Positions = Literal["sinusoidal", "learned", "rotary", "none"]
Head = Literal["none", "classification", "lm"]

_NAMES: dict[str, tuple[str, ...]] = {
    "norm": get_args(Norm),
    "norm_type": get_args(NormType),
    "block": get_args(BlockForm),
    "residual": get_args(Residual),
    "activation": get_args(Activation),
    "positions": get_args(Positions),
    "head": get_args(Head),
}
_DTYPES = ("bfloat16", "float16", "float32", "float64")
# Stored weights are never below float32, so that a checkpoint is a plain .npz file.
_PARAM_DTYPES = ("float32", "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The architecture of a [`Transformer`][pdejax.models.Transformer].

    With A = attention, R = feed-forward, N = normalization, s = `residual_scale`, one layer computes

    | `block`      | `norm`        | layer                                                                   |
    |--------------|---------------|-------------------------------------------------------------------------|
    | `sequential` | `pre`         | `u += s A(N1 u)`, then `u += s R(N2 u)`                                 |
    | `sequential` | `post`        | `u = N1(u + s A u)`, then `u = N2(u + s R u)`                           |
    | `sequential` | `peri`        | `u += s N1out(A(N1 u))`, then `u += s N2out(R(N2 u))`                   |
    | `parallel`   | `pre`         | `u += s (A(N1 u) + R(N1 u))`, one shared N1 (GPT-J, PaLM)               |
    | `parallel`   | `peri`        | `u += s (N1out(A(N1 u)) + N2out(R(N1 u)))`                              |
    | `macaron`    | `pre`, `peri` | the sequential substeps R, A, R with s/2, s, s/2 and the same R weights |
    | `macaron`    | `post`        | `u = N2(u + s/2 R u)`, `u = N1(u + s A u)`, `u = N2(u + s/2 R u)`       |
    | any          | `none`        | as `pre`, without N                                                     |

    `residual="gated"` writes `(1 − s) u + s A(·)` for `u + s A(·)` (s/2 in a Macaron half), and
    `residual="none"` writes `A(·)`. Both are the field with leak −u, at step s and at step 1.

    Pre-LN and peri-LN models with a head normalize once more before it; post-LN states are normalized
    already.

    **Arguments** (all by keyword)

    - `vocab`: number of token ids; `None` for continuous inputs.
    - `inputs`: features of one continuous input, when `vocab` is `None` (1 for pixels).
    - `dim`, `heads`, `layers`, `ffn`: width d, heads H (dividing d, d_k = d/H), layers L, feed-forward width.
    - `norm`, `norm_type`, `norm_eps`: placement, `layernorm` or `rmsnorm`, and ε inside the square root.
    - `block`, `residual`, `residual_scale`: see the table; s > 0, at most 1 when gated.
    - `activation`: `relu`, `gelu` (exact, erf), `gelu_tanh`, `silu`, `tanh` or `identity`.
    - `causal`: every token sees itself and earlier tokens only (a decoder).
    - `positions`: `sinusoidal`, `learned` (needs `max_length`), `rotary` (needs an even d_k) or `none`.
    - `rotary_theta`: base of the rotary frequencies.
    - `max_length`: longest sequence accepted; `None` for any length.
    - `head`, `classes`: `none`, `classification` (mean over tokens, then linear) or `lm` (linear per token).
    - `bias`: biases on the four attention projections (the feed-forward always has them).
    - `dtype`, `param_dtype`: of the computation (softmax never below float32) and of the stored weights.

    Raises `ValueError` or `TypeError` naming the argument for anything else, among them the combinations
    without a definition: `parallel` with `post` (post-LN normalizes after each substep, a parallel block has
    no substeps), and `parallel` or, for `none`, `macaron` with a residual that is not `add`.
    """

    vocab: int | None = None
    inputs: int | None = None
    dim: int = 128
    heads: int = 4
    layers: int = 6
    ffn: int = 512
    norm: Norm = "pre"
    norm_type: NormType = "layernorm"
    norm_eps: float = 1e-6
    block: BlockForm = "sequential"
    residual: Residual = "add"
    residual_scale: float = 1.0
    activation: Activation = "gelu"
    causal: bool = False
    positions: Positions = "sinusoidal"
    rotary_theta: float = 10000.0
    max_length: int | None = None
    head: Head = "none"
    classes: int | None = None
    bias: bool = False
    dtype: DTypeLike = "float32"
    param_dtype: DTypeLike = "float32"

    def __post_init__(self):
        for name in ("dim", "heads", "layers", "ffn"):
            self._set(name, _positive_integer(name, getattr(self, name)))
        for name in ("vocab", "inputs", "max_length", "classes"):
            if getattr(self, name) is not None:
                self._set(name, _positive_integer(name, getattr(self, name)))
        for name in ("norm_eps", "residual_scale", "rotary_theta"):
            self._set(name, _positive_number(name, getattr(self, name)))
        for name in ("causal", "bias"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name, allowed in _NAMES.items():
            _check_name(name, getattr(self, name), allowed)
        self._set("dtype", _dtype_name("dtype", self.dtype, _DTYPES))
        self._set("param_dtype", _dtype_name("param_dtype", self.param_dtype, _PARAM_DTYPES))
        self._check_sizes()
        self._check_block()

    @property
    def head_dim(self) -> int:
        """Size d_k = d / H of one head."""
        return self.dim // self.heads

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_sizes(self) -> None:
        if (self.vocab is None) == (self.inputs is None):
            raise ValueError(
                "give either vocab (token ids) or inputs (features of a continuous input), got "
                f"vocab={self.vocab} and inputs={self.inputs}"
            )
        if self.dim % self.heads:
            divisors = [h for h in range(1, self.dim + 1) if self.dim % h == 0]
            raise ValueError(f"heads must divide dim={self.dim}, got heads={self.heads}; use one of {divisors}")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(
                f"positions='rotary' turns pairs of features and needs an even head size dim/heads, got "
                f"{self.dim}/{self.heads} = {self.head_dim}"
            )
        if self.positions == "learned" and self.max_length is None:
            raise ValueError("positions='learned' has one vector per position: give max_length")
        if (self.head == "classification") != (self.classes is not None):
            raise ValueError(
                f"classes belongs to head='classification' and must be given with it, got head={self.head!r} "
                f"and classes={self.classes}"
            )
        if self.head == "lm" and self.vocab is None:
            raise ValueError("head='lm' predicts token ids: give vocab, or use another head for continuous inputs")

    def _check_block(self) -> None:
        if self.block == "parallel" and self.norm == "post":
            raise ValueError(
                "block='parallel' with norm='post' is not defined: post-LN normalizes after each of the "
                "two substeps and a parallel block has only one; use block='sequential' or norm='pre'"
            )
        if self.block == "parallel" and self.residual != "add":
            raise ValueError(
                f"block='parallel' adds both sublayers to one stream, so residual={self.residual!r} has two "
                "readings (one leak or two); use residual='add' or block='sequential'"
            )
        if self.block == "macaron" and self.residual == "none":
            raise ValueError(
                "block='macaron' takes half steps, and residual='none' is a whole step of the leaky field; "
                "use residual='gated' or block='sequential'"
            )
        if self.residual == "none" and self.residual_scale != 1.0:
            raise ValueError(
                "residual='none' has no residual to scale: residual_scale must be 1.0, got "
                f"{self.residual_scale}; for a step below 1 use residual='gated'"
            )
        if self.residual == "gated" and self.residual_scale > 1.0:
            raise ValueError(
                f"residual='gated' mixes (1 - s) u + s A(u): residual_scale must be in (0, 1], got "
                f"{self.residual_scale}"
            )


def _positive_integer(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a positive integer, got {value!r}")
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a positive integer, got {value!r}") from None
    if value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value}")
    return value


def _positive_number(name: str, value: Any) -> float:
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a positive number, got {value!r}") from None
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return value


def _check_name(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}{hint}")


def _dtype_name(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    try:
        found = jnp.dtype(value).name
    except TypeError:
        found = str(value)
    _check_name(name, found, allowed)
    return found
