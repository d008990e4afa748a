"""How much of the kept results' page stands open before anything is unfolded: told from its HTML, without a browser."""

import html.parser
import pathlib
import re

import pytest

from pdejax.runs.report import build_report

STORED = pathlib.Path(__file__).parents[2] / "benchmarks" / "results" / "reproduce"


class Open(html.parser.HTMLParser):
    """Counts of what is in an article and in no fold; verdicts and captions are cut by the style, other text is shown."""

    def __init__(self):
        super().__init__()
        self.folds, self.articles, self.verdict, self.caption = 0, [], False, False

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "article":
            self.articles.append({"pictures": 0, "rows": 0, "characters": 0, "boxes": 0})
        self.folds += tag == "details"
        self.verdict |= given.get("class") == "verdict"
        self.caption |= tag in ("figcaption", "svg")
        if self.articles and not self.folds:
            self.articles[-1]["pictures"] += tag in ("img", "svg")
            self.articles[-1]["rows"] += tag == "tr"
            self.articles[-1]["boxes"] += tag == "input" and given.get("type") == "checkbox"

    def handle_endtag(self, tag):
        self.folds -= tag == "details"
        self.verdict &= tag != "p"
        self.caption &= tag not in ("figcaption", "svg")

    def handle_data(self, data):
        if self.articles and not (self.folds or self.verdict or self.caption):
            self.articles[-1]["characters"] += len(data.strip())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return build_report(STORED, tmp_path_factory.mktemp("length") / "report.html").html.read_text()


def test_what_stands_open_of_a_study_is_two_pictures_and_a_few_lines(page):
    found = Open()
    found.feed(page.replace("</article>", "</article><article>"))
    studies = [one for one in found.articles if one["boxes"]]
    assert len(studies) == len(list(STORED.glob("*/result.json"))) and all(one["boxes"] == 1 for one in studies)
    for one in studies:
        assert one["pictures"] <= 2 and one["rows"] == 0, one
        # Heading, question, source, pairing, the names of folds: some five lines of a desktop, ten of a phone.
        assert one["characters"] <= 480, one


def test_until_it_is_ticked_verdicts_are_cut_and_a_phone_shows_no_pictures(page):
    style = re.sub(r"\s+", " ", page[page.index("<style>") : page.index("</style>")])
    phone = style[style.index("@media (max-width: 40rem)") : style.index("@media print")]
    assert "input.more:not(:checked) ~ .pictures { display: none; }" in phone
    assert re.search(r"input\.more:not\(:checked\) ~ \.verdict \{[^}]*-webkit-line-clamp: 6", phone)
    assert re.search(
        r"input\.more:not\(:checked\) ~ \.verdict \{[^}]*-webkit-line-clamp: 4;[^}]*overflow: hidden", style
    )
    # Boxes are before what they show, and on paper all is shown.
    assert all(
        part.index('class="more"') < part.index('class="verdict"') < part.index('class="pictures"')
        for part in page.split("<article ")[1:]
    )
    assert "input.more:not(:checked) ~ .pictures { display: grid; }" in style[style.index("@media print") :]
