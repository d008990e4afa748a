"""Which code measured: kept parts of a run belong to it."""

import ast
import functools
import hashlib
import inspect
import os
import pathlib
import subprocess
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def code_digest(function: Callable[..., Any]) -> str:
    """Return a digest of the code that measures: the source of the function's module, and of the studies' modules which that one
    imports, directly or not. Of a function without a file it is that of its code, constants, defaults and closure."""
    try:
        start = inspect.getsourcefile(function)
    except TypeError:
        start = None
    if start is None or not pathlib.Path(start).is_file():
        return hashlib.sha256(repr(_without_file(function)).encode()).hexdigest()
    # The module that it belongs to, which is another than where it is written for a study that is made by a function.
    owner = getattr(sys.modules.get(function.__module__), "__file__", None)
    waiting, found = [pathlib.Path(file).resolve() for file in (start, owner) if file], {}
    while waiting:
        file = waiting.pop()
        if file not in found:
            found[file] = file.read_bytes()
            waiting += _studies_in(found[file])
    whole = hashlib.sha256()
    for file in sorted(found):
        whole.update(hashlib.sha256(found[file]).digest())
    return whole.hexdigest()


@functools.cache
def library_digest() -> str:
    """Return a digest of the library's source, but for what only asks, keeps, draws or tells: that changes no number."""
    whole = hashlib.sha256()
    for inside in sorted(_sources()):
        file = _LIBRARY / inside
        if inside.parts[0] not in _NO_NUMBERS or inside.parts[:3] == ("runs", "sweep", "_measure.py"):
            whole.update(f"{inside.as_posix()} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def provenance(function: Callable[..., Any], libraries: Iterable[str] = ()) -> dict[str, str]:
    """Return which code measured, as results keep it: `measured_by`, the digest of the code of `function`; `library`, that of the
    library, or those of the `libraries` that kept parts were measured with; and the `commit` of its checkout, where it is one,
    with "edited" where its files are not those of the commit."""
    found = {"measured_by": code_digest(function), "library": ", ".join(sorted(set(libraries) or {library_digest()}))}
    return found | ({"commit": commit} if (commit := _commit()) else {})


def _commit() -> str:
    """The commit of the checkout that the library is in; nothing where git or the checkout is missing."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_LIBRARY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else the library lies in a repository that is not its own
        return git("rev-parse", "HEAD") + (" edited" if git("status", "--porcelain", "--", ".", "../solvers") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _sources() -> Iterator[pathlib.Path]:
    """The library's files within it; `solvers` is a link in a checkout, which `rglob` does not follow."""
    for folder, _, names in os.walk(_LIBRARY, followlinks=True):
        for name in names:
            if name.endswith(".py"):
                yield (pathlib.Path(folder) / name).relative_to(_LIBRARY)


def _without_file(function: Any) -> Any:
    """What a function does that no file holds: of a partial, what it is of and its arguments."""
    if isinstance(function, functools.partial):
        return _without_file(function.func), function.args, sorted(function.keywords.items())
    code = getattr(function, "__code__", None)
    if code is None:
        return repr(function)
    closure = [cell.cell_contents for cell in function.__closure__ or ()]
    return _code(code), function.__defaults__, function.__kwdefaults__, closure


def _code(code: types.CodeType) -> Any:
    constants = [_code(x) if isinstance(x, types.CodeType) else x for x in code.co_consts]
    return code.co_code, constants, code.co_names


def _studies_in(source: bytes) -> Iterator[pathlib.Path]:
    """The files of the studies' modules that a module imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or "", *(f"{node.module}.{name.name}" for name in node.names)]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            continue
        for name in names:
            inside = name.split(".")
            if inside[:2] == ["pdejax", "studies"] and len(inside) > 2:
                path = _STUDIES.joinpath(*inside[2:])
                yield from (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file())


_LIBRARY = pathlib.Path(__file__).resolve().parents[1]
_STUDIES = _LIBRARY / "studies"
# Of studies those that measure are in `code_digest`.
_NO_NUMBERS = ("__main__.py", "cli.py", "plot", "runs", "studies")
