"""The README: short, its code runs as written, and it names what there is."""

import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_it_is_short():
    assert len(README.encode()) <= 7_000
    [code] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 16
    assert max(map(len, code.splitlines())) <= 88
    assert re.findall(r"^make (\w+)", README, flags=re.MULTILINE) == ["convergence", "test"]


@pytest.mark.slow
def test_its_code_runs_as_written(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "quick_start.py").write_text(code)
    environment = {
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
        "JAX_PLATFORMS": "cpu",
        "HOME": str(tmp_path),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": os.environ["XLA_FLAGS"],
    }
    result = subprocess.run(
        [sys.executable, "quick_start.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    first, gap, change, *_ = result.stdout.splitlines()
    assert first.startswith(
        "6 layers: attention + feed-forward | Lie–Trotter (Euler, Euler) | 6 steps over t in [0, 6]"
    )
    assert float(gap) < 1e-4  # float32 rounding of the identity
    assert 1e-3 < float(change) < 10


def test_targets_it_names_are_there():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_dependency_is_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = [*project["dependencies"], *extras["test"], *extras["dev"], *extras["bench"], *extras["docs"]]
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Dependencies")[1]
    for name in names:
        assert f"`{re.match('[A-Za-z0-9_-]+', name).group()}`" in section, name
