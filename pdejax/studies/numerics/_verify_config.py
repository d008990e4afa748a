"""What a verification is asked to do. Imports no JAX, so that help comes at once."""

import dataclasses

from pdejax.runs._command import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Configure the verification: `out`, a folder for `verify.json`, or None."""

    out: str | None = setting(None, "folder for verify.json", metavar="DIR")
