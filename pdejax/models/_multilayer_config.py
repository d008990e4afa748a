"""What v1's coupled system is made of, checked before anything is built."""

import dataclasses
import functools
from typing import Any, Literal, get_args

from jax.typing import DTypeLike

from pdejax._types import Activation
from pdejax.models._config import Head, NormType, Positions, _check_name, _positive_integer, _positive_number
from pdejax.models._simulator_config import DiffusionKind, InnerNorm, SimulatorConfig, StabilizationKind
from pdejax.solvers import SOLVERS
from pdejax.solvers._grid import Boundary

Start = Literal["embedding", "first"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultilayerSimulatorConfig:
    """What a [`MultilayerSimulator`][pdejax.models.MultilayerSimulator] is made of.

    Arguments as in [`SimulatorConfig`][pdejax.models.SimulatorConfig], all but `depth`: weights belong to a layer here, and t
    is the time of the whole system. These differ:

    - `layers`: number L of coupled fields. `t1`: default L, the time in which Euler's exchange crosses all layers at h = 1.
      `steps`: any number, default L.
    - `solver`: default `"euler"`, which is v1 (20).
    - `start`: v1 does not say where the layers begin. `"embedding"`: all at E + P; `"first"`: the first at E + P and the
      others at 0, so that what reaches the last layer has come through all exchanges.
    - `exchange`: size of the initial exchange weights, of variance exchange²/d.

    Raises `ValueError` or `TypeError` for anything else, also for solvers that take the linear part apart (coupled fields
    have none that one transform diagonalizes), a retraction inside a splitting, and `start="first"` with fewer steps than
    it takes to reach the last layer.
    """

    vocab: int | None = None
    inputs: int | None = None
    dim: int = 128
    heads: int = 4
    layers: int = 4
    ffn: int = 512
    t1: float | None = None
    steps: int | None = None
    solver: str = "euler"
    start: Start = "embedding"
    exchange: float = 0.1
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
        layer = self.layer  # checks what the two have in common
        for field in dataclasses.fields(self):
            if field.name not in _OWN:
                self._set(field.name, getattr(layer, field.name))
        self._set("steps", self.layers if self.steps is None else _positive_integer("steps", self.steps))
        _check_name("start", self.start, get_args(Start))
        self._set("exchange", _positive_number("exchange", self.exchange))
        if SOLVERS[self.solver].linear:
            raise ValueError(
                f"solver={self.solver!r} takes the linear part apart, which coupled layers do not have; use 'euler' (v1 (20)), "
                "'rk4' or 'rkc2'"
            )
        if self.stabilization == "retraction" and SOLVERS[self.solver].splitting:
            raise ValueError(
                f"solver={self.solver!r} with stabilization='retraction' is not defined for coupled layers; use 'euler', with "
                "one retraction after each step"
            )
        if self.start == "first" and self.count < self.layers - 1 and SOLVERS[self.solver].evaluations == 1:
            raise ValueError(
                f"start='first' with steps={self.steps}: one evaluation per step carries the field one layer on, so that "
                f"layer {self.layers} stays empty; use at least {self.layers - 1} steps or start='embedding'"
            )

    @functools.cached_property
    def layer(self) -> SimulatorConfig:
        """Sizes and terms of the fields, as for a simulator of L layers."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _OWN}
        return SimulatorConfig(**shared)

    @property
    def count(self) -> int:
        """Number of steps, once it is settled."""
        return self.layers if self.steps is None else self.steps

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


_OWN = ("steps", "start", "exchange")
