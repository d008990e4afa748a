"""`pdejax parity`: a checkpoint beside transformers, and what it says where they differ or where there is none."""

import dataclasses
import json

import numpy as np
import oracle
import pytest
import stored
import test_decoders
import test_images
from test_families import CASES

from pdejax import cli
from pdejax.networks.families import _parity


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    oracle.make(CASES["BERT"], folder)
    return folder


def test_the_same_to_rounding(folder, capsys):
    """A line per state and one of the logits; status 0."""
    assert cli.main(["parity", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [row["name"] for row in found["differences"]]
    assert names == ["layer 0", "layer 1", "layer 2", "layer 3", "output"] and found["tokens"] == 16
    assert found["same"] and all(0 < row["relative"] < 1e-12 for row in found["differences"][1:])


@pytest.mark.parametrize("case", [test_decoders.CASES["Llama"], test_images.CASES["ViT"]], ids=lambda c: c.model)
def test_final_norms_and_images(case, tmp_path, capsys):
    """The last state of a decoder is shown after its final norm; a network of images reads random pixels."""
    oracle.make(case, tmp_path)
    assert cli.main(["parity", str(tmp_path), "--quiet"]) == 0
    assert "the same to rounding" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("case", "name", "unread"),
    [
        (CASES["BERT"], "BertForSequenceClassification", "classifier.weight"),
        (CASES["RoBERTa"], "RobertaForTokenClassification", "classifier.weight"),
        (CASES["ALBERT"], "AlbertForQuestionAnswering", "qa_outputs.weight"),
        (CASES["DistilBERT"], "DistilBertForSequenceClassification", "pre_classifier.weight"),
        (test_images.CASES["ViT"], "ViTForMaskedImageModeling", "decoder.0.weight"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_head_of_a_task_is_left_out(case, name, unread, tmp_path, capsys):
    """States and last field are those of the bare model; what is not read is said with the reason."""
    oracle.make(dataclasses.replace(case, model=name), tmp_path)
    assert cli.main(["parity", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same"] and "which neither hidden states nor the last field pass through" in found["not_read"][unread]


def test_not_the_same(folder, capsys, monkeypatch):
    """Another number in what we read is seen from its layer on: status 1, and a sentence that says so."""
    load = _parity.load_pretrained

    def spoiled(path, **options):
        import equinox as eqx

        net = load(path, **options)

        def bias(n):
            return n.discretization.field.stacked.reaction.b2

        return eqx.tree_at(bias, net, bias(net).at[1, 0].add(1e-9))

    monkeypatch.setattr(_parity, "load_pretrained", spoiled)
    assert cli.main(["parity", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "NOT the same" in said and "output" in said
    errors = [float(line.split()[2]) for line in said.splitlines() if line.startswith("layer")]
    assert max(errors[:2]) < 1e-12 < min(errors[2:])


def test_without_an_oracle_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_parity.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["parity", str(stored.bert(tmp_path))]) == 2
    assert "torch and transformers are not installed; pip install 'pdejax[oracle]'" in capsys.readouterr().err


def test_a_nan_is_no_small_difference():
    rows = [_parity.Difference("a", 1e-16, 0.0), _parity.Difference("b", float("nan"), 0.0)]
    assert np.isinf(_parity.total(rows))
