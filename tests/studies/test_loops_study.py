"""`pdejax loops`: answers that follow from the numbers, both ways; a whole study of a small looped network that goes on."""

import copy
import json
import math
import types

import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax import cli
from pdejax.analysis.loops._kinds import KINDS
from pdejax.studies.loops import LoopsConfig, loops
from pdejax.studies.loops import _measure as measuring
from pdejax.studies.loops._judge import judge

B, K, TRAINED, D = 8, 40, 4, 3
CONFIG = LoopsConfig(network="net", loops=K, horizon=20)


def stored(kind="fixed point", rate=0.5, keeps=True):
    """Numbers of a study as they are kept: every input is drawn to a point of its own at this rate."""
    rng = np.random.default_rng(0)
    k = np.arange(K + 1)
    inputs = []
    for i in range(B):
        own = rate * (1 + 0.02 * rng.standard_normal())
        distance = own**k
        step = distance[:-1] * (1 - own)
        answers = np.full(K + 1, 3)
        if not keeps:
            answers[TRAINED + 2 + i % 3 :] = 1
        x = {
            "kind": np.asarray(KINDS.index(kind)),
            "period": np.asarray(1),
            "rate": np.asarray(own),
            "growth": np.asarray(0.0),
            "exponent": np.asarray(math.log(own)),
            "exponents": math.log(own) - np.arange(2.0),
            "relative": np.asarray(1e-14),
            "newton": np.asarray(3),
            "norms": np.ones(K + 1),
            "steps": step,
            "mean token": rng.standard_normal(D),
            "label": np.asarray(3),
            "answers": answers,
            "divergence": np.where(k < TRAINED, 0.1 * distance, 0.0),
            "foreseen": np.asarray(21 if keeps else 2 + i % 3),
            "changed": np.asarray(21 if keeps else 2 + i % 3),
            "radius": np.asarray(own),
            "estimates": np.asarray([[f * own, f * own * 0.9, f * own * 1.1, 0.0] for f in (0.6, 0.9, 0.7, 1.5, 3, 1)]),
            "sub-layer norms": np.asarray([1.5, 0.7]),
            "sub-layer gains": np.asarray([1.0, own]),
            "at point": np.asarray(1.0),
        }
        if kind == "fixed point":
            x["distance"] = distance
        for name in ("point", "trained"):
            values = {"real": np.asarray([own, 0.1]), "imaginary": np.zeros(2), "residual": np.full(2, 1e-15)}
            x |= {f"{name} {part}": value for part, value in values.items()}
        scores = {measuring.STEP: step, measuring.RELATIVE: step, measuring.COSINE: step**2}
        scores |= {measuring.RATE: distance[1:], measuring.DIVERGENCE: 0.1 * step**2}
        inputs.append(x | {f"score {name}": value for name, value in scores.items()})
    facts = {
        "name": "net", "loop": "loop of …", "trained": TRAINED, "sub-layers": ["interaction", "reaction"], "answers": True,
        "labels": True, "task": "classification", "data": "listops", "tokens": [7] * B, "features": D,
    }  # fmt: skip
    return {"subject": facts, "inputs": inputs}


def row(found, start):
    return next(r for r in found.rows if r.quantity.startswith(start))


def test_points_that_tell_inputs_apart():
    found = judge(CONFIG, [stored()])
    assert found.passed and found.sentence.startswith("net as a loop: fixed point for 8 of 8 inputs")
    assert "to at least 40 passes, 10 times training (certain to 4 at 95%)" in found.sentence
    assert float(row(found, "safe range of loops, certain").ours) == TRAINED
    assert found.verdicts["memory"].startswith("the mean tokens of the fixed points tell the inputs apart")
    assert "share" not in found.verdicts["memory"] and found.results["fixed points"]["the same"] == 1
    assert float(row(found, "spectral radius at the point").ours) == pytest.approx(0.5, rel=0.05)
    assert float(row(found, "safe range").ours) == K
    assert float(row(found, "accuracy at 4 passes").ours) == 1.0
    assert found.results["gains"]["reaction"] == pytest.approx(0.5, rel=0.05)
    # Of inputs that are alike every criterion does as well.
    assert "costs least, 7.2 passes, 7.0 would do" in found.verdicts["exit, point"]
    assert found.verdicts["cheap estimates"].startswith("none is on the wrong side of 1")
    assert set(found.dataset.sizes) >= {"input", "state", "pass", "eigenvalue"}


@pytest.mark.parametrize(("others", "forgets"), [(0, True), (1, True), (3, True), (4, False)])
def test_one_point_for_all_is_a_loop_that_forgets(others, forgets):
    """Whatever a few others do: one that is elsewhere moves the mean of all, not the point of the rest."""
    evidence = stored()
    for i, x in enumerate(evidence["inputs"]):
        x["mean token"] = np.ones(D) * (1 + 1e-9 * i + (10 * i + 10) * (i < others))
    found = judge(CONFIG, [evidence])
    assert found.results["fixed points"]["the same"] == B - others
    said = found.verdicts["memory"]
    assert said.startswith(f"{B - others} of {B} inputs that settle share the mean token") == forgets
    assert said.endswith("at most 4 of 8 share one") == (not forgets)


def test_answers_that_collapse():
    found = judge(CONFIG, [stored(keeps=False)])
    assert found.verdicts["safe range"] == "to 5 passes, 1.25 times training (certain to 4 at 95%)"
    assert float(row(found, "share of answers kept at 16 passes").ours) == 0.0
    assert "8 of 8 foreseen rightly" in found.verdicts["collapse foreseen"]
    assert float(row(found, "passes to the change").ours) == pytest.approx(1.0)
    wrong = stored(keeps=False)
    for x in wrong["inputs"]:
        x["foreseen"] = np.asarray(21)
    assert judge(CONFIG, [wrong]).verdicts["collapse foreseen"].startswith("0 of 8")


@pytest.mark.parametrize("residual", [1e-3, math.nan])
def test_a_point_that_is_not_certified_fails(residual):
    """NaN is no certificate either."""
    evidence = stored()
    evidence["inputs"][2]["relative"] = np.asarray(residual)
    found = judge(CONFIG, [evidence])
    assert not found.passed and found.verdicts["residuals"].startswith("NOT certified: 1 points")


def test_an_estimate_on_the_wrong_side():
    evidence = stored()
    for x in evidence["inputs"]:
        x["estimates"][3, 3] = 1.0
    assert (
        "spectral norm of J is on the wrong side of 1 in 100%" in judge(CONFIG, [evidence]).verdicts["cheap estimates"]
    )


def wrong_sides(evidence):
    """The intervals of the column "wrong side of 1", by estimate."""
    table = next(t for t in judge(CONFIG, [evidence]).tables if t.caption.startswith("Cheap estimates"))
    return {line[0]: line[-1] for line in table.rows[1:]}


def test_shares_of_few_inputs_have_wide_intervals():
    """8 of 8 and 0 of 8 leave a tail of 0.025^(1/8) by Clopper & Pearson; shares of draws between have one over inputs."""
    evidence = stored()
    for i, x in enumerate(evidence["inputs"]):
        x["estimates"][3, 3], x["estimates"][0, 3] = 1.0, 0.5 + 0.05 * i
    found = wrong_sides(evidence)
    tail = 0.025 ** (1 / B)
    for name, ends in (
        (measuring.NORM, (tail, 1.0)),
        (measuring.LARGEST, (0, 1 - tail)),
        (measuring.POWER, (0, 1 - tail)),
    ):
        assert (float(found[name].low), float(found[name].high)) == pytest.approx(ends)
    drawn = found[measuring.ONE]
    assert float(drawn) == pytest.approx(0.675) and 0.5 < float(drawn.low) < 0.675 < float(drawn.high) < 0.85


@pytest.mark.parametrize("fault", [1e-3, math.nan, "not converged"])
def test_a_radius_without_a_residual_is_no_standard(fault):
    """Estimates are set beside a radius that is an eigenvalue; what they are beside others is not said."""
    evidence = stored()
    spoilt = evidence["inputs"][2]
    if fault == "not converged":
        spoilt["radius converged"] = np.asarray(0.0)
    else:
        spoilt["point residual"][0] = fault
    spoilt["radius"] = np.asarray(50.0)
    found = judge(CONFIG, [evidence])
    table = next(t for t in found.tables if t.caption.startswith("Cheap estimates"))
    assert "7 inputs" in table.caption and "relative residual at most 2e-15" in table.rows[0][0]
    assert float(table.rows[0][1]) < 1 and any(
        note.startswith("1 of 8 spectral radii left out") for note in found.notes
    )
    for x in evidence["inputs"]:
        x["point residual"][0] = math.nan
    assert "cheap estimates" not in judge(CONFIG, [evidence]).verdicts


def test_a_loop_that_leaves_the_numbers_is_not_safe():
    evidence = stored("blow-up")
    for x in evidence["inputs"]:
        x["answers"][TRAINED - 1 :] = -2
        x["foreseen"] = x["changed"] = np.asarray(0)
        x["divergence"][TRAINED - 1 :] = math.nan
    found = judge(CONFIG, [evidence])
    assert found.verdicts["safe range"].startswith("nowhere: too few inputs have an answer at the 4 passes")
    assert float(row(found, "share of answers kept at 8 passes").ours) == 0.0
    assert "collapse foreseen" not in found.verdicts


def test_a_loop_that_leaves_the_numbers_is_not_at_rest():
    """As measured: infinities that follow one another do not stand still."""
    states = np.asarray([1.0, 2.0, 4.0, np.inf, np.inf, np.nan])[:, None, None] * np.ones((1, 2, 3))
    behaviour = types.SimpleNamespace(kind="blow-up")
    found = measuring._exits(None, states, behaviour, {"answers": False}, np.ones(2, bool))
    assert set(found) == {f"score {name}" for name in measuring.SCORES if name != measuring.DIVERGENCE}
    for score in found.values():
        np.testing.assert_array_equal(score[2:], np.inf)


def test_without_answers_nothing_is_said_of_them():
    evidence = copy.deepcopy(stored("drift"))
    evidence["subject"]["answers"] = False
    for x in evidence["inputs"]:
        for name in ("answers", "divergence", "foreseen", "changed", "label", f"score {measuring.DIVERGENCE}"):
            del x[name]
    found = judge(CONFIG, [evidence])
    assert found.verdicts["safe range"].startswith("not measured") and "collapse foreseen" not in found.verdicts
    assert "memory" not in found.verdicts and "exit, point" not in found.verdicts
    assert found.sentence == "net as a loop: drift for 8 of 8 inputs."


def test_pictures_of_the_numbers():
    for evidence in (stored(), stored("drift", keeps=False)):
        found = judge(CONFIG, [evidence])
        for picture in found.pictures:
            assert len(picture.png()) > 5000, picture.file


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A small looped Transformer in a file."""
    vocabulary = pj.data.load("listops", "test", sizes=(1, 1, 1)).vocabulary
    assert vocabulary is not None
    sizes = {"vocab": len(vocabulary), "dim": 8, "heads": 2, "layers": 1, "ffn": 8, "loops": 3, "norm": "post"}
    model = pj.Transformer(pj.Architecture(**sizes, head="classification", classes=10), rngs=nnx.Rngs(0))
    path = tmp_path_factory.mktemp("kept") / "model.npz"
    pj.save_model(path, model)
    return str(path)


@pytest.mark.slow
def test_a_whole_study_goes_on_where_it_stopped(kept, tmp_path, monkeypatch, capsys):
    settings = {
        "network": kept, "dataset": "listops", "sequences": 4, "loops": 48, "derivatives": 1, "draws": 2,
        "horizon": 8, "exponents": 2, "eigenvalues": 2, "out": str(tmp_path),
    }  # fmt: skip
    measured = []
    one = measuring.one_input

    def interrupted(config, subject, facts, i, key):
        if i == 2 and not measured.count("stopped"):
            measured.append("stopped")
            raise KeyboardInterrupt
        measured.append(i)
        return one(config, subject, facts, i, key)

    monkeypatch.setattr(measuring, "one_input", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loops(LoopsConfig(**settings))
    result = loops(LoopsConfig(**settings))
    assert measured == [0, 1, "stopped", 2, 3]
    assert (tmp_path / "result.json").exists() and (tmp_path / "steps.png").exists()
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["config"]["network"] == "model.npz" and str(tmp_path) not in json.dumps(saved["config"])
    data = result.to_xarray()
    assert data.sizes["input"] == 4 and data.attrs["trained"] == 3
    # The command reads the same parts.
    arguments = [f"--{n.replace('_', '-')}={v}" for n, v in settings.items() if n != "network"]
    assert cli.main(["loops", kept, *arguments, "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "What the loop does, input by input" in printed and "Cheap estimates of the spectral radius" in printed
    assert measured == [0, 1, "stopped", 2, 3]


WRONG = {
    "few inputs": ({"sequences": 3}, "loops: sequences=3 must be"),
    "few passes": ({"loops": 16}, "loops: loops=16"),
    "long periods": ({"loops": 32, "periods": 12}, "periods=12 must be at most a quarter of loops=32"),
    "two sources": ({"text": "a", "dataset": "listops"}, "text='a' and dataset='listops' were given"),
    "no error": ({"error": 0.0}, "loops: error=0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_do_not_fit(name):
    changes, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        LoopsConfig(network="net", **changes)


def test_a_network_that_cannot_be_read(tmp_path):
    with pytest.raises((ValueError, OSError), match=r"loops|load_pretrained"):
        loops(LoopsConfig(network=str(tmp_path / "none"), text="x"))
