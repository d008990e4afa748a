"""Tutorials: one page per example, its text, its code, and what the code prints and draws."""

import ast
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FOLDER = "tutorials"


def examples() -> list[pathlib.Path]:
    """The programs in examples/, in order."""
    return sorted((ROOT / "examples").glob("*.py"))


def address(path: pathlib.Path) -> str:
    """The page of an example."""
    return f"{FOLDER}/{path.stem}.md"


def parts(path: pathlib.Path) -> tuple[str, str, list[tuple[str, str]]]:
    """Return title, introduction and cells (text, code) of an example.

    The docstring's first sentence is the title, the rest the introduction, without the line that says how to call it. A line
    `# %%` starts a cell; comments that follow it directly are its text.
    """
    source = path.read_text()
    document = ast.get_docstring(ast.parse(source)) or ""
    first, _, rest = document.partition("\n")
    paragraphs = [part for part in rest.strip().split("\n\n") if not part.strip().startswith("python ")]
    body = source.splitlines()[ast.parse(source).body[0].end_lineno :]
    cells, text, code = [], [], []
    for line in [*body, "# %%"]:
        if line.startswith("# %%"):
            if "".join(code).strip():
                cells.append(("\n".join(text), "\n".join(code).strip()))
            text, code = [line.removeprefix("# %%").strip()], []
        elif line.startswith("#") and not "".join(code).strip():
            text.append(line.removeprefix("#").strip())
        else:
            code.append(line)
    return first.rstrip("."), "\n\n".join(paragraphs), cells


def programs() -> dict[str, list[str]]:
    """The cells of every example, by the page they are on."""
    return {address(path): [code for _, code in parts(path)[2]] for path in examples()}


def page(
    path: pathlib.Path, outputs: Sequence[Mapping[str, Any]] = (), show: Callable[[Mapping[str, Any]], str] = str
) -> str:
    """The page of an example as Markdown; `show` renders what a cell left."""
    title, text, cells = parts(path)
    lines = [f"# {title}", text, f"From a clone: `python examples/{path.name}`. Plots go to `out/`."]
    for i, (words, code) in enumerate(cells):
        lines += [words.strip(), f"```python\n{code}\n```"]
        if outputs:
            lines.append(show(outputs[i]))
    return "\n\n".join(line for line in lines if line) + "\n"


def index() -> str:
    """The list of tutorials."""
    lines = [
        "# Tutorials",
        "Programs to run and to change. Each page shows what its program printed when this site was built.",
        "",
    ]
    for path in examples():
        title, text, _ = parts(path)
        first = re.split(r"(?<=[.?!])\s", text.strip())[0] if text else ""
        lines.append(f"- [{title}]({path.stem}.md){'. ' + first if first else ''}")
    return "\n\n".join(lines[:2]) + "\n" + "\n".join(lines[2:]) + "\n"
