"""Figures: what arithmetic, indexing, transformations and printing do with a value, its interval and its nulls."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax._figure import AbstractRecord

VALUE = jnp.asarray([1.0, 2.0, 4.0])


def figure():
    null = pj.Figure(0.5 * VALUE, 0.4 * VALUE, 0.6 * VALUE)
    return pj.Figure(VALUE, VALUE - 0.25, VALUE + 0.25, {"tokens": null, "uniform": 0.1 * VALUE}, 0.9)


@pytest.mark.parametrize("other", [2.0, VALUE, np.asarray(VALUE), "figure"])
def test_arithmetic_and_comparison_act_on_the_value(other):
    found = figure()
    theirs, x = (found, VALUE) if isinstance(other, str) else (other, other)
    for operation in (
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: a / b,
        lambda a, b: a**b,
        lambda a, b: a < b,
        lambda a, b: a <= b,
        lambda a, b: a > b,
        lambda a, b: a >= b,
        lambda a, b: a == b,
        lambda a, b: a != b,
    ):
        for ours, expected in (
            (operation(found, theirs), operation(VALUE, x)),
            (operation(theirs, found), operation(x, VALUE)),
        ):
            assert not isinstance(ours, pj.Figure)
            np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(-found, -VALUE)
    np.testing.assert_array_equal(abs(pj.Figure(-VALUE)), VALUE)


def test_it_is_taken_for_an_array():
    found = figure()
    assert (
        found.shape == (3,) and found.ndim == 1 and found.size == 3 and found.dtype == VALUE.dtype and len(found) == 3
    )
    np.testing.assert_array_equal(jnp.asarray(found), VALUE)
    np.testing.assert_array_equal(np.asarray(found), VALUE)
    np.testing.assert_array_equal(jnp.log(found), jnp.log(VALUE))
    np.testing.assert_array_equal(jnp.where(found > 1, found, 0.0), [0, 2, 4])
    assert float(jnp.sum(found)) == 7 and float(jnp.max(found)) == 4 and np.mean(found) == pytest.approx(7 / 3)
    assert (
        float(found[1]) == 2
        and int(found[1]) == 2
        and bool(found[1] > 1.5)
        and float(jnp.stack([found[0], found[1]])[1]) == 2
    )


def test_an_index_slices_the_ends_and_the_nulls():
    found = figure()[1]
    assert float(found) == 2 and float(found.low) == 1.75 and float(found.high) == 2.25 and found.level == 0.9
    assert float(found.nulls["tokens"]) == 1 and float(found.nulls["tokens"].high) == pytest.approx(1.2)
    assert float(found.nulls["uniform"]) == pytest.approx(0.2)
    assert [float(one) for one in figure()] == [1, 2, 4]
    assert figure()[1:].shape == (2,) and figure()[None].nulls["tokens"].shape == (1, 3)


def test_the_difference_from_a_null():
    paired = pj.Figure(0.5 * VALUE, 0.4 * VALUE, 0.6 * VALUE)
    found = pj.Figure(VALUE, nulls={"a": 0.5 * VALUE, "b": 0.0}, differences={"a": paired})
    np.testing.assert_array_equal(found.minus("a").low, paired.low)
    np.testing.assert_array_equal(found.minus("b"), VALUE)
    assert np.all(np.isnan(found.minus("b").low))
    with pytest.raises(KeyError, match="'c' is unknown"):
        found.minus("c")


def test_it_passes_through_jit_and_vmap():
    def twice(found):
        return jax.tree.map(lambda x: 2 * x, found), found + 1, found.nulls["tokens"] - found

    for function in (twice, jax.jit(twice), jax.vmap(twice)):
        doubled, more, gap = function(figure())
        np.testing.assert_array_equal(doubled.high, 2 * (VALUE + 0.25))
        np.testing.assert_array_equal(more, VALUE + 1)
        np.testing.assert_array_equal(gap, -0.5 * VALUE)
    made = jax.jit(jax.vmap(lambda x: pj.Figure(x, x - 1, x + 1, {"none": 0.0})))(VALUE)
    np.testing.assert_array_equal(made.low, VALUE - 1)
    np.testing.assert_array_equal(made.nulls["none"], 0 * VALUE)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(pj.Figure(x) * 3.0))(VALUE), [3, 3, 3])


def test_python_numbers_keep_double_precision():
    found = pj.Figure(1 / 3, 0.1, 0.5)
    assert float(found) == 1 / 3 and float(found.low) == 0.1 and found.shape == () and np.isnan(pj.Figure(1).low)


def test_what_it_prints():
    assert repr(figure()[1]) == "Figure(2 [1.75, 2.25], tokens 1 [0.8, 1.2], uniform 0.2)"
    assert repr(pj.Figure(0.12345)) == "Figure(0.123)"
    lines = repr(figure()).splitlines()
    assert lines[0] == "Figure (3,):" and lines[3] == "  2: 4 [3.75, 4.25], tokens 2 [1.6, 2.4], uniform 0.4"
    assert len(repr(pj.Figure(jnp.zeros((20, 5)))).splitlines()) == 10
    assert figure().summary() == "1 [0.75, 1.25] … 4 [3.75, 4.25], tokens 2 [1.6, 2.4], uniform 0.4 (3,)"
    seen = []
    jax.jit(lambda f: seen.append(repr(f)))(figure())
    assert "float64[3]" in seen[0] and "tokens" in seen[0]


def test_figures_of_numpy_print_as_those_of_jax():
    """An entry of a NumPy array is a scalar of NumPy, not an array: it was printed as unknown."""
    given = (np.arange(6.0).reshape(2, 3), np.arange(12), np.asarray([True, False]), np.asarray(2.5), np.ones((0, 2)))
    for value in given:
        ends = (value - 0.25, value + 0.25) if value.dtype == float else (None, None)
        nulls = {"null": 0.5 * value}
        ours = pj.Figure(value, *ends, nulls)
        theirs = jax.tree.map(jnp.asarray, ours)
        assert repr(ours) == repr(theirs) and ours.summary() == theirs.summary() and "?" not in repr(ours)
        for one, other in zip(ours, theirs, strict=True) if value.ndim else ():
            assert repr(one) == repr(other) and one.summary() == other.summary()
    assert repr(pj.Figure(np.asarray([1.0, 2.0]))) == "Figure (2,):\n  0: 1\n  1: 2"
    assert repr(pj.Figure(np.float32(0.5), np.float32(0.25), 1.0)) == "Figure(0.5 [0.25, 1])"

    class Record(AbstractRecord):
        share: Any
        rates: Any

    assert repr(Record(np.float64(0.25), np.asarray([1.0, 2.0]))) == "Record\n  share: 0.25\n  rates: 1, 2"


def test_what_a_record_prints():
    class Inner(AbstractRecord):
        cosine: pj.Figure

    class Record(AbstractRecord):
        layers: Inner
        ts: jax.Array
        by_name: dict
        missing: pj.Figure | None
        law: str = eqx.field(static=True)

    found = Record(Inner(figure()[0]), jnp.arange(3), {"a": figure()[2]}, None, "exponential")
    assert repr(found).splitlines() == [
        "Record",
        "  layers",
        "    cosine: 1 [0.75, 1.25], tokens 0.5 [0.4, 0.6], uniform 0.1",
        "  ts: 0, 1, 2",
        "  by_name",
        "    a: 4 [3.75, 4.25], tokens 2 [1.6, 2.4], uniform 0.4",
        "  law: 'exponential'",
    ]


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"Figure: low has shape \(2,\); it must be that of the value, \(3,\)"):
        pj.Figure(VALUE, VALUE[:2], VALUE)
    with pytest.raises(ValueError, match=r"Figure: nulls\['a'\] has shape \(2,\)"):
        pj.Figure(VALUE, nulls={"a": VALUE[:2]})
