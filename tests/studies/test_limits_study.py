"""The study of limits: verdicts that change when numbers do, its files, and going on after a stop."""

import copy
import json
import math

import jax
import numpy as np
import pytest
import xarray as xr

from pdejax import cli, exact
from pdejax.runs._parts import Parts
from pdejax.studies.limits import LimitsConfig, limits
from pdejax.studies.limits import _sections as sections
from pdejax.studies.limits._config import NAMES
from pdejax.studies.limits._limits import LIMITS, compared, verdicts
from pdejax.studies.limits._pictures import closures_picture, noise_picture
from pdejax.studies.limits._sections import expected_cosine, opposite_share, summary

SMALL = [
    "--sections",
    "check",
    "metastability",
    "--recipes",
    "tied, 1/L",
    "--layers",
    "2",
    "4",
    "6",
    "8",
    "--draws",
    "8",
]
SMALL += ["--repeats", "3", "--angles", "1.2", "--waits", "3", "4", "5", "6"]


def record(verdict, *, truth="SDE", trivial=False, recipe="i.i.d., 1/√L", key=(0, 0)):
    exponents = {name: [0.0, -0.01, 0.01] for name in ("states", "increments", "parity", "draws")}
    return {
        "recipe": recipe, "truth": truth, "trivial_truth": False, "verdict": verdict, "trivial": trivial, "power": 0.9,
        "key": list(key),
        "exponents": exponents,
    }  # fmt: skip


RESULTS = {
    "check": [record("SDE"), record("SDE", key=(0, 1)), record("not decided", key=(0, 2))],
    "closures": [{"closure": "circle", "over": "N", "sizes": [16, 64], "gaps": [0.2, 0.1], "exponent": [-0.51, -0.55, -0.47]}],
    "metastability": {
        "waiting": [{"angle": 1.2, "times": [9.0, 20.0, 45.0, 99.0], "slope": [0.637, 0.634, 0.64], "expected": 0.6376}],
        "staircase": {"ts": [0.0, 1.0, 2.0], "energies": [0.2, 0.5, 1.0], "merged": [1.5], "clusters": [1], "steps": 40},
    },
    "noise": {
        "orders": [{"system": "linear layers", "moment": "second moment", "layers": [8, 16], "errors": [2.0, 1.0],
                    "order": 1.0, "ci": 0.03}],
        "diffrax": [
            *({"by": name, "mean": 0.46, "ci": 0.01} for name in ("network", "ito", "stratonovich")),
            {"by": "Kolmogorov's equation", "mean": 0.4644, "ci": 0.0},
        ],
        "critical": [{"d": 5, "critical": 0.8815, "ci": 0.001, "expected": 0.8814}],
        "antipodal": [{"beta": 2.0, "d": 4, "share": 0.25, "ci": 0.01, "expected": 0.2474}],
    },
}  # fmt: skip


def changed(path, value):
    found = copy.deepcopy(RESULTS)
    place = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return found


def test_all_is_as_it_should_be():
    answers = verdicts(RESULTS)
    assert not any("NOT" in answer or answer.startswith("not decided") for answer in answers.values()), answers
    # What is allowed is said, and where it is made use of.
    for question, allowed in {
        "closure: circle": "N^(-0.510 ± 0.040), within 0.15 of −½",
        "waiting at ω₀ = 1.2": "0.6370 ± 0.0030, within 0.02 of",
        "energy staircase": "rising to 1e-09",
        "linear layers, second moment": "1.000 ± 0.030, within 0.25 of 1",
        "mean cosine in both senses": "within 0.014 with intervals, 0.03 allowed to 64 layers",
        "critical line": "1% allowed",
        "tokens that end opposite": "within 0.013 with intervals, 0.03 allowed to 64 layers",
    }.items():
        assert allowed in answers[question] and "alone" not in answers[question]
    few = copy.deepcopy(RESULTS)
    few["noise"]["antipodal"].append({"beta": 0.3, "d": 4, "share": 0.005, "ci": 0.003, "expected": 0.0})
    assert verdicts(few)["tokens that end opposite"].endswith("beyond the interval alone: β = 0.3")
    # The exact 95 % bound of a rate of which 2 decided checks showed none: 1 − 0.05^(1/2).
    assert (
        answers["coordinate check"] == "0 of 2 decided verdicts wrong (rate at most 77.6% at 95 %), 1 of 3 not decided"
    )
    judged = LIMITS.judge(
        LimitsConfig(layers=(2, 4, 6, 8), waits=(3, 4, 5, 6)), [{k: v for k, v in RESULTS.items() if k != "check"}]
    )
    assert judged.passed and judged.sentence == "all limits are as they should be"
    assert [table.caption for table in judged.tables[1:]] == ["Closures", "Metastability", "Noise common to all tokens"]


def test_checks_that_share_draws_bound_no_rate():
    shared = changed(("check", 1, "key"), [0, 0])
    assert "no bound of the rate: checks share their draws" in verdicts(shared)["coordinate check"]
    without = copy.deepcopy(RESULTS)
    for one in without["check"]:
        del one["key"]
    assert "no bound" in verdicts(without)["coordinate check"]


def test_a_bound_holds_the_rate():
    """Of 1,000 studies of 20 checks that are wrong one time in ten, at most one in twenty has a bound below that."""
    rng, low = np.random.default_rng(0), 0
    for _ in range(1000):
        right = rng.uniform(size=20) > 0.1
        records = [record("SDE" if one else "ODE", key=(0, i)) for i, one in enumerate(right)]
        low += float(verdicts({"check": records})["coordinate check"].split("at most ")[1].split("%")[0]) < 10
    assert low <= 75


def test_every_check_draws_for_itself():
    """Weights, inputs and draws of recipes, repeats and seeds have nothing in common; the same study draws the same."""
    places = [(seed, name, repeat) for seed in (0, 1) for name in NAMES for repeat in range(3)]
    keys = [sections.check_key(LimitsConfig(seed=seed), name, repeat) for seed, name, repeat in places]
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == len(places)
    inputs = [np.asarray(sections.planted(name, key)[1]) for (_, name, _), key in zip(places, keys, strict=True)]
    apart = [np.abs(a - b).max() for i, a in enumerate(inputs) for b in inputs[:i]]
    assert min(apart) > 0.01
    again = sections.check_key(LimitsConfig(seed=1), NAMES[2], 1)
    assert np.array_equal(jax.random.key_data(again), jax.random.key_data(keys[places.index((1, NAMES[2], 1))]))


@pytest.mark.parametrize(
    ("path", "value", "question", "words"),
    [
        (("check", 0), record("ODE"), "coordinate check", "NOT as it should be: 1 of 2 decided verdicts wrong"),
        (("check", 0), record("SDE", trivial=True), "coordinate check", "NOT as it should be"),
        (("closures", 0, "exponent"), [-0.3, -0.33, -0.27], "closure: circle", "NOT -0.5"),
        (("closures", 0, "exponent"), [-0.4, -0.7, -0.1], "closure: circle", "not decided"),
        (("closures", 0, "exponent"), [None, None, None], "closure: circle", "not measurable"),
        (("metastability", "waiting", 0, "slope"), [0.7, 0.69, 0.71], "waiting at ω₀ = 1.2", "NOT 0.6376"),
        (("metastability", "staircase", "energies"), [0.2, 0.5, 0.4], "energy staircase", "NOT rising"),
        (("noise", "orders", 0, "order"), 0.5, "linear layers, second moment", "NOT 1"),
        (("noise", "diffrax", 1, "mean"), 0.6, "mean cosine in both senses", "NOT one law (ito)"),
        (("noise", "critical", 0, "critical"), 0.95, "critical line", "NOT on the critical line in d = 5"),
        (("noise", "critical", 0, "ci"), 0.1, "critical line", "not decided to 1 %"),
        (("noise", "antipodal", 0, "share"), 0.4, "tokens that end opposite", "NOT it (β = 2)"),
        (("noise", "antipodal", 0, "share"), 0.275, "tokens that end opposite", "not decided: 0.275 ± 0.010 for 0.247"),
        (("noise", "antipodal", 0, "ci"), 0.05, "tokens that end opposite", "not decided"),
        (("noise", "diffrax", 0, "ci"), 0.04, "mean cosine in both senses", "not decided"),
        *(
            (path, nothing, question, "not measurable")
            for nothing in (None, float("nan"))
            for path, question in (
                (("noise", "orders", 0, "order"), "linear layers, second moment"),
                (("noise", "diffrax", 1, "mean"), "mean cosine in both senses"),
                (("noise", "diffrax", 1, "ci"), "mean cosine in both senses"),
                (("noise", "diffrax", 3, "mean"), "mean cosine in both senses"),
                (("noise", "critical", 0, "critical"), "critical line"),
                (("noise", "critical", 0, "ci"), "critical line"),
                (("noise", "antipodal", 0, "share"), "tokens that end opposite"),
                (("noise", "antipodal", 0, "expected"), "tokens that end opposite"),
                (("metastability", "waiting", 0, "slope"), "waiting at ω₀ = 1.2"),
                (("metastability", "staircase", "energies", 1), "energy staircase"),
            )
        ),
    ],
)
def test_other_numbers_give_other_verdicts(path, value, question, words):
    if path[-1] == "slope" and words == "not measurable":
        value = [value] * 3
    assert verdicts(changed(path, value))[question].startswith(words)


def test_values_beside_targets():
    assert compared(1.0, 0.01, 1.05) == ""
    assert compared(1.5, 0.01, 1.0).startswith("NOT 1 but 1.5")
    assert compared(1.5, 0.6, 1.0).startswith("not decided")
    assert compared(None, 0.1, 1.0) == compared(float("nan"), 0.1, 1.0) == "not measurable"


def test_the_critical_interval_holds_what_the_step_does(monkeypatch):
    """A planted exponent β_c − β + 7h² + noise: its zero moves by 7·3h² from h = 1/256 to twice that."""
    critical, noise = exact.two_token_critical_beta(5), 1e-5 * np.random.default_rng(0).normal(size=4000)

    def planted(beta, d, *, draws, key, step=1 / 256):
        return critical - beta + 7 * step**2 + noise[:draws]

    monkeypatch.setattr(sections, "antipodal_exponent", planted)
    found = sections._critical(LimitsConfig(paths=4000), Parts(None, "", say=lambda text: None), 5)
    moved = 7 * 3 / 256**2
    assert found["step"] == pytest.approx(moved, rel=1e-6) and found["noise"] < 1e-6
    assert found["ci"] == pytest.approx(math.hypot(moved, found["noise"]))
    assert abs(found["critical"] - critical) < found["ci"]


def test_cosines_that_are_not_finite_are_no_share():
    assert opposite_share(np.array([-0.9, 0.9, 0.8, -0.7])) == 0.5
    assert np.isnan(opposite_share(np.array([-0.9, np.nan, 0.8, -0.7])))


def test_pictures_without_what_was_not_measurable():
    """Lines are left out, and the critical line says which side is which."""
    results = changed(("noise", "orders", 0, "order"), None)
    results["noise"]["critical"][0]["critical"] = results["noise"]["antipodal"][0]["share"] = None
    results["closures"][0]["exponent"] = [None, None, None]
    axes = noise_picture(results["noise"]).axes
    assert axes[1].get_ylabel() == "β from which opposite tokens stay opposite"
    assert closures_picture(results["closures"]).axes


def test_a_recipe_is_summed_up():
    row = summary(
        [record("SDE"), record("ODE"), record("not decided"), record("SDE", recipe="tied, 1/L")], "i.i.d., 1/√L"
    )
    assert (row["checks"], row["right"], row["undecided"], row["wrong"]) == (3, 1, 1, 1)
    assert row["weight gradients"] is None
    own = record("SDE")
    own["exponents"]["weight gradients"] = [-0.51, -0.6, -0.4]
    assert summary([own, record("SDE")], "i.i.d., 1/√L")["weight gradients"] == -0.51


def test_the_mean_cosine_of_two_tokens():
    """The grid's error, and no depth at all."""
    coarse, fine = (expected_cosine(0.2, 1.0, 4, 0.5, points=points) for points in (301, 601))
    assert coarse == pytest.approx(fine, abs=1e-3)
    assert expected_cosine(0.0, 0.7, 3, 0.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("gamma", "beta", "d"), [(0.2, 1.0, 4), (-0.5, 2.0, 6), (0.7, 0.3, 3)])
def test_the_mean_cosine_starts_at_its_drift(gamma, beta, d):
    """(E γ(h) − γ)/h tends to the closed form's drift."""
    h = 1e-3
    slope = (expected_cosine(gamma, beta, d, h) - expected_cosine(gamma, beta, d, 0.0)) / h
    assert slope == pytest.approx(float(exact.two_token_rates(gamma, beta, d)[0]), rel=0.01, abs=0.01)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("limits")
    return out, cli.main(["limits", *SMALL, "--out", str(out)])


@pytest.mark.slow
def test_the_command_writes_its_files(finished):
    out, code = finished
    content = json.loads((out / "limits.json").read_text())
    assert content["study"] == "limits" and code in (0, 1)
    assert len(content["results"]["check"]) == 3 and content["results"]["metastability"]["staircase"]["merged"]
    assert content["results"]["metastability"]["waiting"][0]["closed_form_error"] < 1e-6
    with xr.open_dataset(out / "limits.nc", engine="scipy") as data:
        assert data["states"].shape == (3, 4) and data["waiting_time"].shape == (1, 4)
        assert np.isfinite(data["weight_gradients"]).all(axis=1).values.tolist() == [True, False, False]
    for name in ("check", "metastability"):
        assert (out / f"{name}.png").stat().st_size > 10_000


@pytest.mark.slow
def test_an_interrupted_study_goes_on(finished, monkeypatch):
    out, _ = finished
    called = []

    def stop(*args, **kwargs):
        called.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr("pdejax.studies.limits._sections.limits.depth_check", stop)
    monkeypatch.setattr("pdejax.studies.limits._sections.limits.metastability", stop)
    assert cli.main(["limits", *SMALL, "--out", str(out)]) in (0, 1) and not called
    (part,) = out.glob("parts/*/check-tied__1_L-2-4-6-8-8-1.json")
    part.write_text('{"half a')
    assert cli.main(["limits", *SMALL, "--out", str(out)]) == 130 and len(called) == 1


@pytest.mark.slow
def test_closures_and_noise_in_small():
    """Every piece of the other sections at its least size; critical β within a few percent already."""
    config = LimitsConfig(sections=("closures", "noise"), repeats=3, tokens=(8, 16, 32), dims=(6,), paths=1000)
    found = limits(config).results
    assert all(record["exponent"][0] < -0.2 for record in found["closures"])
    critical = found["noise"]["critical"][0]
    assert critical["critical"] == pytest.approx(critical["expected"], rel=0.01)
    assert [record["by"] for record in found["noise"]["diffrax"][:3]] == ["network", "ito", "stratonovich"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sections": ("chek",)}, "sections='chek' must be one of"),
        ({"sections": ()}, "sections is empty"),
        ({"recipes": ("tied",)}, "recipes='tied' must be one of"),
        ({"layers": (8, 16)}, "at least 4 different numbers"),
        ({"tokens": (8, 16)}, "at least 3 different numbers"),
        ({"waits": (3, 4, 5)}, "at least four different numbers"),
        ({"waits": (3, 4, 5, 30)}, "waits=30"),
        ({"angles": (2.0,)}, "angles=2"),
        ({"dims": (3,)}, "dims=3"),
        ({"repeats": 1}, "repeats=1"),
    ],
)
def test_settings_that_cannot_be_measured(given, words):
    with pytest.raises(ValueError, match=words):
        LimitsConfig(**given)
