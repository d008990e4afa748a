"""The convergence study: its files, its resuming, its verdicts, and its command."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from flax import nnx

import pdejax as pj
from pdejax import analysis, cli
from pdejax.analysis.limits._exponents import distance_verdict, spread_verdict
from pdejax.runs import Result, ResultError
from pdejax.studies import ConvergenceConfig, convergence
from pdejax.studies.numerics import _convergence as study
from pdejax.studies.numerics._convergence_case import build_case
from pdejax.studies.numerics._limits import (
    cosine_coefficients,
    sample_cosines,
    smooth_regime,
    spatial_convergence,
)

SMALL = {"length": 10, "dim": 8, "heads": 2, "layers": 2, "ffn": 12, "spatial": (), "regimes": (), "steps": (4, 8, 16)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("convergence")


@pytest.fixture(scope="module")
def config(folder):
    return ConvergenceConfig(**SMALL, solvers=("euler", "rk4"), out=str(folder))


@pytest.fixture(scope="module")
def result(config):
    return convergence(config)


@pytest.fixture
def content(folder, result):
    return json.loads((folder / "convergence.json").read_text())


def test_json_holds_what_was_promised(content):
    assert {"study", "title", "question", "config", "seeds", "environment", "results", "verdict", "verdicts"} <= set(
        content
    )
    assert content["study"] == "convergence" and content["config"]["length"] == 10 and content["seeds"] == [0]
    assert "out" not in content["config"] and content["data"] == "convergence.nc"
    assert [entry["file"] for entry in content["figures"]] == ["error_step.png", "work_precision.png"]
    assert content["environment"]["versions"]["jax"] == jax.__version__
    rows = {row["solver"]: row for row in content["results"]["orders"]}
    assert list(rows) == ["euler", "rk4"]
    for row in rows.values():
        keys = {"solver", "expected", "order", "ci", "steps", "errors", "one_sided_bounds", "evaluations", "seconds"}
        assert keys <= set(row)
        assert len(row["errors"]) == len(row["one_sided_bounds"]) == len(row["seconds"]) == 3
    assert rows["euler"]["evaluations"] == [4, 8, 16] and rows["rk4"]["evaluations"] == [16, 32, 64]


def test_orders_are_measured_on_real_input(result):
    euler, rk4 = result.results["orders"]
    assert abs(euler["order"] - 1) < 0.15 and abs(rk4["order"] - 4) < 0.4
    assert result.results["input"].startswith("ListOps: [")
    assert all(
        error < bound
        for row in (euler, rk4)
        for error, bound in zip(row["errors"], row["one_sided_bounds"], strict=True)
    )


def test_dataset_and_plots(folder, content):
    with xr.open_dataset(folder / "convergence.nc", engine="scipy") as data:
        assert all({"units", "long_name"} <= set(data[name].attrs) for name in data.variables)
        assert list(data.solver.values) == ["euler", "rk4"]
        np.testing.assert_allclose(data.errors.sel(solver="rk4"), content["results"]["orders"][1]["errors"])
    for name in ("error_step.png", "work_precision.png"):
        image = (folder / name).read_bytes()
        assert image.startswith(b"\x89PNG") and len(image) > 10_000


def test_a_second_run_measures_nothing(config, result, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("measured again")

    for name in ("measure_scheme", "measure_constants", "solve_reference"):
        monkeypatch.setattr(analysis.numerics, name, never)
    again = convergence(config)
    assert again.results["orders"] == result.results["orders"]


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    config = ConvergenceConfig(**SMALL, solvers=("euler", "heun"), out=str(tmp_path))
    measure, seen = analysis.numerics.measure_scheme, []

    def interrupted(*args, solver, **kwargs):
        seen.append(solver)
        if solver == "heun" and seen.count("heun") == 1:
            raise KeyboardInterrupt
        return measure(*args, solver=solver, **kwargs)

    monkeypatch.setattr(analysis.numerics, "measure_scheme", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convergence(config)
    assert not (tmp_path / "convergence.json").exists()
    assert [row["solver"] for row in convergence(config).results["orders"]] == ["euler", "heun"]
    assert seen == ["euler", "heun", "heun"]


def test_a_study_says_nothing_beside_what_it_reports(tmp_path, monkeypatch, capsys):
    """Its own report is its voice, also where the reference is long: with `--quiet` nothing else may be printed."""
    monkeypatch.setattr("pdejax.analysis.numerics._convergence.LONG", 0)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(analysis.numerics, "measure_constants", interrupted)
    said = []
    with pytest.raises(KeyboardInterrupt):
        convergence(ConvergenceConfig(**SMALL, out=str(tmp_path)), report=said.append)
    assert any("reference" in text for text in said)
    assert capsys.readouterr() == ("", "")


def test_damaged_parts_and_half_written_results(config, folder, result):
    [part] = (folder / "parts").glob("*/scheme-euler-*.json")
    part.write_text(part.read_text()[:40])
    (folder / "convergence.json").write_text('{"study": "conv')
    notices = []
    again = convergence(config, report=notices.append)
    assert any("damaged" in text and part.name in text for text in notices)
    assert json.loads((folder / "convergence.json").read_text())["study"] == "convergence"
    np.testing.assert_allclose(again.results["orders"][0]["errors"], result.results["orders"][0]["errors"], rtol=1e-9)


def test_output_that_cannot_be_written(tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    for out in (taken, taken / "below"):
        with pytest.raises(ResultError, match="taken"):
            convergence(ConvergenceConfig(**SMALL, out=str(out)))


@pytest.mark.parametrize(
    "change, word",
    [
        ({"dataset": "cifar"}, "dataset"),
        ({"norm": "batch"}, "norm"),
        ({"weights": "rough"}, "weights"),
        ({"activation": "relu6"}, "activation"),
        ({"length": 0}, "length"),
        ({"heads": 3}, "heads=3"),
        ({"depth": -1.0}, "depth"),
        ({"tolerance": 1e-20}, "tolerance"),
        ({"dt": (0.5, 0.25)}, "steps or dt"),
        ({"checkpoint": "x.npz"}, "belong together"),
        ({"solvers": ()}, "solvers"),
        ({"solvers": ("eulr",)}, "did you mean 'euler'"),
        ({"steps": (4, 0)}, "steps"),
    ],
)
def test_bad_configurations(change, word):
    with pytest.raises(ValueError, match=word):
        ConvergenceConfig(**(SMALL | change))


def test_step_sizes():
    free = ConvergenceConfig(**{k: v for k, v in SMALL.items() if k != "steps"}, dt=(0.5, 0.25))
    assert free.step_counts(2.0, 1) == (4, 8)
    with pytest.raises(ValueError, match=r"dt=0.3"):
        dataclasses.replace(free, dt=(0.3, 0.15)).step_counts(2.0, 1)
    with pytest.raises(ValueError, match="multiples of the 3 layers"):
        ConvergenceConfig(**SMALL).step_counts(3.0, 3)
    with pytest.raises(ValueError, match="at least two"):
        ConvergenceConfig(**(SMALL | {"steps": (4, 4)})).step_counts(2.0, 1)
    assert ConvergenceConfig().step_counts(2.0, 1) == (4, 8, 16, 32, 64, 128, 256)
    assert ConvergenceConfig().step_counts(6.0, 6)[:2] == (6, 12)


@pytest.mark.slow
def test_digits_and_independent_layers():
    found = convergence(
        ConvergenceConfig(**(SMALL | {"dataset": "digits", "weights": "iid", "steps": (2, 4, 8)}), solvers=("euler",))
    )
    assert found.results["input"].startswith("digits image 0 of class")
    assert found.results["tokens"] == 64
    assert abs(found.results["orders"][0]["order"] - 1) < 0.2


@pytest.mark.slow
def test_checkpoints(tmp_path):
    path = tmp_path / "model.npz"
    options = {"vocab": 16, "dim": 8, "heads": 2, "layers": 2, "ffn": 12, "residual_scale": 0.5}
    model = pj.Transformer(pj.Architecture(**options), rngs=nnx.Rngs(3))
    pj.save_model(path, model)
    config = ConvergenceConfig(**(SMALL | {"weights": "checkpoint", "checkpoint": str(path), "steps": (2, 4)}))
    case = build_case(config)
    assert case.t1 == 2.0 and case.layers == 2
    np.testing.assert_allclose(
        case.base.interaction.wq, np.asarray(model.layer_weights()["wq"][0], np.float64), rtol=1e-6
    )


def record(**changes):
    base = {
        "solver": "euler",
        "expected": 1.0,
        "order": 1.01,
        "ci": 0.01,
        "used": [4, 8],
        "steps": [4, 8],
        "step_sizes": [0.5, 0.25],
        "errors": [0.1, 0.05],
        "max_errors": [0.1, 0.05],
        "uniform_errors": [0.1, 0.05],
        "one_sided_bounds": [1.0, 0.5],
        "evaluations": [4, 8],
        "seconds": [0.1, 0.2],
        "diverged": [False, False],
    }
    return base | changes


def verdicts(spatial=None, **changes):
    results = {"orders": [record(**changes)], "spatial": spatial, "regimes": [], "reference": {"error": 1e-14}}
    return study.verdicts(results)


def test_verdicts_follow_the_numbers():
    assert verdicts(order=None)["order euler"].startswith("not measurable")
    # Few and coarse steps: an interval that holds the order is as expected, unless it reaches halfway to the next one, too.
    assert verdicts(order=1.3, ci=0.4)["order euler"] == "as expected: order 1.300 ± 0.400 for 1"
    for ci in (0.51, None):
        assert verdicts(order=1.0, ci=ci)["order euler"].startswith("not decided: order 1.00")
    # Two errors decide nothing but what is far off.
    assert verdicts(expected=4.0, order=1.02, ci=None)["order euler"].startswith("NOT as expected")
    assert "blew up" in verdicts(diverged=[True, False])["order euler"]
    assert "VIOLATED by euler" in verdicts(errors=[2.0, 0.05])["one-sided bound and v2 (12)"]


# Numbers on either side of every line that a verdict draws: first those that are as they should be, then those that are not.
ORDERS = [
    ({"order": 1.3, "ci": 0.31}, {"order": 1.3, "ci": 0.29}),
    ({"order": 0.7, "ci": 0.31}, {"order": 0.7, "ci": 0.29}),
    ({"order": 1.0009, "ci": 0.0}, {"order": 1.0011, "ci": 0.0}),  # the digits shown
    ({"expected": 5.0, "order": 5.2, "ci": 0.21}, {"expected": 5.0, "order": 5.2, "ci": 0.19}),
]
# Errors beside bounds of 1 and 0.5, or of 0 where an error is the reference's own: below 20 times 1e-14, or rounding, 1e-12.
BOUNDS = [
    ({"errors": [1.0, 0.5]}, {"errors": [1.0, 0.5001]}),
    (
        {"one_sided_bounds": [0.0, None], "errors": [0.9e-12, 9.0]},
        {"one_sided_bounds": [0.0, None], "errors": [1.1e-12, 9.0]},
    ),
]
SPACE = {"expected": 2.0, "order": 2.0, "ci": 0.15}


@pytest.mark.parametrize(("good", "bad"), ORDERS)
def test_where_verdicts_about_orders_draw_their_lines(good, bad):
    assert verdicts(**good)["order euler"].startswith("as expected")
    assert verdicts(**bad)["order euler"].startswith("NOT as expected")


@pytest.mark.parametrize(("good", "bad"), BOUNDS)
def test_where_verdicts_about_bounds_draw_their_lines(good, bad):
    assert verdicts(**good)["one-sided bound and v2 (12)"].startswith("hold")
    assert verdicts(**bad)["one-sided bound and v2 (12)"].startswith("VIOLATED")


@pytest.mark.parametrize(("good", "bad"), [(2.14, 2.16), (1.86, 1.84)])
def test_where_verdicts_about_space_draw_their_lines(good, bad):
    assert verdicts(SPACE | {"order": good})["spatial order"].startswith("as expected")
    assert verdicts(SPACE | {"order": bad})["spatial order"].startswith("NOT as expected")
    assert verdicts(SPACE | {"order": None})["spatial order"].startswith("not measurable")


def test_a_networks_distance_lies_on_the_power_law_between_its_neighbours():
    """Errors 0.4/n² at n = 4 and 16: at n = 8 layers 0.4/64 by the line through their logarithms, at n = 4 the one measured."""
    rows = [record(solver="lietrotter", steps=[4, 16], step_sizes=[0.5, 0.125], errors=[0.4 / 16, 0.4 / 256])]
    field = pj.MasterEquation(stabilization=pj.LinearDamping(1.0))
    case = study.Case(field, field, jnp.zeros((2, 1)), t1=2.0, layers=1, source="", dataset="")
    for layers, measured in ((8, 0.4 / 64), (4, 0.4 / 16)):
        found = study._network(ConvergenceConfig(**(SMALL | {"layers": layers})), case, rows)
        assert found is not None and found["layers"] == layers
        assert found["distance"] == pytest.approx(measured, rel=1e-12)


def test_table_shows_missing_numbers_as_such():
    table = study.CONVERGENCE.table
    assert len(study.CONVERGENCE.line(record())) == len(table.head())
    assert " – " in study.CONVERGENCE.line(record(order=None, ci=None))


def judged(content, **changes):
    config = {name: tuple(v) if isinstance(v, list) else v for name, v in content["config"].items()}
    return study.judge(ConvergenceConfig(**config), [content["results"] | changes])


def test_a_judgement_follows_from_what_was_stored(content):
    """Whatever the study measured once is judged again from its file; other numbers give another verdict."""
    found = judged(content)
    assert found.passed and found.verdicts == content["verdicts"] and found.sentence == content["verdict"]
    wrong = [row | {"order": 2.5} for row in content["results"]["orders"]]
    assert not judged(content, orders=wrong).passed
    assert "order euler" in judged(content, orders=wrong).sentence
    # What is not decided is not called right: one wide interval, and the sentence names it.
    wide = [row | {"ci": 0.6, "order": row["expected"]} for row in content["results"]["orders"]]
    unsure = judged(content, orders=wide)
    assert unsure.passed and unsure.sentence.startswith("nothing is wrong; not decided: order ")


def test_a_result_shows_what_was_measured(result, content):
    text = repr(result)
    for word in ("Convergence", "reference", "log-norm", "order rk4", "seed 0", "euler"):
        assert word in text
    assert "<table" in result._repr_html_()
    again = Result.from_json(content)
    assert again.to_json() == content and "order rk4" in repr(again)


# Exponents of the spread with their half-widths, and what is said: a regime where the whole interval lies within 0.1 of it.
SPREADS = [
    *((-0.5, 0.09, True, "averaged"), (-0.42, 0.05, True, "between"), (-0.46, 0.05, True, "averaged")),
    *((-0.5, 0.05, False, "mean does not settle"), (-0.35, 0.05, False, "mean does not settle")),
    *((0.0, 0.09, True, "SDE-like"), (0.0, 0.11, True, "not decided"), (-0.06, 0.05, True, "between")),
    *((-0.1, 0.03, True, "between"), (-0.1, 0.15, True, "not decided"), (-0.25, 0.1, True, "between")),
    *((0.2, 0.1, True, "grows"), (-0.5, 0.6, True, "not decided"), (math.nan, 0.1, True, "not measurable")),
    (0.0, math.nan, True, "too few draws for an interval"),
    *((-0.5, 0.12, True, "not decided"), (-0.5, 0.3, True, "not decided"), (-0.9, 0.05, True, "faster than at −1/2")),
]


@pytest.mark.parametrize(("exponent", "ci", "settles", "words"), SPREADS)
def test_where_regimes_of_independent_layers_draw_their_lines(exponent, ci, settles, words):
    assert words in spread_verdict(exponent, ci, settles)


def test_regime_of_smooth_weights():
    steps = (32, 64, 128, 256)
    found = smooth_regime(steps, [0.3 / n * (1 - 2 / n) for n in steps])
    assert found.exponent == pytest.approx(-1, abs=found.ci) and found.verdict.startswith(
        "ODE limit, reached at rate L^-1.00"
    )
    assert smooth_regime(steps, [0.3 * n**-0.85 for n in steps]).verdict.startswith("no first-order")
    for count in (0, 1, 2):
        assert smooth_regime(steps[:count], [0.3, 0.15][:count]).verdict.startswith("not measurable")
    assert distance_verdict(-1.0005, 0.0004).startswith("ODE limit")  # to the digits shown, as orders are
    assert distance_verdict(-1.0005, 0.0004 - 1e-3).startswith("no first-order")
    assert distance_verdict(-0.9, 0.51).startswith("not decided")
    assert distance_verdict(-0.7, 0.45).startswith("not decided")  # holds −½ as well
    assert distance_verdict(-0.9, 0.2).startswith("ODE limit")


def test_cosine_coefficients_are_a_transform_and_back(getkey):
    u = jax.random.normal(getkey(), (7, 3))
    np.testing.assert_allclose(sample_cosines(cosine_coefficients(u), 7), u, atol=1e-12)
    # Coefficients belong to the function, not to the grid.
    modes = cosine_coefficients(u)[:3]
    np.testing.assert_allclose(cosine_coefficients(sample_cosines(modes, 20))[:3], modes, atol=1e-12)


@pytest.mark.slow
def test_spatial_order(getkey):
    base = pj.MasterEquation(interaction=pj.Attention(4, 2, key=getkey()), reaction=pj.FeedForward(4, 8, key=getkey()))
    found = spatial_convergence(base, jax.random.normal(getkey(), (12, 4)), tokens=(12, 24, 48), diffusivity=0.05)
    assert abs(found.order - 2) < 0.15
    with pytest.raises(ValueError, match="double"):
        spatial_convergence(base, jnp.ones((4, 4)), tokens=(8, 12, 16), diffusivity=0.05)


def test_command(tmp_path, capsys):
    arguments = [
        "convergence",
        "--quiet",
        "--length",
        "10",
        "--dim",
        "8",
        "--heads",
        "2",
        "--layers",
        "2",
        "--ffn",
        "12",
    ]
    arguments += ["--steps", "4", "8", "16", "--solvers", "euler", "--spatial", "--regimes", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "bound/err" in printed and "euler" in printed and "saved" in printed
    assert (tmp_path / "convergence.json").exists()


def test_commands_refuse_bad_input(tmp_path, capsys):
    taken = tmp_path / "file"
    taken.write_text("")
    assert cli.main(["convergence", "--out", str(taken)]) == 2
    assert "--out" in capsys.readouterr().err
    assert cli.main(["convergence", "--solvers", "eulr"]) == 2
    assert "did you mean 'euler'" in capsys.readouterr().err
    for arguments in ([], ["convergence", "--nothing"], ["convergence", "--norm", "batch"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2


def test_interrupt_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pdejax.studies.study.run", interrupted)
    assert cli.main(["convergence", "--out", str(tmp_path)]) == 130
    assert "goes on" in capsys.readouterr().err


def test_info(capsys):
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["jax"] == jax.__version__
    assert cli.main(["info"]) == 0
    assert "backend" in capsys.readouterr().out
