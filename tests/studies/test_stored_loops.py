"""Kept loops are judged again from the numbers by input that are kept beside them: the same verdicts, rows and tables."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import xarray as xr

from pdejax import Figure
from pdejax.analysis.loops._kinds import KINDS, _falls, exponent_kind
from pdejax.runs._records import Result
from pdejax.studies.loops import LoopsConfig
from pdejax.studies.loops import _measure as measuring
from pdejax.studies.loops._judge import judge

FOLDER = pathlib.Path(__file__).parent.parent.parent / "benchmarks" / "results" / "loops"
NAMES = {
    name.replace(" ", "_").replace("-", "_"): name
    for name in (
        *("mean token", "exponent low", "exponent high", "at point", "radius converged", "sub-layer norms"),
        "sub-layer gains",
        *(f"{at} {part}" for at in ("point", "trained") for part in ("real", "imaginary", "residual")),
        *(f"score {name}" for name in measuring.SCORES),
    )
}
# Of an input that has none of these they are NaN throughout.
OPTIONAL = (
    *("mean token", "distance", "answers", "divergence", "label", "foreseen", "changed", "trained real", "radius"),
    *("trained imaginary", "trained residual", "estimates", "sub-layer norms", "sub-layer gains", "at point"),
    *("radius converged", f"score {measuring.DIVERGENCE}"),
)


def kept(name: str) -> tuple[Result, dict[str, Any]]:
    """A kept result, and its evidence as `measure` gave it."""
    result = Result.from_json(json.loads((FOLDER / name / "result.json").read_text()))
    with xr.open_dataset(FOLDER / name / "result.nc") as opened:
        data = opened.load()
    variables = {NAMES.get(str(v), str(v)): np.asarray(data[v]) for v in data.variables}
    inputs = [
        {v: x[i] for v, x in variables.items() if not (v in OPTIONAL and np.all(np.isnan(x[i])))}
        for i in range(data.sizes["input"])
    ]
    facts = {
        "name": result.results["name"],
        "loop": result.results["network"],
        "data": result.results["data"],
        "trained": int(data.attrs["trained"]),
        "sub-layers": list(result.results["gains"]),
        "answers": "answers" in variables,
    }
    return result, {"subject": facts, "inputs": inputs}


@pytest.mark.parametrize("name", ["pre", "post", "injected", "kokoro"])
def test_kept_loops_are_judged_the_same(name):
    result, evidence = kept(name)
    found = judge(LoopsConfig(**result.config), [evidence])
    assert (found.sentence, dict(found.verdicts), found.passed) == (result.verdict, result.verdicts, result.passed)
    assert [row.quantity for row in found.rows] == [row.quantity for row in result.rows]
    for ours, theirs in zip(found.rows, result.rows, strict=True):
        np.testing.assert_allclose(
            [np.asarray(getattr(ours.ours, part), float) for part in ("value", "low", "high")],
            [np.asarray(getattr(theirs.ours, part), float) for part in ("value", "low", "high")],
            rtol=1e-9,
            err_msg=ours.quantity,
        )
    assert [table.caption for table in found.tables] == [table.caption for table in result.tables]


@pytest.mark.parametrize("name", ["pre", "injected"])
def test_kept_drifts_do_not_settle(name):
    """The kind was told when they were measured: steps that fall at a rate, or lengths that fall, would be no drift."""
    for x in kept(name)[1]["inputs"]:
        assert KINDS[int(x["kind"])] == "drift" and not _falls(x["steps"]) and np.all(np.isfinite(x["norms"]))
        quarter = len(x["norms"]) // 4
        assert np.mean(x["norms"][-quarter:]) > np.mean(x["norms"][-2 * quarter : -quarter])


def test_kept_exponents_show_what_they_are_said_to():
    """Of inputs without a point or cycle the whole interval decides: four of kokoro's."""
    shown = {}
    for x in kept("kokoro")[1]["inputs"]:
        if not int(x["period"]):
            found = Figure(*(float(x[name]) for name in ("exponent", "exponent low", "exponent high")))
            assert KINDS[int(x["kind"])] == exponent_kind(found, len(x["steps"]))
            shown[KINDS[int(x["kind"])]] = shown.get(KINDS[int(x["kind"])], 0) + 1
    assert shown == {"marginal": 2, "expanding": 1, "not decided": 1}


def seeds() -> dict[str, Any]:
    return json.loads((FOLDER / "seeds.json").read_text())


def test_kept_seeds_are_summed_up_as_they_are_kept():
    """By Student's interval in SciPy where a figure has no range, from the runs themselves."""
    from scipy.stats import t as student

    for model in seeds()["models"].values():
        runs, over = model["seeds"], model["over seeds"]
        assert [run["seed"] for run in runs] == list(range(len(runs))) and len(runs) >= 3
        for run in runs:
            assert sum(run["kinds"].values()) == seeds()["settings"]["sequences"]
        for name in ("Lyapunov exponent 1", "spectral radius after the trained passes", "safe range of loops"):
            x = np.array([run["values"][name] for run in runs])
            low, high = student.interval(0.95, len(x) - 1, x.mean(), x.std(ddof=1) / np.sqrt(len(x)) or 1e-300)
            kept = over[name]
            np.testing.assert_allclose([kept["value"], kept["low"], kept["high"]], [x.mean(), low, high], rtol=1e-9)


def test_kept_seeds_have_learned_and_do_what_norms_let_them():
    """Above both answers without a network; no blow-up where steps are bounded, no endless drift where states are."""
    for name, model in seeds()["models"].items():
        for run in model["seeds"]:
            assert run["accuracy"] > max(run["baselines"].values()) + 0.1
            assert run["kinds"]["blow-up"] == 0
            if name in ("post", "injected-post"):
                assert run["kinds"]["drift"] == 0
