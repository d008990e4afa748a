"""The command `stiff` and its configuration. Imports no JAX, so that help comes at once."""

import dataclasses
from collections.abc import Sequence

from pdejax import _check as check
from pdejax._arguments import names_checked
from pdejax.runs._command import setting
from pdejax.studies._command import study_command

SCHEMES = ("tsit5", "rkc2", "rock2", "strangflow", "etdrk2", "etdrk4", "ark3", "ark4")
_OWNER = "StiffConfig"


@names_checked
@dataclasses.dataclass(frozen=True)
class StiffConfig:
    r"""Configure the cost study: cost to accuracy of $\partial_t u = A(u) + R(u) + D\nabla^2 u$ on a fine grid.

    - `tokens` N and `dim` d, `heads`, `ffn`: size of the field; float64, Neumann boundaries on a unit interval.
    - `diffusivities`: the D to measure. The spectral radius is 4DN².
    - `depth` T (None: 0.05, or 0.25 with `full`).
    - `target`: relative error to reach, in the mesh norm.
    - `solvers`: names of `pdejax.solvers.SOLVERS`. Explicit ones and stabilized ones run with adaptive steps, the others at
      doubling step counts.
    - `full`: run explicit solves whole, whatever they take; else one that would need over `explicit_steps` steps is measured
      over a shorter depth and extrapolated (and marked so).
    - `out`: folder for data, plots and resuming.

    Raises `ValueError` for sizes or values that cannot be measured.
    """

    tokens: int = setting(1000, "tokens N", metavar="N")
    dim: int = setting(16, "features d", metavar="D")
    heads: int = setting(2, "attention heads", metavar="H")
    ffn: int = setting(32, "hidden width", metavar="F")
    diffusivities: Sequence[float | int] = setting((1e-4, 1e-3, 1e-2, 1e-1), "the D to measure", metavar="D")
    depth: float | int | None = setting(None, "T (default 0.05, with --full 0.25)", metavar="T")
    target: float | int = setting(1e-6, "relative error to reach", metavar="TOL")
    solvers: Sequence[str] = setting(SCHEMES, "schemes", metavar="NAME")
    full: bool = setting(False, "explicit solves whole, over T = 0.25")
    explicit_steps: int = setting(700, "steps of an explicit solve beyond which it is extrapolated", metavar="K")
    seed: int = setting(0, "of weights and initial field", metavar="S")
    out: str | None = setting(None, "folder for data and the plot; resumes from it", metavar="DIR")

    def __post_init__(self):
        from pdejax.solvers import SOLVERS

        least = {"tokens": 8, "dim": 1, "heads": 1, "ffn": 1, "explicit_steps": 1, "seed": 0}
        for name, smallest in least.items():
            check.integer(_OWNER, name, getattr(self, name), smallest)
        if self.dim % self.heads:
            raise ValueError(f"{_OWNER}: heads={self.heads} must divide dim={self.dim}.")
        if not self.diffusivities:
            raise ValueError(f"{_OWNER}: diffusivities is empty; give one or more positive numbers.")
        for value in self.diffusivities:
            check.number(_OWNER, "diffusivities", value, above=0)
        if self.depth is not None:
            check.number(_OWNER, "depth", self.depth, above=0)
        check.number(_OWNER, "target", self.target, least=1e-11, most=1e-2, advice="the reference resolves 1e-11")
        if not self.solvers:
            raise ValueError(f"{_OWNER}: solvers is empty; name at least one.")
        for name in self.solvers:
            check.choice(_OWNER, "solvers", name, SOLVERS)
        unfit = [name for name in self.solvers if SOLVERS[name].splitting and not SOLVERS[name].linear]
        unfit += [name for name in self.solvers if name == "kvaerno5"]
        if unfit:
            raise ValueError(
                f"{_OWNER}: solvers={', '.join(unfit)} cannot be measured here: a splitting of explicit parts is an explicit "
                "solver, and kvaerno5 factors the dense Jacobian; leave them out."
            )

    @property
    def t1(self) -> float:
        """The depth T that is integrated to."""
        if self.depth is not None:
            return self.depth
        return 0.25 if self.full else 0.05


COMMAND = study_command(
    "pdejax.studies.numerics._stiff:STIFF",
    StiffConfig,
    description="Field evaluations, time and memory to a given error; see pdejax.studies.StiffConfig.",
    examples="""examples:
  pdejax stiff --out out                            T = 0.05: minutes on two cores; goes on after a stop
  pdejax stiff --full --out out                     T = 0.25 with every explicit solve run whole: far longer
  pdejax stiff --diffusivities 0.01 0.1 --solvers tsit5 rkc2 etdrk4
""",
)
