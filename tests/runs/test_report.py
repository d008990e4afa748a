"""The report: whole in itself, every number leads to its JSON, and nothing in a folder of results can break or script it."""

import argparse
import base64
import hashlib
import html.parser
import itertools
import json
import pathlib
import re
import shutil
import urllib.parse

import pytest
from matplotlib.figure import Figure as Canvas

from pdejax import Figure
from pdejax.runs import _format
from pdejax.runs._records import Picture, Result, Row
from pdejax.runs._table import Cell, Column, Table
from pdejax.runs.report import ReportError, _command, build_report
from pdejax.runs.report._build import markdown_page
from pdejax.runs.report._html import html_page
from pdejax.runs.report._read import read_results

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """What the tests ask of a page: its elements in order, with attributes and text, and that tags close as they open."""

    def __init__(self, text: str):
        html.parser.HTMLParser.__init__(self)
        self.elements: list[dict] = []
        self.open: list[dict] = []
        self.feed(text)
        self.close()
        assert not self.open, [element["tag"] for element in self.open]

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", "inside": [e["tag"] for e in self.open], **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open[-1]["tag"] == tag, (tag, self.open[-1])
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag: str) -> list[dict]:
        return [element for element in self.elements if element["tag"] == tag]

    def by_id(self, name: str) -> dict:
        [found] = [element for element in self.elements if element.get("id") == name]
        return found


@pytest.fixture(scope="module")
def page(results):
    return Page(html_page(read_results(results), results))


@pytest.fixture
def copy(results, tmp_path):
    folder = tmp_path / "papers"
    shutil.copytree(results, folder)
    return folder


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    _command.COMMAND.add_arguments(parser)
    return _command.COMMAND(parser.parse_args(arguments))


def change(path: pathlib.Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_nothing_is_loaded_from_elsewhere(results, page):
    for element in page.elements:
        assert element["tag"] not in {"link", "iframe", "object", "embed", "base"}
        assert "src" not in element or element["src"].startswith("data:image/"), element
        if element.get("href", "").startswith("http"):
            assert element["tag"] == "a"
    [style], [script] = page.all("style"), page.all("script")
    assert not re.search(r"url\(|@import|https?:", style["text"])
    assert not re.search(r"import\(|fetch\(|https?:", script["text"])
    [policy] = [e["content"] for e in page.all("meta") if e.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for element in (style, script):
        digest = base64.b64encode(hashlib.sha256(element["text"].encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_figures_are_the_files_and_alternatives_their_captions(results, page):
    images, captions = page.all("img"), page.all("figcaption")
    files = sorted(results.glob("*/states.png"))
    assert len(images) == len(captions) == len(files) == 3
    embedded = [base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in images]
    assert sorted(embedded) == sorted(path.read_bytes() for path in files)
    for image, caption in zip(images, captions, strict=True):
        assert image["alt"] and caption["text"].startswith(image["alt"])
        assert (image["width"], image["height"]) == ("840", "360")


def test_every_number_leads_to_its_json(results, page):
    """Every cell with a digit in a column of numbers is a link; its end holds the number that the file holds."""
    ids = [element["id"] for element in page.elements if "id" in element]
    assert len(ids) == len(set(ids))
    links = [element for element in page.all("a") if element["href"].startswith("#")]
    assert all(element["href"][1:] in ids for element in links)
    numbers = [element for element in links if ".json" in element["href"]]
    studies = [json.loads(path.read_text()) for path in results.glob("*/result.json")]
    shown = sum(
        (row[key] is not None) for study in studies for row in study["table"] for key in ("paper", "ours", "null")
    )
    assert len(numbers) == shown + 6 + 8  # and those of the ledger, and of three findings on the first screen
    for cell in page.all("td"):
        if (
            cell.get("class") == "number"
            and re.search(r"\d", cell["text"])
            and not re.search(r" (s|min|h)$", cell["text"])
        ):
            assert any(link["text"] and link["text"] in cell["text"] for link in numbers), cell
    [first] = [e for e in numbers if e["href"] == "#study-information-flow.json.table.1.ours"]
    [source] = [study for study in studies if study["study"] == "information-flow"]
    target = page.by_id(first["href"][1:])
    assert json.loads(target["text"]) == source["table"][1]["ours"]
    assert "details" in target["inside"]
    assert first["text"] == "0.9200 [0.9180, 0.9220]"


def test_embedded_json_is_the_file(results, page):
    for path in results.glob("*/result.json"):
        shown = page.by_id(f"study-{path.parent.name}.json")
        assert json.loads(shown["text"]) == json.loads(path.read_text())
    ledger = json.loads((results / "claims.json").read_text())
    assert json.loads(page.by_id("claim-c4.json")["text"]) == ledger["results"]["claims"][0]
    files = [urllib.parse.unquote(e["href"]) for e in page.all("a") if e["href"].startswith("./")]
    assert len(files) == 3 * 3 + 2
    assert all((results / name).is_file() for name in files)


def test_the_page_can_be_read_by_all(page):
    levels = [int(element["tag"][1]) for element in page.elements if re.fullmatch("h[1-6]", element["tag"])]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    assert any(element.get("name") == "viewport" for element in page.all("meta"))
    assert all(element.get("scope") in {"col", "row"} for element in page.all("th"))
    assert all(element.get("aria-label") for element in page.elements if element.get("role") == "region")
    listed = [element["href"] for element in page.all("a") if "nav" in element["inside"]]
    articles = [element["id"] for element in page.all("article")]
    assert [f"#{name}" for name in articles] == [name for name in listed if name.startswith(("#study-", "#claim-"))]


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_contrast_is_that_of_wcag_aa(page, mode):
    colours = dict(
        re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", page.all("style")[0]["text"].split("@media (prefers")[mode])
    )
    if mode:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", page.all("style")[0]["text"].split("dark) {")[1]))
    pairs = [(ink, back) for ink in ("text", "soft", "link") for back in ("page", "panel")]
    pairs += [(kind, f"{kind}-panel") for kind in ("good", "part", "bad")] + [("text", "mark")]
    for ink, back in pairs:
        low, high = sorted((luminance(colours[ink]), luminance(colours[back])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, back)


def test_studies_stand_in_the_order_of_their_sources(results):
    assert [study.name for study in read_results(results).studies] == ["information-flow", "gradients", "alignment"]


def test_markdown_has_the_same_numbers(results, page):
    text = markdown_page(read_results(results), results)
    plain = re.sub(r"\\([\\`*_\[\]|~$#!])", r"\1", text)
    for link in page.all("a"):
        if ".json" in link["href"] and link["href"].startswith("#"):
            assert f"[{link['text']}](" in plain, link
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(images) == 3 and all((results / name).is_file() for name in images)
    linked = set(re.findall(r"\]\((\./[^)]+)\)", text))
    assert all((results / urllib.parse.unquote(name)).exists() for name in linked)
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert set(widths) <= {4, 5, 6}
    assert [line.split(" ")[0] for line in text.splitlines() if line.startswith("#")][:3] == ["#", "##", "##"]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((), ""),
        ((1, 1), "Ours is one seed."),
        ((2,), "Ours is the mean [range] over 2 seeds."),
        ((5, 5), "Ours is the mean [95 % interval] over 5 seeds."),
        ((2, 5), "Ours is the mean [range or 95 % interval] over 2 or 5 seeds."),
    ],
)
def test_both_pages_say_what_brackets_are(counts, said, tmp_path):
    rows = tuple(Row(f"q{i}", Figure(0.5, 0.4, 0.6), (0.5,) * count) for i, count in enumerate(counts))
    Result(study="spectral", rows=rows, verdict="So.").save(tmp_path)
    found = read_results(tmp_path)
    plain = markdown_page(found, tmp_path).replace("\\", "")
    assert (said in plain and said in html_page(found, tmp_path)) if said else "Ours is" not in plain


HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(1)"> & | `x` [a](javascript:alert(1)) \u0007'


def test_text_cannot_script_the_page(copy):
    path = copy / "alignment" / "result.json"

    def edit(content):
        for key in ("title", "question", "verdict", "source", "preset", "pairing", "config_hash"):
            content[key] = HOSTILE
        content["config"] = {HOSTILE: HOSTILE}
        content["seeds"] = [HOSTILE]
        content["environment"] = {"device": HOSTILE, "versions": {"jax": HOSTILE}}
        content["figures"][0]["caption"] = HOSTILE
        for key in ("quantity", "unit", "paper", "null_name", "note"):
            content["table"][0][key] = HOSTILE

    change(path, edit)

    def hostile(content):
        claims = content["results"]["claims"]
        claims.append(dict.fromkeys(claims[0], HOSTILE))

    change(copy / "claims.json", hostile)
    shutil.copytree(copy / "gradients", copy / '"><script>alert(1)<')
    found = read_results(copy)
    page = Page(html_page(found, copy))
    assert len(page.all("script")) == 1
    assert not any(key.startswith("on") for element in page.elements for key in element)
    assert all(element["src"].startswith("data:image/png;base64,") for element in page.all("img"))
    assert not any(element["href"].lower().startswith("javascript") for element in page.all("a"))
    text = markdown_page(found, copy)
    assert "<script" not in text and "<img" not in text
    assert not re.search(r"(?<!\\)\[a(?<!\\)\]\(javascript", text)
    assert HOSTILE[:20] in page.by_id("study-alignment.json")["text"]


def damage_nothing_there(folder):
    (folder / "result.json").unlink()


def damage_cut_short(folder):
    content = (folder / "result.json").read_bytes()
    (folder / "result.json").write_bytes(content[: len(content) // 2])


def damage_no_text(folder):
    (folder / "result.json").write_bytes(b"\xff\xfe\x00")


def damage_another_type(folder):
    (folder / "result.json").write_text("[1, 2, 3]")


def damage_every_type(folder):
    keys = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(dict.fromkeys(keys, 7)))


def damage_rows(folder):
    def edit(content):
        content["table"] += [None, 3, {}, {"quantity": "q", "ours": {"mean": None, "values": [None, "x", 10**400]}}]

    change(folder / "result.json", edit)


def damage_figure_gone(folder):
    (folder / "states.png").unlink()


def damage_figure_outside(folder):
    (folder.parent / "secret.png").write_bytes(b"secret")
    change(folder / "result.json", lambda content: content["figures"].append({"file": "../secret.png", "caption": "c"}))


def damage_link_outside(folder):
    (folder.parent / "secret.png").write_bytes(b"secret")
    (folder / "states.png").unlink()
    (folder / "states.png").symlink_to(folder.parent / "secret.png")


def damage_data_gone(folder):
    (folder / "result.nc").unlink()


def damage_nested(folder):
    (folder / "result.json").write_text('{"config": ' + '{"a": ' * 400 + "1" + "}" * 401)


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__.removeprefix("damage_"))
def test_a_damaged_study_is_shown_as_such(copy, damage, capsys):
    damage(copy / "alignment")
    built = build_report(copy)
    assert built.studies == 3
    assert any(problem.startswith("alignment: ") for problem in built.problems)
    page = Page(built.html.read_text())
    shown = page.by_id("study-alignment")["text"]
    assert "Incomplete:" in shown
    assert base64.b64encode(b"secret").decode() not in "".join(image["src"] for image in page.all("img"))
    assert built.problems[0].split(": ", 1)[1].replace("`", "") in shown
    assert "Incomplete: " in built.markdown.read_text()
    assert command(str(copy)) == 1
    assert "alignment: " in capsys.readouterr().err


def test_a_damaged_ledger_is_shown_as_such(copy):
    (copy / "claims.json").write_text("{")
    built = build_report(copy)
    assert built.claims == 0 and "pdejax claims --out" in built.problems[0]
    assert "claims.json is damaged" in built.html.read_text()
    assert built.studies == 3


def test_a_counterexample_that_is_not_there_is_said(copy):
    (copy / "counterexamples" / "C4.npz").unlink()
    assert any("C4.npz" in problem for problem in build_report(copy).problems)


def test_the_ledger_may_lie_in_a_folder_of_its_own(copy):
    (copy / "claims").mkdir()
    (copy / "claims.json").rename(copy / "claims" / "claims.json")
    (copy / "counterexamples").rename(copy / "claims" / "counterexamples")
    built = build_report(copy)
    assert built.claims == 3 and built.studies == 3 and not built.problems
    assert './claims/counterexamples/C4.npz"' in built.html.read_text()


def test_claims_alone_make_a_report(copy):
    for name in ("alignment", "gradients", "information-flow"):
        shutil.rmtree(copy / name)
    assert build_report(copy).studies == 0


def test_without_results_the_message_says_what_to_run(tmp_path):
    with pytest.raises(ReportError, match=r"holds no results\. Run `pdejax reproduce --out"):
        build_report(tmp_path)
    with pytest.raises(ReportError, match="does not exist"):
        build_report(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ReportError, match="is a file"):
        build_report(file)
    with pytest.raises(TypeError, match="folder=3 must be a path"):
        build_report(3)


def kept(folder: pathlib.Path, name: str, stem: str | None = None, **changes) -> Result:
    """A result as a study leaves it: a table with figures and gaps, answers and notes, without the papers' rows."""
    table = Table(
        (
            Column("solver"),
            Column("order", ".3f", right=True),
            Column("evals", "d", right=True),
            Column("of", right=True),
        ),
        [("euler", 1.004, 64, Figure(0.5, 0.4, 0.6)), ("<rk4>", None, 256, Cell(2.0, small="null"))],
        "Orders",
    )
    result = Result(
        study=name,
        title=f"The study {name}",
        config={"seed": 0},
        environment={"device": "cpu"},
        verdict="as it should be",
        verdicts={"order euler": "as expected: order 1.00 for 1"},
        tables=(table,),
        notes=("reference  Dopri8",),
        pictures=(Picture("curve.png", "Error against step size.", lambda: Canvas(figsize=(2, 2))),),
        **changes,
    )
    return result.save(folder, stem)


@pytest.mark.parametrize(
    ("places", "stems"),
    [
        ([".", "."], ["convergence", "stiff"]),
        (["analysis", "training"], ["analysis", "result"]),
        (["convergence", "."], ["result", "convergence"]),
    ],
)
def test_any_folder_of_results_makes_a_report(places, stems, tmp_path):
    """In the folder or in folders in it, whatever the files are called; parts and checkpoints beside them are no results."""
    for place, stem in zip(places, stems, strict=True):
        (tmp_path / place).mkdir(exist_ok=True)
        kept(tmp_path / place, stem, stem)
        for other in ("parts", "checkpoints", "figures"):
            (tmp_path / place / other).mkdir(exist_ok=True)
        (tmp_path / place / "run.json").write_text('{"config": {}}')
    built = build_report(tmp_path)
    assert built.studies == 2 and built.problems == ()
    page = Page(built.html.read_text())
    links = [e for e in page.all("a") if ".json.tables." in e["href"]]
    assert [e["text"] for e in links] == 2 * ["1.004", "64", "0.50 [0.40, 0.60]", "256", "2"]
    assert json.loads(page.by_id(links[0]["href"][1:])["text"]) == 1.004
    text = built.markdown.read_text()
    for word in ("Orders", "order euler", "as expected: order 1.00", "Dopri8", "Error against step size"):
        assert word in text and word in page.by_id("main")["text"], word
    assert len(page.all("img")) == 2


def test_one_result_half_written_is_said(tmp_path):
    kept(tmp_path, "stiff")
    kept(tmp_path, "convergence")
    content = (tmp_path / "convergence.json").read_bytes()
    (tmp_path / "convergence.json").write_bytes(content[:50])
    advice = f"the command that was given --out {tmp_path} makes it again."
    [problem] = build_report(tmp_path).problems
    assert problem == f"convergence: convergence.json is damaged (JSONDecodeError); {advice}"


@pytest.mark.parametrize(
    "tables",
    [7, [7], [{}], [{"columns": [3], "rows": [[1, 2], 4, [HOSTILE]]}], [{"columns": [{"spec": "{x}"}], "rows": [[2]]}]],
)
def test_tables_that_are_none_are_left_out(tables, tmp_path):
    kept(tmp_path, "stiff")
    change(tmp_path / "stiff.json", lambda content: content.update(tables=tables))
    built = build_report(tmp_path)
    assert len(Page(built.html.read_text()).all("script")) == 1 and built.studies == 1


def test_tables_come_back_from_their_json(tmp_path):
    result = kept(tmp_path, "stiff")
    [table] = Result.from_json(json.loads((tmp_path / "stiff.json").read_text())).tables
    assert table.text() == result.tables[0].text()


def test_the_command_writes_both_pages(copy, tmp_path, capsys):
    assert command(str(copy)) == 0
    said = capsys.readouterr().out
    assert str(copy / "report.html") in said and str(copy / "report.md") in said
    first = (copy / "report.html").read_bytes()
    assert command(str(copy), "--quiet") == 0
    assert capsys.readouterr().out == ""
    assert (copy / "report.html").read_bytes() == first
    elsewhere = tmp_path / "deep" / "er" / "page.html"
    assert command(str(copy), "--out", str(elsewhere)) == 0
    for name in re.findall(r"\]\((\.[^)]+)\)", elsewhere.with_suffix(".md").read_text()):
        assert (elsewhere.parent / name).exists(), name
    with pytest.raises(ReportError, match=r"must end in \.html"):
        build_report(copy, tmp_path / "page.txt")


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (None, "–"),
        (Figure(float("nan")), "–"),
        (Figure(0.0), "0"),
        (Figure(12345.0), "12345"),
        (Figure(0.98765), "0.9877"),
        (Figure(1.23456e-7), "1.235e-7"),
        (Figure(0.98765, 0.98, 0.995), "0.9877 [0.9800, 0.9950]"),
        (Figure(-0.01, -0.02, -1e-19), "-0.010 [-0.020, 0.000]"),
        (Figure(1.5e-7, 1.1e-7, 1.9e-7), "1.50e-7 [1.10e-7, 1.90e-7]"),
        (Figure(1.5e7, -1.1e7, 4.1e7), "1.5e7 [-1.1e7, 4.1e7]"),
        (Figure(3.0, 3.0, 3.0), "3 [3, 3]"),
        (Figure(1.5e-310, 1.0e-310, 2.0e-310), "1.50e-310 [1.00e-310, 2.00e-310]"),
        (Figure(250.0, 100.0, 400.0), "250 [100, 400]"),
        ("2 of 3", "2 of 3"),
    ],
)
def test_numbers_have_the_digits_their_intervals_allow(figure, text):
    assert _format.shown(figure) == text


def test_anchors_stay_apart_whatever_studies_are_called(copy):
    for name in ("a", "a-json", "a.json", "a.json.table.0.ours", "A", "ä", "summary"):
        shutil.copytree(copy / "alignment", copy / name)
    page = Page(html_page(read_results(copy), copy))
    ids = [element["id"] for element in page.elements if "id" in element]
    assert len(ids) == len(set(ids))
    assert all(element["href"][1:] in ids for element in page.all("a") if element["href"].startswith("#"))
