"""What a PDE simulator is made of, v1's coupled system too, checked before anything is built."""

import abc
import dataclasses
from typing import Any, Literal, TypeVar, get_args

from pdejax._arguments import checked
from pdejax._check import boolean, choice, integer, number
from pdejax.models._architecture import Architecture, config_text
from pdejax.solvers import SOLVERS
from pdejax.solvers._grid import Boundary
from pdejax.terms._kernels import IMPLEMENTATIONS

WeightsKind = Literal["constant", "linear", "cubic", "shared"]
DiffusionKind = Literal["none", "scalar", "feature"]
StabilizationKind = Literal["none", "damping", "spatial", "layernorm", "retraction"]

_NAMES: dict[str, tuple[str, ...]] = {
    "diffusion": get_args(DiffusionKind),
    "stabilization": get_args(StabilizationKind),
    "boundary": get_args(Boundary),
    "implementation": IMPLEMENTATIONS,
    "solver": tuple(SOLVERS),
}
Config = TypeVar("Config")  # not `Self`, which beartype does not take in a method
_OF_ARCHITECTURE = tuple(field.name for field in dataclasses.fields(Architecture))
_BLOCK_SOLVERS = {"sequential": "lietrotter", "parallel": "euler", "macaron": "macaron"}


@dataclasses.dataclass(frozen=True, repr=False)
class AbstractSimulatorConfig(abc.ABC):
    """What the two kinds of simulator have in common: an architecture, the terms beside A and R, a solver and a step.

    `None` stands for the architecture's own: once made, a config holds the value.
    """

    architecture: Architecture
    _: dataclasses.KW_ONLY
    t1: float = None  # pyright: ignore[reportAssignmentType]
    steps: int = None  # pyright: ignore[reportAssignmentType]
    solver: str = None  # pyright: ignore[reportAssignmentType]
    leak: bool = None  # pyright: ignore[reportAssignmentType]
    strength: float = None  # pyright: ignore[reportAssignmentType]
    train_strength: bool = False
    diffusion: DiffusionKind = "none"
    diffusivity: float = 0.1
    boundary: Boundary = "neumann"
    domain: float | None = None
    stabilization: StabilizationKind = None  # pyright: ignore[reportAssignmentType]
    gamma: float = 0.1
    head_norm: bool = None  # pyright: ignore[reportAssignmentType]
    implementation: str = "auto"

    def __post_init__(self):
        owner = type(self).__name__
        if not isinstance(self.architecture, Architecture):
            raise TypeError(
                f"{owner}: architecture is a {type(self.architecture).__name__}; give a pdejax.Architecture, or all arguments by "
                f"keyword to {owner}.of(…)."
            )
        self._settle()
        for name, allowed in _NAMES.items():
            choice(owner, name, getattr(self, name), allowed)
        for name in ("leak", "train_strength", "head_norm"):
            boolean(owner, name, getattr(self, name))
        for name in ("strength", "diffusivity", "gamma", "t1"):
            self._set(name, number(owner, name, getattr(self, name), above=0))
        if self.domain is not None:
            self._set("domain", number(owner, "domain", self.domain, above=0))
        self._set("steps", integer(owner, "steps", self.steps))
        if self.head_norm and self.architecture.head == "none":
            raise ValueError(
                f"{owner}: head_norm=True needs a head; give head='classification' or 'lm', or leave head_norm out."
            )
        self._check_causal(owner)
        self._check_own()

    def __repr__(self) -> str:
        return config_text(self)

    @property
    @abc.abstractmethod
    def weights(self) -> WeightsKind:
        """How weights vary with t."""

    @abc.abstractmethod
    def _check_own(self) -> None:
        """Check what belongs to one kind only."""

    @classmethod
    def of(cls: type[Config], architecture: Architecture | None = None, **options: Any) -> Config:
        """Make a config from arguments of both kinds in one list: those of an `Architecture` change `architecture`, or make one.

        Raises as the config and `Architecture` do; `TypeError` for other names.
        """
        sizes = {name: value for name, value in options.items() if name in _OF_ARCHITECTURE}
        own = {name: value for name, value in options.items() if name not in _OF_ARCHITECTURE}
        made = Architecture(**sizes) if architecture is None else architecture.replace(**sizes)
        return cls(made, **own)  # pyright: ignore[reportCallIssue]

    def replace(self: Config, **changes: Any) -> Config:
        """Return the config with some of its own arguments changed, checked anew."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def words(self) -> str:
        """Name the terms beside attention and feed-forward, the solver and the step, in a line."""
        terms = {"leak": self.leak, f"{self.diffusion} diffusion": self.diffusion != "none"}
        terms |= {f"{self.stabilization} stabilization": self.stabilization != "none"}
        field = ", ".join(name for name, there in terms.items() if there) or "no other terms"
        return f"field: {field}; {self.solver}, {self.steps} steps of h = {self.step:g} over t in [0, {self.t1:g}]"

    @property
    def step(self) -> float:
        """Step size h = t1 / steps."""
        return self.t1 / self.steps

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _settle(self) -> None:
        """Fill in the values with which the simulator computes what a Transformer of the architecture does."""
        a = self.architecture
        native = {
            "t1": a.depth * a.residual_scale if a.residual == "gated" else float(a.depth),
            "steps": a.depth,
            "solver": _BLOCK_SOLVERS[a.block],
            "leak": a.residual != "add",
            "strength": a.residual_scale if a.residual == "add" else 1.0,
            "stabilization": "retraction" if a.norm == "post" else "none",
            "head_norm": a.head != "none" and a.norm in ("pre", "peri"),
        }
        for name, value in native.items():
            if getattr(self, name) is None:
                self._set(name, value)

    def _check_causal(self, owner: str) -> None:
        if self.architecture.causal and self.diffusion != "none":
            raise ValueError(
                f"{owner}: causal=True with diffusion={self.diffusion!r} would leak the future: diffusion couples a token to the "
                "next one; use diffusion='none'."
            )
        if self.architecture.causal and self.stabilization == "spatial":
            raise ValueError(
                f"{owner}: causal=True with stabilization='spatial' would leak the future: v2 (9) averages over all tokens; use "
                "'layernorm', 'damping' or 'retraction', which act on each token alone."
            )


@checked
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class SimulatorConfig(AbstractSimulatorConfig):
    r"""The field, the solver and the step of a [`Simulator`][pdejax.models.Simulator].

    $$\partial_t u = A(u) + R(u) + D(u) + S(u),\qquad u(\cdot, 0) = E + P,\qquad 0 \le t \le t_1,$$

    v2 (4), (2), in `steps` equal steps h = t1/steps. `SimulatorConfig(architecture)` alone is the field that a Transformer of
    this architecture discretizes, with the solver and the step by which it does. Between the papers' bare simulator
    (`SimulatorConfig.bare`), a Transformer and the full equation (`SimulatorConfig.full`) there are only these switches:

    | switch            | bare            | pre-LN Transformer | post-LN Transformer | full            |
    |-------------------|-----------------|--------------------|---------------------|-----------------|
    | `leak`            | on              | off                | off                 | off             |
    | `norm`            | `"none"`        | `"pre"`            | `"post"`            | `"pre"`         |
    | `stabilization`   | `"none"`        | `"none"`           | `"retraction"`      | `"layernorm"`   |
    | `diffusion`       | `"none"`        | `"none"`           | `"none"`            | `"feature"`     |
    | `steps`, `t1`     | `layers`: h = 1 | `layers`: h = 1    | `layers`: h = 1     | `layers`        |
    | `solver`          | `"lietrotter"`  | `"lietrotter"`     | `"lietrotter"`      | `"lietrotter"`  |
    | one step does     | `u ← A(u)`, `u ← R(u)` | `u += A(LN u)`, … | `u ← LN(u + A u)`, … | also D and S |

    So the bare simulator has no residual connection because its step is 1: u + h(A(u) − u) with a smaller h = t1/steps is
    the residual network `(1−h)u + h A(u)`. `solver="euler"` makes parallel blocks, `"macaron"` Macaron ones; any other
    name refines the same field.

    **Arguments**

    - `architecture`: sizes and the form of a layer. `layers` is the number K of layers that the depth is divided into, each of
      length t1/K: as many sets of weights, and as many hidden states after the embedding. `dtype` is that of A and R; the field
      itself is never below float32. `block` gives the solver, `residual` the leak, the strength and t1, `norm="post"` the
      retraction, where these are not given here. The shared norm of a parallel block becomes two, one in A and one in R.

    All others by keyword:

    - `weights`: how they vary with t: `"constant"` in each layer (a Transformer), `"linear"` or `"cubic"` between knots at the
      layers' centres, or `"shared"`: one set for every t, an autonomous field.
    - `t1`: depth, default `layers` (times the scale of a gated residual). `steps`: number of equal steps, a multiple of
      `layers`, which is the default.
    - `solver`: a name from `pdejax.solvers.SOLVERS`; default `"lietrotter"`, `"euler"` for a parallel, `"macaron"` for a
      Macaron block.
    - `head_norm`: whether the field is normalized once more before the head; default, as in a Transformer, with `pre` and
      `peri` only.
    - `leak`: the −u in A and R, v2 (5)–(6). `strength`: α of v1 (1), on both; `train_strength`: α learned, per layer.
    - `diffusion`: D = softplus(ϑ) ≥ 0, learned: `"scalar"`, one per `"feature"`, or `"none"`; `diffusivity` is its
      value at the start. `boundary`: `"neumann"`, `"dirichlet"`, `"periodic"`. `domain`: length of Ω; by default
      tokens are 1 apart, so that padding changes nothing; the papers' Ω = [0, 1] is `domain=1.0`. Explicit steps need
      `2 D h ≤ Δx²`.
    - `stabilization`: S = −γu (`"damping"`), v2 (9) (`"spatial"`), −γ(u − LN(u)) (`"layernorm"`), or LayerNorm itself
      after each step, after each substep of A and of R in a splitting (`"retraction"`: post-LN; it acts once per step
      however short the step is). γ = softplus(ϑ) is learned, `gamma` its value at the start.
    - `implementation` of attention: see `pdejax.terms.attend`.

    D and γ are learned per layer; for `"cubic"` weights, whose spline could dip below 0, one value serves all t, as does one
    retraction for all `weights` but `"constant"`.

    Raises `ValueError` or `TypeError` naming the argument for anything else, among them: steps that are no multiple of
    `layers`; `causal` with `diffusion` or `stabilization="spatial"`, which let a token see later ones; solvers that take
    the linear part apart with weights that vary within a step or with a retraction.
    """

    weights: WeightsKind = "constant"

    @classmethod
    def bare(cls, architecture: Architecture | None = None, **options: Any) -> "SimulatorConfig":
        """Return the papers' bare simulator: no residual (leaky field at h = 1), no LayerNorm, no S, no D.

        `options` as in `of`; they override any of these.
        """
        off = {"leak": True, "norm": "none", "stabilization": "none", "diffusion": "none"}
        return cls.of(architecture, **off | options)

    @classmethod
    def full(cls, architecture: Architecture | None = None, **options: Any) -> "SimulatorConfig":
        """Return the whole equation v2 (4): residual steps, LayerNorm inside A and R, D per feature and S = −γ(u − LN(u)).

        `options` as in `of`; they override any of these.
        """
        on = {"leak": False, "norm": "pre", "stabilization": "layernorm", "diffusion": "feature"}
        return cls.of(architecture, **on | options)

    @property
    def steps_per_layer(self) -> int:
        """steps / K."""
        return self.steps // self.architecture.depth

    def _check_own(self) -> None:
        choice("SimulatorConfig", "weights", self.weights, get_args(WeightsKind))
        sizes, layers = self.architecture, self.architecture.depth
        if self.steps % layers:
            lower = max(self.steps // layers, 1) * layers
            raise ValueError(
                f"SimulatorConfig: steps={self.steps} must be a multiple of layers={layers}, so that every layer ends with a "
                f"step; use {lower} or {lower + layers}."
            )
        if sizes.loops > 1 and self.weights != "constant":
            raise ValueError(
                f"SimulatorConfig: loops={sizes.loops} repeats layers, so it needs weights='constant', not {self.weights!r}."
            )
        if not SOLVERS[self.solver].linear:
            return
        if self.weights in ("linear", "cubic"):
            raise ValueError(
                f"SimulatorConfig: solver={self.solver!r} takes the linear part apart, which varies within a step for "
                f"weights={self.weights!r}; use weights='constant' or 'shared', or a solver such as 'rk4' or 'rkc2'."
            )
        if self.stabilization == "retraction":
            raise ValueError(
                f"SimulatorConfig: solver={self.solver!r} cannot be followed by a retraction; use stabilization='layernorm', or "
                "a solver such as 'lietrotter' or 'rk4'."
            )


Start = Literal["embedding", "first"]


@checked
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class MultilayerSimulatorConfig(AbstractSimulatorConfig):
    """What a [`MultilayerSimulator`][pdejax.models.MultilayerSimulator] is made of.

    Arguments as in [`SimulatorConfig`][pdejax.models.SimulatorConfig], all but `weights`: they belong to a layer here, and t
    is the time of the whole system. These differ:

    - `layers` of the architecture: number L of coupled fields. `t1`: default L, the time in which Euler's exchange crosses all
      layers at h = 1. `steps`: any number, default L.
    - `solver`: default `"euler"`, which is v1 (20).
    - `start`: v1 does not say where the layers begin. `"embedding"`: all at E + P; `"first"`: the first at E + P and the
      others at 0, so that what reaches the last layer has come through all exchanges.
    - `exchange`: size of the initial exchange weights, of variance exchange²/d.

    Raises `ValueError` or `TypeError` for anything else, also for solvers that take the linear part apart (coupled fields
    have none that one transform diagonalizes), a retraction inside a splitting, and `start="first"` with fewer steps than
    it takes to reach the last layer.
    """

    solver: str = "euler"
    start: Start = "embedding"
    exchange: float = 0.1

    @property
    def weights(self) -> WeightsKind:
        """Constant in time: they belong to a layer."""
        return "constant"

    def _check_own(self) -> None:
        owner = "MultilayerSimulatorConfig"
        choice(owner, "start", self.start, get_args(Start))
        self._set("exchange", number(owner, "exchange", self.exchange, above=0))
        scheme, layers = SOLVERS[self.solver], self.architecture.layers
        if self.architecture.loops > 1:
            raise ValueError(
                f"{owner}: loops={self.architecture.loops}: coupled layers have no order to repeat; leave loops out."
            )
        if scheme.linear:
            raise ValueError(
                f"{owner}: solver={self.solver!r} takes the linear part apart, which coupled layers do not have; use 'euler' "
                "(v1 (20)), 'rk4' or 'rkc2'."
            )
        if self.stabilization == "retraction" and scheme.splitting:
            raise ValueError(
                f"{owner}: solver={self.solver!r} with stabilization='retraction' is not defined for coupled layers; use "
                "'euler', with one retraction after each step."
            )
        if self.start == "first" and self.steps < layers - 1 and scheme.evaluations == 1:
            raise ValueError(
                f"{owner}: start='first' with steps={self.steps}: one evaluation per step carries the field one layer on, so "
                f"that layer {layers} stays empty; use at least {layers - 1} steps or start='embedding'."
            )
