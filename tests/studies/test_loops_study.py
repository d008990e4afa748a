"""`pdejax loops`: answers that follow from the numbers, both ways; a whole study of a small looped network that goes on."""

import copy
import json
import math
import types

import numpy as np
import pytest
from flax import nnx
from scipy.stats import spearmanr

import pdejax as pj
from pdejax import cli
from pdejax._bootstrap import over_seeds
from pdejax.analysis.loops import safe_range
from pdejax.analysis.loops._exits import ExitRule, share_of
from pdejax.analysis.loops._kinds import KINDS
from pdejax.studies.loops import LoopsConfig, loops
from pdejax.studies.loops import _answers as answers
from pdejax.studies.loops import _measure as measuring
from pdejax.studies.loops._answers import foreseen, nothing_certain, rank_correlation
from pdejax.studies.loops._found import Found
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
    certain = "nothing beyond training is certain at 95%: 72 inputs are needed"
    assert f"to at least 40 passes, 10 times training ({certain})" in found.sentence
    assert row(found, "safe range of loops, certain").note == certain
    assert found.verdicts["memory"].startswith("the mean tokens of the fixed points tell the inputs apart")
    assert "share" not in found.verdicts["memory"] and found.results["fixed points"]["the same"] == 1
    assert float(row(found, "spectral radius at the point").ours) == pytest.approx(0.5, rel=0.05)
    assert float(row(found, "safe range").ours) == K
    assert float(row(found, "accuracy at 4 passes").ours) == 1.0
    assert found.results["gains"]["reaction"] == pytest.approx(0.5, rel=0.05)
    # Of inputs that are alike every criterion does as well.
    assert found.verdicts["exit, point"].endswith("cost least, not told apart; 7.0 would do")
    assert all(f"{name} (" in found.verdicts["exit, point"] for name in measuring.SCORES)
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
    assert found.verdicts["safe range"].startswith(
        "to 5 passes, 1.25 times training (nothing beyond training is certain"
    )
    assert float(row(found, "share of answers kept at 16 passes").ours) == 0.0
    assert "8 of 8 foreseen rightly" in found.verdicts["collapse foreseen"]
    assert "no better than the 8 of the commoner answer" in found.verdicts["collapse foreseen"]
    assert float(row(found, "passes to the change").ours) == pytest.approx(1.0)
    wrong = stored(keeps=False)
    for x in wrong["inputs"]:
        x["foreseen"] = np.asarray(21)
    assert judge(CONFIG, [wrong]).verdicts["collapse foreseen"].startswith("0 of 8")


@pytest.mark.parametrize(("count", "certain"), [(71, False), (72, True)])
def test_what_is_certain_takes_inputs(count, certain):
    """0.025^(1/72) is above 0.95, 0.025^(1/71) is not."""
    found = safe_range(np.zeros((count, 9), int), trained=4)
    assert (found.certain > 4) == certain == (0.025 ** (1 / count) > 0.95)
    said = nothing_certain(found, 0.95)
    assert said.endswith("72 inputs are needed") != certain


# What is foreseen, what is measured (21: not in 20 passes), and what is said of yes or no, and of the pass.
MANY = np.arange(2, 18)
FORESEEN = {
    "all change, all foreseen": (MANY, MANY, "16 of 16", "no better than the 16", ", nearer than their median"),
    "one never does": (np.r_[MANY, 5], np.r_[MANY, 21], "16 of 17", "no better than the 16", ", nearer than"),
    "half do, all foreseen": (
        np.r_[MANY, [21] * 16],
        np.r_[MANY, [21] * 16],
        "32 of 32",
        "more than the 16",
        ", nearer",
    ),
    "half do, two more foreseen": (
        np.r_[MANY, [3] * 14, 21, 21],
        np.r_[MANY, [21] * 16],
        "18 of 32",
        "not told apart from the 16",
        ", nearer",
    ),
    "fewer than the commoner": (np.r_[MANY[:12], [21] * 4], MANY, "12 of 16", "no better than the 16", ", nearer"),
    "the median of all": (np.full(16, 9), MANY, "16 of 16", "no better than", ", no nearer than their median"),
    "backwards": (MANY[::-1], MANY, "16 of 16", "no better than", ", no nearer than their median"),
    "a factor of 20 off": (20 * MANY, 20 * MANY[::-1], "16 of 16", "no better", ", no nearer"),
}


@pytest.mark.parametrize("name", FORESEEN)
def test_what_is_foreseen_is_set_beside_what_knows_nothing(name):
    ahead, true, right, beside, nearer = FORESEEN[name]
    horizon = 20 if true.max() <= 21 else 10_000
    out = Found()
    config = LoopsConfig(network="net", loops=K, horizon=horizon)
    foreseen(config, [{"foreseen": a, "changed": t} for a, t in zip(ahead, true, strict=True)], out)
    said = out.verdicts["collapse foreseen"]
    assert said.startswith(right) and f"{beside} " in f"{said} " and nearer in said
    share = next(r for r in out.rows if r.quantity.startswith("change of answer"))
    changes = np.mean(true <= horizon)
    assert share.null is not None and float(share.null) == pytest.approx(max(changes, 1 - changes))


def test_the_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = np.round(x + rng.normal(size=30), 1)
    found = rank_correlation(x, y)
    assert found is not None and float(found) == pytest.approx(spearmanr(x, y).statistic)
    assert float(found.low) < float(found) < float(found.high)
    # The interval of correlations that are 0 leaves them out one time in twenty.
    drawn = [rank_correlation(*rng.normal(size=(2, 30))) for _ in range(400)]
    missed = np.mean([float(x.low) > 0 or float(x.high) < 0 for x in drawn if x is not None])
    assert missed == pytest.approx(0.05, abs=0.035)
    assert rank_correlation(x, np.ones(30)) is None and rank_correlation(x[:4], y[:4]) is None


# Exits of the second criterion beside 5 passes of the first, of 16 inputs each within the error, and who costs least.
EXITS = {
    "dearer by one": (np.full(16, 6), ["first"]),
    "the same": (np.full(16, 5), ["first", "second"]),
    "dearer for one input": (np.r_[np.full(15, 5), 6], ["first", "second"]),
    "dearer for most": (np.r_[np.full(4, 5), np.full(12, 7)], ["first"]),
    "cheaper, and too early for a quarter": (np.r_[np.full(12, 5), np.full(4, 2)], ["first"]),
    "cheaper, and too early for one": (np.r_[np.full(15, 5), 2], ["first", "second"]),
}


@pytest.mark.parametrize("name", EXITS)
def test_criteria_that_are_not_told_apart_are_all_named(name, monkeypatch):
    exits_, least = EXITS[name]
    rules = []
    for which, own in (("first", np.full(16, 5)), ("second", exits_)):
        loops_ = over_seeds(own.astype(float)).beside({"oracle": over_seeds(np.full(16, 4.0))})
        rules.append(ExitRule(loops_, share_of(own >= 5), over_seeds(own * 0.0), own, which, 0.1, 0))
    monkeypatch.setattr(answers, "exit_rules", lambda *given, **settings: tuple(rules))
    out = Found()
    inputs = [{"score step norm": np.ones(8)} for _ in range(16)]
    answers._exit_table(CONFIG, inputs, np.ones((16, 8)), "within", "point", out)
    assert out.results["exits point"]["least"] == least
    said = out.verdicts["exit, point"]
    assert ("not told apart" in said) == (len(least) > 1) and ("second (" in said) == ("second" in least)


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
