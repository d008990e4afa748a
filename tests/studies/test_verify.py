"""`verify`: every case passes, every closed form is in it, and one that is off by 1e-6 is found out."""

import contextlib
import inspect
import io
import json

import jax
import jax.numpy as jnp
import pytest

from pdejax import cli, exact
from pdejax.studies import verify
from pdejax.studies.numerics import _verify, _verify_cases

CLOSED_FORMS = sorted(name for name in dir(exact) if not name.startswith("_") and callable(getattr(exact, name)))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """One run from the command line: exit code, printed lines, saved JSON."""
    path = tmp_path_factory.mktemp("verify") / "verify.json"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.main(["verify", "--out", str(path.parent)])
    return code, printed.getvalue().splitlines(), json.loads(path.read_text()), path


@pytest.mark.slow
def test_all_cases_pass(table):
    code, lines, content, path = table
    results = content["results"]
    assert [check for check in results["checks"] if not check["passed"]] == []
    assert content["study"] == "verify" and results["cases"] == results["passed"] == len(results["checks"]) > 60
    assert code == 0 and content["passed"] is True
    assert lines[0].split() == ["case", "scheme", "error", "expected", "result"]
    assert f"{results['cases']} of {results['cases']} cases passed" in lines
    assert lines[-1] == f"saved {path}"


@pytest.mark.slow
def test_the_table_says_what_the_json_says(table):
    _, lines, content, _ = table
    checks = content["results"]["checks"]
    rows = lines[1 : len(checks) + 1]
    for row, result in zip(rows, checks, strict=True):
        assert row[:48].rstrip() == result["case"] and row[48:70].rstrip() == result["scheme"]
        assert float(row[70:78]) == pytest.approx(result["error"], rel=0.06)
        assert float(row[80:88]) == pytest.approx(result["expected"], rel=0.5)
        assert row[90:] == "pass"
        # Fixed width: no entry runs into the next column.
        assert row[47] == row[69] == row[79] == " "
    assert content["environment"]["x64"] is True
    assert content["seconds"] > 0


@pytest.mark.slow
def test_what_is_expected_is_tight(table):
    """All that a tight-tolerance solve can reach is held to far less than 1e-8."""
    _, _, content, _ = table
    loose = {r["case"] for r in content["results"]["checks"] if r["expected"] > 1e-10}
    assert loose == {
        "growth of noise at 0.95, decay at 1.05 of it",
        "equiangular tokens, order of retraction − 1",
        "Gaussian tokens, reported blow-up",
        "two tokens under noise, antipodal share",
    }


def group_of(name):
    """The first group of cases that uses a closed form, None without one."""
    return next((group for group in _verify.GROUPS if f"exact.{name}(" in inspect.getsource(group)), None)


def test_every_closed_form_is_verified():
    assert [name for name in CLOSED_FORMS if group_of(name) is None] == []


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.slow
def test_a_wrong_closed_form_is_found_out(table, name, monkeypatch):
    """Every public formula, one by one, off by a few 1e-6 (unevenly, so that no scaling hides it)."""
    right = getattr(exact, name)

    def shift(x):
        x = jnp.asarray(x)
        return x * (1 + 1e-6 * jnp.linspace(1.0, 2.0, x.size).reshape(x.shape))

    monkeypatch.setattr(exact, name, lambda *args, **kwargs: jax.tree.map(shift, right(*args, **kwargs)))
    assert any(not check.passed for check in group_of(name)())  # the first that fails is enough


@pytest.mark.slow
def test_failure_is_shown_and_changes_the_exit_code(table, monkeypatch, capsys, tmp_path):
    right = exact.bivariate_normal_information
    monkeypatch.setattr(exact, "bivariate_normal_information", lambda r: right(r) * (1 + 1e-6))
    monkeypatch.setattr(_verify, "GROUPS", (_verify_cases.information,))
    path = tmp_path / "verify.json"
    assert cli.main(["verify", "--out", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("FAIL") and "bivariate" in lines[1]
    assert lines[2].endswith("pass")
    assert "1 of 2 cases passed" in lines
    assert cli.main(["verify", "--quiet"]) == 1
    short = capsys.readouterr().out
    assert "FAILED: error 1.0e-06" in short and "1 of 2 cases passed" in short and "pass\n" not in short
    first, second = json.loads(path.read_text())["results"]["checks"]
    assert not first["passed"] and first["error"] == pytest.approx(1e-6, rel=1e-3)
    assert second["passed"]


@pytest.mark.slow
def test_nan_fails(table, monkeypatch):
    monkeypatch.setattr(exact, "bivariate_normal_information", lambda r: jnp.full(r.shape, jnp.nan))
    monkeypatch.setattr(_verify, "GROUPS", (_verify_cases.information,))
    found = verify()
    assert not found.passed and found.results["passed"] == 1 and found.results["cases"] == 2
    assert found.results["checks"][0]["error"] is None
    line = _verify.VERIFY.line(found.results["checks"][0])
    assert line.endswith("FAIL") and " – " in line and "not finite" in found.summary()


@pytest.mark.slow
def test_a_crash_fails_its_group_only(table, monkeypatch):
    def broken(*args):
        raise RuntimeError("no such device")

    monkeypatch.setattr(exact, "preln_equiangular", broken)
    monkeypatch.setattr(_verify, "GROUPS", (_verify_cases.preln, _verify_cases.information))
    lines: list[str] = []
    found = verify(row=lambda check: lines.append(_verify.VERIFY.line(check)))
    checks = found.results["checks"]
    assert [check["passed"] for check in checks] == [False, True, True]
    assert checks[0]["note"] == "RuntimeError: no such device"
    assert lines[0].endswith("FAIL  RuntimeError: no such device")
    assert found.verdict == "2 of 3 cases passed"


@pytest.mark.slow
def test_instability_below_the_limit_is_seen(table, monkeypatch):
    """A limit that is stated twice too large: noise grows at 0.95 of it."""
    right = exact.diffusive_step_limit
    monkeypatch.setattr(exact, "diffusive_step_limit", lambda *args: 2 * right(*args))
    monkeypatch.setattr(_verify_cases, "EXPLICIT", ("euler",))
    limit, noise = _verify_cases.stability()
    assert not limit.passed and not noise.passed
    assert noise.error == float("inf") and "below the limit" in noise.note


@pytest.mark.slow
def test_the_callers_precision_is_left_alone(table, monkeypatch):
    monkeypatch.setattr(_verify, "GROUPS", (_verify_cases.information,))
    with jax.enable_x64(False):
        found = verify()
        assert jnp.zeros(1).dtype == jnp.float32
    assert found.results["passed"] == found.results["cases"] == 2
    assert found.environment["x64"] is True
