"""`benchmarks/gpu.py`: what it does on a GPU, rehearsed on any machine, and what it says where there is none."""

import json
import pathlib
import runpy
import sys

import jax
import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def command(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="gpu")
    # JAX's own attention, which is compared with, mixes types and ranks.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield found["main"]
    for name in ("speed", "training_speed", "flax_twin", "torch_twin"):
        sys.modules.pop(name, None)


def rehearse(command, folder, *parts):
    assert command(["--small", "--out", str(folder), "--only", *parts]) == 0
    return json.loads((folder / "gpu.json").read_text())


@pytest.mark.skipif(jax.devices()[0].platform in ("gpu", "cuda"), reason="there is a GPU")
def test_without_a_gpu_it_refuses_in_words(command, tmp_path, capsys):
    assert command(["--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "JAX sees no GPU here" in said and "--small" in said
    assert not list(tmp_path.iterdir())


def test_a_rehearsal_measures_the_field_and_attention(command, tmp_path):
    found = rehearse(command, tmp_path, "field", "attention")
    assert found["rehearsal"] is True and found["card"] and not found["left out for want of time"]
    field = found["results"]["field"]
    for case in ("N=64 d=32 float32 all", "N=64 d=32 bfloat16 mask", "N=64 d=32 bfloat16 causal"):
        assert field[case]["share"]["gradient"] > 0 and field[case]["forward"]["min"] > 0
    attention = found["results"]["attention"]
    for case in ("N=64 padding", "N=64 grouped heads"):
        assert attention[case]["xla / pdejax, gradient"]["min"] > 0


def test_what_there_is_no_time_for_is_named(command, tmp_path):
    assert command(["--small", "--minutes", "0", "--out", str(tmp_path), "--only", "attention"]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["left out for want of time"] == ["attention"] and found["results"] == {}


def test_a_part_that_fails_loses_nothing_and_is_told(command, tmp_path, monkeypatch, capsys):
    parts = command.__globals__["PARTS"]
    monkeypatch.setitem(parts, "verify", lambda bench: {"passed": False})
    monkeypatch.setitem(parts, "field", lambda bench: 1 / 0)
    monkeypatch.setitem(parts, "memory", lambda bench: {"most in use": 1.0})
    assert command(["--small", "--out", str(tmp_path), "--only", "verify", "field", "memory"]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert found["field"]["failed"].startswith("ZeroDivisionError") and found["memory"]["most in use"] == 1.0
    assert "failed: verify, field" in capsys.readouterr().err


@pytest.mark.slow
def test_every_part_has_a_rehearsal(command, tmp_path):
    found = rehearse(command, tmp_path, "stiff", "sweeps", "training", "memory", "torch")
    results = found["results"]
    assert 16 <= results["stiff"]["evaluations"]["ETDRK4, 4 steps"] <= 18
    assert results["sweeps"]["stability map"]["runs"] == 16 and results["sweeps"]["phase diagram"]["runs"] == 12
    assert results["training"]["Transformer / plain Flax"]["min"] > 0
    assert results["memory"]["gradient through 24 RK4 steps"] > 0
    assert "euler" in results["torch"] or "skipped" in results["torch"]
