"""`pdejax audit`: verdicts that follow from the numbers, both ways; texts and data read in; a whole audit that goes on."""

import copy
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pdejax as pj
from pdejax import cli
from pdejax.data import load
from pdejax.runs._parts import Parts
from pdejax.studies.audit import AuditConfig, audit
from pdejax.studies.audit import _measure as measuring
from pdejax.studies.audit._judge import judge
from pdejax.studies.audit._pictures import pictures
from pdejax.studies.audit._subject import Subject, _ids, _of_text, is_training
from pdejax.training import TrainConfig, train
from pdejax.training._kept import metadata

B, L, D, K = 8, 4, 6, 5
CONFIG = AuditConfig(network="net")


def stored(seed=0):
    """Numbers of an audit as they are kept: a network that is far from its continuum, with weights as independent layers."""
    rng = np.random.default_rng(seed)

    def about(value, *shape):
        return value * (1 + 0.05 * rng.standard_normal(shape))

    def moves(limit, factors, order=1):
        return np.stack([about(limit * (1 - k**-order), B) for k in factors])

    def scheme(name, factors, order):
        steps = np.stack([about(0.3 * k**-order, B) for k in factors[:-1]])
        found = {"factors": np.asarray(factors), "moves": moves(0.5, factors, order), "steps": steps}
        found |= {"loss": np.stack([about(1.0, B) + 0.3 * (k > 1) for k in factors])}
        found |= {"accuracy": np.full((len(factors), B), 0.5), "logits": moves(0.6, factors)}
        return {f"{name}/{key}": value for key, value in found.items()}

    four = (1, 2, 4, 8)
    pairs = np.broadcast_to(np.eye(L), (2, L, L)).copy()
    spans = np.asarray([(0, 3), (1, 4), (0, 1), (3, 4), (0, 4)])
    derivatives = {
        "largest": about(2.0, 3, L),
        "smallest": about(0.1, 3, L),
        "frobenius": about(4.0, 3, L),
        "whole": about(5.0, 3, 3),
        "exponents": about(0.4, 3, K),
        "growth": about(0.1, 3),
        "ftle": about(0.3, 3, 7),
    }
    by_depth = {name: np.stack([np.linspace(0.2, 0.6, L + 1)] * 3) for name in measuring.TOKEN_FIGURES}
    groups = np.asarray(["heat", "own reaction", "the papers' operators", "own terms", "all"])
    return {
        "subject": {
            "name": "net",
            "network": "Network of 4 layers",
            "sequences": B,
            "tokens": [7] * B,
            "data": "text",
            "normalization": "inside the branch",
            "draws": 20,
        },
        "identity": {"layers": np.full(2, 1e-7), "model": np.zeros(0), "layer field": np.full(2, 1e-7)},
        "refinement": {"sizes": about(0.5, L, B)}
        | scheme("native", four, 1)
        | scheme("euler", four, 1)
        | scheme("heun", four[:3], 2)
        | scheme("rk4", four[:2], 4),
        "refinement untrained": {"sizes": about(0.5, L, B)} | scheme("euler", four, 1),
        "draws": {"half": about(0.25, 20, 1) * about(1.0, 20, B)},
        "refinement layers shuffled": {"sizes": about(0.5, L, B)} | scheme("euler", four[:2], 1),
        "windows": {
            "spans": spans,
            "moves": about(0.1, 5, B),
            "loss": about(1.2, 5, B),
            "own loss": about(1.0, B),
        },
        "windows untrained": {"spans": spans, "moves": about(0.2, 5, B)},
        "weights": {
            "names": np.asarray(["interaction.wq", "reaction.w1"]),
            **{"distance": 1 - pairs, "correlation": pairs, "overlap": pairs},
            **{"independent": np.asarray(0.1), "p_value": np.asarray(0.4), "detectable": np.asarray(0.2)},
            **{"adjacent": np.asarray([0.01, -0.1, 0.1]), "adjacent null": np.asarray([0.0, -0.1, 0.1])},
            "holder": np.asarray([0.0, -0.1, 0.1]),
        },
        "surgery": {
            "moves": about(0.3, 3, L, B) * np.arange(1, L + 1)[:, None],
            "losses": about(0.2, 3, L, B),
            "loss": about(1.0, B),
            "cosines": about(0.1, L, B) * np.arange(1, L + 1)[:, None],
            "estimates": about(0.3, 3, L, B) * np.arange(1, L + 1)[:, None],
            "loss_estimates": about(0.2, 3, L, B),
        },
        "jacobians": derivatives,
        "jacobians untrained": copy.deepcopy(derivatives),
        "tokens": by_depth | {"gap": np.linspace(0.8, 0.4, L + 1)},
        "tokens untrained": copy.deepcopy(by_depth),
        "operators": {
            "groups": groups,
            "operators": groups[:2],
            "r2": np.stack(
                [np.full((L, 4), x) + 0.01 * rng.standard_normal((L, 4)) for x in (0.0, 0.4, 0.05, 0.9, 0.92)]
            ),
            "null": np.zeros((5, L, 4)) + 0.01 * rng.standard_normal((5, L, 4)),
            "rollout": np.linspace(0, 1, L + 1)[:, None] * about(1.0, 4),
            "persistence": np.linspace(0, 1, L + 1)[:, None] * about(1.1, 4),
        },
    }


def test_the_page_of_stored_numbers():
    found = judge(CONFIG, [stored()])
    rows = {row.quantity: row for row in found.rows}
    index = rows["continuum index, untrained at matched branch size"].ours
    assert index is not None and float(index.low) < 1 < float(index.high)
    numbers = stored()
    means = numbers["draws"]["half"].mean(axis=1)
    expected = np.mean(numbers["refinement"]["euler/moves"][1]) / np.exp(np.mean(np.log(means)))
    assert float(index) == pytest.approx(expected, rel=1e-6)
    beside = rows["move of the last state at h/2"]
    assert beside.null_name == "20 untrained networks" and beside.null is not None
    assert [float(x) for x in (beside.null.low, beside.null.high)] == [means.min(), means.max()]
    limit = rows["the same in the limit of small steps"].ours
    own = numbers["refinement"]["euler/moves"].mean(axis=1)
    assert float(limit) == pytest.approx(2 * own[-1] - own[-2], rel=1e-6)
    assert found.passed and found.sentence.startswith("net: half the step moves the last state by 0.2")
    assert found.verdicts["half the step"].startswith(
        "not near its continuum: it moves as 20 untrained networks do, p = "
    )
    orders = found.results["refinement"]["orders"]
    assert orders["euler"]["value"] == pytest.approx(1, abs=0.2) and orders["heun"]["value"] == pytest.approx(
        2, abs=0.3
    )
    assert orders["euler"]["ci"] > 0
    assert all(row.ours is not None for row in found.rows) and len(found.tables) >= 7
    json.dumps(found.results)
    assert float(found.dataset["refinement_euler_moves"][1].mean()) == pytest.approx(
        numbers["refinement"]["euler/moves"][1].mean()
    )
    relative = rows["largest exponent of relative changes"].ours
    exponents = numbers["jacobians"]["exponents"][:, 0] - numbers["jacobians"]["growth"]
    assert relative is not None and float(relative) == pytest.approx(exponents.mean())
    assert rows["rank correlation with 1 − cosine"].ours is not None
    assert float(rows["rank correlation with 1 − cosine"].ours) == pytest.approx(1)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((0.25, 0.125, 0.0625), True),
        ((0.25, 0.12, 0.058), True),
        ((0.25, 0.25, 0.25), False),  # order 0
        ((0.25, 0.0625, 0.015625), False),  # order 2
        ((1.0, 0.2, 0.19), False),  # of no order
        ((0.25, 0.125), False),  # no interval
        ((0.25, np.nan, 0.0625), False),
    ],
)
def test_a_limit_is_told_where_moves_converge_at_order_one(steps, expected):
    """Richardson's extrapolation at order 1 of moves that converge otherwise, or not at all, is no limit."""
    numbers, count = stored(), len(steps)
    ours = numbers["refinement"]
    for name, value in [(k, v) for k, v in ours.items() if k.startswith("euler/") and k != "euler/steps"]:
        ours[name] = value[: count + 1]
    ours["euler/steps"] = np.asarray(steps)[:, None] * np.ones(B)
    ours["euler/moves"] = np.cumsum([0.0, *steps])[:, None] * np.ones(B)
    found = judge(CONFIG, [numbers])
    limits = [row for row in found.rows if row.quantity == "the same in the limit of small steps"]
    assert bool(limits) == expected == ("(limit " in found.sentence)
    if expected:
        assert float(limits[0].ours) == pytest.approx(np.sum(steps) + steps[-1], rel=1e-5)
        assert found.results["refinement"]["limit"] == float(limits[0].ours)


def test_without_nulls_nothing_is_compared():
    numbers = {
        name: value
        for name, value in stored().items()
        if name != "draws" and "untrained" not in name and "shuffled" not in name
    }
    numbers["weights"] = {"absent": np.asarray("there are no weight matrices per layer")}
    for section in ("refinement", "windows", "surgery"):
        numbers[section] = {k: v for k, v in numbers[section].items() if "loss" not in k}
    found = judge(CONFIG, [numbers])
    assert found.verdicts["half the step"].endswith("no null to compare with")
    assert found.verdicts["weights in depth"] == "not measured: there are no weight matrices per layer"
    assert "loss at half the step" not in found.verdicts
    assert not any("continuum index" in row.quantity or "loss" in row.quantity for row in found.rows)


def test_one_layer_at_all_depths_has_no_layers_to_rank_or_to_shuffle():
    numbers = stored()
    numbers["weights"] = {"autonomous": np.asarray(True), "applications": np.full((40, B), 0.3)}
    numbers["subject"]["layers"] = L
    del numbers["refinement layers shuffled"]
    found = judge(CONFIG, [numbers])
    quantities = {row.quantity for row in found.rows}
    assert "move by application 40 of the one layer" in quantities and not any(
        "rank correlation" in name for name in quantities
    )
    assert found.verdicts["fixed point"].startswith("none in 40 applications") and list(found.results["surgery"]) == [
        "skip"
    ]
    assert found.results["applications"] == pytest.approx([0.3] * 40)
    field = pj.MasterEquation(pj.terms.FeedForward(D, 2 * D, key=jax.random.key(0)))
    net = pj.network([lambda u: u] * L).replace(discretization=pj.Discretization(field, "euler", t1=4.0, steps=4))
    one = Subject(net, None, jnp.ones((B, 3, D)), jnp.ones((B, 3), bool), None, (), "states", "planted")
    made = [
        name for name, null in measuring._nulls(AuditConfig(network="planted"), [one], None, True) if null is not None
    ]
    assert made == ["untrained", "weights shuffled"]


def test_pictures_are_drawn():
    drawn = pictures(stored())
    assert len(drawn) == 6 and all(picture.png()[:4] == b"\x89PNG" for picture in drawn)


WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def words(text, pair=None):
    return np.asarray([0, *(1 + WORDS.index(word) for word in text.split()), 11])


def network(tokenizer=words):
    table = jnp.asarray(np.random.default_rng(0).standard_normal((12, D)))
    return pj.network([lambda u: 0.9 * u] * 3, embed=lambda ids: table[ids]).replace(tokenizer=tokenizer)


def test_paragraphs_become_sequences(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("one two three\n\nfour five six\nseven\n\n\n\none\n\n" + " ".join(WORDS) + "\n\ntwo three\n")
    found = _of_text(AuditConfig(network="net", text=str(file), length=8, precision="float64"), network())
    lengths = np.asarray(found.mask).sum(axis=1).tolist()
    assert lengths == [5, 6, 3, 8, 4] and found.task == "states" and found.labels is None and found.data == "text.txt"
    assert found.inputs[1][:6].tolist() == [0, 4, 5, 6, 7, 11]
    assert _ids(network(), " ".join(WORDS), 8).tolist() == [0, 1, 2, 3, 4, 5, 6, 11]


@pytest.mark.parametrize(
    ("content", "tokenizer", "expected"),
    [
        (b" \n", words, "is empty"),
        (b"\xff\xfe\xff", words, "UTF-8"),
        (b"one\n\ntwo", words, "2 paragraphs"),
        (b"one", None, "no tokenizer"),
    ],
)
def test_texts_that_are_refused(tmp_path, content, tokenizer, expected):
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        _of_text(AuditConfig(network="net", text=str(file)), network(tokenizer))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sequences": 3}, "sequences=3"),
        ({"draws": 0}, "draws=0"),
        ({"length": 1}, "length=1"),
        ({"halvings": 1}, "halvings=1"),
        ({"seed": -1}, "seed=-1"),
        ({"precision": "bfloat16"}, "precision"),
        ({"text": "a", "dataset": "b"}, "give one of them"),
    ],
)
def test_settings_that_are_refused(options, expected):
    with pytest.raises(ValueError, match=expected):
        AuditConfig(network="net", **options)


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert cli.main(["audit", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_audit_of_a_trained_model_goes_on(tmp_path, capsys, monkeypatch):
    data = {"min_length": 3, "max_length": 12, "sizes": (300, 64, 64)}
    train(
        TrainConfig(data=data, dim=16, heads=2, ffn=16, layers=3, steps=4, eval_every=4, out=str(tmp_path / "run")),
        progress=False,
    )
    out = tmp_path / "page" / "run"
    options = ["--sequences", "4", "--tokens", "4", "--halvings", "2", "--derivatives", "1", "--exponents", "2"]
    arguments = ["audit", str(tmp_path / "run"), *options, "--out", str(out), "--json"]

    def stop(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "operators", stop)
        assert cli.main(arguments) == 130
    assert "goes on" in capsys.readouterr().err
    done = {path.name for path in out.rglob("*.npz")}
    assert {"refinement-native.npz", "refinement-rk4.npz", "surgery.npz"} <= done
    with monkeypatch.context() as patch:
        for name in ("identity", "surgery", "windows"):
            patch.setattr(measuring, name, stop if name != "windows" else measuring.windows)
        assert cli.main(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((out / "result.json").read_text()) and content["title"] == "The depth of run"
    assert str(tmp_path) not in json.dumps(content) and content["config"]["network"] == "run"
    for row in content["table"]:
        assert row["ours"] is not None, row
    quantities = {row["quantity"] for row in content["table"]}
    assert {
        "continuum index, untrained at matched branch size",
        "largest singular value of the whole map",
    } <= quantities
    assert len(list(out.glob("*.png"))) == 6
    # The numbers of a part are those of the analysis itself.
    subject = measuring.load_subject(AuditConfig(network=str(tmp_path / "run"), sequences=4))
    parts = Parts(out, ["audit", "other"], lambda text: None)
    assert parts.folder == out
    own = measuring.identity(subject, pj.analysis.depth.layer_field(subject.network, length=subject.u0.shape[1]))
    assert set(own) == {"layers", "model", "layer field"} and all(np.max(x) < 1e-5 for x in own.values())
    null = pj.analysis.depth.matched_null(subject.network, subject.u0, mask=subject.mask)
    sizes = [
        np.asarray(pj.analysis.depth.branch_sizes(x, subject.u0, mask=subject.mask)) for x in (subject.network, null)
    ]
    assert sizes[0].shape == sizes[1].shape == (3, 4) and math.isfinite(float(sizes[1].sum()))
    assert cli.main(["report", str(tmp_path / "page")]) == 0
    assert "The depth of run" in (tmp_path / "page" / "report.html").read_text()
    with pytest.raises(ValueError, match="tokenizer"):
        audit(AuditConfig(network=str(tmp_path / "run"), text="some.txt"))


@pytest.mark.parametrize("content", ["5", '"train"', '["train"]', "null", "[" * 100_000, "{}"])
def test_a_configuration_that_is_no_table_is_no_training(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert not is_training(str(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match=r"^audit: network=") as caught:
        measuring.load_subject(AuditConfig(network=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_saved_model_is_a_network_too(tmp_path, monkeypatch):
    """One file says what it was trained on, or the command does."""
    data = {"form": "patches", "patch": 4}
    sizes = {"inputs": 16, "head": "classification", "classes": 10, "dim": 8, "heads": 2, "layers": 2, "ffn": 12}
    model = pj.Transformer(pj.Architecture(**sizes), rngs=nnx.Rngs(0))
    train = dataclasses.asdict(TrainConfig(dataset="digits", data=data))
    pj.save_model(tmp_path / "net.npz", model, metadata(train, 4, {}))
    subject = measuring.load_subject(AuditConfig(network=str(tmp_path / "net.npz"), sequences=4))
    assert subject.u0.shape == (4, 4, 8) and subject.labels is not None
    pj.save_model(tmp_path / "own.npz", model)
    with pytest.raises(ValueError, match=r"own\.npz' does not say what it was trained on; give a dataset"):
        measuring.load_subject(AuditConfig(network=str(tmp_path / "own.npz")))
    with pytest.raises(ValueError, match=r"length=3 would cut sequences of up to 4 tokens of 'digits', whose classes"):
        measuring.load_subject(AuditConfig(network=str(tmp_path / "net.npz"), length=3))
    assert measuring.load_subject(AuditConfig(network=str(tmp_path / "net.npz"), length=4)).u0.shape[1] == 4
    with monkeypatch.context() as patch:
        patch.setattr(
            "pdejax.studies.audit._subject.load",
            lambda name, split, **options: load(name, split, **options).take(range(3)),
        )
        with pytest.raises(ValueError, match=r"dataset='digits' has 3 sequences for tests; give one of at least 4"):
            measuring.load_subject(AuditConfig(network=str(tmp_path / "net.npz")))
    with pytest.raises(FileNotFoundError, match=r"audit: network='none\.npz' does not exist"):
        measuring.load_subject(AuditConfig(network="none.npz"))
