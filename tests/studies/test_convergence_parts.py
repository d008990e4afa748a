"""The pieces of the convergence study: every field of its configuration, its kept parts, its regimes."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax.analysis.limits._exponents import spread_exponent, spread_verdict
from pdejax.analysis.limits._recipe import redraw
from pdejax.runs import ResultError
from pdejax.runs._files import plain, write_json, write_whole
from pdejax.runs._parts import Parts
from pdejax.studies import ConvergenceConfig
from pdejax.studies.numerics._convergence_case import build_case
from pdejax.studies.numerics._convergence_config import MODES
from pdejax.studies.numerics._limits import iid_spreads, spatial_convergence

TINY = {"length": 12, "dim": 8, "heads": 2, "layers": 2, "ffn": 12}


@pytest.mark.parametrize(
    "field, values",
    [
        ("dataset", ["cifar", 3]),
        ("data", [3, ("a",)]),
        ("file", [3]),
        ("norm_type", ["batchnorm", None]),
        ("weights", ["smooht", None]),
        ("norm", ["batch", None]),
        ("activation", ["elu", None]),
        *((name, [0, -1, 2.0, "2", None, True]) for name in ("length", "dim", "layers", "heads")),
        ("ffn", [0, -1, 2.0, "2", False]),
        ("draws", [1, 0, 2.5]),
        ("seed", [-1, 0.5, None]),
        ("depth", [0, -1.0, float("nan"), float("inf"), "2"]),
        ("tolerance", [0, -1e-10, 1e-16, 0.1, float("nan"), float("inf"), "tight", None]),
        ("diffusivity", [-0.1, float("nan"), float("inf"), None]),
        ("solvers", [(), "euler", ("euler", "rk44")]),
        ("steps", [8, (8, 0), (8, -16), (8.0, 16.0), "8"]),
        ("dt", [0.5, (0.5, 0.0), (0.5, -0.25), (0.5, float("nan")), ("0.5", "0.25")]),
        ("spatial", [16, (16, 32), (16, 32, 48), (2, 4, 8), (16, 32, 64.0)]),
        ("regimes", [8, (8,), (8, 8), (0, 8)]),
        ("checkpoint", ["model.npz"]),
    ],
)
def test_bad_values_are_named_before_anything_is_built(field, values):
    for value in values:
        with pytest.raises((ValueError, TypeError), match=field):
            ConvergenceConfig(**(TINY | {field: value}))


def test_every_field_is_tried_above():
    [tried] = [mark.args[1] for mark in test_bad_values_are_named_before_anything_is_built.pytestmark]
    untried = {field.name for field in dataclasses.fields(ConvergenceConfig)} - {name for name, _ in tried}
    assert untried == {"out"}  # a folder, tested where it is written


def test_good_values_are_left_alone():
    config = ConvergenceConfig(
        **TINY, depth=3, dt=(1, 0.5), spatial=(6, 12, 24), regimes=[2, 4], draws=2, diffusivity=0
    )
    assert config.step_counts(3.0, 1) == (3, 6)
    assert ConvergenceConfig(**TINY, spatial=(), regimes=()).spatial == ()


@pytest.mark.parametrize("length", [2, 3])
def test_lengths_that_no_expression_has(length):
    with pytest.raises(ValueError, match="length"):
        build_case(ConvergenceConfig(**(TINY | {"length": length})))


def test_cases_are_real_input_in_float64():
    case = build_case(ConvergenceConfig(**TINY, seed=3))
    assert case.u0.shape == (12, 8) and case.u0.dtype == np.float64
    text, value = case.source.removeprefix("ListOps: ").split(" = ")
    assert pj.data.listops.evaluate(text) == int(value)
    assert len(text.split()) == 12
    other = build_case(ConvergenceConfig(**TINY, seed=4))
    assert other.source != case.source
    digits = build_case(ConvergenceConfig(**(TINY | {"dataset": "digits"}), seed=3))
    assert digits.u0.shape == (64, 8) and digits.source == f"digits image 3 of class {pj.data.digits.load().labels[3]}"


def test_independent_layers_are_the_transformers_own():
    case = build_case(ConvergenceConfig(**TINY, weights="iid"))
    assert case.layers == 2 and case.t1 == 1.0 and case.equation.kind == "constant"
    first, second = (case.equation.layer(i).interaction.wq for i in range(2))
    assert np.abs(first - second).max() > 0.1


# Kept parts


class Counter:
    """A measurement that counts how often it is made."""

    def __init__(self, value):
        self.value, self.calls = value, 0

    def __call__(self):
        self.calls += 1
        return self.value


def test_parts_are_measured_once_per_configuration(tmp_path):
    measure = Counter({"a": np.float64(0.1), "b": (1, 2), "c": float("nan")})
    for _ in range(2):
        assert Parts(tmp_path, {"seed": 0}).get("thing", measure) == {"a": 0.1, "b": [1, 2], "c": None}
    assert measure.calls == 1
    Parts(tmp_path, {"seed": 1}).get("thing", measure)
    assert measure.calls == 2
    Parts(None, {"seed": 0}).get("thing", measure)
    assert measure.calls == 3


@pytest.mark.parametrize("damage", ["", "{", '{"name": "thing", "val', "[1, 2]", "null", '"text"', "{}", "3"])
def test_damaged_parts_are_measured_again(tmp_path, damage):
    measure, notices = Counter(1.5), []
    parts = Parts(tmp_path, {}, notices.append)
    assert parts.get("thing", measure) == 1.5
    [path] = tmp_path.glob("parts/*/thing.json")
    path.write_text(damage)
    assert parts.get("thing", measure) == 1.5 and measure.calls == 2
    assert len(notices) == 1 and str(path) in notices[0] and "measured again" in notices[0]
    assert parts.get("thing", measure) == 1.5 and measure.calls == 2


def test_a_failed_measurement_leaves_no_part(tmp_path):
    parts = Parts(tmp_path, {})

    def broken():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.get("thing", broken)
    assert list(tmp_path.glob("parts/*/*")) == []


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_json(path, {"old": True})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": True}
    write_json(path, {"new": float("inf")})
    assert json.loads(path.read_text()) == {"new": None}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]
    with pytest.raises(ResultError, match="cannot write"):
        write_whole(path / "below", b"")


def test_plain_values():
    found = plain({1: (np.float32(0.5), np.int64(3)), "x": np.arange(2), "y": pj.Grid, "z": {True}, "p": None})
    assert found == {"1": [0.5, 3], "x": [0, 1], "y": pj.Grid, "z": [True], "p": None}


# Regimes and space


def test_regimes_without_usable_values_are_called_that():
    """States that overflow, and too few draws for an interval."""
    ends = np.random.default_rng(0).standard_normal((2, 8, 3, 2))
    assert "not measurable" in spread_verdict(
        *spread_exponent((8, 32), ends * np.array([np.nan, 1])[:, None, None, None]), True
    )
    assert math.isnan(spread_exponent((8, 32), ends[:, :2])[1]) and spread_exponent((8, 32), ends)[1] > 0


def test_the_interval_of_the_spreads_exponent_covers_it():
    """Normal states around a mean, spread L^{−0.35} apart, the same draws at each L: 200 times, level 0.95."""
    rng, layers = np.random.default_rng(1), (8, 32, 128)
    size = np.array([n**-0.35 for n in layers])[:, None, None, None]
    hits = 0
    for _ in range(200):
        shared, own = rng.standard_normal((1, 32, 4, 3)), rng.standard_normal((3, 32, 4, 3))
        value, ci = spread_exponent(layers, 5 + size * (0.6 * shared + 0.8 * own))
        hits += abs(value + 0.35) <= ci
    assert hits / 200 >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / 200)


def test_the_spread_of_two_networks_by_hand(getkey):
    """Networks of layers u ← u + sF_l(u), drawn and run one by one: √(‖a − m‖² + ‖b − m‖²)/‖m‖ with their mean m, the
    variance of two draws being over one degree of freedom."""
    base = pj.MasterEquation(interaction=pj.Attention(4, 2, key=getkey()), reaction=pj.FeedForward(4, 8, key=getkey()))
    u0, key, layers = jax.random.normal(getkey(), (5, 4)), getkey(), (2, 1, 3)

    step = jax.jit(lambda layer, u, scale: u + scale * redraw(base, layer)(0.0, u, None))

    def spread(count, scale):
        ends = []
        for k in jax.random.split(key, 2):
            u = u0
            for layer in jax.random.split(k, 3)[:count]:
                u = step(layer, u, scale)
            ends.append(np.asarray(u))
        mean = (ends[0] + ends[1]) / 2
        return np.sqrt(sum(np.sum((end - mean) ** 2) for end in ends)) / np.linalg.norm(mean)

    exponents = {"1": 0.0, "1/sqrt(L)": 0.5, 0.25: 0.25}
    found = iid_spreads(base, u0, layers=layers, scalings=tuple(exponents), draws=2, key=key)
    for regime, exponent in zip(found, exponents.values(), strict=True):
        assert regime.values == pytest.approx([spread(count, count**-exponent) for count in layers], rel=1e-9)
        assert "too few draws for an interval" in regime.verdict
    # Networks whose states overflow are no evidence of any regime.
    [lost] = iid_spreads(base, u0 * jnp.nan, layers=(1, 2), scalings=("1",), draws=2, key=key)
    assert lost.verdict == "not measurable: networks of 1, 2 layers diverged"


@pytest.mark.slow
def test_independent_layers_average_out_or_do_not():
    """Scale 1/L: draws agree like L^{-1/2}. Scale 1/√L: they never do (Marion et al., 2206.06929)."""
    case = build_case(ConvergenceConfig(**TINY))
    scalings = ("1/L", "1/sqrt(L)", 0.85, 0.6)
    spreads = iid_spreads(case.base, case.u0, layers=(8, 64), scalings=scalings, draws=64, key=jax.random.key(0))
    found = dict(zip(scalings, spreads, strict=True))
    for scaling in (0.85, 0.6):  # neither of the two: spreads fall as L^(1/2 − scaling)
        assert found[scaling].exponent == pytest.approx(0.5 - scaling, abs=0.1)
        assert re.match("between|not decided", found[scaling].verdict), scaling
    assert found["1/L"].exponent == pytest.approx(-0.5, abs=0.15)
    assert found["1/sqrt(L)"].exponent == pytest.approx(0, abs=0.15)
    assert "averaged" in found["1/L"].verdict and "SDE-like" in found["1/sqrt(L)"].verdict


def test_space_needs_grids_that_double():
    case = build_case(ConvergenceConfig(**TINY))
    for tokens in ((8, 16), (8, 16, 24), (MODES - 1, 2 * MODES - 2, 4 * MODES - 4)):
        with pytest.raises(ValueError, match="spatial"):
            spatial_convergence(case.base, case.u0, tokens=tokens, diffusivity=0.02)
