"""The documentation: links lead somewhere, every public name and every example is in it, and it builds."""

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

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
_spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
hooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hooks)

PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
API = re.compile(r"<!-- api: ([\w.]+) -->")


@functools.cache
def page(address: str) -> str:
    """A page as mkdocs sees it, without its code; names in backticks stay."""
    text = hooks.tutorials().get(address) or (DOCS / address).read_text()
    text = re.sub(r"<!-- readme: (.+?) -->", lambda found: hooks.readme(found[1]), text)
    text = text.replace("<!-- reproduced -->", hooks.reproduced())
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


def links(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http://", "https://"))]


@pytest.mark.parametrize("address", [*PAGES, "tutorials/index.md"])
def test_links_lead_somewhere(address):
    for link in links(page(address)):
        path, _, anchor = link.partition("#")
        target = os.path.normpath(os.path.join(os.path.dirname(address), path)) if path else address
        if target.startswith("files/"):
            assert target.removeprefix("files/") in [*hooks.readme_images(), *hooks.reproduced_images()]
            assert (ROOT / target.removeprefix("files/")).is_file(), link
            continue
        assert target in PAGES or target in hooks.tutorials(), (address, link)
        assert not anchor or anchor in anchors(page(target)), (address, link)


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(links(text)) > 2
    for link in links(text):
        path, _, anchor = link.partition("#")
        assert not path or (ROOT / path).exists(), link
        assert not anchor or anchor in anchors((ROOT / path if path else ROOT / "README.md").read_text()), link


def references(text: str) -> set[str]:
    return set(re.findall(r"\]\[(pdejax(?:\.\w+)*)\]", text))


def resolve(name: str):
    """The thing of this name; `AttributeError` if there is none."""
    found, parts = importlib.import_module("pdejax"), name.split(".")
    for place, part in enumerate(parts[1:], start=2):
        if hooks._is_package(".".join(parts[:place])) or ROOT.joinpath(*parts[:place]).with_suffix(".py").is_file():
            found = importlib.import_module(".".join(parts[:place]))
        else:
            found = getattr(found, part)
    return found


def test_references_by_name_are_names():
    wrong = []
    sources = [*DOCS.rglob("*.md"), *(ROOT / "pdejax").rglob("*.py"), *(ROOT / "solvers").rglob("*.py")]
    names = {name: path for path in sources for name in references(path.read_text())}
    assert len(names) > 40
    for name, path in sorted(names.items()):
        try:
            resolve(name)
        except AttributeError:
            wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong


def test_every_example_is_a_tutorial():
    pages = hooks.tutorials()
    examples = sorted((ROOT / "examples").glob("*.py"))
    assert set(pages) == {"tutorials/index.md", *(f"tutorials/{path.stem}.md" for path in examples)}
    for path in examples:
        assert f"]({path.stem}.md)" in pages["tutorials/index.md"]
        code = re.search(r"```python.*?\n(.*?)\n```", pages[f"tutorials/{path.stem}.md"], flags=re.DOTALL)[1]
        assert path.read_text().rstrip().endswith(code) and "import" in code
        compile(code, path.name, "exec")
    config = types.SimpleNamespace(nav=[{"Start": "index.md"}, {"Tutorials": "tutorials/index.md"}])
    listed = hooks.on_config(config).nav[1]["Tutorials"]
    assert listed[0] == "tutorials/index.md" and set(listed) == set(pages)


def documented() -> dict[str, str]:
    """The packages that the reference documents, and the page of each."""
    return {package: address for address in PAGES for package in API.findall((DOCS / address).read_text())}


def test_every_package_has_a_page():
    packages = {"pdejax"}
    for path in (ROOT / "pdejax").rglob("__init__.py"):
        packages.add(".".join(path.parent.relative_to(ROOT).parts))
    packages.add("pdejax.solvers")  # a link in a clone
    assert set(documented()) == packages
    for package, address in documented().items():
        assert address == f"api/{hooks._page(package)}"


@pytest.mark.parametrize("package", sorted(documented()))
def test_every_public_name_is_in_the_reference(package):
    module = importlib.import_module(package)
    public = {
        name
        for name, value in ((name, getattr(module, name)) for name in dir(module))
        if not name.startswith("_")
        and not (isinstance(value, types.ModuleType) and not value.__name__.startswith("pdejax"))
        and not (isinstance(value, types.ModuleType) and value.__name__ == f"{package}.{name}" and name in {"cli"})
    }
    found = hooks.exports(package)
    text = hooks.reference(package)
    loaded = {name for name in public if hooks._is_package(f"{package}.{name}")}  # imported by others, exported or not
    assert public - set(found) - loaded - {"PackageNotFoundError", "version", "annotations"} == set()
    for name, owner in found.items():
        if hooks._is_package(f"{package}.{name}"):
            assert f"{package}.{name}" in documented()
        elif not owner.startswith("pdejax"):
            assert f"`{name}`" in text
        else:
            assert f"::: {package}.{name}\n" in text or f"{{#{package}.{name}}}" in text, name


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]))
    assert listed == {*PAGES, "tutorials/index.md"}


def test_every_shown_section_is_in_the_readme():
    shown = [
        section for address in PAGES for section in re.findall("<!-- readme: (.+?) -->", (DOCS / address).read_text())
    ]
    assert len(shown) >= 6
    for section in shown:
        body = hooks.readme(section)
        assert len(body) > 100 and body.count("```") % 2 == 0
    assert "print({name: float(" in hooks.readme("Quick start")  # to the end of the code, comments in it included
    with pytest.raises(ValueError, match="no section 'Nothing'"):
        hooks.readme("Nothing")


def test_the_claims_are_those_of_the_data(tmp_path):
    path = tmp_path / "claims.json"
    assert "pdejax claims --out" in hooks.claims_table(path)
    claim = {
        "claim": "C4",
        "statement": "E falls | if <script>alert(1)</script> γ_A > 0",
        "source": "v2 Thm 3.3",
        "verdict": "fails",
        "condition": "Holds for S = −γu.",
        "figures": {"runs": 64, "ratio": {"value": 0.98765, "low": 0.9812, "high": 0.9941}, "rate": None},
        "corrected_figures": {"bound": 0.5},
        "counterexample": {"description": "Two tokens.", "file": "counterexamples/C4.npz"},
        "code": "pdejax.studies.claims._c4_energy.measure",
    }
    path.write_text(json.dumps({"claims": [claim]}))
    text = hooks.claims_table(path)
    [row] = [line for line in text.splitlines() if line.startswith("| C4")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert "<script" not in text and r"γ\_A" in text
    assert "0.9877 [0.9812, 0.9941]" in text and "runs 64" in text and "rate –" in text and "Two tokens." in text


def test_the_reproduced_experiments_are_those_of_the_data(tmp_path):
    assert "pdejax reproduce --out" in hooks.reproduced(tmp_path)
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
    text = hooks.reproduced(tmp_path)
    assert re.findall("^## (.*)$", text, flags=re.MULTILINE) == ["attention-images", "residual", "spectral"]
    rows = [line.strip() for line in text.splitlines() if line.startswith("    | cosine")]
    assert len(rows) == 6 and all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in rows)
    assert "0.9877 [0.9812, 0.9941]; a note" in rows[0] and rows[1].endswith("(untrained) |")
    assert "<b>" not in text and "2 seeds, 12 s on cpu (2 cores), jax 0.10.2" in text and "![A picture.](x.png)" in text


def mkdocs() -> list[str]:
    if importlib.util.find_spec("mkdocs") and importlib.util.find_spec("mkdocstrings"):
        return [sys.executable, "-m", "mkdocs"]
    return [found] if (found := shutil.which("mkdocs")) else []


@pytest.mark.slow
@pytest.mark.skipif(not mkdocs(), reason="mkdocs is not installed: pip install -e '.[docs]'")
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    build = subprocess.run(
        [*mkdocs(), "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert build.returncode == 0, build.stderr[-3000:]
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    for path in pages:
        text = path.read_text()
        loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(https?:)?//', text)
        assert not loaded, path
        assert "arithmatex" not in text, path
    assert (tmp_path / "site" / "stability.html").read_text().count("<math") > 100
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", sheet.read_text()), sheet
