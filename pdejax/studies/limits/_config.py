"""The command `limits` and its configuration. Imports no JAX, so that help comes at once."""

import dataclasses
from collections.abc import Sequence

from pdejax import _check as check
from pdejax._arguments import names_checked
from pdejax.runs._command import setting
from pdejax.studies._command import study_command

SECTIONS = ("check", "closures", "metastability", "noise")
_OWNER = "LimitsConfig"


@names_checked
@dataclasses.dataclass(frozen=True)
class LimitsConfig:
    """Configure the study of limits: of many layers, of many tokens, of long depth.

    - `sections`: which are measured. `check`: recipes whose limit is known, each checked `repeats` times from seeds of their own,
      with `draws` networks of each number of `layers`: how often the verdict is right, not decided, wrong. `closures`: gaps of N
      `tokens` to their closures over seeds. `metastability`: waiting times of two tokens at `angles` ω₀ for those β at which
      (1 − cos ω₀)β is one of `waits`, and a staircase of five. `noise`: weak orders, the SDE by diffrax in both senses, and
      from which β nearly opposite tokens stay opposite, in `dims` dimensions, from `paths` samples.
    - `recipes`: names of those that are checked, all by default.
    - `seed`: of everything that is drawn. `out`: folder for data, pictures and resuming.

    Raises `ValueError` for settings that cannot be measured.
    """

    sections: Sequence[str] = setting(SECTIONS, "what is measured", metavar="NAME")
    recipes: Sequence[str] = setting((), "recipes to check (default all)", metavar="NAME")
    layers: Sequence[int] = setting((8, 16, 32, 64, 128, 256, 512), "numbers of layers", metavar="L")
    draws: int = setting(128, "networks of each number of layers", metavar="K")
    repeats: int = setting(8, "checks of each recipe, and seeds of each gap", metavar="R")
    tokens: Sequence[int] = setting((16, 32, 64, 128, 256), "numbers of tokens beside a closure", metavar="N")
    waits: Sequence[float | int] = setting(
        (6, 9, 12, 15, 18, 21), "exponents (1 − cos ω₀)β of waiting times", metavar="C"
    )
    angles: Sequence[float | int] = setting((0.8, 1.2), "angles that tokens wait at", metavar="W")
    dims: Sequence[int] = setting((4, 5, 6, 8, 12, 16), "dimensions of the critical line", metavar="D")
    paths: int = setting(100_000, "samples of noise", metavar="P")
    seed: int = setting(0, "of all draws", metavar="S")
    out: str | None = setting(None, "folder for data and pictures; resumes from it", metavar="DIR")

    def __post_init__(self):
        for name, least in (("draws", 8), ("repeats", 3), ("paths", 1000), ("seed", 0)):
            check.integer(_OWNER, name, getattr(self, name), least)
        if not self.sections:
            raise ValueError(f"{_OWNER}: sections is empty; name at least one of {', '.join(SECTIONS)}.")
        for name in self.sections:
            check.choice(_OWNER, "sections", name, SECTIONS)
        for name in self.recipes:
            check.choice(_OWNER, "recipes", name, NAMES)
        for name, least, few in (("layers", 2, 4), ("tokens", 2, 3), ("dims", 4, 1)):
            values = getattr(self, name)
            for value in values:
                check.integer(_OWNER, name, value, least)
            if len(set(values)) < few:
                raise ValueError(f"{_OWNER}: {name}={tuple(values)} must hold at least {few} different numbers.")
        if odd := [count for count in self.layers if count % 2]:
            raise ValueError(
                f"{_OWNER}: layers={odd[0]} must be even, for every second layer is left out in a comparison."
            )
        for value in self.waits:
            check.number(_OWNER, "waits", value, above=0, most=22)
        if len(set(self.waits)) < 4:
            raise ValueError(f"{_OWNER}: waits={tuple(self.waits)} must hold at least four different numbers.")
        for value in self.angles:
            check.number(_OWNER, "angles", value, least=0.2, most=1.4)


# Recipes whose limit is known: name, weights, α, on the sphere, the verdict that is right, and whether it is trivial.
PLANTED = (
    ("tied, 1/L", "tied", 1.0, False, "ODE", False),
    ("smooth, 1/L", "smooth", 1.0, False, "ODE", False),
    ("Hölder ½, 1/L", "rough", 1.0, False, "ODE", False),
    ("tied, L^-3/2", "tied", 1.5, False, "ODE", True),
    ("i.i.d. around a mean, 1/L", "mean", 1.0, False, "averaged ODE", False),
    ("i.i.d., 1/L", "iid", 1.0, False, "averaged ODE", True),
    ("i.i.d., L^-3/4", "iid", 0.75, False, "averaged ODE", True),
    ("i.i.d., L^-0.55", "iid", 0.55, False, "averaged ODE", True),
    ("i.i.d., 1/√L", "iid", 0.5, False, "SDE", False),
    ("i.i.d., 1/√L, on the sphere", "iid", 0.5, True, "SDE", False),
    ("i.i.d., L^-1/4", "iid", 0.25, False, "none", False),
    ("i.i.d., L^-1/4, on the sphere", "iid", 0.25, True, "none", False),
    ("tied, 1/√L", "tied", 0.5, False, "none", False),
    ("i.i.d. around a mean, L^-3/4", "mean", 0.75, False, "none", False),
)
NAMES = tuple(name for name, *_ in PLANTED)


COMMAND = study_command(
    "pdejax.studies.limits._limits:LIMITS",
    LimitsConfig,
    description="Which limit: recipes of deep networks checked, closures beside tokens, slow clustering, noise that tokens\n"
    "share; see pdejax.studies.limits.LimitsConfig.",
    examples="""examples:
  pdejax limits --out out                                  all of it: a quarter of an hour on two cores; goes on after a stop
  pdejax limits --sections check --repeats 20 --out out    how often verdicts are right
  pdejax limits --sections metastability noise
  pdejax limits --sections check --recipes "i.i.d., 1/√L" "tied, 1/L" --repeats 3

exit status: 0 done, 1 something is NOT as it should be, 2 bad input
""",
)
