"""The command `claims`."""

from pdejax.studies._command import study_command
from pdejax.studies.claims._config import ClaimsConfig

COMMAND = study_command(
    "pdejax.studies.claims._ledger:LEDGER",
    ClaimsConfig,
    description="Every claim C1-C17 of the papers and every numbered equation, with a verdict recomputed from evidence,\n"
    "intervals over seeds, and the smallest counterexample as arrays.",
    examples="""examples:
  pdejax claims                          all of them, about three minutes on two cores
  pdejax claims C4 C5 "v2 (15)"          some
  pdejax claims --out out                keep claims.json, claims.md, counterexamples/*.npz; goes on after a stop
  pdejax claims --json > claims.json     JSON only
""",
)
