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


def seeds_file(folder, **models):
    """Looped models over seeds, as the benchmark writes them: exponent (value, low, high), inputs that settle, the same ones."""
    (folder / "loops").mkdir(exist_ok=True)
    found = {}
    for name, (exponent, settled, same, ended) in models.items():
        value, low, high = exponent
        run = {
            "kinds": {"fixed point": settled, "drift": 20 - settled},
            "same point": same,
            "followed to its end": ended,
        }
        run["baselines"] = {"majority class": 0.16, "root operator": 0.3}
        over = {
            "test accuracy": {"value": 0.6, "low": 0.5, "high": 0.7},
            "share of inputs: fixed point": {"value": settled / 20, "low": settled / 20, "high": settled / 20},
            "share of inputs: cycle": {"value": 0.0, "low": 0.0, "high": 0.0},
            "Lyapunov exponent 1": {"value": value, "low": low, "high": high},
            "safe range of loops": {"value": 7.0, "low": 6.0, "high": 8.0},
        }
        found[name] = {"seeds": [run, run], "over seeds": over}
    settings = {"seeds": 2, "dim": 32, "steps": 1000, "sequences": 20, "loops": 96, "derivatives": 1}
    (folder / "loops" / "seeds.json").write_text(json.dumps({"models": found, "settings": settings}))


def test_models_part_where_intervals_do(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks.tables, "RESULTS", tmp_path)
    seeds_file(
        tmp_path,
        pre=((0.3, 0.2, 0.4), 0, 0, True),
        post=((-0.1, -0.2, 0.1), 5, 4, False),
        peri=((0.1, 0.05, 0.25), 20, 20, False),
    )
    text = hooks.looped.over_seeds()
    assert "| seeds | 2 | 2 | 2 |" in text and "majority class 0.16, root operator 0.30" in text
    assert "| largest Lyapunov exponent, per pass | 0.3 [0.2, 0.4] | -0.1 [-0.2, 0.1] | 0.1 [0.05, 0.25] |" in text
    assert "| share of inputs: fixed point | 0 | 0.25 | 1 |" in text and "cycle" not in text
    assert "| safe range of loops, passes | ≥ 7 [6, 8] | 7 [6, 8] | 7 [6, 8] |" in text
    assert "| fixed points; the same one, at most | 0 | 10; 8 | 40; 40 |" in text
    # 0.2 is above 0.1; 0.05 to 0.25 overlaps both.
    assert "- largest Lyapunov exponent, per pass: `pre` above `post`." in text
    assert "- test accuracy: not decided between any two." in text
    seeds_file(tmp_path, pre=((0.3, 0.2, 0.4), 0, 0, True), post=((-0.1, None, None), 5, 4, False))
    assert "- largest Lyapunov exponent, per pass: not decided between any two." in hooks.looped.over_seeds()


def test_papers_beside_loops_change_with_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks.tables, "RESULTS", tmp_path)
    still, wide = (0.1, 0.0, 0.2), (0.5, 0.4, 0.6)

    def text(**changed):
        names = ("pre", "post", "peri", "injected", "injected-post")
        seeds_file(tmp_path, **{name: changed.get(name.replace("-", "_"), (still, 0, 0, False)) for name in names})
        return hooks.looped.literature()

    none = text()
    assert (
        "not decided: none of their inputs settles" in none
        and "0 of 40 inputs settle; of one network at most 0" in none
    )
    assert (
        "largest exponent not decided between any two" in none and "range of loops: not decided between any two" in none
    )
    found = text(post=(still, 20, 20, False), injected_post=(still, 20, 1, False), injected=(wide, 0, 0, False))
    assert "so it is: all 40 inputs that settle do so at the one point of their network" in found
    assert (
        "40 of 40 inputs settle; of one network at most 1 at one point" in found
        and "largest exponent `injected` above `pre`" in found
    )
    assert "of 40 inputs that settle 10 share a point" in text(post=(still, 20, 5, False))
    assert "40 of 40 inputs settle; of one network at most 20 at one point" in text(
        injected_post=(still, 20, 20, False)
    )
