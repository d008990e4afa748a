"""The project's shape: imports run one way, classes are abstract or final, the public names are pinned, the wheel is whole."""

import ast
import functools
import importlib
import inspect
import json
import pathlib
import pkgutil
import shutil
import subprocess
import sys
import zipfile

import diffrax
import equinox as eqx
import pytest

import pdejax

ROOT = pathlib.Path(__file__).parent.parent
# Each layer may import those before it (and itself): solvers <- terms <- equation <- simulate <- analysis <- studies <- cli.
LAYERS = (
    ("pdejax._check", "pdejax._arguments", "pdejax._axes", "pdejax._products", "pdejax._nnx"),
    ("pdejax.solvers", "pdejax._lazy", "pdejax._activation", "pdejax._types"),
    ("pdejax._figure",),
    ("pdejax._bootstrap",),
    ("pdejax.runs",),
    ("pdejax.exact",),
    ("pdejax.terms",),
    ("pdejax._equation",),
    ("pdejax._depth",),
    ("pdejax._sharded",),
    ("pdejax._trajectory", "pdejax._linear", "pdejax._choose", "pdejax._marks", "pdejax._controllers"),
    ("pdejax._discretization",),
    ("pdejax._integrate",),
    ("pdejax._plan", "pdejax._start", "pdejax._steps"),
    ("pdejax._simulate", "pdejax._maps", "pdejax._step_maps"),
    ("pdejax._parallel",),
    ("pdejax.models", "pdejax.data"),
    ("pdejax.analysis",),
    ("pdejax.plot",),
    ("pdejax.training",),
    ("pdejax.networks",),
    ("pdejax.studies",),
    ("pdejax.cli",),
    ("pdejax.__main__",),
)
# fmt: off
PUBLIC = [
    "Architecture", "Attention", "DepthVarying", "Diffusion", "Discretization", "DivergenceError",
    "EffectiveDiffusion", "Exchange", "FeedForward", "FieldArgs", "Figure", "Grid", "Laplacian", "LayerNorm",
    "LayerNormRelaxation", "LayerStack", "LinearDamping", "MasterEquation", "MultilayerEquation",
    "MultilayerSimulator", "MultilayerSimulatorConfig", "Network", "RMSNorm", "Simulator", "SimulatorConfig",
    "SpatialNorm", "SphereProjection", "Stats", "Trajectory", "Transformer", "analysis", "as_network", "bootstrap",
    "data", "exact", "iid", "lift", "load_model", "load_pretrained", "models", "network", "observe", "over_seeds", "pair",
    "permutation_test", "plot", "runs", "save_model", "shard_tokens", "simulate", "simulate_in_parallel", "smooth_random",
    "solvers", "states", "studies", "terms", "training",
]
# fmt: on


@functools.cache
def parsed(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text())


def sources():
    for folder, package in ((ROOT / "pdejax", "pdejax"), (ROOT / "solvers", "pdejax.solvers")):
        for path in sorted(folder.rglob("*.py")):
            relative = path.relative_to(folder)
            if relative.parts[0] == "solvers" and package == "pdejax":
                continue
            parts = [package, *relative.with_suffix("").parts]
            yield ".".join(part for part in parts if part != "__init__"), path


def layer_of(module: str) -> int | None:
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return number
    return None


def imported(path: pathlib.Path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pdejax"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if layer_of(full) is not None and node.module == "pdejax" else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("pdejax"))
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative import")


def test_imports_run_one_way():
    wrong = []
    for module, path in sources():
        here = layer_of(module)
        for other in imported(path):
            there = layer_of(other)
            if here is not None and there is not None and there > here:
                wrong.append(f"{module} imports {other}")
    assert not wrong


def file_graph(files: dict[str, pathlib.Path]) -> dict[str, set[str]]:
    """The modules that each module imports anywhere in its file: a name that is a module of its own counts as that module."""
    graph = {}
    for module, path in files.items():
        targets: set[str] = set()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = (f"{node.module}.{alias.name}" for alias in node.names)
                targets |= {name if name in files else node.module for name in names}
            elif isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
        graph[module] = (targets & files.keys()) - {module}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""
    reach = {module: set(targets) for module, targets in graph.items()}
    for middle in graph:
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    groups = {frozenset(b for b in reach[a] if a in reach[b]) for a in graph if a in reach[a]}
    return sorted(sorted(group) for group in groups)


def test_no_import_circle_between_files():
    assert circles(file_graph(dict(sources()))) == []


def test_a_circle_would_be_seen(tmp_path):
    texts = {"a": "def f():\n    from b import g\n", "b": "import c\n", "c": "from a import f\n", "d": "import a\n"}
    files = {name: tmp_path / f"{name}.py" for name in texts}
    for name, text in texts.items():
        files[name].write_text(text)
    assert circles(file_graph(files)) == [["a", "b", "c"]]


def test_solvers_import_nothing_of_the_transformer():
    for module, path in sources():
        if module.startswith("pdejax.solvers"):
            allowed = ("pdejax.solvers", "pdejax._arguments", "pdejax._axes")
            assert all(name.startswith(allowed) for name in imported(path)), module


def test_every_module_has_a_layer():
    missing = [module for module, _ in sources() if layer_of(module) is None and module != "pdejax"]
    assert not missing


def test_an_arrow_that_runs_back_would_be_seen(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from pdejax.studies import convergence\n")
    assert [layer_of(name) for name in imported(bad)] == [layer_of("pdejax.studies")]
    assert layer_of("pdejax.studies") > layer_of("pdejax.solvers._grid")


def all_classes():
    for info in pkgutil.walk_packages(pdejax.__path__, "pdejax."):
        if info.name.startswith("pdejax.solvers.") and "solvers.solvers" in info.name:
            continue
        module = importlib.import_module(info.name)
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__.startswith("pdejax") and issubclass(cls, eqx.Module):
                yield cls


def test_classes_are_abstract_or_final():
    classes = set(all_classes())
    assert len(classes) > 20
    for cls in classes:
        children = [c for c in cls.__subclasses__() if c.__module__.startswith("pdejax")]
        if children:
            assert inspect.isabstract(cls) or cls.__name__.startswith(("Abstract", "_Abstract")), (cls, children)


def test_no_super():
    for module, path in sources():
        calls = [n for n in ast.walk(parsed(path)) if isinstance(n, ast.Name) and n.id == "super"]
        assert not calls, module


def test_public_names_are_pinned():
    assert [name for name in dir(pdejax) if not name.startswith("_")] == sorted(PUBLIC)


NAMES = ROOT / "tests" / "public_names.json"


def exported(path: pathlib.Path) -> list[str]:
    """What a package's file takes from elsewhere or defines, and what it gives that way to its users."""
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pdejax"):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return sorted(name for name in names if not name.startswith("_"))


def packages() -> dict[str, list[str]]:
    return {module: exported(path) for module, path in sources() if path.name == "__init__.py"}


def test_public_names_of_every_package_are_pinned():
    """After a change that is meant: `python tests/test_layout.py`."""
    found, kept = packages(), json.loads(NAMES.read_text())
    for package in sorted({*found, *kept}):
        here, there = set(found.get(package, [])), set(kept.get(package, []))
        assert here == there, f"{package}: new {sorted(here - there)}, gone {sorted(there - here)}"
    for package, names in found.items():
        module = importlib.import_module(package)
        assert [name for name in names if not hasattr(module, name)] == [], package


def test_threads_that_wait_for_each_other_try_again(monkeypatch):
    """Python ends one of two threads that each import what the other waits for; an error of another kind is passed on."""
    from importlib import _bootstrap

    from pdejax import _lazy

    errors = [_bootstrap._DeadlockError("mutual"), _bootstrap._DeadlockError("mutual")]

    def load(name):
        if errors:
            raise errors.pop()
        return name

    monkeypatch.setattr(_lazy.importlib, "import_module", load)
    assert _lazy._loaded("pdejax.exact") == "pdejax.exact" and not errors
    errors.append(RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        _lazy._loaded("pdejax.exact")


def test_importing_loads_nothing(tmp_path):
    """Not JAX, and no module of ours but the one that loads the others when they are used."""
    code = """
import sys, pdejax
print(sorted(name for name in sys.modules if name.startswith("pdejax")), "jax" in sys.modules, "numpy" in sys.modules)
from pdejax import *
assert simulate is pdejax.simulate and "simulate" in vars(pdejax)
"""
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "['pdejax', 'pdejax._lazy'] False False\n"


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'pdejax' has no attribute 'simulat'"):
        pdejax.simulat  # noqa: B018


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    thing = getattr(pdejax, name)
    assert thing.__doc__ and len(thing.__doc__) > 20


def test_files_are_short_and_named():
    for module, path in sources():
        assert len(path.read_text().splitlines()) <= 500, module
        assert path.stem not in {"utils", "helpers", "common", "_utils", "_helpers", "_common"}, module


def long_functions(tree: ast.AST, most: int = 80):
    """Names of functions whose body, without its docstring, has more lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[ast.get_docstring(node) is not None :]
            if body and (body[-1].end_lineno or 0) - body[0].lineno + 1 > most:
                yield node.name


def test_functions_are_short():
    found = {f"{module}.{name}" for module, path in sources() for name in long_functions(parsed(path))}
    assert not found
    lines = "\n".join(f"    x = {i}" for i in range(81))
    assert list(long_functions(ast.parse(f'def f():\n    """Text."""\n{lines}\n'))) == ["f"]


def test_terms_and_solvers_are_what_they_say():
    for name, info in pdejax.solvers.SOLVERS.items():
        assert info.name == name
        assert isinstance(info.make(2), diffrax.AbstractSolver)


def run_python(code: str, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_solvers_refuse_another_name():
    result = run_python("import solvers", ROOT)
    assert result.returncode != 0 and "pdejax.solvers" in result.stderr


@pytest.mark.slow
def test_a_users_own_solvers_module_is_left_alone(tmp_path):
    (tmp_path / "solvers.py").write_text("answer = 42\n")
    result = run_python(
        "import solvers, pdejax; assert solvers.answer == 42; print(pdejax.solvers.Grid(3).n)", tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "3"


@pytest.mark.slow
def test_import_leaves_global_settings_alone(tmp_path):
    code = """
import jax
before = {k: v for k, v in jax.config.values.items()}
import pdejax, sys
after = jax.config.values
assert all(after[k] == v for k, v in before.items()), [k for k, v in before.items() if after[k] != v]
heavy = [m for m in ("matplotlib.pyplot", "sklearn", "xarray", "orbax.checkpoint.checkpoint_manager") if m in sys.modules]
print(heavy)
"""
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "matplotlib" not in result.stdout and "sklearn" not in result.stdout and "xarray" not in result.stdout


@pytest.mark.slow
@pytest.mark.wheel
def test_wheel_holds_every_module_once(tmp_path):
    # From a copy, so that nothing an earlier build left behind can get in.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("pdejax", "solvers"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    build = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stdout[-2000:] + build.stderr[-2000:]
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = sorted(name for name in archive.namelist() if ".dist-info/" not in name)
        licences = [name for name in archive.namelist() if name.endswith("LICENSE")]
    expected = sorted(
        [
            *(str(p.relative_to(ROOT)) for p in (ROOT / "pdejax").rglob("*.py") if "pdejax/solvers" not in str(p)),
            *("pdejax/" + str(p.relative_to(ROOT)) for p in (ROOT / "solvers").rglob("*.py")),
            "pdejax/py.typed",
            "pdejax/runs/report/style.css",
            "pdejax/runs/report/table.js",
        ]
    )
    assert packed == expected
    assert licences


if __name__ == "__main__":
    NAMES.write_text(json.dumps(packages(), indent=1) + "\n")
