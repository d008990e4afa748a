"""The page can be read: ten findings first, long tables folded, figures by layer as curves; and the stored page is that of the
stored results."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from pdejax import Figure
from pdejax.runs._records import Row
from pdejax.runs.report import build_report
from pdejax.runs.report._build import markdown_page
from pdejax.runs.report._curves import Panel, Point, drawn, panels
from pdejax.runs.report._html import MOST, findings, html_page
from pdejax.runs.report._read import read_results
from pdejax.runs.report._write import FOLD
from pdejax.studies.papers import STUDIES
from pdejax.studies.study import headline

STORED = pathlib.Path(__file__).parents[2] / "benchmarks" / "results" / "reproduce"


def by_layer(name: str, system: str, values, unit: str = "") -> list[Row]:
    return [
        Row(f"{name}, layer {i}, {system}", Figure(v, v - 0.1, v + 0.2), null=Figure(0.5), null_name="null", unit=unit)
        for i, v in enumerate(values)
    ]


def test_rows_by_layer_are_curves():
    rows = [
        *by_layer("correlation", "ours", [1.0, 0.8, 0.6, 0.5]),
        *by_layer("correlation", "theirs", [1.0, 0.9, 0.9, 0.9, 0.9]),
        *by_layer("magnitude", "ours", [1.0, 2.0], "units"),  # two layers make no curve
        *(Row(f"adjacent layers {i}–{i + 1}, ours", Figure(0.1 * i)) for i in range(5)),
        Row("accuracy", Figure(0.9)),
        Row("correlation, layer 9, ours", None),
    ]
    first, second = panels(rows)
    assert first.name == "correlation" and second.name == "adjacent"
    assert {name: [(p.layer, p.value) for p in curve] for name, curve in first.curves.items()} == {
        "ours": [(0, 1.0), (1, 0.8), (2, 0.6), (3, 0.5)],
        "theirs": [(0, 1.0), (1, 0.9), (2, 0.9), (3, 0.9), (4, 0.9)],
    }
    second_point = first.curves["ours"][1]
    assert second_point == Point(1, 0.8, 0.8 - 0.1, 0.8 + 0.2, 0.5)
    assert [p.low for p in second.curves["ours"]] == [None] * 5


def test_a_curve_lies_where_its_numbers_are():
    """Heights are linear in the values, places in the layers; what is wider than the frame is cut off at it."""
    values = [0.0, 1.0, 4.0, 2.0]
    points = [Point(layer, v, -1e3, 1e3, 0.5) for layer, v in zip((0, 1, 2, 4), values, strict=True)]
    text = drawn(Panel("<quantity>", {"a & b": points}))
    assert "&lt;quantity&gt;" in text and "a &amp; b" in text and "<quantity>" not in text
    dots = np.array([[float(x) for x in dot] for dot in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', text)])
    slope = np.polyfit(values, dots[:, 1], 1)
    np.testing.assert_allclose(np.polyval(slope, values), dots[:, 1], atol=0.06)
    assert slope[0] < 0  # upwards
    np.testing.assert_allclose(np.diff(dots[:, 0]) / (dots[1, 0] - dots[0, 0]), [1, 1, 2], atol=0.01)
    [band] = re.findall(r'<polygon class="[^"]*" points="([^"]*)"', text)
    heights = [float(pair.split(",")[1]) for pair in band.split()]
    assert min(heights) == 8 and max(heights) == 190 - 24
    assert "layer 4: 2 [-1000, 1000]" in text


@pytest.mark.parametrize(
    "values", [[1.0] * 4, [0.0] * 4, [1e-12, 2e-12, 3e-12, 4e-12], [-5e8, 1e8, 2e8, 3e8], [1e-4] * 4, [1e-7] * 4]
)
def test_curves_of_any_size_are_drawn(values):
    text = drawn(Panel("q", {"": [Point(i, v, None, None, None) for i, v in enumerate(values)]}))
    numbers = [float(x) for x in re.findall(r'(?:cx|cy|x1|x2|y1|y2)="([^"]*)"', text)]
    assert np.all(np.isfinite(numbers)) and min(numbers) >= 0 and max(numbers) <= 320
    assert 2 <= text.count('class="grid"') <= 6


def test_findings_come_first_with_interval_null_and_setting():
    results = read_results(STORED)
    page = html_page(results, STORED)
    shown = findings(results)
    assert len(shown) == MOST == 10 and len({study.name for study, _, _ in shown}) == 10
    page = page[page.index('<main id="main">') :]
    start, end = page.index('aria-label="Findings"'), page.index("</table>")
    assert page.index('id="summary"') < start < end < page.index('id="studies"')
    table = page[start:end]
    assert table.count("<tr>") == 11 and table.count('class="interval"') == 20
    for study, index, row in shown:
        assert row.ours is not None and row.null is not None and row.null_name
        assert all(np.isfinite(float(end)) for end in (row.ours.low, row.ours.high))
        assert study.raw is not None
        train = study.raw["config"]["train"]["dataset"]
        assert f"{train}, {study.result.preset}, {len(study.result.seeds)} seeds" in table
        assert f".table.{index}.ours" in table and f"#study-{study.name}" in table


def test_without_a_headline_the_first_row_beside_a_null_is_the_finding(results):
    found = {study.name: row.quantity for study, _, row in findings(read_results(results))}
    assert found == {
        "information-flow": "Pearson, layer 1 and 2",
        "gradients": "field evaluations",
        "alignment": "Pearson, layer 1 and 2",
    }


@pytest.mark.parametrize("name", STUDIES)
def test_stored_headlines_are_those_of_the_studies(name):
    saved = json.loads((STORED / name / "result.json").read_text())
    rows = [Row.from_json(row, i) for i, row in enumerate(saved["table"])]
    assert saved.get("headline", "") == headline(STUDIES[name], rows)
    assert bool(saved.get("headline")) == bool(STUDIES[name].headline)


def test_long_tables_are_folded_and_short_ones_open(results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "papers")
    path = folder / "alignment" / "result.json"
    saved = json.loads(path.read_text())
    for count, inside in ((FOLD, False), (FOLD + 1, True)):
        saved["table"] = [{**saved["table"][0], "quantity": f"row {i}"} for i in range(count)]
        path.write_text(json.dumps(saved))
        page = build_report(folder).html.read_text()
        article = page[page.index('<article id="study-alignment">') :]
        table, details = article.index("<table"), article.index("<details")
        assert (details < table) == inside
        assert (f"All {count} lines" in article) == inside


def test_the_stored_page_is_that_of_the_stored_results():
    """`report.md` says what the files beside it say; make it anew with `pdejax report benchmarks/results/reproduce`."""
    assert (STORED / "report.md").read_text() == markdown_page(read_results(STORED), STORED)
