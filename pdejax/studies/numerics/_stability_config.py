"""The command `stability` and its configuration. Imports no JAX, so that help comes at once."""

import dataclasses
from collections.abc import Sequence

from pdejax import _check as check
from pdejax._arguments import names_checked
from pdejax.runs._command import setting
from pdejax.studies._command import study_command

FAMILIES = ("diffusion", "leak", "mean attention", "linear reaction", "softmax attention", "pre-LN block", "rotation")
_OWNER = "StabilityConfig"


@names_checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class StabilityConfig:
    """Configure the stability study.

    - `solvers`: names from `pdejax.solvers.SOLVERS` whose largest step is predicted and measured (none: leave that out).
      `"rkc2"` stands for RKC2 with 6 stages.
    - `tokens`, `dim`: size of the field it is measured on; `diffusivity` D makes it stiff.
    - `families`: the maps to make (none: leave them out).
    - `resolution`: points per axis of the plotted slice of a map; `draws`: further runs with every parameter drawn.
    - `steps`: Euler steps of a run. `chunk`: runs in one compiled call, and the unit that is kept when a study is interrupted.
    - `seed`; `out`: folder for results, or None.

    Raises `ValueError`/`TypeError` naming the argument.
    """

    solvers: Sequence[str] = setting(
        ("euler", "heun", "rk4", "bosh3", "tsit5", "dopri5", "rkc2"),
        "schemes; none leaves their steps out",
        metavar="NAME",
    )
    tokens: int = setting(24, "tokens of the field whose largest step is measured", metavar="N")
    dim: int = setting(4, "its features", metavar="D")
    diffusivity: float | int = setting(0.5, "of that field", metavar="D")
    families: Sequence[str] = setting(FAMILIES, "maps to make; none leaves them out", metavar="NAME")
    resolution: int = setting(40, "points per axis of a map", metavar="N")
    draws: int = setting(1472, "further runs of a map with every parameter drawn", metavar="N")
    steps: int = setting(400, "Euler steps of a run", metavar="N")
    chunk: int = setting(512, "runs in one compiled call", metavar="N")
    seed: int = setting(0, "of weights, fields and draws", metavar="S")
    out: str | None = setting(None, "folder for data and maps; resumes from it", metavar="DIR")

    def __post_init__(self):
        from pdejax.solvers import SOLVERS

        for name, known in (("solvers", tuple(SOLVERS)), ("families", FAMILIES)):
            values = getattr(self, name)
            if not isinstance(values, tuple | list):
                raise TypeError(f"{_OWNER}: {name}={values!r} must be a tuple, such as ({values!r},).")
            for value in values:
                check.choice(_OWNER, name, value, known)
            if len(set(values)) < len(values):
                raise ValueError(f"{_OWNER}: {name}={tuple(values)} names one of them twice; name each once.")
        for name in self.solvers:
            if name != "rkc2" and SOLVERS[name].real_limit in (None, float("inf")):
                raise ValueError(
                    f"{_OWNER}: solvers={name!r} has no step limit to predict: it takes the terms apart, is A-stable, or chooses "
                    "its stages in every step; leave it out."
                )
        if not self.solvers and not self.families:
            raise ValueError(f"{_OWNER}: solvers and families are both empty; name at least one of either.")
        least = {"tokens": 4, "dim": 2, "resolution": 4, "draws": 0, "steps": 40, "chunk": 1, "seed": 0}
        for name, smallest in least.items():
            check.integer(_OWNER, name, getattr(self, name), smallest)
        check.number(_OWNER, "diffusivity", self.diffusivity, above=0, advice="without it nothing is stiff")


COMMAND = study_command(
    "pdejax.studies.numerics._stability:STABILITY",
    StabilityConfig,
    description="Largest stable steps predicted and measured, and maps of stability against v1 (21) and the corrected bound.",
    examples="""examples:
  pdejax stability --out out                                           data and maps too; goes on after a stop
  pdejax stability --families diffusion "softmax attention" --resolution 60
  pdejax stability --solvers euler rk4 --families                      largest steps only

exit status: 0 done, 1 a verdict is NOT as it should be or a bound is VIOLATED, 2 bad input
""",
)
