"""Pages say which results are kept, and what they took, from the results."""

import json
import re

from test_docs import DOCS, hooks, pages

from pdejax.studies.papers import STUDIES


def test_which_presets_are_kept_is_said_from_the_results(tmp_path):
    def keep(name, preset, seeds, of, **config):
        content = {
            "study": name,
            "preset": preset,
            "seeds": list(range(seeds)),
            "seconds": 90.0,
            "config": config | {"seeds": of},
        }
        content["environment"] = {"device": "cpu", "cores": 2, "versions": {"jax": "0.10.2"}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(content))

    assert hooks.results.kept(tmp_path) == ""
    keep("distillation", "standard", 2, 5, train={"dataset": "listops"})
    keep("residual", "quick", 2, 2, train={"dataset": "digits"})
    keep("layernorm", "quick", 2, 2, options={"architectures": {"a": {"dataset": "x"}, "b": {"dataset": "y"}}})
    keep("continuum", "standard", 5, 5, train={})
    text = hooks.results.kept(tmp_path)
    for line in (
        "distillation` | standard | 2 of 5 | listops",
        "residual` | quick | 2 | digits",
        "layernorm` | quick | 2 | x, y",
    ):
        assert f"| `{line} | 1.5 |" in text
    assert "| `continuum` | standard | 5 | none | 1.5 |" in text
    assert "2 at `standard`, together 3 minutes; 2 at `quick`, together 3 minutes" in text


def test_no_page_says_less_than_the_results_took():
    page = (DOCS / "howto" / "reproducing.md").read_text()
    assert "<!-- make: kept -->" in page and not re.search(r"\b(hours?|minutes?)\b", page)
    found = [json.loads(path.read_text()) for path in hooks.results.REPRODUCED.glob("*/result.json")]
    seconds = sum(content["seconds"] for content in found if content["preset"] == "standard")
    assert "most with five seeds, hours on two cores" in pages()["commands/reproduce.md"]
    seeds = [study.preset("standard").seeds for study in STUDIES.values()]
    assert len(seeds) / 2 < seeds.count(5) < len(seeds)  # "most"
    assert seconds > 2 * 3600
