"""The findings of the audits on the site: sentences whose every figure comes from the kept results."""

import importlib.util
import json
import pathlib
import re

import numpy as np

_spec = importlib.util.spec_from_file_location("docs_hooks", pathlib.Path(__file__).parent.parent / "docs" / "hooks.py")
hooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hooks)

# What numbers are in a finding, by the change of the kept results that must change it.
FINDINGS = (
    lambda r: r["identity"].update(layers=0.5),
    lambda r: r["refinement"]["half"].update(value=0.0123),
    lambda r: r["refinement"]["orders"].update(heun={"value": 7.5, "ci": 0.1}),
    lambda r: r.update(loss={"loss": [1.25, 9.75, 12.0], "p": 0.5, "accuracy": [0.9, 0.1, 0.0]}),
    lambda r: r["windows"][0]["move"].update(value=17.0),
    lambda r: r["weights"]["adjacent"].update(value=0.987),
    lambda r: r["surgery"]["skip"].update(value=123.0),
    lambda r: r["jacobians"]["relative"].update(value=4.56),
    lambda r: r["tokens"].update(cosine=[0.11, 0.99]),
    lambda r: r["operators"].update({"own terms": -3.0}),
)


def test_ten_findings_are_sentences_of_the_kept_results(tmp_path):
    """Each says something else when its numbers do; an audit that has not measured it is left out."""
    results, findings = hooks.results, hooks.results.findings
    kept = json.loads((results.AUDITS / "minilm" / "result.json").read_text())["results"]
    whole = findings.sentences(results.AUDITS)
    assert len(whole) == 10 and all(re.search(r"\d", text) and text.endswith(".") for text in whole)
    assert results.audit_findings().startswith("1. ") and "nan" not in " ".join(whole)
    place = tmp_path / "a" / "result.json"
    place.parent.mkdir()

    def say(found):
        place.write_text(json.dumps({"results": found}))
        return findings.sentences(tmp_path)

    first = say(kept)
    for i, change in enumerate(FINDINGS):
        found = json.loads(json.dumps(kept))
        change(found)
        texts = say(found)
        if i == 3:  # MiniLM has no loss of its own
            assert "from 1.25 to 9.75 nats (p = 0.5), accuracy from 0.90 to 0.10" in texts[3] and len(texts) == 10
            continue
        changed = [a for a, b in zip(texts, first, strict=True) if a != b]
        assert len(changed) == 1, (i, changed)
    assert say({"name": "empty"}) == []
    applied = say({"name": "tied", "layers": 2, "applications": [0.5, 0.25, 0.125]})
    assert applied == [
        "tied is one layer, applied 2 times: application 2 moves the state by 0.25, and application 3 by 0.12."
    ]


def test_windows_of_a_language_model_are_counted_by_perplexity(tmp_path):
    """Of three windows inside, two change it by less than 2 %; the first and the last window are not counted."""
    changes = {
        (0, 2): 3.0,
        (1, 3): 0.01,
        (2, 4): -0.019,
        (3, 5): 0.05,
        (4, 6): 2.0,
        (0, 1): 1.0,
        (5, 6): 1.0,
        (0, 6): 4.0,
    }
    spans = [{"layers": list(at), "loss": float(np.log1p(x)), "move": {"value": 0.1}} for at, x in changes.items()]
    loss = {"loss": [float(np.log(x)) for x in (40, 5000, 60_000)], "p": 0.01, "accuracy": [0.5, 0.1, 0.0]}
    (tmp_path / "a").mkdir()
    results = {"name": "decoder", "task": "next token", "layers": 6, "windows": spans, "loss": loss}
    (tmp_path / "a" / "result.json").write_text(json.dumps({"results": results}))
    text = hooks.results.findings.sentences(tmp_path)[1]
    assert "one of the 3 windows of 2 layers" in text and "-1.9% to +5.0%, by less than 2% in 2;" in text
    assert "takes it from 40 to 5,000, and a quarter of the step to 60,000." in text


def test_orders_that_decide_nothing_are_not_printed(tmp_path):
    """Of four fits two are told, one of which holds the order; a wide and an unknown interval are not decided."""
    for name, value, ci in (("a", 1.1, 0.2), ("b", 0.5, 0.3), ("c", -3.25, 2.0), ("d", 1.0, None)):
        (tmp_path / name).mkdir()
        refinement = {"orders": {"euler": {"value": value, "ci": ci}}}
        content = {"results": {"name": name, "refinement": refinement}}
        (tmp_path / name / "result.json").write_text(json.dumps(content))
    [text] = hooks.results.findings.sentences(tmp_path)
    assert "Euler, of order 1: 0.50 ± 0.30 (b), 1.10 ± 0.20 (a), whose interval holds it in 1 of 2;" in text
    assert text.endswith("not decided in 2 of 4.") and "3.25" not in text


def test_exponents_have_intervals_and_the_name_of_their_null(tmp_path):
    relative = {"value": -0.11, "low": -0.27, "high": 0.05, "nulls": {"one untrained network": 0.02}}
    growth = {"value": 0.3, "low": None, "high": None}
    (tmp_path / "a").mkdir()
    content = {"results": {"name": "a", "jacobians": {"relative": relative, "growth": growth}}}
    (tmp_path / "a" / "result.json").write_text(json.dumps(content))
    [text] = hooks.results.findings.sentences(tmp_path)
    assert text.endswith("a -0.11 [-0.27, 0.05], one untrained network 0.02 (growth of the state 0.30 [no interval]).")


def test_operators_are_above_their_null_by_the_lower_end_of_the_difference(tmp_path):
    """Whatever R² is, and the mean difference: what the interval leaves open is not counted, nor what is nothing worth naming."""
    for name, low, null, value in (("a", 0.01, 0.1, 0.3), ("b", -0.01, 0.1, 0.6), ("c", 0.01, 0.28, 0.3)):
        difference = {"value": value - null, "low": low, "high": 1.0}
        found = {"the papers' operators": value, "null": null, "difference": difference}
        (tmp_path / name).mkdir()
        content = {"results": {"name": name, "operators": found | {"rollout": 0.5, "persistence": 1.0}}}
        (tmp_path / name / "result.json").write_text(json.dumps(content))
    [text] = hooks.results.findings.sentences(tmp_path)
    assert "0.30 (a) to 0.60 (b), above that of another sequence's operators in 1 of 3 (a);" in text


def test_what_is_said_of_operators_is_what_the_kept_verdicts_say():
    """In the finding are those networks whose verdict names a share of the increments, and no others."""
    text = hooks.results.findings.sentences(hooks.results.AUDITS)[-1]
    kept = [json.loads(path.read_text()) for path in sorted(hooks.results.AUDITS.glob("*/result.json"))]
    verdicts = {x["results"]["name"]: x["verdicts"]["operators of the papers"] for x in kept}
    above = [name for name, words in verdicts.items() if "explain nothing" not in words]
    assert f"in {len(above)} of {len(kept)} ({', '.join(above)})" in text
