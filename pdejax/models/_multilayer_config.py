"""What v1's coupled system is made of, checked before anything is built."""

import dataclasses
from typing import Literal, get_args

from pdejax._check import choice, number
from pdejax.models._simulator_config import AbstractSimulatorConfig, WeightsKind
from pdejax.solvers import SOLVERS

Start = Literal["embedding", "first"]


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
