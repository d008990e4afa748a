"""The command `verify` and its configuration. Imports no JAX, so that help comes at once."""

import dataclasses

from pdejax._arguments import names_checked
from pdejax.runs._command import setting
from pdejax.studies._command import study_command


@names_checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Configure the verification: `out`, a folder for `verify.json`, or None."""

    out: str | None = setting(None, "folder for verify.json", metavar="DIR")


COMMAND = study_command(
    "pdejax.studies.numerics._verify:VERIFY",
    VerifyConfig,
    description="Integrate cases whose solutions are known in closed form with every solver, and compare.",
    examples="""examples:
  pdejax verify
  pdejax verify --json                    the table as JSON
  pdejax verify --out out                 in out/verify.json, beside the text
  pdejax verify --quiet                   the failed cases and the sum only

exit status: 0 all passed, 1 a case failed, 2 bad input
""",
)
