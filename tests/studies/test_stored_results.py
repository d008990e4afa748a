"""Results that are kept in the repository are judged again: the same numbers give the same verdicts, to the letter."""

import json
import pathlib

import pytest

from pdejax.runs._records import Result
from pdejax.studies import ConvergenceConfig, StabilityConfig, StiffConfig
from pdejax.studies.limits import LimitsConfig
from pdejax.studies.limits._limits import LIMITS
from pdejax.studies.numerics._convergence import CONVERGENCE
from pdejax.studies.numerics._stability import verdicts as stability_verdicts
from pdejax.studies.numerics._stiff import STIFF
from pdejax.studies.numerics._verify_cases import Check

FOLDER = pathlib.Path(__file__).parent.parent.parent / "benchmarks" / "results"


def stored(name: str) -> Result:
    content = json.loads((FOLDER / f"{name}.json").read_text())
    found = Result.from_json(content)
    assert found.to_json() == content  # nothing of the file is lost on the way
    return found


@pytest.mark.parametrize(
    ("study", "config", "name"),
    [
        (CONVERGENCE, ConvergenceConfig, "convergence"),
        (STIFF, StiffConfig, "stiff"),
        (LIMITS, LimitsConfig, "limits/limits"),
    ],
)
def test_a_stored_result_is_judged_the_same(study, config, name):
    found = stored(name)
    judged = study.judge(config(**found.config), [found.results])
    assert judged.verdicts == found.verdicts and judged.sentence == found.verdict and judged.passed == found.passed
    assert judged.dataset is not None and judged.tables[0].rows


def test_stored_maps_are_judged_the_same():
    found = stored("stability")
    assert stability_verdicts(found.results) == found.verdicts
    assert StabilityConfig(**found.config).resolution == 40


def test_a_check_of_verify_passes_up_to_what_is_expected():
    passed = [Check("case", "scheme", error, 1e-9).passed for error in (0.0, 1e-9, 1.1e-9, float("nan"), float("inf"))]
    assert passed == [True, True, False, False, False]
