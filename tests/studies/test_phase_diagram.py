"""The phase diagram of tokens: one run against closed forms, the study, the command, and a study swept."""

import dataclasses
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from pdejax import cli
from pdejax.exact import equiangular_cosine, equiangular_tokens, preln_equiangular
from pdejax.runs._files import plain
from pdejax.runs.sweep import run_sweep
from pdejax.studies import Judgement, PhasesConfig, Study, phase_diagram, study_sweep
from pdejax.studies.phases import _phases as module
from pdejax.studies.phases._command import load_sweep
from pdejax.studies.phases._measure import measure_run
from pdejax.studies.phases._phases import PHASES, crossing, equiangular_border, phase_sweep, summarize, verdicts
from pdejax.studies.phases._pictures import map_plot

KEPT = pathlib.Path(__file__).parent.parent.parent / "benchmarks" / "results" / "sweep"
DEPTHS = (0.5, 1.0, 2.0, 4.0)
SMALL = {
    "betas": 3,
    "beta_high": 8.0,
    "tokens": (4,),
    "dim": 3,
    "t1": 4.0,
    "depths": 4,
    "step": 0.05,
    "seeds": 3,
    "chunk": 6,
}


def one_run(normalization, beta, tokens, gamma, step):
    return jax.jit(lambda key: measure_run(
        key, beta=beta, tokens=tokens, normalization=normalization, dim=tokens, depths=DEPTHS, step=step,
        close=0.99, start=lambda key: equiangular_tokens(tokens, tokens, gamma, key),
    ))(jax.random.key(0))  # fmt: skip


@pytest.mark.parametrize(("normalization", "beta"), [("sphere", 3.0), ("pre-norm", 3.0)])
def test_equiangular_tokens_follow_the_closed_form(normalization, beta):
    found = one_run(normalization, beta, 4, 0.2, 0.01)
    depths = jnp.asarray(DEPTHS)
    if normalization == "sphere":
        exact = equiangular_cosine(0.2, beta, 4, depths)
    else:
        exact = preln_equiangular(0.2, 1.0, beta, 4, depths).cosine
    np.testing.assert_allclose(found["cosine"], exact, atol=2e-8)
    np.testing.assert_array_equal(found["clusters"], np.where(exact > 0.99, 1, 4))


def test_without_normalization_by_a_loop():
    """Heun's steps written out, so short that they are exact to 1e-5."""
    found = one_run("none", 2.0, 3, 0.1, 0.05)
    x = np.asarray(equiangular_tokens(3, 3, 0.1, jax.random.key(0)))

    def field(x):
        weights = np.exp(2.0 * x @ x.T)
        return weights / weights.sum(1, keepdims=True) @ x

    h, steps = 1 / 2000, 2000
    for _ in range(steps):
        half = field(x)
        x = x + h / 2 * (half + field(x + h * half))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert float(found["cosine"][1]) == pytest.approx(float((unit @ unit.T)[np.triu_indices(3, 1)].mean()), abs=1e-5)


def test_crossings_are_linear_in_log_depth():
    log_depth = jnp.log(jnp.asarray([1.0, 2.0, 4.0]))
    lost = jnp.nan
    curves = jnp.asarray([[0.0, 0.25, 0.75], [0.0, 0.1, 0.2], [0.6, 0.7, 0.8], [0.4, 0.5, 0.6], [0.0, 0.75, lost]])
    found = np.exp(np.asarray(crossing(curves, log_depth)))
    np.testing.assert_allclose(found, [2 * 2**0.5, 4.0, 1.0, 2.0, lost], rtol=1e-12)


@pytest.mark.parametrize("tokens", [4, 32])
def test_the_border_in_closed_form_is_where_the_closed_form_is_one_half(tokens):
    betas = np.array([0.5, 2.0, 5.0])
    sphere, slow = (equiangular_border(betas, tokens, name) for name in ("sphere", "pre-norm"))
    np.testing.assert_allclose(equiangular_cosine(0.0, betas, tokens, sphere), 0.5, atol=1e-8)
    np.testing.assert_allclose(preln_equiangular(0.0, 1.0, betas, tokens, slow).cosine, 0.5, atol=1e-8)
    assert equiangular_border(betas, tokens, "none") is None
    # Beyond the range of numbers it is infinitely deep, without a warning.
    assert equiangular_border([2000.0], tokens, "pre-norm").tolist() == [np.inf]


@pytest.fixture(scope="module")
def result():
    return phase_diagram(PhasesConfig(**SMALL))


def test_the_study_averages_its_runs(result):
    config = PhasesConfig(**SMALL)
    sweep = phase_sweep(config)
    assert result.results["runs"] == sweep.runs == 27 and result.passed and result.verdicts["runs"] == "all 27 finite"
    beta, depth = sweep.axes["beta"][1], sweep.coords["depth"]
    options = {"beta": beta, "tokens": 4, "normalization": "pre-norm", "dim": 3, "depths": depth, "step": 0.05}
    run = jax.jit(lambda s: measure_run(jax.random.fold_in(jax.random.key(0), s), **options, close=0.99)["cosine"])
    mean = np.mean([run(s) for s in range(3)], axis=0)
    np.testing.assert_allclose(np.asarray(result.results["cosine"])[1, 0, 1], mean, atol=6e-4)
    border = result.results["border"]
    low, value, high = (np.asarray(border[key]) for key in ("low", "value", "high"))
    assert (low <= value).all() and (value <= high).all() and (value <= 4.0).all()
    assert [picture.file for picture in result.pictures] == ["phases_cosine.png", "phases_clusters.png"]
    assert all(picture.png().startswith(b"\x89PNG") for picture in result.pictures)


def test_verdicts_follow_the_numbers(result):
    assert re.search(r"^4 tokens align by depth 4 for β ≤ \S+ \(sphere\), ", result.verdict)
    found = {**result.results, "not_finite": 2}
    found["border"] = {key: np.full_like(np.asarray(x), 4.0).tolist() for key, x in found["border"].items()}
    answers = verdicts(found)
    assert answers["aligned"].startswith("4 tokens align by depth 4 for no β ≥ 0.5 (sphere)")
    assert answers["runs"] == "NOT finite: 2 of 27"
    assert re.search(r"align at least \S+ to more than \S+ times", answers["closed form"])
    assert not PHASES.judge(PhasesConfig(**SMALL), [found]).passed


def test_the_kept_result_is_judged_the_same():
    content = json.loads((KEPT / "phases.json").read_text())
    judged = PHASES.judge(PhasesConfig(**content["config"]), [content["results"]])
    assert dict(judged.verdicts) == content["verdicts"] and judged.sentence == content["verdict"] and judged.passed
    assert content["results"]["runs"] == phase_sweep(PhasesConfig(**content["config"])).runs > 100_000


def test_runs_that_are_not_finite_are_counted_and_are_no_evidence():
    config = PhasesConfig(**{**SMALL, "normalization": ("none", "sphere"), "tokens": (3,)})
    data = module.collect_sweep(phase_sweep(config))
    whole = summarize(data)
    assert whole["not_finite"] == 0
    data.cosine[1, 0, 0, 2, 3] = np.nan
    found = json.loads(json.dumps(plain(summarize(data))))
    assert found["not_finite"] == 1
    border = np.asarray(found["border"]["value"], float)
    expected = np.asarray(whole["border"]["value"])
    expected[1, 0, 0] = np.nan
    np.testing.assert_array_equal(border, expected)
    assert found["clusters"][1][0][0][3] is None and found["clusters"][1][0][0][2] is not None
    judged = PHASES.judge(config, [found])
    [table] = judged.tables
    row = next(row for row in table.rows if row[0] == "none" and row[2] == pytest.approx(found["beta"][1]))
    assert row[3] == "not measured" and row[5] is None
    assert sum(row[3] == "not measured" for row in table.rows) == 1
    assert judged.verdicts["runs"] == "NOT finite: 1 of 18; not measured at 1 of 6 points" and not judged.passed
    data.cosine[:, 0, 0, 2, 3] = np.nan  # a whole panel: drawn without a word of NumPy's
    judged = PHASES.judge(config, [summarize(data)])
    assert "no β that is measured (none)" in judged.sentence
    assert judged.pictures[0].png().startswith(b"\x89PNG")


NONE, FEW = 32.0, (1.0, 2.0, 4.0, 8.0)


@pytest.mark.parametrize(
    ("border", "words"),
    [
        ((1.0, 2.0, NONE, NONE), "β ≤ 2 (none)"),
        ((NONE, 1.0, NONE, NONE), "some β ≤ 2, not for all below (none)"),
        ((1.0, NONE, 3.0, NONE), "β ≤ 1 and some up to 4 (none)"),
        ((NONE, NONE, NONE, NONE), "no β ≥ 1 (none)"),
        ((1.0, np.nan, 2.0, NONE), "β ≤ 4 (none)"),
        ((np.nan, np.nan, np.nan, np.nan), "no β that is measured (none)"),
        ((1.0, 1.0, 1.0, 1.0), "β ≤ 8 (none)"),
    ],
)
def test_inverse_temperatures_that_align_need_not_be_all_below_the_highest(border, words):
    assert (
        verdicts(planted(np.reshape(border, (4, 1, 1)), "none"))["aligned"] == f"8 tokens align by depth 32 for {words}"
    )


def test_an_interval_about_the_last_depth_decides_nothing():
    """Borders below, about and beyond it: where the interval holds it, no β is counted on either side without a word."""
    found = planted(np.reshape((1.0, 2.0, 31.0, NONE), (4, 1, 1)), "none")
    assert verdicts(found)["aligned"] == "8 tokens align by depth 32 for β ≤ 4 (none)"
    found["border"] |= {"high": np.reshape((1.5, 2.5, NONE, NONE), (4, 1, 1))}
    assert verdicts(found)["aligned"].endswith("for β ≤ 4 (none; not decided at β = 4)")
    found["border"] |= {"low": np.reshape((0.5, 1.5, 20.0, 30.0), (4, 1, 1))}
    assert verdicts(found)["aligned"].endswith("for β ≤ 4 (none; not decided at β = 4, 8)")


def planted(border, normalization):
    border = np.asarray(border, float)
    return {
        "beta": list(FEW), "tokens": [8], "normalization": [normalization], "depth": [0.5, 8.0, 32.0], "runs": 8,
        "not_finite": 0, "border": {"value": border, "low": border, "high": border},
        "cosine": np.zeros((4, 1, 1, 3)), "clusters": np.ones((4, 1, 1, 3)),
    }  # fmt: skip


def test_borders_outside_the_diagram_bound_their_ratio():
    exact = equiangular_border(FEW, 8, "sphere")
    assert exact is not None and exact[2] < 32 < exact[3]  # the last says nothing
    for ratios, words in (
        ((1.25, 1.5, 2.0), "1.25 to 2.00 times as deep as equiangular ones"),
        ((1.25, 1.5, None), f"{min(1.25, 32 / exact[2]):.2f} to more than {32 / exact[2]:.2f} times"),
        ((8.0, 7.0, None), f"at least {32 / exact[2]:.2f} to 8.00 times"),
        ((None, None, None), f"at least {32 / exact[2]:.2f} to more than {32 / exact[0]:.2f} times"),
        ((0.5 / exact[0], 1.5, 2.0), f"less than {0.5 / exact[0]:.2f} to 2.00 times"),
    ):
        border = [32.0 if r is None else r * x for r, x in zip(ratios, exact[:3], strict=True)] + [32.0]
        said = verdicts(planted(np.reshape(border, (4, 1, 1)), "sphere"))["closed form"]
        assert words in said and ("outside the diagram" in said) == (None in ratios or "less" in words), (ratios, said)
    assert "closed form" not in verdicts(planted(np.full((4, 1, 1), 4.0), "none"))


def test_ends_of_intervals_outside_the_diagram_say_so():
    found = planted(np.reshape([0.5, 1.0, 30.0, 32.0], (4, 1, 1)), "none")
    found["border"]["low"] = np.reshape([0.5, 0.5, 24.0, 31.0], (4, 1, 1))
    found["border"]["high"] = np.reshape([0.7, 1.5, 32.0, 32.0], (4, 1, 1))
    [table] = PHASES.judge(PhasesConfig(), [found]).tables
    assert [row[3] for row in table.rows] == ["by 0.5", "1 [by 0.5, 1.5]", "30 [24, beyond 32]", "beyond 32"]


def test_the_bar_of_colours_says_that_cosines_are_below_it():
    found = planted(np.reshape([1.0, 1.0, 1.0, 1.0], (4, 1, 1)), "none")
    for least, ends in ((-0.1, "min"), (0.0, "neither")):
        found["cosine"][0] = least
        bar = map_plot(found, "cosine", equiangular_border).axes[-1]
        assert vars(bar)["_colorbar"].extend == ends


def options(**changes):
    given = {**SMALL, "normalization": ("sphere",), "tokens": (3,), **changes}
    words = [
        [f"--{k.replace('_', '-')}", *(map(str, v) if isinstance(v, tuple) else [str(v)])] for k, v in given.items()
    ]
    return [word for group in words for word in group]


@pytest.mark.slow
def test_the_command_in_two_shards(tmp_path, capsys):
    pytest.importorskip("zarr")
    for shard, words in (("0/2", "the rest is another shard's"), ("1/2", "all 9 finite")):
        assert cli.main(["sweep", *options(out=tmp_path, shard=shard, chunk=3)]) == 0
        assert words in capsys.readouterr().out
    content = json.loads((tmp_path / "phases.json").read_text())
    assert content["results"]["runs"] == 9 and (tmp_path / "phases_clusters.png").exists() and content["seconds"] > 0
    with xr.open_zarr(tmp_path / "sweep.zarr", chunks=None) as data:
        assert dict(data.sizes) == {"beta": 3, "tokens": 1, "normalization": 1, "seed": 3, "depth": 4}
        mean = np.asarray(data.cosine.mean("seed"), float)
    np.testing.assert_allclose(content["results"]["cosine"], mean, atol=6e-4)


OWN = """
from pdejax.runs.sweep import Sweep

def measure(key, *, x):
    return {"y": x * x}

sweep = Sweep(measure=measure, axes={"x": (1.0, 2.0)}, dims={"y": ()}, name="squares")
other = 3
"""


def test_a_sweep_of_ones_own(tmp_path, capsys):
    pytest.importorskip("zarr")
    file = tmp_path / "own_sweep_of_a_test.py"
    file.write_text(OWN)
    out = str(tmp_path / "out")
    assert cli.main(["sweep", f"{file}:sweep", "--out", out]) == 0
    assert "2 runs in" in capsys.readouterr().out
    with xr.open_zarr(f"{out}/sweep.zarr", chunks=None) as data:
        assert data.y.values.ravel().tolist() == [1.0, 4.0] and data.attrs["sweep"] == "squares"


def test_a_file_may_be_called_as_a_module(tmp_path):
    (tmp_path / "colorsys.py").write_text(OWN)
    found = load_sweep(f"{tmp_path / 'colorsys.py'}:sweep")
    assert found.name == "squares" and importlib.import_module("colorsys").rgb_to_hsv(0, 0, 0) == (0, 0, 0)
    (tmp_path / "broken.py").write_text("1 / 0")
    before = set(sys.modules)
    with pytest.raises(ZeroDivisionError):
        load_sweep(f"{tmp_path / 'broken.py'}:sweep")
    assert not {name for name in set(sys.modules) - before if "broken" in name}


@pytest.mark.slow
def test_jobs_of_a_file_that_no_job_can_import(tmp_path):
    """In processes of their own: submitit leaves its files and processes to be collected."""
    pytest.importorskip("zarr")
    pytest.importorskip("submitit")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "own_sweep_of_jobs.py").write_text(OWN)
    words = ["sweep", "elsewhere/own_sweep_of_jobs.py:sweep", "--out", "out"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    def command(*more):
        run = [sys.executable, "-m", "pdejax", *words, *more]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "submitted 2 jobs" in command("--jobs", "2", "--cluster", "local")
    until = time.monotonic() + 100
    while len(list((tmp_path / "out" / "jobs").glob("*_result.pkl"))) < 2 and time.monotonic() < until:
        time.sleep(0.2)
    with xr.open_zarr(tmp_path / "out" / "sweep.zarr", chunks=None) as data:
        assert data.y.values.ravel().tolist() == [1.0, 4.0]
    assert "0 runs in" in command()  # to this process it is the same sweep


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "'nonsense' must be 'phases' or FILE.py:NAME"),
        (["missing.py:sweep", "--out", "x"], "missing.py is no file"),
        (["FILE:other", "--out", "x"], "has no Sweep called 'other'"),
        (["FILE:sweep"], "give --out DIR"),
        (["FILE:sweep", "--out", "x", "--betas", "3"], "says itself what is swept; leave out --betas"),
        (["--shard", "0/2"], "give --out DIR"),
        (["--shard", "2/2", "--out", "x"], "shard='2/2' must be 'i/n'"),
        (["--jobs", "2", "--shard", "0/2"], "leave --shard out"),
        (["--jobs", "0"], "sweep: jobs=0"),
        (["--step", "1"], "step=1.0 must be at most t1/64 = 0.5"),
        (["--beta-high", "0.1"], "beta_high=0.1"),
        (["--normalization", "rms"], "normalization='rms' must be one of"),
        (["--tokens", "1"], "tokens=1"),
        (["--seeds", "1"], "seeds=1"),
    ],
)
def test_bad_commands(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    assert cli.main(["sweep", *(word.replace("FILE", "own.py") for word in arguments)]) == 2
    assert words in capsys.readouterr().err


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
    factor: float = 2.0
    power: int = 1
    seed: int = 4


TOY = Study(
    name="toy", title="", question="", source="", judge=lambda config, evidence: Judgement(),
    measure=lambda config, seed, parts: {"value": parts.get("value", lambda: config.factor * seed**config.power)},
)  # fmt: skip


def test_a_study_is_swept_over_its_settings(tmp_path):
    pytest.importorskip("zarr")
    sweep = study_sweep(
        TOY,
        Toy(),
        {"factor": (1.0, 3.0), "power": (1, 2)},
        lambda e: {"value": e["value"]},
        dims={"value": ()},
        seeds=2,
    )
    data = run_sweep(sweep, tmp_path).dataset()
    assert data.value.dims == ("factor", "power", "seed")
    assert data.value.values.tolist() == [[[4, 5], [16, 25]], [[12, 15], [48, 75]]]


@pytest.mark.bad_input
def test_axes_of_a_study_are_its_settings():
    with pytest.raises(ValueError, match="study_sweep: axes='colour' must be one of 'factor'"):
        study_sweep(TOY, Toy(), {"colour": (1,)}, lambda e: {}, dims={"value": ()})
    with pytest.raises(TypeError, match="config has type int"):
        study_sweep(TOY, 3, {"power": (1,)}, lambda e: {}, dims={"value": ()})
