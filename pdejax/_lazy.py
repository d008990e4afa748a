"""Packages that load a name when it is first used (PEP 562), so that importing them costs next to nothing."""

import ast
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package whose names are loaded when first used.

    The imports in the package's `if TYPE_CHECKING:` block are the table of names: type checkers, editors and this function read
    the same lines, so that a name is added in one of them. A package without source (compiled files alone) has no table.

    ```python
    if TYPE_CHECKING:
        from pdejax._simulate import simulate as simulate
    else:  # not seen by type checkers, which would take any name for granted
        __getattr__, __dir__ = attach(__name__)
    ```
    """
    table: dict[str, tuple[str, str]] | None = None

    def names() -> dict[str, tuple[str, str]]:
        nonlocal table
        if table is None:
            table = {name: (module, attribute) for name, module, attribute in listed(_source(package))}
        return table

    def get(name: str) -> Any:
        if name == "__all__":
            return sorted(names())
        if name.startswith("__") or name not in names():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, attribute = names()[name]
        # `from pdejax import analysis` names a package, any other line a thing in a module.
        if module == package:
            return _loaded(f"{package}.{attribute}")
        value = getattr(_loaded(module), attribute)
        setattr(sys.modules[package], name, value)  # found without this function from now on
        return value

    def directory() -> list[str]:
        return sorted({*(name for name in vars(sys.modules[package]) if name.startswith("__")), *names()})

    return get, directory


def _loaded(name: str, tries: int = 100) -> ModuleType:
    """The module; where two threads each load what the other waits for, Python ends one of them, which then tries again."""
    for _ in range(tries):
        try:
            return importlib.import_module(name)
        except RuntimeError as error:
            if type(error).__name__ != "_DeadlockError":
                raise
            time.sleep(0.01)
    return importlib.import_module(name)


def listed(source: str) -> Iterator[tuple[str, str, str]]:
    """Yield (name, module, name in the module) of the imports in the `if TYPE_CHECKING:` block of a package's source."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom) and line.module:
                    yield from ((alias.asname or alias.name, line.module, alias.name) for alias in line.names)


def _source(package: str) -> str:
    spec = importlib.util.find_spec(package)
    loader = None if spec is None else spec.loader
    source = loader.get_source(package) if hasattr(loader, "get_source") else None  # type: ignore[union-attr]
    if source is None:
        raise ImportError(f"{package}: the source of its __init__.py, which lists its names, is not installed.")
    return source
