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
    assert "which takes no time. Most take `residual` (100), `" in hooks.results.kept(tmp_path)


def test_the_literature_is_set_beside_what_is_kept(tmp_path):
    """Other numbers, another count: of checks, of angles and of networks."""
    kept = json.loads(hooks.results.LIMITS.read_text())
    said = hooks.results.literature()
    assert (
        said.count("against it: 0 of") == 3
        and "against it: 3 of 4 [networks](../results/loops.md), injected, kokoro, pre" in said
    )
    wrong = next(x for x in kept["results"]["check"] if x["recipe"] == "i.i.d., 1/√L")
    wrong["verdict"] = "ODE"
    kept["verdicts"]["waiting at ω₀ = 0.8"] = "NOT 0.3033 but 0.5 ± 0.01"
    (tmp_path / "limits.json").write_text(json.dumps(kept))
    for name, point in (("one", 3), ("two", 1)):
        (tmp_path / name).mkdir()
        found = {"results": {"kinds": {"fixed point": point, "drift": 4 - point}, "sequences": 4}}
        (tmp_path / name / "result.json").write_text(json.dumps(found))
    other = hooks.results.literature(tmp_path, tmp_path / "limits.json")
    assert "against it: 1 of 32 checks" in other and "against it: 1 of 2 angles" in other
    assert (
        "one: fixed point 3, drift 1; two: fixed point 1, drift 3" in other
        and "1 of 2 [networks](../results/loops.md), two" in other
    )


def test_no_page_says_less_than_the_results_took():
    page = (DOCS / "howto" / "reproducing.md").read_text()
    assert "<!-- make: kept -->" in page and not re.search(r"\b(hours?|minutes?)\b", page)
    found = [json.loads(path.read_text()) for path in hooks.results.REPRODUCED.glob("*/result.json")]
    seconds = sum(content["seconds"] for content in found if content["preset"] == "standard")
    assert "with five seeds, hours on two cores" in pages()["commands/reproduce.md"]
    seeds = [study.preset("standard").seeds for study in STUDIES.values()]
    assert set(seeds) == {5}
    assert seconds > 2 * 3600


def test_a_printed_figure_is_met_where_the_interval_holds_it():
    def side(paper, mean, low=None, high=None):
        return hooks.printed.side(paper, {"mean": mean, "low": low, "high": high})

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
    # Ranges, orders of magnitude, bounds in words; half an order is a factor of 3.16.
    assert [side("1e-4 … 1e-3", x) for x in (9e-5, 2e-4, 1.1e-3)] == ["below", "met", "above"]
    assert side("1e-4 … 1e-3", 2e-3, 9e-4, 3e-3) == "met"
    assert [side("about 10", x) for x in (3.1, 3.2, 31.0, 32.0)] == ["below", "met", "met", "above"]
    assert [side("up to 1e-1", x) for x in (1e-9, 0.1, 0.11)] == ["met", "met", "above"]
    assert side("1 (Thm 3.2)", 1.0, 0.9, 1.1) == "met" and side("1 (Thm 3.2)", 3.0, 2.9, 3.1) == "above"
    for text in ("uniform", "falls", "PDE larger", None):
        assert side(text, 1.0) == ""
    assert side("0.98", None) == ""


def test_each_printed_curve_has_a_line_with_what_meets_it_and_what_does_not(tmp_path):
    def line(quantity, paper, mean, half):
        return {
            "quantity": quantity,
            "paper": paper,
            "note": "",
            "ours": {"mean": mean, "low": mean - half, "high": mean + half},
        }

    table = [
        *(line(f"same layer {k}, Pearson, heat", f"0.{9 - k}0", 0.9 - 0.1 * k, 0.001) for k in range(3)),
        *(line(f"same layer {k}, Pearson, far", f"0.{9 - k}0", 0.1, 0.001) for k in range(3)),
        *(line(f"same layer {k}, Pearson, half", f"0.{9 - k}0", 0.7, 0.001) for k in range(3)),
        line("KL, by index, own", "< 0.1", 0.05, 0.01),
        line("KL, by index, other", "< 0.1", 0.5, 0.01),
        line("change", "falls", 0.5, 0.01),
    ]
    (tmp_path / "alignment").mkdir()
    (tmp_path / "alignment" / "result.json").write_text(json.dumps({"study": "alignment", "table": table}))
    assert hooks.printed.met(tmp_path).splitlines()[2:] == [
        "| `alignment` | same layers | 0.80 … 0.70 | Pearson, heat | Pearson, half (1 of 2) | Ours below: Pearson, far |",
        "| `alignment` | KL | &lt; 0.1 | by index, own | none | Ours above: by index, other |",
    ]


def test_every_printed_number_is_in_one_curve():
    found = [json.loads(path.read_text()) for path in hooks.results.REPRODUCED.glob("*/result.json")]
    printed = [
        row
        for content in found
        for row in content["table"]
        if re.search(r"\d", row["paper"] or "") and not re.search(r"layer 0\b(?!–)", row["quantity"])
    ]
    curves = hooks.printed.curves()
    assert sum(len(points) for curve in curves for points in curve.settings.values()) == len(printed)
    text = hooks.printed.met()
    assert len(text.splitlines()) == 2 + len(curves) and "more |" not in text
    assert all(name in text for curve in curves for name in map(hooks.results._cell, curve.settings))
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
            "share of answers kept at 12 passes": {"value": 0.5, "low": 0.4, "high": 0.6},
            "share of answers kept at 96 passes": {"value": value + 0.5, "low": 0.3, "high": 0.3 + settled / 20},
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
    assert "- share of answers kept at 96 passes: not decided" in text and "- share of answers kept at 12" not in text
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


def test_which_steps_and_embeddings_a_study_has_is_said_from_its_data():
    text = hooks.printed.axes()
    assert (
        "| `readings` | 0.05, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.5, 0.7, 1 | × 1; × √d; × √d, positions too | untrained |"
        in text
    )
    assert "| `discretization` | 1, 1/2, 1/4, 1/8 | as drawn | trained |" in text
    assert "| `alignment` | 1 (shared: 1/4) | as drawn | trained |" in text
    last = text.splitlines()[-1]
    assert last.startswith("Both axes are gone through by `residual`, `readings`, `paper-size`; neither by ")
    assert all(f"`{name}`" in text for name in STUDIES) and "`alignment`" in last
    assert "`residual`" not in last.partition("neither by")[2]
    assert (
        "| `residual` | lietrotter, h = 1; euler, 5 steps of 1/5 a layer; euler, h = 0.2 | × 1; × √d | before" in text
    )
    assert "<!-- make: axes -->" in (DOCS / "howto" / "reproducing.md").read_text()
    # What untrained networks give stands beside no figure of trained ones.
    [content] = [c for _, c in hooks.results._studies(hooks.results.REPRODUCED) if c["study"] == "paper-size"]
    assert not any(row["paper"] for row in content["table"] if "untrained Transformer" in row["quantity"])


def test_audits_stand_beside_one_another(tmp_path):
    assert "pdejax audit NETWORK --out" in hooks.results.audits(tmp_path)
    ours = {"mean": 0.98765, "low": 0.9812, "high": 0.9941, "values": []}
    row = {"quantity": "move | h", "unit": "nats", "ours": ours, "null": ours, "null_name": "untrained", "note": ""}
    only = {"quantity": "loss", "unit": "", "ours": ours, "null": None, "null_name": None, "note": ""}
    for name, table in (("a", [row]), ("b", [row, only])):
        content = {
            "results": {"name": name, "network": "Network of <b>", "sequences": 16, "data": "text"},
            "verdict": f"{name}: it moves.",
            "verdicts": {"weights": "SDE"},
            "seconds": 12.3,
            "environment": {"device": "cpu"},
            "figures": [{"file": "x.png", "caption": "A picture."}],
            "table": table,
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(content))
    text = hooks.results.audits(tmp_path)
    shown = "0.9877 [0.9812, 0.9941]"
    assert f"| move \\| h [nats] | {shown}; untrained 0.9877 | {shown}; untrained 0.9877 |" in text
    assert f"| loss | – | {shown} |" in text and text.startswith("| figure | a | b |\n|---|---|---|\n")
    assert re.findall("^## (.*)$", text, flags=re.MULTILINE) == ["a", "b"] and "<b>" not in text
    assert "- weights: SDE" in text and "16 sequences of text, 12 s on cpu" in text
