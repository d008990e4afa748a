"""The ledger of claims: every claim and numbered equation of the papers with a verdict that is recomputed from evidence.

`claims()` measures and judges them; `CLAIMS` and `EQUATIONS` are the registries.
"""

from typing import TYPE_CHECKING

from pdejax._lazy import attach

if TYPE_CHECKING:
    from pdejax.runs._findings import Finding as Finding
    from pdejax.studies.claims._claim import Claim as Claim
    from pdejax.studies.claims._config import ClaimsConfig as ClaimsConfig
    from pdejax.studies.claims._equations import EQUATIONS as EQUATIONS
    from pdejax.studies.claims._ledger import CLAIMS as CLAIMS
    from pdejax.studies.claims._ledger import claims as claims
else:
    __getattr__, __dir__ = attach(__name__)
