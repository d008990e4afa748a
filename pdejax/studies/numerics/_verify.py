"""Verification: every closed form of `pdejax.exact` against a solve with the library's own terms and solvers."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pdejax._arguments import checked
from pdejax.runs._files import plain
from pdejax.runs._parts import Parts
from pdejax.runs._records import Result
from pdejax.runs._table import Column
from pdejax.studies.numerics._verify_cases import (
    Check,
    equiangular,
    gaussian,
    heat,
    information,
    linear,
    preln,
    spatial_norm,
    sphere,
    stability,
    transformer,
)
from pdejax.studies.numerics._verify_config import VerifyConfig
from pdejax.studies.numerics._verify_noise import circle, noise, random_layers
from pdejax.studies.study import Evidence, Judgement, Study, run

GROUPS: tuple[Callable[[], Iterator[Check]], ...] = (
    *(heat, linear, spatial_norm, stability, information),
    *(equiangular, preln, sphere, gaussian, transformer),
    *(noise, random_layers, circle),
)
COLUMNS = (
    Column("case", width=46),
    Column("scheme", width=20),
    Column("error", ".1e", 8, right=True),
    Column("expected", ".0e", 8, right=True),
    Column("result"),
)


@checked
def verify(
    config: VerifyConfig | None = None,
    *,
    report: Callable[[str], None] | None = None,
    row: Callable[[dict[str, Any]], None] | None = None,
) -> Result:
    """Integrate the closed-form cases (THEORY §5) and compare, so that a machine's numbers can be trusted.

    In float64, without touching the caller's precision setting. `row(check)` gets each case as soon as it is known. A case
    passes if its error is at most what is expected of it; one that raises fails, with the reason in its `note`.

    `results` has `cases`, `passed` and `checks`, a list of `{"case", "scheme", "error", "expected", "passed", "note"}` with
    errors relative unless the case says otherwise, and None for an error that is not finite.
    """
    config = VerifyConfig() if config is None else config
    return run(VERIFY, config, out=config.out, report=report, row=row)


def measure(config: VerifyConfig, seed: int, parts: Parts) -> Evidence:
    """Compare every case, anew each time: what a machine computed once is no proof of what it computes now."""
    del config, seed
    checks = []
    for group in GROUPS:
        for check in _checks(group):
            checks.append({**plain(check), "passed": check.passed})
            parts.row(checks[-1])
    return {"checks": checks}


def judge(config: VerifyConfig, evidence: Sequence[Evidence]) -> Judgement:
    """Count the cases that pass, and name those that do not."""
    del config
    [found] = evidence
    checks = found["checks"]
    failed = {
        c["case"]: f"FAILED: error {_error(c)} where {c['expected']:.0e} is expected" for c in checks if not c["passed"]
    }
    passed = len(checks) - sum(not c["passed"] for c in checks)
    return Judgement(
        sentence=f"{passed} of {len(checks)} cases passed",
        verdicts=failed,
        passed=passed == len(checks),
        results={"cases": len(checks), "passed": passed, "checks": checks},
    )


def cells(check: Mapping[str, Any]) -> tuple[Any, ...]:
    """A case as a line of the table."""
    result = "pass" if check["passed"] else "FAIL"
    note = f"  {check['note']}" if check["note"] else ""
    return check["case"], check["scheme"], check["error"], check["expected"], result + note


def _error(check: Mapping[str, Any]) -> str:
    return "not finite" if check["error"] is None else f"{check['error']:.1e}"


def _checks(group: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from group()
    except Exception as error:  # a broken backend must not hide the cases that come after
        reason = " ".join(str(error).split())[:200]
        name = group.__name__.replace("_", " ")
        yield Check(f"{name}, remaining cases", "-", math.nan, 0.0, f"{type(error).__name__}: {reason}")


VERIFY = Study(
    name="verify",
    title="Closed forms against the library's own solves",
    question="Does this machine compute what is known in closed form?",
    source="",
    measure=measure,
    judge=judge,
    seeds=lambda config: (0,),
    columns=COLUMNS,
    cells=cells,
)
