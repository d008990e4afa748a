"""What mkdocs calls. docs/make makes what the site does not write by hand: tutorials and code on pages are run, commands come
from their parser, the reference from the exports, tables from results, and formulas become MathML.
"""

import os
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(ROOT))

from make import cells, commands, formulas, looped, printed, reference, results, tables, tutorials  # noqa: E402

# What stands for `<!-- make: NAME -->` on a page.
MADE = {
    "solvers": tables.solvers,
    "training": tables.training,
    "convergence": tables.convergence,
    "stability": tables.stability,
    "stiff": tables.stiff,
    "parallel": tables.parallel,
    "limits": tables.limits,
    "phases": tables.phases,
    "resumed": tables.resumed,
    "on_devices": tables.on_devices,
    "long sequences": tables.long_sequences,
    "speed": tables.speed,
    "starts": tables.starts,
    "memory": tables.memory,
    "analysis speed": tables.analysis_speed,
    "calibration": tables.calibration,
    "claims": results.claims_table,
    "reproduced": results.reproduced,
    "came out": results.came_out,
    "met": printed.met,
    "axes": printed.axes,
    "step": results.step,
    "kept": results.kept,
    "audits": results.audits,
    "audit findings": results.audit_findings,
    "loops": results.loops,
    "literature": results.literature,
    "loop seeds": looped.over_seeds,
    "loop literature": looped.literature,
}
PICTURES = (
    "assets/pdejax.png",
    "benchmarks/results/training/listops/curves.png",
    "benchmarks/results/sweep/phases_cosine.png",
)
# Documents of the repository that are pages as well: address -> file.
DOCUMENTS = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
_outputs: dict[str, list] = {}


def generated() -> dict[str, str]:
    """Pages that are made from other files: address -> Markdown. Tutorials show what their code left, once it has run."""
    pages = {"tutorials/index.md": tutorials.index(), **commands.pages(), **reference.pages()}
    for path in tutorials.examples():
        address = tutorials.address(path)
        pages[address] = tutorials.page(path, _outputs.get(address, ()), lambda found, at=address: _output(found, at))
    for address, name in DOCUMENTS.items():
        pages[address] = (ROOT / name).read_text()
    return pages


def expand(markdown: str, address: str = "index.md") -> str:
    """A page with what stands for its comments; pictures as seen from the page."""
    return re.sub(
        r"<!-- make: ([\w ]+) -->",
        lambda found: MADE[found[1]]().replace("](files/", f"]({_up(address)}files/"),
        markdown,
    )


def programs() -> dict[str, list[str]]:
    """All code that is run for the site: page -> cells."""
    found = tutorials.programs()
    for path in sorted(HERE.rglob("*.md")):
        if code := cells.cells_of(path.read_text()):
            found[path.relative_to(HERE).as_posix()] = code
    return found


def on_config(config):
    config.repo_url = config.repo_url or origin()
    if not config.repo_url:
        config.edit_uri = None
    names = [name for name, *_ in commands_table()]
    for entry in config.nav:
        if "Tutorials" in entry:
            entry["Tutorials"] = ["tutorials/index.md", *(tutorials.address(path) for path in tutorials.examples())]
        if "Reference" in entry:
            entry["Reference"] = [{name: reference.address(name)} for name in reference.packages()]
        if "Commands" in entry:
            entry["Commands"] = ["commands/index.md", *(f"commands/{name}.md" for name in names)]
    return config


def origin() -> str:
    """The address of the clone's origin for a browser; empty where there is none."""
    found = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
    address = found.stdout.strip().removesuffix(".git")
    address = re.sub(r"^(?:ssh://)?git@([^:/]+)[:/]", r"https://\1/", address)
    return address if address.startswith("https://") else ""


def commands_table():
    """The commands, in the order of the command line."""
    from pdejax.cli import COMMANDS

    return COMMANDS


def on_files(files, config):
    from mkdocs.structure.files import File

    if os.environ.get("DOCS_RUN") != "0":
        _outputs.update(cells.run_all(programs()))
    for address, text in generated().items():
        files.append(File.generated(config, address, content=text))
    for image in [*PICTURES, *results.reproduced_images(), *results.audit_images(), *results.loop_images()]:
        files.append(File.generated(config, f"files/{image}", abs_src_path=str(ROOT / image)))
    for found in _outputs.values():
        for picture in (picture for cell in found for picture in cell["pictures"]):
            files.append(File.generated(config, f"files/{_name(picture)}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown, page, config, files):
    address = page.file.src_uri
    if address not in generated_addresses():
        left = iter(_outputs.get(address, ()))
        empty = {"text": "", "pictures": []}
        markdown = cells.FENCE.sub(
            lambda found: f"```python\n{found[1]}```\n\n{_output(next(left, empty), address)}", markdown
        )
    if address in DOCUMENTS:
        markdown = _links_of_the_repository(markdown)
    return expand(markdown, address)


def generated_addresses() -> set[str]:
    """Pages that are no files of docs/."""
    return {*tutorials.programs(), "tutorials/index.md", *DOCUMENTS}


def on_page_content(content, page, config, files):
    return formulas.mathml(content)


def _output(found, address: str) -> str:
    """What a cell left: its text as a block, its pictures below."""
    parts = []
    if text := found["text"].rstrip():
        parts.append(f"```{{.text .output}}\n{text}\n```")
    parts += [f"![What the code above draws]({_up(address)}files/{_name(picture)})" for picture in found["pictures"]]
    return "\n\n".join(parts)


def _up(address: str) -> str:
    return "../" * address.count("/")


def _name(picture: pathlib.Path) -> str:
    """Where a picture lies on the site: by the program that drew it."""
    return f"run/{picture.parent.parent.name if picture.parent.name == 'out' else picture.parent.name}/{picture.name}"


def _links_of_the_repository(markdown: str) -> str:
    """Links to pages of docs/ as seen from them; of links to other files of the repository only the text stays."""
    markdown = re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)(?!\w[\w/-]*\.md)[^)]+\)", r"\1", markdown)
