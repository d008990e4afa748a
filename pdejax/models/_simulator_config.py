"""What a PDE simulator is made of, checked before anything is built."""

import dataclasses
import functools
from typing import Any, Literal, get_args

from jax.typing import DTypeLike

from pdejax._types import Activation
from pdejax.models._config import (
    Head,
    NormType,
    Positions,
    TransformerConfig,
    _check_name,
    _dtype_name,
    _positive_integer,
    _positive_number,
)
from pdejax.solvers import SOLVERS
from pdejax.solvers._grid import Boundary
from pdejax.terms._kernels import IMPLEMENTATIONS

InnerNorm = Literal["pre", "peri", "none"]
DepthKind = Literal["constant", "linear", "cubic", "shared"]
DiffusionKind = Literal["none", "scalar", "feature"]
StabilizationKind = Literal["none", "damping", "spatial", "layernorm", "retraction"]

_NAMES: dict[str, tuple[str, ...]] = {
    "norm": get_args(InnerNorm),
    "depth": get_args(DepthKind),
    "diffusion": get_args(DiffusionKind),
    "stabilization": get_args(StabilizationKind),
    "boundary": get_args(Boundary),
    "implementation": IMPLEMENTATIONS,
    "solver": tuple(SOLVERS),
}
_DTYPES = ("bfloat16", "float16", "float32", "float64")
# What a simulator and the Transformer of its sizes have in common.
_SHARED = (
    *("vocab", "inputs", "dim", "heads", "layers", "ffn", "norm", "norm_type", "norm_eps", "activation", "causal"),
    *("positions", "rotary_theta", "max_length", "head", "classes", "bias", "param_dtype"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulatorConfig:
    r"""The field, the solver and the step of a [`Simulator`][pdejax.models.Simulator].

    $$\partial_t u = A(u) + R(u) + D(u) + S(u),\qquad u(\cdot, 0) = E + P,\qquad 0 \le t \le t_1,$$

    v2 (4), (2), in `steps` equal steps h = t1/steps. Between the papers' bare simulator (`SimulatorConfig.bare`), a
    Transformer and the full equation (`SimulatorConfig.full`) there are only these switches:

    | switch            | bare            | pre-LN Transformer | post-LN Transformer | full            |
    |-------------------|-----------------|--------------------|---------------------|-----------------|
    | `leak`            | on              | off                | off                 | off             |
    | `norm`            | `"none"`        | `"pre"`            | `"none"`            | `"pre"`         |
    | `stabilization`   | `"none"`        | `"none"`           | `"retraction"`      | `"layernorm"`   |
    | `diffusion`       | `"none"`        | `"none"`           | `"none"`            | `"feature"`     |
    | `steps`, `t1`     | `layers`: h = 1 | `layers`: h = 1    | `layers`: h = 1     | `layers`        |
    | `solver`          | `"lietrotter"`  | `"lietrotter"`     | `"lietrotter"`      | `"lietrotter"`  |
    | one step does     | `u ← A(u)`, `u ← R(u)` | `u += A(LN u)`, … | `u ← LN(u + A u)`, … | also D and S |

    So the bare simulator has no residual connection because its step is 1: u + h(A(u) − u) with a smaller h = t1/steps is
    the residual network `(1−h)u + h A(u)`. `solver="euler"` makes parallel blocks, `"macaron"` Macaron ones; any other
    name refines the same field.

    **Arguments** (all by keyword). As in [`TransformerConfig`][pdejax.models.TransformerConfig]: `vocab` or `inputs`,
    `dim`, `heads`, `ffn`, `norm_type`, `norm_eps`, `activation`, `causal`, `positions`, `rotary_theta`, `max_length`,
    `head`, `classes`, `bias`, `dtype` (of A and R; the field itself is never below float32), `param_dtype`. And

    - `layers`: number K of layers that the depth is divided into, each of length t1/K: as many sets of weights, and
      as many hidden states after the embedding.
    - `depth`: how weights vary with t: `"constant"` in each layer (a Transformer), `"linear"` or `"cubic"` between
      knots at the layers' centres, or `"shared"`: one set for every depth, an autonomous field.
    - `t1`: depth, default `layers`. `steps`: number of equal steps, a multiple of `layers`, which is the default.
    - `solver`: a name from `pdejax.solvers.SOLVERS`.
    - `norm`: normalization inside A and R: before them (`"pre"`), before and after (`"peri"`) or `"none"`.
    - `head_norm`: whether the field is normalized once more before the head; default, as in a Transformer, with `pre` and
      `peri` only.
    - `leak`: the −u in A and R, v2 (5)–(6). `strength`: α of v1 (1), on both; `train_strength`: α learned, per layer.
    - `diffusion`: D = softplus(ϑ) ≥ 0, learned: `"scalar"`, one per `"feature"`, or `"none"`; `diffusivity` is its
      value at the start. `boundary`: `"neumann"`, `"dirichlet"`, `"periodic"`. `length` of Ω; by default tokens are 1
      apart, so that padding changes nothing; the papers' Ω = [0, 1] is `length=1.0`. Explicit steps need
      `2 D h ≤ Δx²`.
    - `stabilization`: S = −γu (`"damping"`), v2 (9) (`"spatial"`), −γ(u − LN(u)) (`"layernorm"`), or LayerNorm itself
      after each step, after each substep of A and of R in a splitting (`"retraction"`: post-LN; it acts once per step
      however short the step is). γ = softplus(ϑ) is learned, `gamma` its value at the start.
    - `implementation` of attention: see `pdejax.terms.attend`.

    D and γ are learned per layer; for `"cubic"` weights, whose spline could dip below 0, one value serves all depths, as
    does one retraction for all `depth` but `"constant"`.

    Raises `ValueError` or `TypeError` naming the argument for anything else, among them: steps that are no multiple of
    `layers`; `causal` with `diffusion` or `stabilization="spatial"`, which let a token see later ones; solvers that take
    the linear part apart with weights that vary within a step or with a retraction.
    """

    vocab: int | None = None
    inputs: int | None = None
    dim: int = 128
    heads: int = 4
    layers: int = 6
    ffn: int = 512
    depth: DepthKind = "constant"
    t1: float | None = None
    steps: int | None = None
    solver: str = "lietrotter"
    norm: InnerNorm = "pre"
    norm_type: NormType = "layernorm"
    norm_eps: float = 1e-6
    leak: bool = False
    strength: float = 1.0
    train_strength: bool = False
    diffusion: DiffusionKind = "none"
    diffusivity: float = 0.1
    boundary: Boundary = "neumann"
    length: float | None = None
    stabilization: StabilizationKind = "none"
    gamma: float = 0.1
    activation: Activation = "gelu"
    causal: bool = False
    positions: Positions = "sinusoidal"
    rotary_theta: float = 10000.0
    max_length: int | None = None
    head: Head = "none"
    classes: int | None = None
    head_norm: bool | None = None
    bias: bool = False
    implementation: str = "auto"
    dtype: DTypeLike = "float32"
    param_dtype: DTypeLike = "float32"

    def __post_init__(self):
        for name, allowed in _NAMES.items():
            _check_name(name, getattr(self, name), allowed)
        self._set("dtype", _dtype_name("dtype", self.dtype, _DTYPES))
        twin = self.twin  # checks what the two have in common
        for name in _SHARED:
            self._set(name, getattr(twin, name))
        if self.head_norm is None:
            self._set("head_norm", self.head != "none" and self.norm != "none")
        for name in ("leak", "train_strength", "head_norm"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("strength", "diffusivity", "gamma"):
            self._set(name, _positive_number(name, getattr(self, name)))
        if self.length is not None:
            self._set("length", _positive_number("length", self.length))
        self._set("t1", self.span if self.t1 is None else _positive_number("t1", self.t1))
        self._set("steps", self.layers if self.steps is None else _positive_integer("steps", self.steps))
        if self.head_norm and self.head == "none":
            raise ValueError("head_norm=True needs a head: give head='classification' or 'lm', or leave head_norm out")
        self._check_steps()
        self._check_causal()
        self._check_solver()

    @classmethod
    def bare(cls, **options: Any) -> "SimulatorConfig":
        """The papers' bare simulator: no residual (leaky field at h = 1), no LayerNorm, no S, no D.

        `options` are the other arguments, and override any of these.
        """
        off = {"leak": True, "norm": "none", "stabilization": "none", "diffusion": "none"}
        return cls(**off | options)

    @classmethod
    def full(cls, **options: Any) -> "SimulatorConfig":
        """The whole equation v2 (4): residual steps, LayerNorm inside A and R, D per feature and S = −γ(u − LN(u)).

        `options` are the other arguments, and override any of these.
        """
        on = {"leak": False, "norm": "pre", "stabilization": "layernorm", "diffusion": "feature"}
        return cls(**on | options)

    @classmethod
    def from_transformer(cls, config: TransformerConfig, **changes: Any) -> "SimulatorConfig":
        """The config whose simulator, given a Transformer's weights, computes what the Transformer computes.

        The table of `lift`: block gives the solver, residual gives leak and t1, post-LN gives the retraction. `changes` are
        arguments that override these. The shared norm of a parallel block becomes two, one in A and one in R.
        """
        gated, post = config.residual == "gated", config.norm == "post"
        options = {name: getattr(config, name) for name in _SHARED}
        options["norm"] = "none" if post else config.norm
        options |= {
            "stabilization": "retraction" if post else "none",
            "leak": config.residual != "add",
            "strength": config.residual_scale if config.residual == "add" else 1.0,
            "t1": config.layers * config.residual_scale if gated else float(config.layers),
            "solver": {"sequential": "lietrotter", "parallel": "euler", "macaron": "macaron"}[config.block],
            "dtype": config.dtype,
        }
        if "layers" in changes:  # a depth of its own then, not the Transformer's
            options["t1"] = None
        return cls(**options | changes)

    @functools.cached_property
    def twin(self) -> TransformerConfig:
        """The Transformer of the same sizes: same embedding, same head, as many parameters in A and R."""
        shared = {name: getattr(self, name) for name in _SHARED}
        return TransformerConfig(**shared, dtype=self.state_dtype)

    @property
    def head_dim(self) -> int:
        """Size d_k = d / H of one head."""
        return self.dim // self.heads

    @property
    def span(self) -> float:
        """Depth t1, once it is settled."""
        return float(self.layers if self.t1 is None else self.t1)

    @property
    def steps_per_layer(self) -> int:
        """steps / K."""
        return 1 if self.steps is None else self.steps // self.layers

    @property
    def step(self) -> float:
        """Step size h = t1 / steps."""
        return self.span / (self.steps_per_layer * self.layers)

    @property
    def state_dtype(self) -> str:
        """Type of the field, at least float32."""
        return "float64" if self.dtype == "float64" else "float32"

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_steps(self) -> None:
        steps = self.layers if self.steps is None else self.steps
        if steps % self.layers:
            lower = max(steps // self.layers, 1) * self.layers
            raise ValueError(
                f"steps must be a multiple of layers={self.layers}, so that every layer ends with a step, got "
                f"steps={steps}; use {lower} or {lower + self.layers}"
            )

    def _check_causal(self) -> None:
        if self.causal and self.diffusion != "none":
            raise ValueError(
                f"causal=True with diffusion={self.diffusion!r} would leak the future: diffusion couples a token to the next "
                "one; use diffusion='none'"
            )
        if self.causal and self.stabilization == "spatial":
            raise ValueError(
                "causal=True with stabilization='spatial' would leak the future: v2 (9) averages over all tokens; use "
                "'layernorm', 'damping' or 'retraction', which act on each token alone"
            )

    def _check_solver(self) -> None:
        if not SOLVERS[self.solver].linear:
            return
        if self.depth in ("linear", "cubic"):
            raise ValueError(
                f"solver={self.solver!r} takes the linear part apart, which varies within a step for depth={self.depth!r}; "
                "use depth='constant' or 'shared', or a solver such as 'rk4' or 'rkc2'"
            )
        if self.stabilization == "retraction":
            raise ValueError(
                f"solver={self.solver!r} cannot be followed by a retraction; use stabilization='layernorm', or a solver such "
                "as 'lietrotter' or 'rk4'"
            )
