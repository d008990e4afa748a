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
    keep("readings", "quick", 5, 5)
    # The settings of readings are the same at both presets; those of residual are not.
    text = hooks.results.kept(tmp_path)
    assert "| `readings` | quick (as `standard`) | 5 | none | 1.5 |" in text
    for line in (
        "distillation` | standard | 2 of 5 | listops",
        "residual` | quick | 2 | digits",
        "layernorm` | quick | 2 | x, y",
    ):
        assert f"| `{line} | 1.5 |" in text
    assert "| `continuum` | standard | 5 | none | 1.5 |" in text
    assert "2 at `standard`, together 3 minutes; 3 at `quick`, together 4 minutes" in text
    path = tmp_path / "residual" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 6000.0}))
    assert "other work too, so that they are upper bounds; most take `residual` (100), `" in hooks.results.kept(
        tmp_path
    )


def test_no_page_says_less_than_the_results_took():
    page = (DOCS / "howto" / "reproducing.md").read_text()
    assert "<!-- make: kept -->" in page and not re.search(r"\b(hours?|minutes?)\b", page)
    found = [json.loads(path.read_text()) for path in hooks.results.REPRODUCED.glob("*/result.json")]
    seconds = sum(content["seconds"] for content in found if content["preset"] == "standard")
    assert "most with five seeds, hours on two cores" in pages()["commands/reproduce.md"]
    seeds = [study.preset("standard").seeds for study in STUDIES.values()]
    assert len(seeds) / 2 < seeds.count(5) < len(seeds)  # "most"
    assert seconds > 2 * 3600


def test_a_printed_figure_is_met_where_the_interval_holds_it():
    def side(paper, mean, low=None, high=None):
        return hooks.results._side(paper, {"mean": mean, "low": low, "high": high})

    assert [side("0.98", 0.97, low, high) for low, high in ((0.96, 0.98), (0.96, 0.976), (0.96, 0.974))] == [
        "met",
        "met",
        "below",
    ]
    assert (
        side("0.98", 0.99, 0.986, 0.999) == "above" and side("0.98", 0.9849) == "met" and side("0.98", 0.9) == "below"
    )
    assert side("> 0.98", 0.999) == side("< 0.018", 0.001) == "met"
    assert side("> 0.98", 0.9) == "below" and side("< 0.018", 0.1) == "above"
    for text in ("1 (Thm 3.2)", "about 1e-3", "falls", None):
        assert side(text, 1.0) == ""
    assert side("0.98", None) == ""


def test_every_printed_number_is_counted_once():
    found = [json.loads(path.read_text()) for path in hooks.results.REPRODUCED.glob("*/result.json")]
    numbers = [
        row
        for content in found
        for row in content["table"]
        if re.fullmatch(r"[<>≥≤]? ?-?\d+(\.\d+)?", row["paper"] or "")
    ]
    rows = [line.split(" | ") for line in hooks.results.met().splitlines()[2:]]
    assert sum(int(cells[1]) for cells in rows) == len(numbers)
    assert all(int(cells[1]) == sum(map(int, cells[2:5])) for cells in rows)
    assert "<!-- make: met -->" in (DOCS / "howto" / "reproducing.md").read_text()


def test_what_is_said_of_the_step_is_what_the_studies_say():
    said = [
        json.loads((hooks.results.REPRODUCED / name / "result.json").read_text()) for name in ("readings", "residual")
    ]
    assert all(content["verdict"].split(" is ")[0] in hooks.results.step() for content in said)
    assert "<!-- make: step -->" in (DOCS / "howto" / "reproducing.md").read_text()
