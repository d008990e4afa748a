"""What the site does not write by hand: tutorials from the examples, the reference from the exports, parts of the README, tables
of claims and of reproduced experiments from their data, and formulas as MathML, which every browser shows without a script.
"""

import ast
import html
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLAIMS = ROOT / "benchmarks" / "results" / "claims" / "claims.json"
REPRODUCED = ROOT / "benchmarks" / "results" / "reproduce"
TUTORIALS = "tutorials"


# Tutorials: one page per example, its docstring as text and the rest as code.


def tutorials() -> dict[str, str]:
    """Pages of the site from `examples/*.py`: address -> Markdown, and the list of them as tutorials/index.md."""
    pages, lines = {}, []
    for path in sorted((ROOT / "examples").glob("*.py")):
        title, text, code = _example(path)
        pages[f"{TUTORIALS}/{path.stem}.md"] = (
            f"# {title}\n\n{text}\n\nRun it from a clone with `python examples/{path.name}`; plots go to `out/`.\n\n"
            f'```python title="examples/{path.name}"\n{code}\n```\n'
        )
        lines.append(f"- [{title}]({path.stem}.md): {text.splitlines()[0] if text else ''}")
    pages[f"{TUTORIALS}/index.md"] = (
        "# Tutorials\n\nThe programs in `examples/`, as they run in the tests; each takes at most a minute on two CPU "
        "cores.\n\n" + "\n".join(lines) + "\n"
    )
    return pages


def _example(path: pathlib.Path) -> tuple[str, str, str]:
    """Title, first paragraph and source of an example; the line that says how to call it is left out."""
    source = path.read_text()
    tree = ast.parse(source)
    document = ast.get_docstring(tree) or ""
    paragraphs = [part for part in document.split("\n\n") if not part.startswith("python ")]
    title = path.stem.split("_", 1)[-1].replace("_", " ").capitalize()
    first = tree.body[0]
    body = source.splitlines()[first.end_lineno :] if document else source.splitlines()
    return title, "\n\n".join(paragraphs), "\n".join(body).strip()


# The reference: every name that a package exports, in the order of its source files.


def exports(package: str) -> dict[str, str]:
    """What `package` exports, by its `__init__.py`: name -> the module or package that has it."""
    tree = ast.parse((ROOT.joinpath(*package.split(".")) / "__init__.py").read_text())
    # Names that are loaded when first used are listed where type checkers see them.
    lazy = [node.body for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [
        node for node in [*tree.body, *(line for body in lazy for line in body)] if isinstance(node, ast.ImportFrom)
    ]
    listed = {
        element.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        for element in getattr(node.value, "elts", [])
    }
    return {
        alias.asname or alias.name: str(node.module)
        for node in imports
        for alias in node.names
        if alias.asname == alias.name or (alias.asname or alias.name) in listed
    }


def _is_package(name: str) -> bool:
    return (ROOT.joinpath(*name.split(".")) / "__init__.py").is_file()


def reference(package: str) -> str:
    """Markdown that documents what `package` exports, by source file; packages in it have pages of their own."""
    groups: dict[str, list[str]] = {}
    folder = ROOT.joinpath(*package.split("."))
    below = sorted(f"{package}.{path.parent.name}" for path in folder.glob("*/__init__.py"))
    packages = [f"[`{name}`]({_page(name)})" for name in below]
    elsewhere, foreign = [], []
    for name, module in exports(package).items():
        owner = module if _is_package(module) else module.rpartition(".")[0]
        if f"{package}.{name}" in below:
            continue
        if not module.startswith("pdejax"):
            foreign.append(f"`{name}`")
        elif owner != package and name in exports(owner):
            # With an anchor of its own, so that references by either name are found.
            elsewhere.append(f"[](){{#{package}.{name}}}[`{name}`][{owner}.{name}]")
        else:
            groups.setdefault(module, []).append(name)
    parts = []
    if packages:
        parts.append(f"Packages: {', '.join(packages)}.")
    if elsewhere:
        parts.append(f"Exported here too, and documented with their packages: {', '.join(sorted(elsewhere))}.")
    if foreign:
        parts.append(f"From [diffrax](https://docs.kidger.site/diffrax/), as they are: {', '.join(sorted(foreign))}.")
    for module, names in groups.items():
        words = "Modules" if module == package else module.rpartition(".")[2].strip("_").replace("_", " ")
        parts.append(f"## {words[:1].upper()}{words[1:]}")
        parts += [f"::: {package}.{name}" for name in names]
    return "\n\n".join(parts) + "\n"


def _page(package: str) -> str:
    """The page of a package, from another page of the reference."""
    return f"{package.removeprefix('pdejax.').replace('.', '-')}.md"


# The README, by section.


def readme(section: str) -> str:
    """The body of a section of the README with those below it, its links as seen from docs/."""
    lines: list[str] = []
    level, code = 0, False
    for line in (ROOT / "README.md").read_text().splitlines():
        code = code != line.startswith("```")
        heading = None if code else re.match(r"(#+) (.*)", line)
        if heading and level and len(heading[1]) <= level:
            break
        if level:
            lines.append(line)
        elif heading and heading[2] == section:
            level = len(heading[1])
    if not level:
        raise ValueError(f"the README has no section {section!r}, which a page of docs/ shows.")
    body = re.sub(r"\]\(docs/", "](", "\n".join(lines).strip())
    return re.sub(r"\]\(((?:assets|benchmarks)/)", r"](files/\1", body)


def readme_images() -> list[str]:
    """The images that the README shows, by their path in the repository."""
    return re.findall(r"!\[[^\]]*\]\(((?:assets|benchmarks)/[^)]+)\)", (ROOT / "README.md").read_text())


# The claims, from their data.


def claims_table(path: pathlib.Path = CLAIMS) -> str:
    """The ledger of claims as Markdown, from what `pdejax claims` wrote."""
    try:
        ledger = json.loads(path.read_text())
        return "\n".join(_claims(ledger.get("claims", [])))
    except FileNotFoundError:
        return (
            "!!! note\n\n    The ledger's data are not in this checkout. `pdejax claims --out benchmarks/results/claims` "
            "computes them in minutes,\n    and the next build of this page shows them.\n"
        )


def _claims(claims: list[dict[str, Any]]) -> Iterator[str]:
    yield "| claim | statement | verdict | what holds |"
    yield "|---|---|---|---|"
    for claim in claims:
        name, statement, source, verdict, holds = (
            _cell(claim.get(key)) for key in ("claim", "statement", "source", "verdict", "condition")
        )
        yield f"| {name} | {statement} ({source}) | **{verdict}** | {holds} |"
    yield "\n## Evidence\n"
    for claim in claims:
        yield f"\n### {_cell(claim.get('claim'))}: {_cell(claim.get('verdict'))}\n"
        yield f"{_cell(claim.get('statement'))}\n"
        for key, label in (("figures", "As stated"), ("corrected_figures", "Corrected")):
            figures = claim.get(key) or {}
            if figures:
                shown = "; ".join(f"{_cell(name)} {_figure(value)}" for name, value in figures.items())
                yield f"**{label}.** {shown}.\n"
        example = claim.get("counterexample")
        if example:
            yield f"**Counterexample.** {_cell(example.get('description') if isinstance(example, dict) else example)}\n"
        if claim.get("code"):
            yield f"Computed by `{claim['code']}`.\n"


# The papers' experiments, from their data.


def _studies(folder: pathlib.Path) -> list[tuple[pathlib.Path, dict[str, Any]]]:
    """The studies that were run, in the order of the papers."""
    found = [(path.parent, json.loads(path.read_text())) for path in folder.glob("*/result.json")]
    text = (ROOT / "pdejax" / "studies" / "papers" / "_registry.py").read_text()
    order = re.findall(r"[A-Z_]{4,}", text[text.index("_ALL = (") :])

    def place(name: str) -> int:
        wanted = name.upper().replace("-", "_")
        return next((i for i, word in enumerate(order) if word in (wanted, f"{wanted}_STUDY")), len(order))

    return sorted(found, key=lambda pair: place(pair[0].name))


def reproduced(folder: pathlib.Path = REPRODUCED) -> str:
    """The studies as Markdown: question, verdict, pictures, and every row paper | ours | null."""
    studies = _studies(folder)
    if not studies:
        return (
            "!!! note\n\n    No results are in this checkout. `pdejax reproduce --out benchmarks/results/reproduce` computes "
            "them,\n    and the next build of this page shows them.\n"
        )
    return "\n".join(line for path, content in studies for line in _reproduced(path, content))


def reproduced_images(folder: pathlib.Path = REPRODUCED) -> list[str]:
    """The pictures of the studies, by their path in the repository."""
    return [
        (path / figure["file"]).relative_to(ROOT).as_posix()
        for path, content in _studies(folder)
        for figure in content["figures"]
    ]


def _reproduced(path: pathlib.Path, content: dict[str, Any]) -> Iterator[str]:
    environment, count = content["environment"], len(content["seeds"])
    yield f"\n## {_cell(content['title'])}\n"
    yield f"{_cell(content['question'])} ({_cell(content['source'])})\n"
    yield f"**{_cell(content['verdict'])}**\n"
    yield (
        f"Preset `{content['preset']}`, {count} seed{'s' if count > 1 else ''}, {content['seconds']:.0f} s on "
        f"{environment['device']} ({environment['cores']} cores), jax {environment['versions']['jax']}; systems compared: "
        f"{_cell(content['pairing'])}.\n"
    )
    for figure in content["figures"]:
        address = (
            f"files/{(path / figure['file']).relative_to(ROOT).as_posix()}" if ROOT in path.parents else figure["file"]
        )
        yield f"![{_cell(figure['caption'])}]({address})\n\n*{_cell(figure['caption'])}*\n"
    yield f'??? note "All {len(content["table"])} rows"\n'
    for line in _rows(content["table"]):
        yield f"    {line}"
    yield ""


def _rows(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| quantity | paper | ours, with 95 % interval over seeds | null |"
    yield "|---|---|---|---|"
    for row in rows:
        name = _cell(row["quantity"]) + (f" [{_cell(row['unit'])}]" if row["unit"] else "")
        null = f"{_figure(row['null'])} ({_cell(row['null_name'])})" if row["null"] else "–"
        note = f"; {_cell(row['note'])}" if row["note"] else ""
        yield f"| {name} | {_cell(row['paper'] or '–')} | {_figure(row['ours'])}{note} | {null} |"


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        ends = [value.get("low"), value.get("high")]
        middle = _figure(value.get("value", value.get("mean")))
        return middle if None in ends else f"{middle} [{_figure(ends[0])}, {_figure(ends[1])}]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _cell("–" if value is None else value)
    return f"{value:.4g}"


def _cell(value: Any) -> str:
    text = " ".join(str("" if value is None else value).split())
    return re.sub(r"([\\`*_\[\]|$])", r"\\\1", html.escape(text, quote=False))


# Formulas.


def mathml(page: str) -> str:
    """The page with the formulas that arithmatex marked as MathML."""
    from latex2mathml.converter import convert

    def formula(found: re.Match[str]) -> str:
        latex = re.sub(r"\\(math\w+) (\w)", r"\\\1{\2}", html.unescape(found["latex"]).strip())
        latex = latex.replace(r"\mathbf{1}", "𝟏")  # there is no bold digit in MathML but this one
        made = convert(latex, display="block" if found["tag"] == "div" else "inline")
        # Bars are no operators with space about them, and a prime is raised already.
        made = re.sub(r"<mo[^>]*>(&#x0007C;|&#x02016;)", r'<mo stretchy="false" lspace="0" rspace="0">\1', made)
        return re.sub(r"<msup>(<mi>[^<]*</mi>)<mi>(&#x0203[23];)</mi></msup>", r"<mrow>\1<mi>\2</mi></mrow>", made)

    inline = r'<(?P<tag>span|div) class="arithmatex">\s*\\[(\[](?P<latex>.*?)\\[)\]]\s*</(?P=tag)>'
    return re.sub(inline, formula, page, flags=re.DOTALL)


# What mkdocs calls.


def on_config(config):
    for entry in config.nav:
        if "Tutorials" in entry:
            entry["Tutorials"] = [
                page for page in sorted(tutorials(), key=lambda page: (not page.endswith("index.md"), page))
            ]
    return config


def on_files(files, config):
    from mkdocs.structure.files import File

    for address, text in tutorials().items():
        files.append(File.generated(config, address, content=text))
    for image in [*readme_images(), *reproduced_images()]:
        files.append(File.generated(config, f"files/{image}", abs_src_path=str(ROOT / image)))
    return files


def on_page_markdown(markdown, page, config, files):
    markdown = re.sub(r"<!-- api: ([\w.]+) -->", lambda found: reference(found[1]), markdown)
    markdown = re.sub(r"<!-- readme: (.+?) -->", lambda found: readme(found[1]), markdown)
    return markdown.replace("<!-- claims -->", claims_table()).replace("<!-- reproduced -->", reproduced())


def on_page_content(content, page, config, files):
    return mathml(content)
