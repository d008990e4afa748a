"""Packages of analyses are small and documented; the most used functions are in `pdejax.analysis` too."""

import importlib
import inspect
import json
import pathlib

import pytest

import pdejax

PINNED = json.loads((pathlib.Path(__file__).parent.parent / "public_names.json").read_text())
PACKAGES = [name for name in PINNED if name.startswith("pdejax.analysis.")]


@pytest.mark.parametrize("package", PACKAGES)
def test_names_are_documented_and_a_dozen(package):
    module = importlib.import_module(package)
    # The type checker of the tests puts its own name into every module.
    names = [name for name in dir(module) if not name.startswith("_") and name != "jaxtyping"]
    assert names == sorted(PINNED[package])
    for name in names:
        assert len(inspect.getdoc(getattr(module, name)) or "") > 20, name
    assert sum(inspect.isfunction(getattr(module, name)) for name in names) <= 12


def test_the_most_used_are_those_of_the_packages():
    names = [name for name in dir(pdejax.analysis) if not name.startswith("_")]
    functions = [name for name in names if inspect.isfunction(getattr(pdejax.analysis, name))]
    assert 12 <= len(functions) <= 24
    modules = {package: importlib.import_module(package) for package in PACKAGES}
    for name in functions:
        if not name.startswith("shuffle_"):
            assert any(getattr(m, name, None) is getattr(pdejax.analysis, name) for m in modules.values()), name
