"""The ledger: ids, records, files, resumption, the command."""

import argparse
import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from pdejax import Figure, over_seeds
from pdejax.runs import ResultError
from pdejax.runs._findings import Counterexample, Measured
from pdejax.studies.claims import CLAIMS, _ledger, claims
from pdejax.studies.claims._claim import high, low, range_over, ratio_over_seeds, share_over_seeds
from pdejax.studies.claims._config import COMMAND, ClaimsConfig

QUICK = ("C5", "C9", "C10")


@pytest.fixture
def counted(monkeypatch):
    """Claims C4 and C6 replaced by ones that count how often they are measured."""
    calls = []

    def fake(name):
        def measure(seed, seeds):
            calls.append(name)
            # Both are asked for by v2 (15) and v2 (17).
            figures = {
                "energy_over_claim_outside_basin": 2.0,
                "energy_over_claim_inside_basin": 0.5,
                "energy_rate_of_constant_field": 0.0,
                "worst_energy_over_claim_v2_9": Figure(2.0, math.nan, math.nan),
                "share_violated_with_r_below_1": 0.0,
                "share_violated_with_r_above_1": 0.0,
                "fidelity_at_I_minus_2_u0": -1.0,
                "claimed_at_I_minus_2_u0": -0.3,
                "share_sharp_violated": 0.0,
                "worst_energy_over_claim_linear_damping": Figure(0.5, 0.4, 0.6),
                "basin_radius_error": 0.0,
                "sharp_bound_attained_error": 0.0,
            }
            return Measured(figures, {}, Counterexample("one | number", {"u": np.array([[1.5]]), "n": np.array(3)}))

        return dataclasses.replace(CLAIMS[name], measure=measure)

    monkeypatch.setitem(_ledger.CLAIMS, "C4", fake("C4"))
    monkeypatch.setitem(_ledger.CLAIMS, "C6", fake("C6"))
    return calls


def test_unknown_ids_and_numbers_are_refused():
    for ids, said in (
        (["C99"], "'C99'.*C1, C2.*v2 \\(19\\)"),
        ([], "empty"),
        (["C1", "v3 (1)"], "v3"),
    ):
        with pytest.raises(ValueError, match=said):
            claims(ids)
    with pytest.raises(TypeError, match="must be a sequence"):
        claims("C1")
    with pytest.raises(ValueError, match="seeds=0"):
        claims(["C5"], seeds=0)
    with pytest.raises(ValueError, match="seed=-1"):
        claims(["C5"], seed=-1)
    with pytest.raises(TypeError, match="seeds=True"):
        claims(["C5"], seeds=True)


def test_intervals_over_seeds():
    found = over_seeds([1.0, 2.0, 3.0])
    half = 4.302652729749464 / math.sqrt(3)  # t quantile, 2 degrees of freedom
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half))
    alone = over_seeds([4.0])
    assert alone.value == low(alone) == high(alone) == 4 and math.isnan(alone.low)
    ratio = ratio_over_seeds([0.5, 2.0])
    assert ratio.value == pytest.approx(1) and ratio.low * ratio.high == pytest.approx(1)
    # Student's own interval of these shares would end at −0.12; of one of them at an end of the range it is cut.
    few = share_over_seeds([0.02, 0.03, 0.2])
    z = np.log(np.array([0.02, 0.03, 0.2]) / np.array([0.98, 0.97, 0.8]))
    ends = z.mean() + np.array([-1, 1]) * 4.302652729749464 * z.std(ddof=1) / math.sqrt(3)
    assert [few.low, few.high] == pytest.approx(list(1 / (1 + np.exp(-ends)))) and few.value == pytest.approx(0.25 / 3)
    assert share_over_seeds([0.0, 0.0, 0.1]).low == 0
    spread = range_over([3.0, 1.0, 2.0])
    assert (spread.value, spread.low, spread.high) == (2, 1, 3)


def test_evidence_comes_back_from_a_part():
    arrays = {"u": np.arange(6.0).reshape(1, 2, 3), "n": np.array([1, 2], np.int8), "x": np.array(math.nan)}
    before = Measured({"a": Figure(1.0, math.nan, 2.0), "b": 3, "c": math.inf}, {"d": 0.5}, Counterexample("e", arrays))
    after = Measured.from_json(json.loads(json.dumps(before.to_json(), allow_nan=False)))
    assert after.corrected == {"d": 0.5}
    assert after.figures["a"].value == 1 and math.isnan(after.figures["a"].low) and after.figures["b"] == 3
    for name, a in arrays.items():
        b = after.counterexample.arrays[name]
        assert b.dtype == a.dtype and b.shape == a.shape
        np.testing.assert_array_equal(a, b)


def test_equations_share_a_claims_evidence_and_parts_are_resumed(counted, tmp_path):
    asked = ["v2 (15)", "c4", "C6", "V2(17)"]
    rows = []
    first = claims(asked, seeds=2, out=tmp_path, row=rows.append)
    assert counted == ["C4", "C6"]
    assert list(first.findings) == ["C4", "C6", "v2 (15)", "v2 (17)"]
    assert [f.claim for f in rows] == ["C4", "C6", "v2 (15)", "v2 (17)"]
    assert first.findings["v2 (15)"].verdict == "fails"
    assert first.findings["C6"].verdict == "holds under an added condition"
    second = claims(asked, seeds=2, out=tmp_path)
    assert counted == ["C4", "C6"]  # nothing measured again
    assert second.findings["C4"].seconds == first.findings["C4"].seconds
    np.testing.assert_array_equal(second.findings["C4"].counterexample.arrays["u"], [[1.5]])
    claims(["C4"], seeds=3, out=tmp_path)
    assert counted == ["C4", "C6", "C4"]  # another configuration
    part = next(tmp_path.glob("parts/*/C6.json"))
    part.write_text("{")
    said = []
    claims(["C6"], seeds=2, out=tmp_path, report=said.append)
    assert counted[-1] == "C6" and any("damaged" in text for text in said)


def test_files_and_json(counted, tmp_path):
    ledger = claims(["C4", "v2 (15)"], seeds=2, out=tmp_path)
    assert {p.rsplit("/", 1)[1] for p in ledger.files} == {"claims.json", "claims.md", "C4.npz"}
    saved = json.loads((tmp_path / "claims.json").read_text())
    [record] = saved["results"]["claims"]
    keys = (
        "claim",
        "statement",
        "quote",
        "source",
        "verdict",
        "rule",
        "condition",
        "support",
        "figures",
        "corrected_figures",
        "counterexample",
        "code",
        "seconds",
    )
    assert tuple(record) == keys
    assert record["counterexample"]["file"] == "counterexamples/C4.npz"
    with np.load(tmp_path / record["counterexample"]["file"]) as loaded:
        assert loaded["u"].shape == tuple(record["counterexample"]["arrays"]["u"]["shape"]) == (1, 1)
        assert loaded["n"] == 3
    assert record["figures"]["worst_energy_over_claim_v2_9"] == {"mean": 2.0, "low": None, "high": None}
    assert saved["results"]["equations"][0]["claim"] == "v2 (15)" and saved["verdict"] == ledger.verdict
    assert saved["config"] == {"ids": ["C4", "v2 (15)"], "seed": 0, "seeds": 2}
    text = (tmp_path / "claims.md").read_text()
    assert "## C4: fails" in text and "one \\| number" in text and "| v2 (15) |" in text
    assert all(row.count("|") - row.count("\\|") == 7 for row in text.splitlines() if row.startswith("| C4 "))
    assert "1 claims: 1 fails; 1 equations: 1 fails" in ledger.text() and "instead" in ledger.text()
    with pytest.raises(ResultError):
        claims(["C4"], seeds=2, out=tmp_path / "claims.json")


@pytest.mark.parametrize(("basin", "passed"), [(0.0, True), (0.1, False), (math.nan, False)])
def test_a_corrected_statement_that_is_not_borne_out_is_a_failure(counted, basin, passed):
    """Verdicts on the papers are findings; the corrected statement is ours."""
    measured = _ledger.CLAIMS["C4"].measure(0, 2)
    evidence = {"C4": measured.to_json() | {"seconds": 0.0}}
    evidence["C4"]["figures"]["basin_radius_error"] = basin
    found = _ledger.judge(ClaimsConfig(ids=("C4",), seeds=2), [evidence])
    assert (found.findings["C4"].verdict, found.passed) == ("fails", passed)


def test_command(counted, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    COMMAND.add_arguments(parser)

    def run(*arguments):
        assert COMMAND(parser.parse_args(arguments)) == 0
        return capsys.readouterr()

    printed = run("C4", "v2 (15)", "--json")
    assert json.loads(printed.out)["results"]["claims"][0]["claim"] == "C4"
    assert "C4" in printed.err
    printed = run("C4", "--quiet", "--out", str(tmp_path), "--seeds", "2")
    assert printed.err == "" and "claimed" in printed.out and "saved" in printed.out
    printed = run("C4", "C6")
    assert "\nC4 " in printed.out and "\nC6 " in printed.out and "1 fails" in printed.out
    with pytest.raises(ValueError, match="C99"):
        COMMAND(parser.parse_args(["C99"]))


def test_some_claims_measured():
    before = jax.config.read("jax_enable_x64")
    ledger = claims(QUICK, seeds=2)
    assert jax.config.read("jax_enable_x64") == before
    json.dumps(ledger.to_json(), allow_nan=False)
    assert ledger.findings["C10"].evidence["error_against_closed_form"] < 1e-12
    for finding in ledger.findings.values():
        assert set(finding.headline) <= set(finding.evidence), finding.claim
    other = claims(["C9"], seed=1, seeds=2).findings["C9"]
    assert other.evidence != ledger.findings["C9"].evidence  # seeds matter
    again = claims(["C9"], seeds=2).findings["C9"]
    assert again.evidence == ledger.findings["C9"].evidence
    assert [finding.verdict for finding in ledger.findings.values()] == [
        "holds under an added condition",
        "fails",
        "fails",
    ]
