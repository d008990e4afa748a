"""The README's code runs as written, and its tables say what the library says."""

import pathlib
import re
import subprocess
import sys

import pytest

from pdejax.solvers import SOLVERS

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def run(code: str, folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": str(folder),
        "HOME": str(folder),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    return subprocess.run(
        [sys.executable, code, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_quick_start_runs_as_written(tmp_path):
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    script = tmp_path / "quick_start.py"
    script.write_text(code)
    result = run(str(script), tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    first = float(result.stdout.splitlines()[0])
    assert first < 1e-4  # float32 rounding of the identity


@pytest.mark.slow
def test_training_code_runs_as_written(tmp_path):
    """But for the number of steps."""
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    short = re.sub(r"steps=\d+", "steps=20", code)
    assert short != code
    script = tmp_path / "train.py"
    script.write_text(short)
    result = run(str(script), tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "majority class" in result.stdout


@pytest.mark.slow
def test_analysis_code_runs_as_written(tmp_path):
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[2]
    script = tmp_path / "analysis.py"
    script.write_text(code)
    result = run(str(script), tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "correlation.png").stat().st_size > 5000


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_run_and_leave_a_plot(path, tmp_path):
    result = run(str(path), tmp_path, "--out", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr[-3000:]
    [plot] = (tmp_path / "out").glob("*.png")
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert plot.stat().st_size > 10_000


def rows():
    table = README.split("## Solvers")[1].split("##")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| `")
    ]


def test_solver_table_is_the_librarys():
    listed = {row[0].strip("`"): row for row in rows()}
    assert set(listed) == set(SOLVERS)
    for name, row in listed.items():
        info = SOLVERS[name]
        assert int(row[1]) == info.order
        assert (row[2] == "yes") == info.adaptive
        if info.real_limit is None:
            assert row[3] == ""
        elif info.real_limit == float("inf"):
            assert row[3] == "∞"
        else:
            assert abs(float(row[3]) - info.real_limit) < 6e-4
        if info.evaluations is None:
            assert row[4] == "–"
        else:
            # A splitting counts single terms, two here; the table counts whole fields.
            assert float(row[4]) == info.evaluations / (2 if info.splitting else 1)


def test_every_dependency_is_named():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = [*project["dependencies"], *extras["test"], *extras["dev"], *extras["bench"]]
    section = README.split("## Dependencies")[1]
    for name in names:
        assert f"`{re.match('[A-Za-z0-9_-]+', name).group()}`" in section, name
