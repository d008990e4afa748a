"""The reference: every name that a package exports, in the order of its source files."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def packages() -> list[str]:
    """Every package of the library."""
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "pdejax").rglob("__init__.py")]
    # solvers is a link in a clone.
    folders += ["pdejax" / path.parent.relative_to(ROOT) for path in (ROOT / "solvers").rglob("__init__.py")]
    return sorted({".".join(folder.parts) for folder in folders})


def address(package: str) -> str:
    """The page of a package."""
    return f"api/{_page(package)}"


def pages() -> dict[str, str]:
    """A page for every package: its docstring, and what it exports."""
    return {address(package): f"# {package}\n\n{_docstring(package)}\n\n{reference(package)}" for package in packages()}


def _docstring(package: str) -> str:
    source = (ROOT.joinpath(*package.split(".")) / "__init__.py").read_text()
    return (ast.get_docstring(ast.parse(source)) or "").strip()


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
    others = {module: names for module, names in referred().items() if module.rpartition(".")[0] == package}
    parts = []
    if packages:
        parts.append(f"Packages: {', '.join(packages)}.")
    if elsewhere:
        parts.append(f"Exported here too, and documented with their packages: {', '.join(sorted(elsewhere))}.")
    if foreign:
        parts.append(f"From [diffrax](https://docs.kidger.site/diffrax/), as they are: {', '.join(sorted(foreign))}.")
    for module, names in groups.items():
        private = [] if module == package else {*records(module, names), *others.pop(module, [])} - {*names}
        words = "Modules" if module == package else module.rpartition(".")[2].strip("_").replace("_", " ")
        parts.append(f"## {words[:1].upper()}{words[1:]}")
        parts += [f"::: {package}.{name}" for name in names] + [f"::: {module}.{name}" for name in sorted(private)]
    parts += [f"::: {module}.{name}" for module, names in others.items() for name in names]
    return "\n\n".join(parts) + "\n"


def referred() -> dict[str, list[str]]:
    """What docstrings and pages refer to and no package exports: module -> names."""
    files = [*(ROOT / "pdejax").rglob("*.py"), *(ROOT / "docs").rglob("*.md")]
    found = {ref for path in files for ref in re.findall(r"\]\[(pdejax[\w.]*\._\w+)\.(\w+)\]", path.read_text())}
    return {module: sorted(name for owner, name in found if owner == module) for module, _ in sorted(found)}


def records(module: str, names: list[str]) -> list[str]:
    """The classes that these functions of a module return, and those inside them, where they are defined in it."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    body = ast.parse(path.read_text()).body if path.is_file() else []
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")}
    left: list[ast.AST] = [node for node in body if isinstance(node, ast.FunctionDef) and node.name in names]
    found: list[str] = []
    while left:
        node = left.pop(0)
        notes = [node.returns] if isinstance(node, ast.FunctionDef) else [getattr(node, "annotation", None)]
        for part in (part for note in notes if note for part in ast.walk(note)):
            name = part.value if isinstance(part, ast.Constant) else getattr(part, "id", None)
            if name in classes and name not in [*found, *names]:
                found.append(name)
                left += classes[name].body
    return found


def _page(package: str) -> str:
    """The page of a package, from another page of the reference."""
    return f"{package.removeprefix('pdejax.').replace('.', '-')}.md"
