"""Verification: every closed form of `pdejax.exact` against a solve with the library's own terms and solvers."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from pdejax.runs._parts import environment, plain
from pdejax.studies.numerics import _verify_fields, _verify_tokens
from pdejax.studies.numerics._verify_case import Check

GROUPS: tuple[Callable[[], Iterator[Check]], ...] = (*_verify_fields.GROUPS, *_verify_tokens.GROUPS)
HEADER = f"{'case':<48}{'scheme':<22}{'error':>10}{'expected':>10}  result"


def verify(report: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Integrate the closed-form cases (THEORY §5) and compare, so that a machine's numbers can be trusted.

    In float64, without touching the caller's precision setting. `report(line)` gets the table line by line: header, one line
    per case as soon as it is known, and `N of M cases passed`. A case passes if its error is at most what is expected of it;
    one that raises fails, with the reason in its `note`.

    Returns `{"study", "environment", "cases", "passed", "results", "seconds"}`, where `results` is a list of
    `{"case", "scheme", "error", "expected", "passed", "note"}` with errors relative unless the case says otherwise, and
    None for an error that is not finite.
    """
    say = report if report is not None else lambda line: None
    started = time.perf_counter()
    say(HEADER)
    results = []
    with jax.enable_x64(True):
        for group in GROUPS:
            for check in _checks(group):
                results.append({**plain(check), "passed": check.passed})
                say(line(check))
        where = environment()
    passed = sum(result["passed"] for result in results)
    say(f"{passed} of {len(results)} cases passed")
    return {
        "study": "verify",
        "environment": where,
        "cases": len(results),
        "passed": passed,
        "results": results,
        "seconds": time.perf_counter() - started,
    }


def line(check: Check) -> str:
    """One line of the table, without a line break."""
    error = f"{check.error:10.1e}" if math.isfinite(check.error) else f"{check.error:>10}"
    result = "pass" if check.passed else "FAIL"
    note = f"  {check.note}" if check.note else ""
    return f"{check.case:<48}{check.scheme:<22}{error}{check.expected:10.0e}  {result}{note}"


def _checks(group: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from group()
    except Exception as error:  # a broken backend must not hide the cases that come after
        reason = " ".join(str(error).split())[:200]
        name = group.__name__.replace("_", " ")
        yield Check(f"{name}, remaining cases", "-", math.nan, 0.0, f"{type(error).__name__}: {reason}")
