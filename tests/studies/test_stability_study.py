"""The stability study: its files, its resuming, its verdicts and its command."""

import copy
import json

import jax
import numpy as np
import pytest
import xarray as xr

from pdejax import cli
from pdejax.runs import ResultError
from pdejax.studies.numerics import _stability as study
from pdejax.studies.numerics import _stability_maps as maps
from pdejax.studies.numerics._stability import STABILITY, stability, summarize, verdicts
from pdejax.studies.numerics._stability_config import StabilityConfig

SMALL = {
    "solvers": ("euler",),
    "families": ("mean attention", "leak"),
    "tokens": 8,
    "dim": 2,
    "resolution": 10,
    "draws": 30,
    "steps": 120,
    "chunk": 60,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stability")


@pytest.fixture(scope="module")
def result(folder):
    return stability(StabilityConfig(**SMALL, out=str(folder)))


@pytest.fixture
def content(folder, result):
    return json.loads((folder / "stability.json").read_text())


def test_json_holds_what_was_promised(content):
    assert {"study", "config", "environment", "results", "verdict", "verdicts", "figures", "data"} <= set(content)
    assert content["study"] == "stability" and set(content["results"]) == {"dt_max", "maps"}
    assert content["environment"]["versions"]["jax"] == jax.__version__ and content["config"]["chunk"] == 60
    assert {"solver", "equation", "predicted", "measured"} <= set(content["results"]["dt_max"][0])
    for m in content["results"]["maps"]:
        assert m["runs"] == 130 == m["stable"] + m["unstable"] + m["overflow"]
        assert m["v1"]["safe"] <= m["runs"] == m["v1"]["inside"] + m["overflow"] and m["corrected"]["false_safe"] == 0
        # Mean attention has no leak, G > c = 0: none of its runs is inside the corrected bound's hypothesis.
        assert m["corrected"]["inside"] == {"leak": 130, "mean attention": 0}[m["family"]]


def test_step_limits_agree(result):
    rows = result.results["dt_max"]
    assert [row["equation"] for row in rows] == [
        "diffusion",
        "diffusion + Transformer",
        "diffusion + Transformer + damping",
    ]
    # Diffusion in closed form: 2/(4 D n² cos²(π/2n)).
    assert rows[0]["predicted"] == pytest.approx(2 / (4 * 0.5 * 64 * np.cos(np.pi / 16) ** 2), rel=1e-6)
    assert all(abs(row["difference"]) < 0.02 for row in rows)


def test_verdicts_are_those_of_the_claim(result):
    found = result.verdicts
    assert found["v1 (21) sufficient"].startswith("not sufficient")
    assert found["v1 (21) necessary"].startswith("not necessary")
    assert found["corrected bound sufficient"].startswith("holds in every run with G ≤ c: 0 of")
    assert found["largest step"].startswith("as predicted")


def test_dataset_and_plot(folder, content):
    with xr.open_dataset(folder / "stability.nc", engine="scipy") as data:
        assert list(data.family.values) == ["mean attention", "leak"] and data.sizes["run"] == 130
        for m in content["results"]["maps"]:
            runs = data.sel(family=m["family"])
            safe = runs.v1_left.values <= 1
            assert int(np.sum(safe & (runs.status.values == 1))) == m["v1"]["false_safe"]
            assert int(np.sum(runs.status.values == 2)) == m["overflow"]
    image = (folder / "stability_map.png").read_bytes()
    assert image.startswith(b"\x89PNG") and len(image) > 10_000


def test_a_second_run_measures_nothing(folder, result, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("measured again")

    for name in ("measure_dt_max", "predict_dt_max"):
        monkeypatch.setattr(study, name, never)
    monkeypatch.setattr(maps, "run_one", never)
    again = stability(StabilityConfig(**SMALL, out=str(folder)))
    assert again.results["maps"] == result.results["maps"] and again.verdicts == result.verdicts


def test_an_interrupted_run_goes_on(result, tmp_path):
    config = StabilityConfig(**{**SMALL, "solvers": ()}, out=str(tmp_path))
    said, notices = [], []

    def report(text):
        said.append(text)
        if text == "map of leak: chunk 2 of 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stability(config, report=report)
    assert not (tmp_path / "stability.json").exists() and len(said) == 5
    # One finished part is lost and one is damaged: only they and the missing two are measured.
    [lost] = tmp_path.glob("parts/*/map_of_mean_attention-*-0.npz")
    lost.unlink()
    [damaged] = tmp_path.glob("parts/*/map_of_mean_attention-*-1.npz")
    damaged.write_bytes(damaged.read_bytes()[:50])
    resumed = stability(config, report=notices.append)
    assert sum("chunk" in text for text in notices) == 4 and any("damaged" in text for text in notices)
    assert resumed.results["maps"] == result.results["maps"]


def test_summaries_count_what_they_say():
    runs = {axis: np.arange(6.0) for axis in study.AXES}
    runs["status"] = np.array([0, 0, 1, 1, 2, 1])
    runs["v1_left"] = np.array([0.5, 2.0, 0.9, 3.0, 0.1, 0.3])
    runs["corrected_left"] = np.array([0.5, np.inf, 1.1, 3.0, 0.1, 1.5])
    found = summarize("leak", runs)
    assert (found["stable"], found["unstable"], found["overflow"]) == (2, 3, 1)
    v1, corrected = found["v1"], found["corrected"]
    assert (v1["safe"], v1["false_safe"], v1["false_alarm"]) == (3, 2, 1)
    assert v1["smallest_left_of_false_safe"]["left"] == 0.3 and v1["smallest_left_of_false_safe"]["step"] == 5
    assert (corrected["false_safe"], corrected["false_alarm"]) == (0, 0)
    assert (v1["inside"], corrected["inside"], corrected["safe"]) == (5, 4, 1)
    assert corrected["smallest_left_of_false_safe"] is None


def test_verdicts_follow_the_numbers(result):
    changed = copy.deepcopy(result.results)
    changed["dt_max"][1]["difference"] = 0.03
    changed["maps"][0]["corrected"]["false_safe"] = 2
    for m in changed["maps"]:
        m["v1"]["false_safe"] = m["v1"]["false_alarm"] = 0
    found = verdicts(changed)
    assert found["largest step"].startswith("NOT as predicted: measured within 3.00%")
    assert found["corrected bound sufficient"].startswith("VIOLATED: 2 of")
    assert "no counterexample" in found["v1 (21) sufficient"] and "no counterexample" in found["v1 (21) necessary"]
    changed["dt_max"][0]["difference"] = None
    assert verdicts(changed)["largest step"].startswith("NOT")


@pytest.mark.parametrize("sign", [1, -1])
def test_a_measured_step_within_two_percent_is_as_predicted(sign):
    def word(difference):
        record = {"difference": sign * difference, "solver": "euler", "equation": "diffusion"}
        return verdicts({"dt_max": [record], "maps": []})["largest step"].split(":")[0]

    assert (word(0.0199), word(0.0201)) == ("as predicted", "NOT as predicted")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"solvers": ("eulre",)}, r"solvers='eulre' must be one of .* did you mean 'euler'"),
        ({"solvers": ("strang",)}, "takes the terms apart"),
        ({"solvers": ("kvaerno5",)}, "A-stable"),
        ({"solvers": "euler"}, "must be a tuple"),
        ({"families": ("lek",)}, "did you mean 'leak'"),
        ({"families": ("leak", "leak")}, "twice"),
        ({"families": (), "solvers": ()}, "both empty"),
        ({"tokens": -4}, "tokens=-4"),
        ({"draws": -1}, "draws=-1"),
        ({"chunk": 0}, "chunk=0"),
        ({"resolution": 2.5}, "resolution=2.5"),
        ({"steps": True}, "steps=True"),
        ({"diffusivity": -0.5}, "diffusivity=-0.5"),
        ({"diffusivity": float("nan")}, "diffusivity=nan"),
    ],
)
def test_bad_input_says_what_to_do(wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        StabilityConfig(**wrong)


def test_output_that_cannot_be_written(tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(ResultError, match="taken"):
        stability(StabilityConfig(**SMALL, out=str(taken)))


def test_a_judgement_follows_from_its_evidence(result):
    """The judge alone, on runs of which one that the corrected bound calls safe is unstable."""
    config = StabilityConfig(**(SMALL | {"families": ("leak",), "resolution": 4, "draws": 0}))
    runs = {key: np.ones(16) for key in (*study.AXES, "status", "v1_left", "corrected_left", "state", "perturbation")}
    runs["status"] = np.zeros(16)

    def judged():
        maps = [summarize("leak", runs)]
        return STABILITY.judge(config, [{"dt_max": result.results["dt_max"], "maps": maps, "runs": {"leak": runs}}])

    assert judged().passed and judged().dataset.sizes["run"] == 16
    runs["status"][3] = 1
    assert not judged().passed and "corrected bound sufficient" in judged().sentence


def test_command(folder, result, capsys):
    words = [f"--{key}={SMALL[key]}" for key in ("tokens", "dim", "resolution", "draws", "steps", "chunk")]
    words += ["--solvers", "euler", "--families", "mean attention", "leak", "--out", str(folder), "--quiet"]
    assert cli.main(["stability", *words]) == 0
    printed = capsys.readouterr()
    assert f"{result.results['dt_max'][0]['predicted']:.5g}" in printed.out and "not sufficient" in printed.out
    assert "stability_map.png" in printed.out and printed.err == ""
    assert "mean attention" in repr(result) and "corrected alarm" in repr(result)
