"""What a stability study is asked to do."""

import dataclasses
import difflib

from pdejax.solvers import SOLVERS

FAMILIES = ("diffusion", "leak", "mean attention", "linear reaction", "softmax attention", "pre-LN block")
_USUAL = ("euler", "heun", "rk4", "bosh3", "tsit5", "dopri5", "rkc2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StabilityConfig:
    """Configuration of the stability study.

    - `solvers`: names from `pdejax.solvers.SOLVERS` whose largest step is predicted and measured (none: leave that out).
      `"rkc2"` stands for RKC2 with 6 stages.
    - `tokens`, `dim`: size of the field it is measured on; `diffusivity` D makes it stiff.
    - `families`: the maps to make (none: leave them out).
    - `resolution`: points per axis of the plotted slice of a map; `draws`: further runs with every parameter drawn.
    - `steps`: Euler steps of a run. `chunk`: runs in one compiled call, and the unit that is kept when a study is interrupted.
    - `seed`; `out`: folder for results, or None.

    Raises `ValueError` naming the argument.
    """

    solvers: tuple[str, ...] = tuple(name for name in _USUAL if name in SOLVERS)
    tokens: int = 24
    dim: int = 4
    diffusivity: float = 0.5
    families: tuple[str, ...] = FAMILIES
    resolution: int = 40
    draws: int = 1472
    steps: int = 400
    chunk: int = 512
    seed: int = 0
    out: str | None = None

    def __post_init__(self):
        for name, known in (("solvers", tuple(SOLVERS)), ("families", FAMILIES)):
            values = getattr(self, name)
            if not isinstance(values, tuple | list):
                raise ValueError(f"{name}={values!r} must be a tuple, such as ({values!r},).")
            for value in values:
                if value not in known:
                    close = difflib.get_close_matches(str(value), known, n=1)
                    hint = f" Did you mean {close[0]!r}?" if close else ""
                    raise ValueError(f"{name}: {value!r} is unknown.{hint} Known: {', '.join(known)}.")
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={tuple(values)} names one of them twice.")
        for name in self.solvers:
            if name != "rkc2" and SOLVERS[name].real_limit in (None, float("inf")):
                raise ValueError(
                    f"solvers: {name!r} has no step limit to predict: it takes the terms apart, is A-stable, or chooses its "
                    "stages in every step. Leave it out."
                )
        if not self.solvers and not self.families:
            raise ValueError("solvers and families are both empty; name at least one of either.")
        least = {"tokens": 4, "dim": 2, "resolution": 4, "draws": 0, "steps": 40, "chunk": 1, "seed": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
                raise ValueError(f"{name}={value!r} must be an integer of at least {smallest}.")
        if not isinstance(self.diffusivity, int | float) or not 0 < self.diffusivity < float("inf"):
            raise ValueError(
                f"diffusivity={self.diffusivity!r} must be positive and finite: without it nothing is stiff."
            )
