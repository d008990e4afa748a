"""One table as text, Markdown and HTML; numbers in it; and a result as it is kept."""

import json

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure as Canvas

from pdejax import Figure
from pdejax.runs._findings import table_from_json, table_to_json
from pdejax.runs._records import Picture, Result, Row
from pdejax.runs._table import Cell, Column, Table, sort_key

TABLE = Table(
    (Column("what"), Column("error", ".1e", 8, right=True), Column("ours", right=True)),
    [("a|b", 1.25e-7, Figure(0.98765, 0.98, 0.995)), ("<c>", None, Cell(2.0, "#there", "untrained"))],
    "Errors",
)


def test_text_is_aligned():
    caption, head, rule, first, second = TABLE.text().splitlines()
    assert caption == "Errors" and set(rule) == {"-", " "}
    assert head.index("error") + 5 == first.index("1.2e-07") + 7 == second.index("–") + 1
    assert first.endswith("0.9877 [0.9800, 0.9950]") and second.endswith("2 (untrained)")


def test_lines_alone_are_as_wide_as_the_columns_say():
    columns = (Column("solver", width=8), Column("steps", "d", 6, right=True))
    table = Table(columns)
    assert table.head() == "solver     steps" and table.line(("rk4", 16)) == "rk4           16"
    assert table.line(("rk4", None)) == "rk4            –"


@pytest.mark.parametrize(
    ("spec", "value", "text"),
    [
        ("d", 3, "3"),
        ("d", 3.0, "3"),  # as JSON may have it
        ("d", 2.5, "2.500"),
        (",d", 12345, "12,345"),
        ("+d", 7, "+7"),
        (".2f", 1, "1.00"),
        (".1e", 0.00123, "1.2e-03"),
        ("g", 0.5, "0.5"),
        (".3g", 1234.0, "1.23e+03"),
        ("+.1%", 0.125, "+12.5%"),
        ("+.2%", -0.5, "-50.00%"),
        (".0%", 0.5, "50%"),
        ("+.1%", float("nan"), "–"),
        ("d", None, "–"),
        ("+.1%", "none", "none"),
    ],
)
def test_a_format_says_the_same_after_its_json(spec, value, text):
    """On the page and in Markdown too, of a table that was kept as of one that was just made."""
    table = Table((Column("name"), Column("number", spec, right=True)), [("a", value)])
    again = table_from_json(json.loads(json.dumps(table_to_json(table))))
    assert again is not None and again.columns[1].spec == spec
    for one in (table, again):
        assert one.text().splitlines()[-1].split()[1] == text
        assert text in one.markdown() and text in one.html()


@pytest.mark.parametrize("spec", [".2d", "s", "{x}", ">8.3f", ".3", "", "n", ".100f", "%d"])
def test_other_formats_are_refused_where_made_and_left_out_where_read(spec):
    with pytest.raises(ValueError, match="Column: spec="):
        Column("number", spec)
    saved = {"columns": [{"head": "number", "spec": spec, "right": True}], "rows": [[2.5], [3]]}
    table = table_from_json(saved)
    assert table is not None and table.columns[0].spec is None
    assert [line.strip() for line in table.text().splitlines()[-2:]] == ["2.500", "3"]


def test_markdown_escapes_and_links():
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "| what | error | ours |" and lines[1] == "| --- | ---: | ---: |"
    assert lines[2] == r"| a\|b | 1.2e-07 | 0.9877 \[0.9800, 0.9950\] |"
    assert lines[3] == "| &lt;c&gt; | – | [2](#there) (untrained) |"


def test_html_escapes_links_and_sorts():
    page = TABLE.html()
    assert "&lt;c&gt;" in page and "<c>" not in page and 'aria-label="Errors"' in page
    assert '<a href="#there">2</a>' in page and '<span class="soft small">untrained</span>' in page
    assert 'data-sort="1.25e-07"' in page and 'data-sort="0.98765"' in page and 'class="interval"' in page


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (-1.5, -1.5),
        (Figure(0.5, 0.1, 0.9), 0.5),
        (np.float64(2.5), 2.5),
        ("−1.5", -1.5),  # as printed, with a minus sign
        ("1,234.5", 1234.5),
        ("about 3", None),
        (float("nan"), None),
        (None, None),
        (True, None),
    ],
)
def test_columns_are_sorted_by_numbers(value, key):
    assert sort_key(value) == ("" if key is None else f' data-sort="{key!r}"')


def draw():
    figure = Canvas()
    figure.subplots().plot([1, 2])
    return figure


def example() -> Result:
    row = Row("cosine", Figure(0.9, 0.8, 1.0), (0.9, 0.9), paper="0.93", null=Figure(0.1), null_name="shuffled")
    return Result(
        study="bench",
        title="A bench",
        seeds=(0, 1),
        config={"size": 3},
        rows=(row, Row("lost", None)),
        verdict="alike",
        dataset=xr.Dataset({"x": ("n", np.arange(3.0))}),
        pictures=(Picture("lines.png", "Two points.", draw),),
        seconds=1.5,
    )


def test_a_result_is_kept_whole_and_read_again(tmp_path):
    saved = example().save(tmp_path, "result")
    assert {file.rsplit("/", 1)[1] for file in saved.files} == {"result.json", "result.nc", "lines.png"}
    content = json.loads((tmp_path / "result.json").read_text())
    again = Result.from_json(content)
    assert again.to_json() == content == saved.to_json()
    [first, lost] = again.rows
    assert float(first.ours) == 0.9 and float(first.ours.high) == 1.0 and first.seeds == (0.9, 0.9)
    assert np.isnan(first.null.low) and lost.ours is None
    with xr.open_dataset(tmp_path / "result.nc", engine="scipy") as data:
        assert data.sizes["n"] == 3
    assert (tmp_path / "lines.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"bench has no data here; open result\.nc"):
        again.to_xarray()


def test_a_result_shows_itself():
    text = repr(example())
    for words in ("A bench", "cosine", "0.93", "0.90 [0.80, 1.00]", "0.1000 (shuffled)", "alike", "1.5 s", "seeds 0 1"):
        assert words in text, words
    assert "<table" in example()._repr_html_()


def test_columns_without_any_entry_are_left_out():
    columns = [Column(head) for head in ("a", "b", "c", "d")]
    table = Table(columns, [("x", None, "", Cell(None, small="s")), ("y", Cell(""), 0.0, None)], "t")
    assert [column.head for column in table.filled().columns] == ["a", "c", "d"]
    assert table.filled().rows[1] == ["y", 0.0, None] and table.filled().caption == "t"
