"""The cost study of stiff fields."""

import json

import numpy as np
import pytest
import xarray as xr

from pdejax import cli
from pdejax.studies import StiffConfig, stiff
from pdejax.studies.numerics._stiff import STIFF, cheapest

SMALL = ["--tokens", "24", "--dim", "4", "--ffn", "4", "--target", "1e-5", "--diffusivities", "0.5"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small study through the command: its folder and exit status."""
    out = tmp_path_factory.mktemp("stiff")
    code = cli.main(["stiff", *SMALL, "--solvers", "tsit5", "rkc2", "etdrk4", "ark3", "--out", str(out)])
    return out, code


@pytest.mark.slow
def test_every_solver_reaches_the_target(finished):
    out, code = finished
    content = json.loads((out / "stiff.json").read_text())
    assert code == 0 and content["study"] == "stiff"
    best = cheapest(content["results"]["cost"], 0.5)
    assert set(best) == {"tsit5", "rkc2", "etdrk4", "ark3"}
    for record in content["results"]["cost"]:
        assert record["reached"] == (record["error"] <= 1e-5)
        assert record["seconds"] > 0 and record["steps"] >= 1 and record["peak_mb"] > 0
    # Two evaluations of the rest per stage-free start: FSAL schemes evaluate once more than stages times steps.
    assert best["etdrk4"]["evaluations"] == 4 * best["etdrk4"]["steps"] + 1
    assert best["ark3"]["evaluations"] == 4 * best["ark3"]["steps"]
    assert content["results"]["references"][0]["error"] < 1e-11
    assert "D = 0.5" in content["verdicts"]


@pytest.mark.slow
def test_data_and_plot_are_saved(finished):
    out, _ = finished
    content = json.loads((out / "stiff.json").read_text())
    with xr.open_dataset(out / "stiff.nc", engine="scipy") as data:
        np.testing.assert_array_equal(data["steps"].values, [r["steps"] for r in content["results"]["cost"]])
        assert list(data["solver"].values) == [r["solver"] for r in content["results"]["cost"]]
    assert (out / "stiff.png").stat().st_size > 20_000


@pytest.mark.slow
def test_an_interrupted_study_goes_on(finished, monkeypatch, capsys):
    """With every part there nothing is solved again; with one damaged only that one is."""
    out, _ = finished
    measured = []

    def counted(config, name, equation, d, u0, reference, peak):
        measured.append(name)
        return [{"solver": name, "D": d, "tolerance": None, "steps": 1, "rejected": 0, "evaluations": 1, "error": 1e-9,
                 "reached": True, "extrapolated": False, "seconds": 1.0, "peak_mb": 1.0}]  # fmt: skip

    monkeypatch.setattr("pdejax.studies.numerics._stiff._runs", counted)
    (part,) = out.glob("parts/*/ark3-0.5.json")
    part.write_text('{"half a')
    code = cli.main(["stiff", *SMALL, "--solvers", "tsit5", "rkc2", "etdrk4", "ark3", "--out", str(out)])
    assert code == 0 and measured == ["ark3"]
    assert "damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_long_explicit_solves_are_extrapolated_and_say_so():
    config = StiffConfig(
        tokens=24, dim=4, ffn=4, target=1e-5, diffusivities=(0.5,), solvers=("tsit5",), explicit_steps=4
    )
    short = stiff(config).results["cost"][0]
    whole = stiff(StiffConfig(**{**vars(config), "full": True, "depth": 0.05})).results["cost"][0]
    assert short["extrapolated"] and not whole["extrapolated"]
    assert short["steps"] == pytest.approx(whole["steps"], rel=0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": 4}, "tokens=4"),
        ({"dim": 5}, "heads=2 must divide"),
        ({"diffusivities": (0.1, -1.0)}, "diffusivities=-1.0"),
        ({"diffusivities": ()}, "one or more"),
        ({"depth": 0.0}, "depth=0.0"),
        ({"target": 1e-14}, "target=1e-14"),
        ({"solvers": ("etdrk5",)}, "did you mean 'etdrk"),
        ({"solvers": ("kvaerno5",)}, "dense"),
        ({"solvers": ("strang",)}, "splitting"),
    ],
)
def test_a_configuration_that_cannot_be_measured_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        StiffConfig(**change)


def run_of(solver, **changes):
    """A record as the study measures it."""
    record = {
        "solver": solver,
        "D": 0.5,
        "tolerance": None,
        "steps": 8,
        "rejected": 0,
        "evaluations": 32,
        "error": 1e-7,
    }
    return record | {"reached": True, "extrapolated": False, "seconds": 0.5, "peak_mb": None} | changes


def test_a_judgement_follows_from_its_evidence():
    """The cheapest scheme is named, beside Tsit5; what did not reach the target is not."""
    config = StiffConfig(diffusivities=(0.5,), solvers=("tsit5", "etdrk4", "rkc2"))
    explicit = run_of("tsit5", tolerance=1e-6, evaluations=320, seconds=2.0, extrapolated=True)
    runs = [explicit, run_of("etdrk4", reached=False, error=1e-3), run_of("etdrk4"), run_of("rkc2", seconds=1.0)]
    evidence = {"tokens": 24, "features": 4, "depth": 0.05, "target": 1e-6, "cost": runs}
    found = STIFF.judge(config, [evidence | {"references": [{"D": 0.5, "error": 1e-12}]}])
    assert found.verdicts["D = 0.5"].startswith("etdrk4 reaches 1.0e-07 with 32 evaluations in 0.5 s: 10 times fewer")
    assert found.verdicts["D = 0.5"].endswith("4 times less time than Tsit5 (Tsit5 extrapolated)")
    assert len(found.tables[0].rows) == 4 and [row[0] for row in found.tables[1].rows] == ["etdrk4", "rkc2", "tsit5"]
    assert "~320" in found.tables[0].text() and found.dataset.sizes["run"] == 4
    assert found.pictures[0].png().startswith(b"\x89PNG")
