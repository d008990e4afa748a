"""The report in a real browser, at the width of a desktop and of a phone: drawn, nothing wider than the screen, and sortable."""

import html
import io
import json
import os
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from pdejax.runs.report import build_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = os.environ.get("PDEJAX_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
STORED = pathlib.Path(__file__).parents[2] / "benchmarks" / "results" / "reproduce"
WIDTHS = {"desktop": 1280, "phone": 390}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH; install one or set PDEJAX_CHROMIUM"),
]


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser") / "papers"
    shutil.copytree(results, folder)
    (folder / "stopped").mkdir()
    return build_report(folder).html


def chromium(page, *options: str, width: int = 1280, height: int = 900, fragment: str = "") -> str:
    """What the browser prints. The page has no network: nothing could be loaded even if it asked."""
    result = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--disable-gpu",
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={page.parent / 'profile'}",
            f"--window-size={width},{height}",
            *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
            *options,
            page.as_uri() + fragment,
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def asked(page, code: str, width: int = 1280) -> dict:
    """The JSON value of `code` in a copy of the page, from which the policy that forbids foreign scripts is taken out.

    In a frame, because a browser's window has a least width, of 500 pixels, which is more than a phone's.
    """
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    probe = f"<script>parent.postMessage(JSON.stringify((() => {{ {code} }})()), '*')</script></body>"
    page.with_name("probe.html").write_text(text.replace("</body>", probe))
    frame = page.with_name("frame.html")
    frame.write_text(
        "<!DOCTYPE html><title></title><script>addEventListener('message', (found) => { document.title = found.data; })"
        f'</script><iframe src="probe.html" width="{width}" height="900" style="border: 0"></iframe>'
    )
    dumped = chromium(frame, "--dump-dom", "--virtual-time-budget=5000", width=1400)
    [answer] = re.findall(r"<title>(.+?)</title>", dumped)
    return json.loads(html.unescape(answer))


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_page_is_drawn(page, width, tmp_path):
    """All of it: with what is a tick away."""
    shot, ticked = tmp_path / "shot.png", page.with_name("ticked.html")
    ticked.write_text(page.read_text().replace('<input type="checkbox"', '<input type="checkbox" checked'))
    chromium(ticked, f"--screenshot={shot}", width=width, height=2400)
    with Image.open(io.BytesIO(shot.read_bytes())) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (2400, width, 3)
    # Text, panels and a heat map: many colours, in every fifth of the height, blue and red among them.
    for band in np.array_split(pixels, 5):
        assert len(np.unique(band.reshape(-1, 3), axis=0)) > 50
        assert np.mean(np.any(band != band[0, 0], axis=2)) > 0.02
    red, blue = pixels[..., 0] - pixels[..., 2] > 100, pixels[..., 2] - pixels[..., 0] > 60
    assert red.sum() > 500 and blue.sum() > 500


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_nothing_is_wider_than_the_screen(page, width):
    found = asked(
        page,
        """
        document.querySelectorAll("details").forEach((node) => { node.open = true; });
        const root = document.documentElement;
        const wide = [...document.querySelectorAll("body *")].filter((node) =>
          !node.closest(".table, .image, pre, .skip") && node.getBoundingClientRect().right > innerWidth + 0.5);
        const figures = [...document.images].map((node) => [node.complete, node.naturalWidth]);
        const heights = [...document.querySelectorAll("figcaption")].map((node) => parseFloat(getComputedStyle(node).fontSize));
        return { inner: innerWidth, scroll: root.scrollWidth, wide: wide.map((node) => node.tagName), figures, heights };
        """,
        width,
    )
    assert found["inner"] == width
    assert found["scroll"] <= width and not found["wide"]
    assert found["figures"] == [[True, 840]] * 3
    assert min(found["heights"]) >= 14


@pytest.mark.parametrize(("width", "screens"), [(1280, 12), (390, 12)], ids=WIDTHS)
def test_the_papers_results_are_some_ten_screens(width, screens, tmp_path):
    """Of 900 pixels, for 17 studies, before anything is unfolded; the findings are on the first."""
    page = build_report(STORED, tmp_path / "report.html").html
    found = asked(
        page,
        """
        const findings = document.querySelector('[aria-label="Findings"]');
        return { all: document.documentElement.scrollHeight, first: findings.getBoundingClientRect().bottom };
        """,
        width,
    )
    assert found["all"] <= 900 * screens
    assert width < 1000 or found["first"] <= 900


def test_a_tick_shows_the_whole_verdict_and_the_pictures(page):
    """Of each study by itself; the box needs no script."""
    found = asked(
        page,
        """
        const article = document.querySelector("#study-information-flow");
        const height = (name) => [...article.querySelectorAll(name)].map((node) => node.getBoundingClientRect().height);
        article.querySelector(".verdict").append(" more words".repeat(200));
        const before = { verdict: height(".verdict")[0], pictures: height(".pictures")[0] };
        article.querySelector("label.more").click();
        return { before, after: { verdict: height(".verdict")[0], pictures: height(".pictures")[0] } };
        """,
        390,
    )
    assert found["before"]["verdict"] < 200 < 600 < found["after"]["verdict"]
    assert found["before"]["pictures"] == 0 and found["after"]["pictures"] > 50


def test_findings_are_whole_on_a_phone(page):
    """Paper, ours and null below one another, nothing to scroll for."""
    found = asked(
        page,
        """
        const table = document.querySelector('[aria-label="Findings"]');
        const cells = [...table.querySelectorAll("tbody td")];
        const words = cells.map((cell) => getComputedStyle(cell, "::before").content);
        return { inside: table.scrollWidth <= table.clientWidth, words, texts: cells.map((cell) => cell.textContent) };
        """,
        390,
    )
    assert found["inside"] and found["words"][:4] == ["none", '"Paper "', '"Ours "', '"Null "'] and found["texts"][2]


def test_the_script_may_run_and_opens_the_json_of_a_number(page):
    dumped = chromium(page, "--dump-dom", fragment="#study-information-flow.json.table.1.ours")
    assert '<html lang="en" class="js">' in dumped  # so the digest in the policy is right
    opened = [part for part in dumped.split("<details")[1:] if part.startswith(' open=""')]
    assert any('id="study-information-flow.json.table.1.ours"' in part for part in opened)
    assert not any('id="study-alignment.json.table' in part for part in opened)


def test_columns_sort_by_their_numbers(page):
    found = asked(
        page,
        """
        const table = document.querySelector("#study-information-flow table");
        const column = (place) => [...table.tBodies[0].rows].map((row) => row.cells[place].textContent);
        const click = (place) => { table.tHead.rows[0].cells[place].querySelector("button").click(); return column(place); };
        const answer = { up: click(1), down: click(1), ours: click(2), text: click(0) };
        answer.sort = [...table.tHead.rows[0].cells].map((head) => head.getAttribute("aria-sort"));
        const notes = document.querySelector("#study-gradients table");
        notes.tHead.rows[0].cells[3].querySelector("button").click();
        answer.empty = [...notes.tBodies[0].rows].map((row) => row.cells[3].textContent);
        return answer;
        """,
    )
    assert found["up"] == ["−0.0747", "0.9211", "0.9463", "0.9503", "0.9567"]
    assert found["down"] == found["up"][::-1]
    assert [text[:4] for text in found["ours"]] == ["0.91", "0.92", "0.93", "0.94", "0.95"]
    assert found["sort"] == ["ascending", None, None, None]
    assert found["empty"] == ["1.250e-9untrained", "–"]
