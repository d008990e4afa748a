"""The ledger of claims: every claim and numbered equation measured and judged, as one study."""

import pathlib
import time
from collections.abc import Callable, Sequence

from pdejax._arguments import checked
from pdejax.runs._findings import (
    BORNE_OUT,
    COLUMNS,
    NOT_MEASURED,
    Finding,
    Measured,
    cells,
    count_verdicts,
    file_name,
    overview,
    paragraph,
)
from pdejax.runs._parts import Parts
from pdejax.runs._records import Result
from pdejax.studies.claims._c1_continuum import C1
from pdejax.studies.claims._c2_residual import C2
from pdejax.studies.claims._c3_step import C3
from pdejax.studies.claims._c4_energy import C4
from pdejax.studies.claims._c5_stochastic import C5
from pdejax.studies.claims._c6_fidelity import C6
from pdejax.studies.claims._c7_diffusivity import C7
from pdejax.studies.claims._c8_estimate import C8
from pdejax.studies.claims._c9_signs import C9
from pdejax.studies.claims._c10_compression import C10
from pdejax.studies.claims._c11_boundary import C11
from pdejax.studies.claims._c12_lipschitz import C12
from pdejax.studies.claims._c13_decay import C13
from pdejax.studies.claims._c14_attention import C14
from pdejax.studies.claims._c15_layernorm import C15
from pdejax.studies.claims._c16_phases import C16
from pdejax.studies.claims._c17_activations import C17
from pdejax.studies.claims._claim import Claim
from pdejax.studies.claims._config import ClaimsConfig
from pdejax.studies.claims._equations import EQUATIONS
from pdejax.studies.study import Evidence, Judgement, Study, run

CLAIMS: dict[str, Claim] = {
    claim.id: claim for claim in (C1, C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13, C14, C15, C16, C17)
}


@checked
def claims(
    ids: Sequence[str] | None = None,
    *,
    seed: int = 0,
    seeds: int = 5,
    report: Callable[[str], None] | None = None,
    row: Callable[[Finding], None] | None = None,
    out: str | pathlib.Path | None = None,
) -> Result:
    """Measure and judge the claims of the papers, in float64, without touching the caller's precision setting.

    - `ids`, `seed`, `seeds`: as in [`ClaimsConfig`][pdejax.studies.claims.ClaimsConfig]; None for all claims and
      equations. An equation that rests on a claim's evidence has that claim measured.
    - `report(text)` is told what is being measured; `row(finding)` gets each finding as soon as it is there.

    `findings` of the result holds a [`Finding`][pdejax.studies.claims.Finding] by id: `claims(["C4"]).findings["C4"].verdict`.
    With `out` each claim's evidence is kept as it is finished, so that an interrupted ledger goes on from it, and
    `claims.json`, `claims.md` and `counterexamples/*.npz` are written.

    Minutes on two cores with the default 5 seeds. Raises `ValueError` or `TypeError` for unknown ids, none at all,
    or numbers out of range, and `ResultError` for a folder that cannot be written.
    """
    if ids is not None and len(ids) == 0:
        raise ValueError("claims: ids is empty; give ids of claims and equations, or None for all.")
    config = ClaimsConfig(ids=() if ids is None else ids, seed=seed, seeds=seeds)
    return run(LEDGER, config, out=out, report=report, row=row)


def measure(config: ClaimsConfig, seed: int, parts: Parts) -> Evidence:
    """Measure the evidence of the claims that are asked for and of those that they rest on, a part each."""
    found: dict[str, dict] = {}
    for name in config.wanted:
        claim = _known(name)
        own = claim if claim.rests_on is None else _known(claim.rests_on)
        if own.id not in found:
            parts.say(f"{own.id}: {own.statement}")

            def timed(own=own):
                started = time.perf_counter()
                assert own.measure is not None
                measured = own.measure(seed, config.seeds)
                return measured.to_json() | {"seconds": time.perf_counter() - started}

            found[own.id] = parts.get(file_name(own.id), timed)
        parts.row(finding(name, found))
    return found


def finding(name: str, evidence: Evidence) -> Finding:
    """Judge a claim or an equation from the evidence by claim."""
    claim = _known(name)
    if claim.rests_on is not None:
        return claim.finding_from(finding(claim.rests_on, evidence))
    return claim.finding(Measured.from_json(evidence[name]), float(evidence[name]["seconds"]))


def judge(config: ClaimsConfig, evidence: Sequence[Evidence]) -> Judgement:
    """Judge all that are asked for. Verdicts on the papers are results; that a corrected statement, which is ours, is not borne
    out, or that a figure is missing or no number, is a failure."""
    [found] = evidence
    findings = {name: finding(name, found) for name in config.wanted}
    claims = [found for name, found in findings.items() if name in CLAIMS]
    equations = [found for name, found in findings.items() if name in EQUATIONS]
    return Judgement(
        sentence=count_verdicts([*claims, *equations]),
        passed=all(f.verdict != NOT_MEASURED and f.support in ("", BORNE_OUT) for f in findings.values()),
        tables=(overview([*claims, *equations]),),
        notes=[paragraph(found) for found in claims],
        results={"claims": [f.to_json() for f in claims], "equations": [f.to_json() for f in equations]},
        findings=findings,
    )


def _known(name: str) -> Claim:
    return CLAIMS[name] if name in CLAIMS else EQUATIONS[name]


LEDGER = Study(
    name="claims",
    title="Claims of the papers",
    question="Which claims and equations of the papers hold?",
    source="v1, v2",
    measure=measure,
    judge=judge,
    identity=lambda config: {"seed": config.seed, "seeds": config.seeds},
    columns=COLUMNS,
    cells=cells,
)
