"""What the report reads of a folder: everything below it, what it leaves out and says so, and what makes a missing result."""

import argparse
import json
import pathlib
import shutil

import pytest

from pdejax.runs._parts import Parts
from pdejax.runs._records import Result
from pdejax.runs.report import ReportError, _command, build_report
from pdejax.runs.report._read import Study, _order, read_results


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    _command.COMMAND.add_arguments(parser)
    return _command.COMMAND(parser.parse_args(arguments))


@pytest.fixture
def copy(results, tmp_path):
    return shutil.copytree(results, tmp_path / "papers")


def test_every_ledger_and_every_depth_is_shown(copy):
    """A second ledger in a folder of its own, and a study two folders down, each with anchors of its own."""
    inner = copy / "second" / "claims"
    inner.mkdir(parents=True)
    ledger = json.loads((copy / "claims.json").read_text())
    ledger["results"]["claims"][0]["statement"] = "Said in the second ledger alone."
    (inner / "claims.json").write_text(json.dumps(ledger))
    shutil.copytree(copy / "counterexamples", inner / "counterexamples")
    shutil.copytree(copy / "alignment", copy / "a" / "b" / "deep")
    built = build_report(copy)
    assert (built.claims, built.studies, built.problems, built.left_out) == (6, 4, (), ())
    page, text = built.html.read_text(), built.markdown.read_text()
    for word in ("Claims (second/claims/claims)", "Said in the second ledger alone."):
        assert word in page and word in text
    assert 'id="claim-c4"' in page and 'id="claim-c4-2"' in page and 'id="study-a-b-deep"' in page
    assert "6 claims" in page


def test_a_ledger_under_another_name_is_one(copy):
    (copy / "claims.json").rename(copy / "ours.json")
    assert build_report(copy).claims == 3 and not build_report(copy).left_out


def test_json_that_is_no_result_is_named_and_no_fault(copy, capsys):
    (copy / "alignment" / "notes.json").write_text('{"a": 1}')
    (copy / "list.json").write_text("[1, 2]")
    (copy / "model").mkdir()
    (copy / "model" / "config.json").write_text('{"model_type": "bert"}')
    built = build_report(copy)
    assert built.problems == () and built.studies == 3
    assert built.left_out == ("list.json", "alignment/notes.json", "model/config.json")
    for content in (built.html.read_text(), built.markdown.read_text()):
        assert "Left out" in content and "alignment/notes.json" in content
    assert command(str(copy)) == 0
    assert "alignment/notes.json is left out" in capsys.readouterr().err


def training(place):
    place.mkdir(parents=True)
    (place / "run.json").write_text('{"config": {}, "best": null}')
    (place / "config.json").write_text('{"train": {}, "model": {}}')
    (place / "checkpoints" / "40").mkdir(parents=True)
    (place / "metrics.csv").write_text("step,loss\n")


def stopped(place):
    training(place)
    (place / "summary.json").write_text('{"step": 40, "stopped": "interrupted"}')


def study(name):
    def made(place):
        parts = Parts(place, [name], lambda text: None, command=name)
        parts.get("one", lambda: 1)

    return made


def old_parts(place):
    (place / "parts" / "0123").mkdir(parents=True)


def damaged_training(place):
    stopped(place)
    (place / "result.json").write_text("{")


BEGUN = "the command that began it, `pdejax train … --out {p}`, goes on."
TRACES = {
    "a training that was killed": (
        training,
        "a training without a result; the command that began it, `pdejax train … --out {p}`",
    ),
    "a training that was stopped": (
        stopped,
        f"(interrupted at step 40); {BEGUN}",
    ),
    "a training whose result is damaged": (
        damaged_training,
        "result.json is damaged (JSONDecodeError); a training without",
    ),
    "the parts of a command": (study("audit"), "not finished; `pdejax audit … --out {p}` goes on"),
    "the parts of an experiment": (
        study("reproduce alignment"),
        "`pdejax reproduce alignment … --out {parent}` goes on",
    ),
    "parts that say nothing": (old_parts, "not finished; the command that was given --out {p} makes it again."),
}


@pytest.mark.parametrize(
    ("key", "value"),
    [("source", "v²"), ("source", "v" + "9" * 5000), ("source", "²"), ("seconds", 10**400)],
    ids=list("abcd"),
)
def test_numbers_that_python_does_not_read_are_no_fault(copy, key, value):
    path = copy / "alignment" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    built = build_report(copy)
    assert built.studies == 3 and not built.problems


def test_sources_are_ordered_by_their_numbers():
    sources = ["v1 §2", "v1 §010", "v1 §9²", "v2", "v10", ""]
    studies = [
        Study(f"{i}", pathlib.Path(), result=Result(study="s", source=source)) for i, source in enumerate(sources)
    ]
    assert [study.result.source for study in sorted(reversed(studies), key=_order)] == [
        *("v1 §2", "v1 §9²", "v1 §010", "v2", "v10", "")
    ]


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("where", ["one", "one/seed-1"])
def test_what_is_not_there_is_made_by_its_own_command(name, where, copy):
    make, words = TRACES[name]
    place = copy / where
    make(place)
    [problem] = build_report(copy).problems
    assert problem.startswith(f"{where}: ") and words.format(p=place, parent=place.parent) in problem
    assert ("reproduce" in problem) == ("reproduce" in words)


@pytest.mark.parametrize("name", TRACES)
def test_alone_it_is_what_the_error_says(name, tmp_path):
    make, words = TRACES[name]
    place = tmp_path / "run"
    make(place)
    with pytest.raises(ReportError, match="holds no results") as found:
        read_results(place)
    assert words.format(p=place, parent=place.parent) in str(found.value)
    assert "pdejax reproduce --out" not in str(found.value)
