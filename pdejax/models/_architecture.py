"""What a Transformer, and every simulator of it, is made of: sizes and the form of a layer; models in words. Read without JAX."""

import dataclasses
from typing import Any, Literal, get_args

import numpy as np

from pdejax._activation import Activation
from pdejax._arguments import names_checked
from pdejax._check import boolean, choice, integer, number


def model_text(kind: str, architecture: Any, parameters: int, *more: str) -> str:
    """Describe a model: its kind, its number of parameters, its layers and its two ends."""
    a = architecture
    norm = "no normalization" if a.norm == "none" else f"{a.norm}-{'LN' if a.norm_type == 'layernorm' else 'RMSNorm'}"
    residual = {"add": "", "gated": f", gated by {a.residual_scale:g}", "none": ", no residual"}[a.residual]
    causal = "causal attention" if a.causal else "attention"
    inputs = f"{a.vocab} token ids" if a.vocab is not None else f"values of {a.inputs} feature{'s' * (a.inputs != 1)}"
    inputs += "" if a.embedding_scale == 1 else f" × {a.embedding_scale:g}"
    outputs = {"none": "the last state", "classification": f"{a.classes} classes", "lm": "the next token"}[a.head]
    lines = (
        f"{kind}, {parameters:,} parameters",
        f"{_layers_text(a)}: {causal} + feed-forward ({a.activation}), {a.block}, {norm}{residual}",
        f"d = {a.dim}, {a.heads} heads of {a.head_dim}, feed-forward {a.ffn}, {a.dtype}",
        f"in: {inputs}, {'no' if a.positions == 'none' else a.positions} positions; out: {outputs}",
        *more,
    )
    return "\n  ".join(lines)


def _layers_text(a: Any) -> str:
    if a.loops == 1:
        return f"{a.layers} layers"
    looped = a.layers - a.prelude - a.coda
    which = "all of them" if looped == a.layers else f"{looped} of them, after {a.prelude} and before {a.coda},"
    added = "the state after the first" if a.prelude else "the embedding"
    again = "" if a.injection == "none" else f", {added} added before each"
    return f"{a.layers} layers, {which} gone through {a.loops} times{again}"


def config_text(config: Any, *always: str) -> str:
    """Write a configuration as it is made, with the fields of these names and those that are not as by default."""
    shown = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.name in always or (value != default and value is not None):
            shown.append(f"{field.name}={value!r}")
    return f"{type(config).__name__}({', '.join(shown)})"


Norm = Literal["pre", "post", "peri", "none"]
NormType = Literal["layernorm", "rmsnorm"]
BlockForm = Literal["sequential", "parallel", "macaron"]
Residual = Literal["add", "gated", "none"]
Positions = Literal["sinusoidal", "learned", "rotary", "none"]
Head = Literal["none", "classification", "lm"]
Injection = Literal["none", "add"]

_NAMES: dict[str, tuple[str, ...]] = {
    "norm": get_args(Norm),
    "norm_type": get_args(NormType),
    "block": get_args(BlockForm),
    "residual": get_args(Residual),
    "activation": get_args(Activation),
    "positions": get_args(Positions),
    "head": get_args(Head),
    "injection": get_args(Injection),
}
_DTYPES = ("bfloat16", "float16", "float32", "float64")
# Stored weights are never below float32, so that a checkpoint is a plain .npz file.
_PARAM_DTYPES = ("float32", "float64")


@names_checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes and the form of a layer: of a [`Transformer`][pdejax.models.Transformer], and of the field that a
    [`Simulator`][pdejax.models.Simulator] or [`MultilayerSimulator`][pdejax.models.MultilayerSimulator] integrates.

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
    - `loops` k: the stack is gone through k times with the same weights, a looped Transformer (arXiv:1807.03819); `prelude`,
      `coda`: layers of it at its beginning and at its end that are gone through once (arXiv:2502.05171). `depth` is the number of
      layers that a state then passes. `injection="add"` adds the state e that the loop begins with before every pass,
      `u ← G(u + e)`, a pass without it being `u ← G(u)`: the embedding E + P (arXiv:2311.12424), or after a prelude its output
      (arXiv:2502.05171). Both of those start elsewhere, at 0 or at random; here u = e. A norm after every pass, as Ouro has, is
      the family's own.
    - `norm`, `norm_type`, `norm_eps`: placement, `layernorm` or `rmsnorm`, and ε inside the square root.
    - `block`, `residual`, `residual_scale`: see the table; s > 0, at most 1 when gated.
    - `activation`: `relu`, `gelu` (exact, erf), `gelu_tanh`, `silu`, `tanh` or `identity`.
    - `causal`: every token sees itself and earlier tokens only (a decoder).
    - `positions`: `sinusoidal`, `learned` (needs `max_length`), `rotary` (needs an even d_k) or `none`.
    - `rotary_theta`: base of the rotary frequencies.
    - `embedding_scale`: factor of E in E + P, √d in arXiv:1706.03762 §3.4; with E drawn from N(0, 1), as here, it makes a
      layer's change smaller beside the input.
    - `max_length`: longest sequence accepted; `None` for any length.
    - `head`, `classes`: `none`, `classification` (mean over tokens, then linear) or `lm` (linear per token).
    - `bias`: biases on the four attention projections (the feed-forward always has them).
    - `dtype`, `param_dtype`: of the computation (softmax never below float32) and of the stored weights.

    Raises `ValueError` or `TypeError` naming the argument for anything else, among them the combinations
    without a definition: `parallel` with `post` (post-LN normalizes after each substep, a parallel block has
    no substeps), and `parallel` or, for `none`, `macaron` with a residual that is not `add`; a prelude and a coda without
    loops or with no layer between them; injection without loops.
    """

    vocab: int | None = None
    inputs: int | None = None
    dim: int = 128
    heads: int = 4
    layers: int = 6
    ffn: int = 512
    loops: int = 1
    prelude: int = 0
    coda: int = 0
    injection: Injection = "none"
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
    embedding_scale: float = 1.0
    max_length: int | None = None
    head: Head = "none"
    classes: int | None = None
    bias: bool = False
    dtype: Any = "float32"
    param_dtype: Any = "float32"

    def __post_init__(self):
        for name in ("dim", "heads", "layers", "ffn", "vocab", "inputs", "max_length", "classes"):
            if getattr(self, name) is not None or name in ("dim", "heads", "layers", "ffn"):
                self._set(name, integer("Architecture", name, getattr(self, name)))
        for name, least in (("loops", 1), ("prelude", 0), ("coda", 0)):
            self._set(name, integer("Architecture", name, getattr(self, name), least))
        for name in ("norm_eps", "residual_scale", "rotary_theta", "embedding_scale"):
            self._set(name, number("Architecture", name, getattr(self, name), above=0))
        for name in ("causal", "bias"):
            boolean("Architecture", name, getattr(self, name))
        for name, allowed in _NAMES.items():
            choice("Architecture", name, getattr(self, name), allowed)
        self._set("dtype", _dtype_name("dtype", self.dtype, _DTYPES))
        self._set("param_dtype", _dtype_name("param_dtype", self.param_dtype, _PARAM_DTYPES))
        self._check_sizes()
        self._check_block()
        self._check_loop()

    def __repr__(self) -> str:
        return config_text(self, "dim", "heads", "layers", "ffn")

    @property
    def head_dim(self) -> int:
        """Size d_k = d / H of one head."""
        return self.dim // self.heads

    @property
    def depth(self) -> int:
        """Number of layers that a state passes: `layers`, and those of a loop as often as it is gone through."""
        return self.layers + (self.loops - 1) * (self.layers - self.prelude - self.coda)

    @property
    def state_dtype(self) -> str:
        """Type of a simulator's field, at least float32."""
        return "float64" if self.dtype == "float64" else "float32"

    def replace(self, **changes: Any) -> "Architecture":
        """Return the architecture with some arguments changed, checked anew."""
        return dataclasses.replace(self, **changes)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_sizes(self) -> None:
        if (self.vocab is None) == (self.inputs is None):
            raise ValueError(
                "Architecture: give either vocab (token ids) or inputs (features of a continuous input), got "
                f"vocab={self.vocab} and inputs={self.inputs}"
            )
        if self.dim % self.heads:
            divisors = [h for h in range(1, self.dim + 1) if self.dim % h == 0]
            raise ValueError(f"Architecture: heads={self.heads} must divide dim={self.dim}; use one of {divisors}")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(
                f"Architecture: positions='rotary' turns pairs of features and needs an even head size dim/heads, got "
                f"{self.dim}/{self.heads} = {self.head_dim}"
            )
        if self.positions == "learned" and self.max_length is None:
            raise ValueError("Architecture: positions='learned' has one vector per position: give max_length")
        if (self.head == "classification") != (self.classes is not None):
            raise ValueError(
                f"Architecture: classes belongs to head='classification' and must be given with it, got head={self.head!r} "
                f"and classes={self.classes}"
            )
        if self.head == "lm" and self.vocab is None:
            raise ValueError(
                "Architecture: head='lm' predicts token ids: give vocab, or use another head for continuous inputs"
            )

    def _check_block(self) -> None:
        if self.block == "parallel" and self.norm == "post":
            raise ValueError(
                "Architecture: block='parallel' with norm='post' is not defined: post-LN normalizes after each of the "
                "two substeps and a parallel block has only one; use block='sequential' or norm='pre'"
            )
        if self.block == "parallel" and self.residual != "add":
            raise ValueError(
                f"Architecture: block='parallel' adds both sublayers to one stream, so residual={self.residual!r} has two "
                "readings (one leak or two); use residual='add' or block='sequential'"
            )
        if self.block == "macaron" and self.residual == "none":
            raise ValueError(
                "Architecture: block='macaron' takes half steps, and residual='none' is a whole step of the leaky field; "
                "use residual='gated' or block='sequential'"
            )
        if self.residual == "none" and self.residual_scale != 1.0:
            raise ValueError(
                "Architecture: residual='none' has no residual to scale: residual_scale must be 1.0, got "
                f"{self.residual_scale}; for a step below 1 use residual='gated'"
            )
        if self.residual == "gated" and self.residual_scale > 1.0:
            raise ValueError(
                f"Architecture: residual='gated' mixes (1 - s) u + s A(u): residual_scale must be in (0, 1], got "
                f"{self.residual_scale}"
            )

    def _check_loop(self) -> None:
        once = self.prelude + self.coda
        if self.loops == 1 and (once or self.injection != "none"):
            raise ValueError(
                f"Architecture: prelude={self.prelude}, coda={self.coda} and injection={self.injection!r} belong to a loop: give "
                "loops of at least 2"
            )
        if once and once >= self.layers:
            raise ValueError(
                f"Architecture: prelude={self.prelude} and coda={self.coda} leave none of layers={self.layers} to loop over; "
                "layers counts them too"
            )


def _dtype_name(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    # NumPy knows of bfloat16 by object, not by name; names need no look-up.
    try:
        found = value if isinstance(value, str) else np.dtype(value).name
    except TypeError:
        found = str(value)
    return choice("Architecture", name, found, allowed)
