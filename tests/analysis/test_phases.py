"""Piecewise lines: the best segmentation against a search over all, known phases found, lines and walks not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.analysis.information._phases import _surrogate, information_phases

T = 45
DEPTHS = np.arange(float(T))
THREE = np.where(DEPTHS < 15, 0.1 * DEPTHS, np.where(DEPTHS < 30, 1.4, 1.4 - 0.06 * (DEPTHS - 29)))


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape or (T,))


def squares(t, y):
    slope, offset = np.polyfit(t, y, 1)
    return np.sum((y - slope * t - offset) ** 2)


def test_best_segmentation_of_all():
    """Dynamic programming against a search over every pair of breaks; uneven depths."""
    t = np.sort(np.random.default_rng(0).random(20) * 10)
    y = np.sin(t) + 0.2 * noise(1, 20)
    found = information_phases(y, depths=t, resamples=0)
    second = (y[2:] - 2 * y[1:-1] + y[:-2]) ** 2
    scale = np.sqrt(np.mean(second) / 6)
    assert float(found.scale[0]) == pytest.approx(scale, rel=1e-12)
    best = [squares(t, y)]
    best.append(min(squares(t[:i], y[:i]) + squares(t[i:], y[i:]) for i in range(3, 18)))
    options = {
        (i, j): squares(t[:i], y[:i]) + squares(t[i:j], y[i:j]) + squares(t[j:], y[j:])
        for i, j in itertools.combinations(range(3, 18), 2)
        if j - i >= 3
    }
    best.append(min(options.values()))
    np.testing.assert_allclose(found.squares * scale**2, best, rtol=1e-9)
    bic = 20 * np.log(np.asarray(best) / scale**2 / 20) + np.array([2, 5, 8]) * np.log(20)
    np.testing.assert_allclose(found.bic, bic, rtol=1e-9)
    assert int(found.pieces) == 3 and tuple(np.asarray(found.starts)) == (0, *min(options, key=options.get))
    i, j = min(options, key=options.get)
    np.testing.assert_allclose(found.breakpoints, [(t[i - 1] + t[i]) / 2, (t[j - 1] + t[j]) / 2])
    for piece, part in enumerate((slice(0, i), slice(i, j), slice(j, 20))):
        (slope, _), covariance = np.polyfit(t[part], y[part], 1, cov=True)
        assert float(found.slopes[piece, 0]) == pytest.approx(slope, rel=1e-9)
        assert float(found.errors[piece, 0]) == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-9)
    assert np.sum((np.asarray(found.fitted[:, 0]) - y) ** 2) == pytest.approx(best[2], rel=1e-9)
    assert np.isnan(float(found.p_value)) and not bool(found.detected)


def test_three_phases_are_found():
    """At a noise of a twentieth of the height: pieces, breaks, directions and p in nearly all of 12 draws."""
    hits = 0
    for seed in range(12):
        found = information_phases(THREE + 0.05 * noise(seed), key=jax.random.key(seed))
        near = int(found.pieces) == 3 and np.all(
            np.abs(found.breakpoints - np.array([14.5, 29.5])) < 4.5
        )  # a tenth of the curve
        hits += near and bool(found.detected) and found.directions() == [("rises",), ("flat",), ("falls",)]
    assert hits >= 11


@pytest.mark.parametrize("null", ["increments", "residuals"])
def test_straight_noisy_lines_have_none(null):
    """At p < 0.05 at most 3 of 20 (binomial: 98 %)."""
    found = [
        information_phases(0.02 * DEPTHS + 0.1 * noise(s), null=null, key=jax.random.key(s), resamples=100)
        for s in range(20)
    ]
    assert sum(bool(f.detected) for f in found) <= 3
    assert all(float(f.p_value) == 1 for f in found if int(f.pieces) == 1)


def test_walks_have_pieces_by_bic_and_none_by_the_null():
    """What BIC alone would call phases in a random walk: nearly always; with the null at its level."""
    found = [
        information_phases(np.cumsum(0.03 + 0.1 * noise(100 + s)), key=jax.random.key(s), resamples=100)
        for s in range(20)
    ]
    assert sum(int(f.pieces) > 1 for f in found) >= 18
    assert sum(bool(f.detected) for f in found) <= 3


def test_shuffled_steps_are_taken_per_unit_depth():
    """Curves at uneven depths: lines stay as they are, since all their steps per depth are equal; of any other curve the
    steps per depth are those of the curve in another order, the same one for all curves."""
    t = jnp.asarray(np.cumsum([0.0, 0.1, 3.0, 0.2, 0.7, 2.0, 0.05, 1.0]))
    lines = jnp.stack([0.7 * t + 2, -3 * t], 1)
    np.testing.assert_allclose(_surrogate(lines, t, jax.random.key(0), "increments"), lines, rtol=1e-12)
    curves = jnp.stack([jnp.sin(t), t**2], 1)
    found = _surrogate(curves, t, jax.random.key(1), "increments")
    here, there = (np.diff(np.asarray(y), axis=0) / np.diff(t)[:, None] for y in (curves, found))
    orders = [[int(np.argmin(np.abs(here[:, c] - step))) for step in there[:, c]] for c in (0, 1)]
    assert sorted(orders[0]) == list(range(7)) != orders[0] == orders[1]
    np.testing.assert_allclose(there, here[orders[0]], rtol=1e-9, atol=1e-12)


def test_p_values_count_the_curve_itself():
    """Of 20 surrogates: one more than those that gain as much, over 21; never 0."""
    for seed, noisy in ((0, 0.03), (1, 0.6)):
        found = information_phases(THREE + noisy * noise(seed), key=jax.random.key(seed), resamples=20)
        as_much = int(np.sum(np.asarray(found.surrogates) >= float(found.gain)))
        expected = 1.0 if int(found.pieces) == 1 else (1 + as_much) / 21
        assert float(found.p_value) == pytest.approx(expected) and float(found.p_value) >= 1 / 21


def test_units_do_not_matter():
    curves = np.stack([THREE, 0.3 * THREE[::-1]], 1) + 0.03 * noise(4, T, 2)
    a = information_phases(curves, key=jax.random.key(0))
    b = information_phases(curves * np.array([1000.0, 0.01]) + 5, depths=DEPTHS * 0.1 + 3, key=jax.random.key(0))
    assert np.array_equal(a.starts, b.starts) and float(a.p_value) == float(b.p_value)
    np.testing.assert_allclose(b.slopes, np.asarray(a.slopes) * np.array([10_000.0, 0.1]), rtol=1e-6)


def test_exact_lines_and_jit():
    """No noise at all: a straight line is one piece, two exact lines are two."""
    assert int(information_phases(0.3 * DEPTHS, resamples=0).pieces) == 1
    bent = np.where(DEPTHS < 20, DEPTHS, 40 - DEPTHS)
    found = information_phases(bent, resamples=0)
    assert int(found.starts[1]) in (20, 21) and int(found.pieces) == 2
    inside = jax.jit(lambda y: information_phases(y, key=jax.random.key(0), resamples=20))(
        jnp.asarray(THREE + 0.03 * noise(0))
    )
    assert int(inside.pieces) == 3
    lost = jax.jit(lambda y: information_phases(y, resamples=0))(jnp.asarray(THREE).at[3].set(jnp.nan))
    assert int(lost.pieces) == 1 and bool(jnp.isnan(lost.squares[0]))


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: information_phases(np.arange(9), key=jax.random.key(0)), TypeError, "int64"),
        (lambda: information_phases(THREE), ValueError, "key is missing"),
        (lambda: information_phases(THREE[:5], resamples=0), ValueError, "5 points are too few"),
        (lambda: information_phases(np.ones(9), resamples=0), ValueError, "constant"),
        (lambda: information_phases(np.full(9, np.nan), resamples=0), ValueError, "not finite"),
        (lambda: information_phases(THREE, depths=DEPTHS[::-1].copy(), resamples=0), ValueError, "ascend"),
        (lambda: information_phases(THREE, depths=DEPTHS[1:], resamples=0), ValueError, r"depths has shape \(44,\)"),
        (lambda: information_phases(THREE, pieces=0, resamples=0), ValueError, "pieces=0"),
        (lambda: information_phases(THREE, shortest=2, resamples=0), ValueError, "shortest=2"),
        (lambda: information_phases(THREE, null="none", resamples=0), ValueError, "null='none'"),
        (lambda: information_phases(THREE[None, None], resamples=0), ValueError, "must be"),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises((kind, TypeError), match=words):
        call()
