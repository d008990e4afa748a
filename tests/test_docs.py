"""The documentation: links lead somewhere, every public name, command and example is in it, what is run is run, and it builds."""

import argparse
import functools
import importlib
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types
import unicodedata

import pytest

from pdejax import cli
from pdejax.solvers import SOLVERS

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
_spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
hooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hooks)

WRITTEN = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
WIDTH = 88  # of the column of code


@functools.cache
def pages() -> dict[str, str]:
    """Every page, written or made: address -> Markdown."""
    return hooks.generated() | {address: (DOCS / address).read_text() for address in WRITTEN}


@functools.cache
def prose(address: str) -> str:
    """A page as mkdocs sees it, without its code; names in backticks stay."""
    text = pages()[address]
    if address in hooks.DOCUMENTS:
        text = hooks._links_of_the_repository(text)
    return re.sub(r"^ *```.*?^ *```", "", hooks.expand(text, address), flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


def links(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http://", "https://"))]


def test_links_lead_somewhere():
    wrong = []
    made = hooks.results
    pictures = {*hooks.PICTURES, *made.reproduced_images(), *made.audit_images(), *made.loop_images()}
    for address in pages():
        for link in links(prose(address)):
            path, _, anchor = link.partition("#")
            target = os.path.normpath(os.path.join(os.path.dirname(address), path)) if path else address
            if target.startswith("files/"):
                file = target.removeprefix("files/")
                if file not in pictures or not (ROOT / file).is_file():
                    wrong.append((address, link))
            elif target not in pages() or (anchor and anchor not in anchors(prose(target))):
                wrong.append((address, link))
    assert not wrong


def test_links_of_the_repository_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for link in links((ROOT / name).read_text()):
            path, _, anchor = link.partition("#")
            assert not path or (ROOT / path).exists(), (name, link)
            assert not anchor or anchor in anchors((ROOT / (path or name)).read_text()), (name, link)


def test_references_by_name_are_names():
    wrong = []
    sources = [*DOCS.rglob("*.md"), *(ROOT / "pdejax").rglob("*.py"), *(ROOT / "solvers").rglob("*.py")]
    names = {name: path for path in sources for name in re.findall(r"\]\[(pdejax(?:\.\w+)*)\]", path.read_text())}
    assert len(names) > 20
    for name, path in sorted(names.items()):
        try:
            resolve(name)
        except AttributeError:
            wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong


def resolve(name: str):
    """The thing of this name; `AttributeError` if there is none."""
    found, parts = importlib.import_module("pdejax"), name.split(".")
    for place, part in enumerate(parts[1:], start=2):
        if hooks.reference._is_package(".".join(parts[:place])):
            found = importlib.import_module(".".join(parts[:place]))
        else:
            found = getattr(found, part)
    return found


def names_of_pages(markdown: str) -> set[str]:
    """What pages call `pj.name`, `pj.package.name`, or import from pdejax."""
    found = {f"pdejax.{name}" for name in re.findall(r"\bpj\.([A-Za-z][\w.]*)\b", markdown)}
    found |= set(re.findall(r"(?<!\w)`(pdejax(?:\.[A-Za-z]\w*)+)`", markdown))
    for package, names in re.findall(
        r"^from (pdejax[\w.]*) import (?:\(([^)]*)\)|(?:[^\n(]*))", markdown, re.MULTILINE
    ):
        found |= {f"{package}.{name.strip()}" for name in names.split(",") if name.strip()}
    return found


@pytest.mark.parametrize("address", [*WRITTEN, "README.md"])
def test_names_on_pages_are_names(address):
    text = (ROOT / address if address == "README.md" else DOCS / address).read_text()
    for name in names_of_pages(text):
        resolve(name)


# What is run.


def test_every_example_is_a_tutorial():
    examples = hooks.tutorials.examples()
    assert len(examples) >= 9
    for path in examples:
        title, text, cells = hooks.tutorials.parts(path)
        page = pages()[f"tutorials/{path.stem}.md"]
        assert page.startswith(f"# {title}\n") and len(title) < 50 and text
        assert f"[{title}]({path.stem}.md)" in pages()["tutorials/index.md"]
        assert len(cells) >= 2, path.name
        for words, code in cells:
            assert f"```python\n{code}\n```" in page and words, (path.name, code[:50])
            compile(code, path.name, "exec")
        source = path.read_text().split('"""', 2)[2]
        for line in source.splitlines():  # nothing is lost between the cells
            assert line.strip("# %") in page.replace("\n", " ") or line.strip() in page, (path.name, line)


def test_code_is_no_wider_than_its_column():
    wide = []
    for address in (*WRITTEN, *(page for page in pages() if page.startswith(("tutorials/", "commands/")))):
        for block in re.findall(r"^ *```(?:python|sh)[^\n]*\n(.*?)^ *```", pages()[address], re.DOTALL | re.MULTILINE):
            wide += [(address, line) for line in block.splitlines() if len(line) > WIDTH]
    assert not wide


def test_code_of_pages_is_run_but_for_what_needs_more_than_this_machine():
    shown = [address for address in WRITTEN for _ in re.findall(r"^```python\n", pages()[address], re.MULTILINE)]
    run = [address for address in WRITTEN for _ in hooks.cells.cells_of(pages()[address])]
    assert len(run) >= 15 and len(shown) <= len(run) / 3, shown
    for address, cells in hooks.programs().items():
        for cell in cells:
            compile(cell, address, "exec")


def test_cells_share_a_namespace_and_leave_what_they_print_and_draw(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks.cells, "CACHE", tmp_path / "cache")
    code = [
        "import sys\nprint('one')\nx = 1",
        "import matplotlib.pyplot as plt\nplt.plot([x, 2])",
        "print(x + 1, sys.argv[1:])\nopen('third.png', 'wb').write(b'PNG')",
    ]
    first, second, third = hooks.cells.run("a page.md", code)
    assert first == {"text": "one\n", "pictures": []}
    assert second["text"] == "" and [path.name for path in second["pictures"]] == ["figure-2-1.png"]
    assert second["pictures"][0].read_bytes().startswith(b"\x89PNG")
    assert third["text"] == "2 ['--out', 'out']\n" and [path.name for path in third["pictures"]] == ["third.png"]

    def never(*args, **kwargs):
        raise AssertionError("run twice")

    monkeypatch.setattr(hooks.cells.subprocess, "run", never)
    assert hooks.cells.run("a page.md", code)[2] == third  # kept by content
    with pytest.raises(AssertionError, match="run twice"):
        hooks.cells.run("a page.md", [*code, "pass"])
    with pytest.raises(AssertionError, match="run twice"):
        hooks.cells.run("a page.md", code, library="another")


def test_programs_compile_as_the_tests_do():
    """So that each reads the programs that the other has compiled."""
    assert set(hooks.cells._ENVIRONMENT["XLA_FLAGS"].split()) <= set(os.environ["XLA_FLAGS"].split())


def test_a_program_that_fails_stops_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks.cells, "CACHE", tmp_path)
    with pytest.raises(RuntimeError, match=r"page\.md does not run(.|\n)*cell 2(.|\n)*no such thing"):
        hooks.cells.run("page.md", ["x = 1", "raise ValueError('no such thing')"])
    assert not list(tmp_path.iterdir())  # nothing is kept of it


def test_output_follows_its_code():
    found = {"text": "1.5\n", "pictures": [pathlib.Path("cache/prog-1/out/a.png"), pathlib.Path("cache/prog-1/b.png")]}
    text = hooks._output(found, "howto/x.md")
    assert text.startswith("```{.text .output}\n1.5\n```\n")
    assert "(../files/run/prog-1/a.png)" in text and "(../files/run/prog-1/b.png)" in text
    hooks._outputs["index.md"] = [{"text": f"output {i}\n", "pictures": []} for i in range(3)]
    try:
        page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="index.md"))
        made = hooks.on_page_markdown("```python run\na\n```\n\n```python run\nb\n```\n", page, None, None)
    finally:
        hooks._outputs.clear()
    assert re.sub(r"\s+", " ", made) == (
        "```python a ``` ```{.text .output} output 0 ``` ```python b ``` ```{.text .output} output 1 ``` "
    )


@pytest.mark.slow
@pytest.mark.parametrize("address", sorted(hooks.programs()))
def test_programs_run(address):
    """Each once for the tests and the site together: what it leaves is kept by content, and the site shows it."""
    outputs = hooks.cells.run(address, hooks.programs()[address], hooks.cells._library())
    assert len(outputs) == len(hooks.programs()[address])
    pictures = [picture for cell in outputs for picture in cell["pictures"]]
    if address.startswith("tutorials/"):
        assert pictures and max(picture.stat().st_size for picture in pictures) > 10_000
        assert any(cell["text"] for cell in outputs)
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")


# What is made from the library.


def test_every_package_has_a_page():
    packages = set(hooks.reference.packages())
    assert {"pdejax", "pdejax.solvers", "pdejax.analysis", "pdejax.terms"} <= packages and len(packages) > 10
    for package in packages:
        page = pages()[hooks.reference.address(package)]
        assert page.startswith(f"# {package}\n") and len(page) > 60 + len(package)


@pytest.mark.parametrize("package", hooks.reference.packages())
def test_every_public_name_is_in_the_reference(package):
    module = importlib.import_module(package)
    public = {
        name
        for name, value in ((name, getattr(module, name)) for name in dir(module))
        if not name.startswith("_")
        and name not in {"TYPE_CHECKING", "annotations", "Any"}
        and not isinstance(value, types.ModuleType)
    }
    found = hooks.reference.exports(package)
    text = hooks.reference.reference(package)
    assert public - set(found) == set()
    for name, owner in found.items():
        if hooks.reference._is_package(f"{package}.{name}"):
            assert f"{package}.{name}" in hooks.reference.packages()
        elif not owner.startswith("pdejax"):
            assert f"`{name}`" in text
        else:
            assert f"::: {package}.{name}\n" in text or f"{{#{package}.{name}}}" in text, name


def test_every_page_is_in_the_navigation():
    config = types.SimpleNamespace(nav=navigation(), repo_url="https://example.org/pdejax", edit_uri="edit/main/docs/")
    listed = re.findall(r"[\w/.-]+\.md", json.dumps(hooks.on_config(config).nav))
    assert sorted(listed) == sorted(pages())
    assert config.repo_url == "https://example.org/pdejax" and config.edit_uri


def navigation() -> list:
    """The navigation that is written in mkdocs.yml."""
    text = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1].split("\n\n")[0]
    found: list = []
    for line in text.splitlines():
        entry = line.strip().removeprefix("- ")
        name, page = entry.rsplit(": ", 1) if entry.endswith(".md") else (entry.rstrip(":"), [])
        if line.startswith("      "):
            next(iter(found[-1].values())).append({name.strip('"'): page})
        else:
            found.append({name: page})
    return found


def test_the_address_of_the_clone(monkeypatch):
    for given, address in (
        ("git@github.com:someone/pdejax.git", "https://github.com/someone/pdejax"),
        ("https://example.org/pdejax.git", "https://example.org/pdejax"),
        ("/a/folder", ""),
        ("", ""),
    ):
        monkeypatch.setattr(
            hooks.subprocess, "run", lambda *a, given=given, **k: types.SimpleNamespace(stdout=f"{given}\n")
        )
        assert hooks.origin() == address


def test_every_command_has_a_page_with_all_its_options():
    made = cli.parser()
    [below] = [action.choices for action in made._actions if isinstance(action, argparse._SubParsersAction)]
    assert list(below) == [name for name, *_ in cli.COMMANDS]
    for name, parser in below.items():
        page = pages()[f"commands/{name}.md"]
        assert f"[`pdejax {name}`]({name}.md)" in pages()["commands/index.md"]
        assert re.search(r"^```sh\n(#[^\n]*\n)?pdejax ", page, re.MULTILINE), name
        for action in parser._actions:
            for option in action.option_strings[-1:]:
                assert option == "--help" or f"`{option}`" in page, (name, option)
            for choice in action.choices or ():
                assert f"`{choice}`" in page, (name, choice)
    assert "--print-completion zsh" in pages()["commands/index.md"]


def test_the_table_of_solvers_is_the_librarys():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in hooks.tables.solvers().splitlines()[2:]]
    listed = {row[0].strip("`"): row for row in rows}
    assert list(listed) == list(SOLVERS)
    assert listed["rk4"][1:5] == ["4", "", "2.785", "4"] and listed["euler"][3] == "2.000"
    assert listed["tsit5"][1:5] == ["5", "yes", "3.507", "6"]
    assert listed["kvaerno5"][3:5] == ["∞", "–"] and listed["macaron"][4] == "1.5" and listed["lietrotter"][4] == "1"


@pytest.mark.parametrize("name", sorted(hooks.MADE.keys() - {"audit findings", "step"}))
def test_tables_are_made_from_what_is_kept(name):
    text = hooks.MADE[name]()
    rows = [line for line in text.splitlines() if line.lstrip().startswith("|")]
    assert len(rows) >= {"starts": 4, "on_devices": 5}.get(name, 6)
    assert "nan" not in text.lower().split() and "None" not in text
    for _, table in group(rows):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def group(rows: list[str]) -> list[tuple[str, list[str]]]:
    """Rows by the table they are of: each starts before a line of dashes."""
    found: list[tuple[str, list[str]]] = []
    for row, after in zip(rows, [*rows[1:], ""], strict=True):
        if re.fullmatch(r"\s*\|(---\|| ---:? \|)+", after):
            found.append((row, []))
        found[-1][1].append(row)
    return found


def test_numbers_of_the_tables():
    """A few, as they are in the files that the commands wrote."""
    assert "| `rk4` | 4 | 4.000 ± 0.005 | 9.0e-11 | 60 |" in hooks.tables.convergence()
    assert "| softmax attention | 3,072 | 9 | 120 | 1,056 | 0 | 31 |" in hooks.tables.stability()
    assert re.search(r"\| `etdrk4` \| 5, .*\| 17, 0.11 s \|", hooks.tables.stiff())
    assert "**97.2 %**" in hooks.tables.training() and "majority class 8.3 %" in hooks.tables.training()
    assert re.search(r"\| Gaussian d=1 ρ=0.9 \| 0.830 \| \+0.031 ± 0.025 \|", hooks.tables.calibration())
    text = hooks.tables.long_sequences()
    assert "On two devices or more the gradient's memory is 2.9 MB + 7.57 kB" in text
    for kind, beside in stored("long_sequences.json")["compared"].items():
        assert f"the {kind} of 100,000 tokens (d = 8, 1 head) on 8 devices" in text
        assert 0 < beside["relative_difference"] < 8 * 2**-23  # of float32
    kept = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text())["results"]
    speed = hooks.tables.speed()
    for case in ("euler 24", "rk4 24", "dopri5 1e-5"):  # what is slower is said, too
        for way in ("forward", "gradient"):
            ratio = kept["torch"][case][way]
            assert (
                f"torch: {case} | torchdiffeq / pdejax, {way} | {ratio['min']:.2f} | {ratio['median']:.2f} |" in speed
            )
    assert "PyTorch / pdejax | 0.93 |" in speed and "16.2 | 32.0" in hooks.tables.memory()
    assert "| 48.0 | 23.2 | 0.48 |" in hooks.tables.starts()
    assert re.search(r"linear_cka \| 4.8 ms \| 29.4 ms \| 6.16", hooks.tables.analysis_speed())


def stored(file: str):
    return json.loads((ROOT / "benchmarks" / "results" / file).read_text())


def test_numbers_in_sentences_are_in_the_files():
    """Those of the page of measurements that no table has."""
    page = (ROOT / "docs" / "results" / "measured.md").read_text()
    analysis = stored("analysis.json")
    jacobian, memory = analysis["dynamics"]["jacobian"], analysis["memory"].values()
    ratios = [one["ratio"] for one in memory]
    assert f"take {analysis['dynamics']['lyapunov']['ratio_median']:.1f} forward solves" in page
    assert f"Jacobian of {jacobian['entries']:,} entries take {jacobian['seconds']:.1f} s" in page
    assert (
        f"of {max(one['trajectory'] for one in memory) / 2**20:.0f} MiB: {min(ratios):.1f} to {max(ratios):.1f} times"
        in page
    )
    assert f"{100 * stored('convergence.json')['results']['network']['distance']:.1f} % from" in page
    assert "--full" not in page  # which no file is of


def test_the_claims_are_those_of_the_data(tmp_path):
    path = tmp_path / "claims.json"
    assert "pdejax claims --out" in hooks.results.claims_table(path)
    claim = {
        "claim": "C4",
        "statement": "E falls | if <script>alert(1)</script> γ_A > 0",
        "source": "v2 Thm 3.3",
        "verdict": "fails",
        "condition": "Holds for S = −γu.",
        "figures": {"runs": 64, "ratio": {"mean": 0.98765, "low": 0.9812, "high": 0.9941}, "rate": None},
        "corrected_figures": {"bound": 0.5},
        "counterexample": {"description": "Two tokens.", "file": "counterexamples/C4.npz"},
        "code": "pdejax.studies.claims._c4_energy.measure",
    }
    equation = {
        "claim": "v2 (6)",
        "quote": "R(u) = FFN(u) − u | <b> (v2 §3.2)",
        "statement": "as `FeedForward`",
        "verdict": "definition",
    }
    ran = {"seconds": 372.0, "environment": {"device": "cpu", "cores": 2, "versions": {"jax": "0.10.2"}}}
    path.write_text(json.dumps({"results": {"claims": [claim], "equations": [equation]}} | ran))
    text = hooks.results.claims_table(path)
    [printed] = [line.strip() for line in text.splitlines() if line.startswith("    | v2 (6)")]
    assert len(re.findall(r"(?<!\\)\|", printed)) == 6 and "v2 §3.2" in printed and "**definition**" in printed
    assert "All 1 numbered equations" in text and "<b>" not in text
    assert "Measured in 6 minutes, with other work beside, on cpu (2 cores), jax 0.10.2, code not recorded." in text
    [row] = [line for line in text.splitlines() if line.startswith("| C4")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert "<script" not in text and r"γ\_A" in text
    assert "0.9877 [0.9812, 0.9941]" in text and "runs 64" in text and "rate –" in text and "Two tokens." in text


def test_the_reproduced_experiments_are_those_of_the_data(tmp_path):
    assert "pdejax reproduce --out" in hooks.results.reproduced(tmp_path)
    ours = {"mean": 0.98765, "low": 0.9812, "high": 0.9941, "values": [0.98, 0.99]}
    row = {"quantity": "cosine | layer", "unit": "nats", "paper": "0.97", "ours": ours, "null": None, "null_name": None}
    for name in ("spectral", "attention-images", "residual"):
        content = {
            "title": name,
            "question": "Is it <b>so</b>?",
            "source": "v1",
            "verdict": "It is.",
            "preset": "quick",
            "seeds": [0, 1],
            "seconds": 12.3,
            "environment": {"device": "cpu", "cores": 2, "versions": {"jax": "0.10.2"}},
            "pairing": "distilled",
            "figures": [{"file": "x.png", "caption": "A picture."}],
            "table": [row | {"note": "a note"}, row | {"null": ours, "null_name": "untrained", "note": ""}],
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(content))
    text = hooks.results.reproduced(tmp_path)
    assert re.findall("^## (.*)$", text, flags=re.MULTILINE) == ["attention-images", "residual", "spectral"]
    rows = [line.strip() for line in text.splitlines() if line.startswith("    | cosine")]
    assert len(rows) == 6 and all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in rows)
    assert "0.9877 [0.9812, 0.9941]; a note" in rows[0] and rows[1].endswith("(untrained) |")
    assert (
        "<b>" not in text
        and "2 seeds, 12 s on cpu (2 cores), jax 0.10.2, code not recorded" in text
        and "![A picture.](x.png)" in text
    )


# The site.


def mkdocs() -> list[str]:
    if importlib.util.find_spec("mkdocs") and importlib.util.find_spec("mkdocstrings"):
        return [sys.executable, "-m", "mkdocs"]
    return [found] if (found := shutil.which("mkdocs")) else []


@pytest.mark.slow
@pytest.mark.skipif(not mkdocs(), reason="mkdocs is not installed: pip install -e '.[docs]'")
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    """Without running its code, which `test_programs_run` does."""
    build = subprocess.run(
        [*mkdocs(), "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "DOCS_RUN": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert build.returncode == 0, build.stderr[-3000:]
    made = sorted((tmp_path / "site").rglob("*.html"))
    assert len(made) > len(pages())
    for path in made:
        text = path.read_text()
        loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(https?:)?//', text)
        assert not loaded, path
        assert "arithmatex" not in text, path
    assert (tmp_path / "site" / "stability.html").read_text().count("<math") > 100
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", sheet.read_text()), sheet
