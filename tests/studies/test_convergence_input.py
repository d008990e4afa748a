"""What the convergence study is run on: every norm, files, saved models; and its data set."""

import dataclasses
import json
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
import xarray as xr
from flax import nnx
from scipy.integrate import solve_ivp

import pdejax as pj
from pdejax import cli
from pdejax.studies import ConvergenceConfig
from pdejax.studies.numerics import _convergence as study
from pdejax.studies.numerics._convergence_case import build_case, fingerprint
from pdejax.studies.numerics._convergence_dataset import dataset
from pdejax.training import TrainConfig
from pdejax.training._kept import metadata

TINY: dict[str, Any] = {"length": 10, "dim": 8, "heads": 2, "layers": 2, "ffn": 12}
DIGITS: dict[str, Any] = {"dataset": "digits", "data": {"form": "patches", "patch": 4}}


def model(**changes) -> pj.Transformer:
    options = {"vocab": 16, "dim": 8, "heads": 2, "layers": 2, "ffn": 12} | changes
    return pj.Transformer(pj.Architecture(**options), rngs=nnx.Rngs(3))


def of(path, **changes) -> ConvergenceConfig:
    return ConvergenceConfig(length=10, weights="checkpoint", checkpoint=str(path), **changes)


@pytest.fixture
def saved(tmp_path):
    pj.save_model(tmp_path / "net.npz", model())
    return tmp_path / "net.npz"


# Post-LN: steps u ← ρ(u + hf(u)) and the flow that they tend to


@pytest.mark.parametrize("norm_type", ["layernorm", "rmsnorm"])
def test_post_ln_blocks_tend_to_the_projected_flow(norm_type):
    """Against SciPy on the field ρ'(u)f(u) by finite differences, and a loop of blocks as the papers write them."""
    config = ConvergenceConfig(**TINY, norm="post", norm_type=norm_type, weights="iid")
    case = build_case(config)
    assert case.block is not None and case.layers == 2
    raw, n, d = case.block.field, *case.u0.shape
    rho = eqx.filter_jit(pj.terms.LayerNorm(d) if norm_type == "layernorm" else pj.terms.RMSNorm(d))
    norm = lambda u: np.asarray(rho(u))  # noqa: E731
    np.testing.assert_allclose(norm(case.u0), case.u0, rtol=2e-6)  # it starts normalized, to ε
    layers = [raw.layer(i) for i in range(2)]
    attend, react = (
        eqx.filter_jit(lambda e, u: e.interaction(0.0, u, None)),
        eqx.filter_jit(lambda e, u: e.reaction(0.0, u, None)),
    )

    def slope(layer):
        def f(t, flat):
            u, e = flat.reshape(n, d), 1e-6
            v = np.asarray(attend(layer, u) + react(layer, u))
            return ((norm(u + e * v) - norm(u - e * v)) / (2 * e)).ravel()

        return f

    exact = np.asarray(case.u0).ravel()
    for layer in layers:
        exact = solve_ivp(slope(layer), (0, 0.5), exact, "DOP853", rtol=1e-9, atol=1e-9).y[:, -1]
    here = np.asarray(case.equation.layer(1)(0.0, case.u0, None)).ravel()
    np.testing.assert_allclose(here, slope(layers[1])(0.0, np.asarray(case.u0).ravel()), rtol=1e-5, atol=1e-7)
    errors = []
    for steps in (16, 32):
        u, h = np.asarray(case.u0), 0.5 / steps
        for layer in layers:
            for _ in range(steps):
                u = norm(u + h * np.asarray(attend(layer, u)))
                u = norm(u + h * np.asarray(react(layer, u)))
        errors.append(np.linalg.norm(u.ravel() - exact))
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.15)
    run = pj.simulate(case.block.replace(solver=case.block.solver, steps=64), case.u0, save="end")
    np.testing.assert_allclose(run.us[-1], u, rtol=1e-9, atol=1e-10)


def test_smooth_post_ln_weights_are_the_same_with_and_without_the_projection():
    case = build_case(ConvergenceConfig(**TINY, norm="post"))
    assert case.block is not None
    for name in ("interaction", "reaction"):
        mine, theirs = case.equation.stacked[name].inner, case.block.field.stacked[name]
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_learned_post_ln_scale_has_no_limit(tmp_path):
    post = model(norm="post")
    pj.save_model(tmp_path / "fresh.npz", post)
    assert build_case(of(tmp_path / "fresh.npz")).block is not None
    for name in ("scale", "bias"):
        [key] = [key for key in post.parameters() if key.endswith(f"norm2/{name}")]
        learned = post.with_parameters(post.parameters() | {key: post.parameters()[key] + 0.1})
        pj.save_model(tmp_path / "learned.npz", learned)
        with pytest.raises(ValueError, match=r"learned scale or bias.*no limit of small steps"):
            build_case(of(tmp_path / "learned.npz"))


# Saved models and their input


def test_a_saved_model_has_the_input_it_was_trained_on(saved, tmp_path):
    assert build_case(of(saved)).source.startswith("ListOps: [")
    options = {"vocab": None, "inputs": 16, "head": "classification", "classes": 10}
    train = dataclasses.asdict(TrainConfig(**DIGITS)) | {"out": None}
    pj.save_model(tmp_path / "digits.npz", model(**options), metadata(train, 4, {}))
    case = build_case(of(tmp_path / "digits.npz", seed=2))
    assert case.source.startswith("digits, test split, number 2 of class") and case.u0.shape == (4, 8)
    assert case.dataset == "digits" and case.t1 == 2.0
    np.save(tmp_path / "own.npy", np.random.default_rng(0).normal(size=(5, 16)))
    own = build_case(of(tmp_path / "digits.npz", file=str(tmp_path / "own.npy")))
    assert own.source == "own.npy, 5 values" and own.u0.shape == (5, 8) and own.dataset == "own.npy"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "digits"}, r"takes token ids below 16, and the input is digits image 0"),
        ({"file": "values.npy"}, r"takes token ids below 16, and the input is values.npy"),
        ({"file": "ids.npy"}, r"takes token ids below 16, and the input is ids.npy"),
        ({"file": "none.txt"}, r"file='none.txt' does not exist"),
    ],
)
def test_input_that_does_not_fit_the_model(changes, words, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("values.npy", np.ones((3, 4)))
    np.save("ids.npy", np.array([1, 99]))
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        build_case(of(saved, **changes))


def test_models_that_are_none_of_ours(tmp_path):
    pj.save_model(tmp_path / "simulator.npz", pj.pair(model(), "shared"))
    with pytest.raises(TypeError, match="is a Simulator; it must be a Transformer"):
        build_case(of(tmp_path / "simulator.npz"))
    pj.save_model(tmp_path / "other.npz", model(vocab=50))
    with pytest.raises(ValueError, match=r"does not say what it was trained on, and takes 50 token ids; give dataset="):
        build_case(of(tmp_path / "other.npz"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        build_case(of(tmp_path / "empty"))


def test_kept_parts_know_their_model_and_their_file(saved, tmp_path):
    before = fingerprint(of(saved))
    assert fingerprint(of(saved)) == before  # by the numbers, not by the time
    changed = model()
    changed = changed.with_parameters({k: v + 1e-6 for k, v in changed.parameters().items()})
    pj.save_model(saved, changed)
    assert fingerprint(of(saved)) != before
    (tmp_path / "a.txt").write_text("one two three")
    config = ConvergenceConfig(**TINY, file=str(tmp_path / "a.txt"))
    one = study._identity(config)
    (tmp_path / "a.txt").write_text("one two four")
    assert study._identity(config) != one and str(tmp_path) not in json.dumps(one)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"file": "a.txt", "dataset": "listops"}, "leave out dataset and data"),
        ({"file": "a.txt", "data": {"seed": 1}}, "leave out dataset and data"),
        ({"file": 3}, "file=3 must be a path"),
        ({"data": 3}, "data=3 must map names to values"),
        ({"norm_type": "batchnorm"}, "norm_type"),
    ],
)
def test_inputs_that_cannot_be_configured(options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        ConvergenceConfig(**TINY | options)


def test_the_result_says_files_by_their_names():
    config = ConvergenceConfig(
        weights="checkpoint", checkpoint="/some/where/net.npz", data={"manual_dir": "/data", "patch": 4}
    )
    saved = study.CONVERGENCE.saved(config)
    assert saved["checkpoint"] == "net.npz" and saved["data"] == {"patch": 4} and "/" not in json.dumps(saved)


# The data set


def numbers() -> dict:
    """Results with everything that the data set holds, a scheme with a gap among them."""
    row = {
        "solver": "euler",
        "steps": [4, 8],
        **{key: [0.2, 0.1] for key in ("errors", "max_errors", "uniform_errors", "dense_errors", "one_sided_bounds")},
        "v2_12_bounds": [None, 3.0],
        "evaluations": [4, 8],
        "seconds": [0.1, 0.2],
        **{"order": 1.0, "ci": None, "expected": 1.0, "uniform_order": 1.1},
    }
    spatial = {
        "tokens": [8, 16, 32],
        "differences": [4e-3, 1e-3],
        "order": 2.0,
        "ci": None,
        "expected": 2.0,
        "diffusivity": 0.02,
    }
    regimes = [
        {
            "family": "smooth weights",
            "quantity": "distance",
            "layers": [4, 8],
            "values": [0.2, 0.1],
            "exponent": -1.0,
            "ci": 0.1,
        },
        {
            "family": "iid 1/L",
            "quantity": "spread",
            "layers": [8, 32],
            "values": [0.4, 0.2],
            "exponent": -0.5,
            "ci": None,
        },
    ]
    network = {"layers": 6, "distance": 0.15}
    return {"orders": [row], "spatial": spatial, "regimes": regimes, "network": network, "depth": 2.0}


def test_the_data_set_holds_space_and_regimes_with_units(tmp_path):
    found = dataset(ConvergenceConfig(), numbers())
    found.to_netcdf(tmp_path / "a.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "a.nc", engine="scipy") as data:
        assert all({"units", "long_name"} <= set(data[name].attrs) for name in data.variables), data
        assert data.spatial_order == 2.0 and data.spatial_differences.sel(tokens=16) == 1e-3
        assert data.regime_values.sel(regime="iid 1/L", layers=32) == 0.2
        assert np.isnan(data.regime_values.sel(regime="iid 1/L", layers=4)) and np.isnan(data.v2_12_bounds[0, 0])
        assert list(data.regime_exponent.values) == [-1.0, -0.5] and data.attrs["network_distance"] == 0.15
    without = dataset(ConvergenceConfig(), numbers() | {"spatial": None, "regimes": [], "network": None})
    assert "spatial_order" not in without and "regime" not in without.dims


def test_post_ln_blocks_have_a_verdict_of_their_own():
    results = numbers() | {"reference": {"error": 1e-14}, "orders": [], "regimes": []}
    fitted = {"order": 1.02, "ci": 0.03, "expected": 1.0}
    answers = study.verdicts(results | {"network": results["network"] | fitted})
    assert answers["order of post-LN blocks"].startswith("as expected: order 1.020")
    answers = study.verdicts(results | {"network": results["network"] | fitted | {"order": 1.6}})
    assert answers["order of post-LN blocks"].startswith("NOT as expected")
    assert "order of post-LN blocks" not in study.verdicts(results)


def test_the_command_refuses_a_missing_model_in_words(capsys):
    assert cli.main(["convergence", "--weights", "checkpoint", "--checkpoint", "missing", "--quiet"]) == 2
    assert (
        "checkpoint='missing' does not exist; give a folder that `pdejax train --out` left" in capsys.readouterr().err
    )
