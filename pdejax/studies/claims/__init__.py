"""The ledger of claims: every claim and numbered equation of the papers with a verdict that is recomputed from evidence.

`claims()` measures and judges them; `CLAIMS` and `EQUATIONS` are the registries.
"""

from pdejax.studies.claims._equations import EQUATIONS as EQUATIONS
from pdejax.studies.claims._equations import Equation as Equation
from pdejax.studies.claims._ledger import CLAIMS as CLAIMS
from pdejax.studies.claims._ledger import Ledger as Ledger
from pdejax.studies.claims._ledger import claims as claims
from pdejax.studies.claims._record import Claim as Claim
from pdejax.studies.claims._record import Counterexample as Counterexample
from pdejax.studies.claims._record import Estimate as Estimate
from pdejax.studies.claims._record import Finding as Finding
from pdejax.studies.claims._record import Measured as Measured
from pdejax.studies.claims._record import over_seeds as over_seeds
