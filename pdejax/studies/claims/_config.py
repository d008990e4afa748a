"""The command `claims` and its configuration. Imports no JAX, so that help comes at once."""

import dataclasses
from collections.abc import Sequence

from pdejax import _check as check
from pdejax._arguments import names_checked
from pdejax.runs._command import setting
from pdejax.studies._command import study_command

CLAIM_IDS = tuple(f"C{i}" for i in range(1, 18))
EQUATION_IDS = tuple(f"v1 ({i})" for i in range(1, 25)) + tuple(f"v2 ({i})" for i in range(1, 20))


@names_checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClaimsConfig:
    """Configure the ledger of claims.

    - `ids`: claims (`"C1"` … `"C17"`) and equations (`"v1 (1)"` … `"v2 (19)"`) to evaluate, all by default. `"V1(21)"` is
      read as `"v1 (21)"`.
    - `seed`: of everything drawn; `seeds`: independent repetitions, over which intervals are taken. At least 2: from one seed
      there is no interval, and verdicts rest on single figures.
    - `out`: folder for results and finished parts, or None.

    Raises `ValueError`/`TypeError` naming the argument.
    """

    ids: Sequence[str] = setting(
        (), 'claims (C1 … C17) and equations ("v1 (21)"); default all', metavar="ID", positional=True
    )
    seed: int = setting(0, "of everything drawn", metavar="S")
    seeds: int = setting(5, "repetitions that intervals are over", metavar="K")
    out: str | None = setting(None, "folder for results and for finished parts", metavar="DIR")

    def __post_init__(self):
        object.__setattr__(self, "ids", _written(self.ids))
        check.integer("ClaimsConfig", "seed", self.seed, least=0)
        check.integer("ClaimsConfig", "seeds", self.seeds)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The ids that are asked for, claims before equations."""
        return tuple(self.ids) or (*CLAIM_IDS, *EQUATION_IDS)


def _written(ids: Sequence[str]) -> tuple[str, ...]:
    """The ids as they are written here, each once, claims before equations."""
    if isinstance(ids, str):
        raise TypeError(f"ClaimsConfig: ids={ids!r} must be a sequence of ids, such as [{ids!r}].")
    known = {_key(name): name for name in (*CLAIM_IDS, *EQUATION_IDS)}
    unknown = [name for name in ids if _key(name) not in known]
    if unknown:
        raise ValueError(
            f"ClaimsConfig: ids={list(ids)!r} must be ids of claims and equations, unlike "
            f"{', '.join(map(repr, unknown))}; choose of {', '.join(CLAIM_IDS)} and {', '.join(EQUATION_IDS)}."
        )
    asked = {known[_key(name)] for name in ids}
    return tuple(name for name in (*CLAIM_IDS, *EQUATION_IDS) if name in asked)


def _key(name: object) -> str:
    return str(name).lower().replace(" ", "")


COMMAND = study_command(
    "pdejax.studies.claims._ledger:LEDGER",
    ClaimsConfig,
    description="Every claim C1-C17 of the papers and every numbered equation, with a verdict recomputed from evidence,\n"
    "intervals over seeds, and the smallest counterexample as arrays.",
    examples="""examples:
  pdejax claims                          all of them, minutes on two cores
  pdejax claims C4 C5 "v2 (15)"          some
  pdejax claims --out out                keep claims.json, claims.md, counterexamples/*.npz; goes on after a stop
  pdejax claims --json > claims.json     JSON only
""",
)
