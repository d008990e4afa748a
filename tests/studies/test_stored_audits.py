"""Kept audits are judged again from the arrays that are kept beside them: the same verdicts, rows and tables."""

import json
import math
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import xarray as xr

from pdejax.runs._records import Result
from pdejax.studies.audit import AuditConfig
from pdejax.studies.audit._judge import judge
from pdejax.studies.audit._measure import NULLS, SCHEMES

FOLDER = pathlib.Path(__file__).parent.parent.parent / "benchmarks" / "results" / "audit"
KINDS = ("identity", "refinement", "windows", "weights", "surgery", "jacobians", "tokens", "operators", "draws")
# The longest first, for one name begins another.
SECTIONS = [*(f"{kind} {null}" for kind in KINDS for null in NULLS), *KINDS]
# Names with a space; the file has none.
SPACED = ("layer field", "adjacent null", "own loss", "own logits", "own accuracy")


def kept(name: str) -> tuple[Result, dict[str, Any]]:
    """A kept audit, and its evidence as `measure` gave it; names of weights and operators, and the
    law that a fit told, are texts, which the file does not have."""
    result = Result.from_json(json.loads((FOLDER / name / "result.json").read_text()))
    evidence: dict[str, Any] = {"subject": dict(result.results)}
    with xr.open_dataset(FOLDER / name / "result.nc", engine="scipy") as data:
        for label in map(str, data.data_vars):
            section = next(s for s in SECTIONS if label.startswith(s.replace(" ", "_") + "_"))
            rest = label.removeprefix(section.replace(" ", "_") + "_")
            evidence.setdefault(section, {})[_name(rest)] = _as_measured(np.asarray(data[label]))
    if law := result.results["tokens"].get("law"):
        evidence["tokens"]["law"] = np.asarray(law)
    tables = {table.caption: table.rows for table in result.tables}
    weights = tables.get("Weights of neighbouring layers", ())
    evidence.setdefault("weights", {})["names"] = np.asarray([row[0] for row in weights])
    if result.verdicts["weights in depth"].endswith("(autonomous)"):
        evidence["weights"]["autonomous"] = np.asarray(1)
    operators = tables["Increments explained by operators"]
    evidence["operators"]["groups"] = np.asarray([row[0] for row in operators])
    if "operators untrained" in evidence:
        both = [row[0] for row in operators if row[3] is not None and math.isfinite(row[3])]
        evidence["operators untrained"]["groups"] = np.asarray(both)
    return result, evidence


def _as_measured(x: np.ndarray) -> np.ndarray:
    """The file has float64; ties of a permutation test are those of the precision that was measured in."""
    single = x.astype(np.float32)
    return single if np.array_equal(single, x, equal_nan=True) else x


def _name(rest: str) -> str:
    scheme, _, quantity = rest.partition("_")
    if scheme in ("native", *SCHEMES):
        return f"{scheme}/{quantity}"
    return next((name for name in SPACED if name.replace(" ", "_") == rest), rest)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in FOLDER.glob("*/result.nc")))
def test_a_kept_audit_is_judged_the_same(name):
    result, evidence = kept(name)
    with jax.enable_x64(False):  # as the command has it: random flips of a test are others in float64
        found = judge(AuditConfig(**result.config), [evidence])
    assert (found.sentence, found.passed) == (result.verdict, result.passed)
    assert dict(found.verdicts) == dict(result.verdicts)
    assert [row.quantity for row in found.rows] == [row.quantity for row in result.rows]
    for ours, theirs in zip(found.rows, result.rows, strict=True):
        assert ours.ours is not None and theirs.ours is not None
        np.testing.assert_allclose(float(ours.ours), float(theirs.ours), rtol=2e-5, atol=1e-9, err_msg=ours.quantity)
    assert [(t.caption, len(t.rows)) for t in found.tables] == [(t.caption, len(t.rows)) for t in result.tables]


def test_other_arrays_give_other_verdicts():
    """The file decides, not the words beside it."""
    result, evidence = kept("digits")
    evidence["identity"] = {name: 1 + value for name, value in evidence["identity"].items()}
    evidence["refinement"]["euler/moves"] = 1e-9 * evidence["refinement"]["euler/moves"]
    found = judge(AuditConfig(**result.config), [evidence])
    assert result.passed and not found.passed
    assert found.verdicts["half the step"] != result.verdicts["half the step"]
