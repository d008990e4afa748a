"""Leaving a loop, its safe range, its sub-layers, the cheap estimates, and answers foreseen: planted numbers."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import beta

from pdejax.analysis.loops import (
    Loop,
    cheap_radii,
    exit_rules,
    exit_scores,
    loop_eigenvalues,
    loop_of,
    predict_change,
    safe_range,
    sublayer_gains,
)
from pdejax.analysis.loops._estimates import LARGEST, NORM, ONE, POWER, PRODUCT, RATIO
from pdejax.analysis.loops._exits import COSINE, DIVERGENCE, RATE, RELATIVE, STEP

K = 60
RATES = np.asarray([0.5, 0.6, 0.7, 0.8, 0.9, 0.55, 0.65, 0.75])


class Affine(eqx.Module):
    matrix: jax.Array
    shift: jax.Array

    def __call__(self, u):
        return (self.matrix @ u.ravel()).reshape(u.shape) + self.shift


class Logits(eqx.Module):
    table: jax.Array

    def __call__(self, u):
        return self.table @ u.ravel()


def affine(matrix, shift=0.0, start=None):
    n = len(matrix)
    u = jnp.arange(1.0, n + 1).reshape(-1, 1) if start is None else jnp.asarray(start, float).reshape(-1, 1)
    return loop_of(Affine(jnp.asarray(matrix, float), jnp.broadcast_to(jnp.asarray(shift, float), (n, 1))), u)


def states(rate):
    """u_k = c + e ρ^k: the limit is 10 away from the origin, the error ρ^k."""
    k = np.arange(K + 1)[:, None, None]
    return np.asarray([10.0, 0.0])[None, None] + rate**k * np.asarray([0.0, 10.0])[None, None]


def test_scores_in_closed_form():
    """Of a geometric approach each criterion is a formula, and the extrapolated error is the error itself, to first order."""
    rate = 0.7
    logits = np.stack([np.asarray([0.0, rate**k]) for k in range(K + 1)])
    found = exit_scores(states(rate), logits)
    k = np.arange(1, K + 1)
    step = 10 * rate ** (k - 1) * (1 - rate)
    size = 10 * np.hypot(1, rate**k)
    np.testing.assert_allclose(found[STEP], step / math.sqrt(2), rtol=1e-9)
    np.testing.assert_allclose(found[RELATIVE], step / size, rtol=1e-9)
    np.testing.assert_allclose(found[RATE][1:], 10 * rate ** k[1:] / size[1:], rtol=1e-6)
    assert found[RATE][0] == np.inf
    turned = np.arctan(rate ** (k - 1.0)) - np.arctan(rate**k)
    np.testing.assert_allclose(found[COSINE], 1 - np.cos(turned), rtol=1e-5, atol=1e-14)
    p = 1 / (1 + np.exp(-logits[:, 1]))
    kl = p[:-1] * np.log(p[:-1] / p[1:]) + (1 - p[:-1]) * np.log((1 - p[:-1]) / (1 - p[1:]))
    np.testing.assert_allclose(found[DIVERGENCE], kl, rtol=1e-6, atol=1e-13)
    masked = exit_scores(
        np.concatenate([states(rate), np.full((K + 1, 1, 2), 7.0)], axis=1), mask=np.asarray([True, False])
    )
    np.testing.assert_allclose(masked[STEP], found[STEP])


@pytest.mark.parametrize("lost", [[np.inf, np.inf, np.nan], [np.nan] * 3, [1e200, np.inf, np.inf]])
def test_what_is_no_number_is_not_at_rest(lost):
    """A loop that diverges, and one that stands still from its fourth state on: only the second has a score of 0."""
    for end, score in ((lost, np.inf), ([4.0] * 3, 0.0)):
        u = np.asarray([1.0, 2.0, 4.0, *end])[:, None, None] * np.ones((1, 2, 2))
        found = exit_scores(u, np.zeros((6, 3)))
        for name in (STEP, RELATIVE, COSINE, RATE):
            np.testing.assert_allclose(found[name][3:], score, atol=1e-15)
        np.testing.assert_array_equal(found[DIVERGENCE][-2:], score)
        assert not np.isnan(list(found.values())).any()


def test_the_cheapest_exit_knows_the_rate():
    """Inputs of different rates: a step norm that is safe for the slow ones waits too long with the fast; the extrapolated
    error leaves each when it is there."""
    target = 0.01
    scores: dict[str, list[np.ndarray]] = {}
    for rate in np.repeat(RATES, 3):
        for name, value in exit_scores(states(rate)).items():
            scores.setdefault(name, []).append(value)
    errors = np.stack([rate ** np.arange(1, K + 1) for rate in np.repeat(RATES, 3)])
    errors[errors < 1e-300] = 0.0
    rules = exit_rules({name: np.stack(rows) for name, rows in scores.items()}, errors, target=target)
    oracle = np.ceil(np.log(target) / np.log(np.repeat(RATES, 3)))
    np.testing.assert_allclose(float(rules[0].loops.nulls["oracle"]), oracle.mean())
    by_name = {rule.name: rule for rule in rules}
    assert rules[0].name == RATE and float(rules[0].loops) == pytest.approx(oracle.mean(), abs=0.6)
    assert float(by_name[STEP].loops) > float(by_name[RATE].loops) + 2
    assert float(rules[0].kept) >= 0.95


def test_a_rule_that_breaks_its_promise_comes_last():
    """A score of another scale on every second input is cheap on the half it was not chosen on, and wrong there."""
    rng = np.random.default_rng(0)
    errors = np.stack([0.8 ** np.arange(1, K + 1) * s for s in rng.uniform(0.5, 20, 40)])
    scale = np.where(np.arange(40) % 2, 0.01, 1.0)[:, None]
    rules = exit_rules({"two scales": scale * errors, "the error": errors}, errors, target=0.05, kept=0.9)
    assert [rule.name for rule in rules] == ["the error", "two scales"]
    assert float(rules[0].kept) >= 0.9 and float(rules[1].kept) == 0.5
    assert float(rules[0].loops) == pytest.approx(float(rules[0].loops.nulls["oracle"]), abs=1.0)
    # Without a threshold that would do nobody leaves before the end.
    useless = exit_rules({"nothing": np.ones_like(errors)}, errors, target=0.05)[0]
    assert float(useless.loops) == K and float(useless.kept) == 1.0 and useless.threshold == -np.inf


def test_errors_without_end_are_counted():
    """Outputs that are no numbers at the exit: the mean is of the others, and how many there are is said."""
    errors = np.tile(0.5 ** np.arange(1.0, 9.0), (8, 1))
    errors[:3] = [[np.inf] * 8, [np.nan] * 8, [np.inf] * 8]
    rule = exit_rules({"never": np.ones((8, 8))}, errors, target=0.01, kept=0.9)[0]
    assert rule.lost == 3 and float(rule.kept) == pytest.approx(5 / 8)
    assert float(rule.error) == float(rule.error.low) == float(rule.error.high) == 0.5**8
    assert float(exit_rules({"never": np.ones((8, 8))}, errors + np.inf, target=0.01)[0].error) == np.inf


def test_the_range_ends_where_an_answer_is_left():
    """An answer that returns is not safe; intervals are those of the binomial law."""
    answers = np.tile(np.arange(21) * 0 + 4, (10, 1))
    answers[0, 9:] = 1
    answers[1, 7:9] = 2
    found = safe_range(answers, trained=5, share=0.85)
    assert found.per_input.tolist() == [8, 6] + [20] * 8
    assert (found.loops, found.censored) == (8, False)
    assert safe_range(answers, trained=5, share=0.8).censored
    assert found.certain == 5
    np.testing.assert_allclose(np.asarray(found.kept.value)[[5, 8, 9, 20]], [1.0, 0.9, 0.9, 0.9])
    np.testing.assert_allclose(found.kept.low[9], beta.ppf(0.025, 9, 2), rtol=1e-9)
    np.testing.assert_allclose(found.kept.high[9], beta.ppf(0.975, 10, 1), rtol=1e-9)
    assert found.kept.high[5] == 1.0 and found.kept.low[5] == pytest.approx(beta.ppf(0.025, 10, 1))
    per_token = np.stack([answers, answers * 0 + 4], axis=2)
    assert safe_range(per_token, trained=5, share=0.85).per_input.tolist() == found.per_input.tolist()


def test_no_answer_is_not_kept():
    """−2, an output that is not finite: of a loop that left the numbers before the trained pass, and of one after it."""
    none = safe_range(np.full((80, 10), -2), trained=3)
    assert (none.loops, none.certain, none.censored) == (2, 2, False)
    assert none.per_input.tolist() == [2] * 80 and not np.any(none.kept.value)
    answers = np.full((80, 10), 5)
    kept = safe_range(answers, trained=3)
    assert (kept.loops, kept.certain, kept.censored) == (9, 9, True)
    answers[:, 7:] = -2
    assert safe_range(answers, trained=3).loops == safe_range(answers, trained=3).certain == 6
    tokens = np.stack([answers * 0 + 4, answers], axis=2)
    assert safe_range(tokens, trained=3).loops == 6 and safe_range(tokens, trained=8).loops == 7


@pytest.mark.parametrize(("inputs", "certain"), [(71, 3), (72, 9)])
def test_a_certain_range_takes_inputs(inputs, certain):
    found = safe_range(np.full((inputs, 10), 5), trained=3, share=0.95)
    assert (found.loops, found.certain) == (9, certain)


def test_gains_multiply_to_the_radius():
    """Sub-layers that are matrices: norms by NumPy, and gains along the dominant direction whose product is |λ|."""
    rng = np.random.default_rng(3)
    one, two = rng.standard_normal((2, 4, 4))
    parts = tuple(Affine(jnp.asarray(m), jnp.zeros((4, 1))) for m in (one, two))
    whole = Affine(jnp.asarray(two @ one), jnp.zeros((4, 1)))
    loop = Loop(whole, jnp.ones((4, 1)), None, parts, None, ("one", "two"), None)
    found = sublayer_gains(loop, jnp.ones((4, 1)))
    np.testing.assert_allclose(found.norms, [np.linalg.norm(m, 2) for m in (one, two)], rtol=1e-8)
    radius = np.abs(np.linalg.eigvals(two @ one)).max()
    assert found.radius == pytest.approx(radius, rel=1e-9) and np.prod(found.gains) == pytest.approx(radius, rel=1e-9)
    assert found.product >= np.linalg.norm(two @ one, 2) - 1e-9


def test_what_cheap_estimates_are():
    """One random vector measures ‖J‖_F/√N, the largest entry is the radius of a diagonal alone, five steps do not settle on a
    pair; and a far from normal loop is called unstable by its norm."""
    c, s = 0.9 * math.cos(1.0), 0.9 * math.sin(1.0)
    matrix = np.zeros((8, 8))
    matrix[:2, :2] = [[c, -s], [s, c]]
    matrix[2:, 2:] = np.diag(np.full(6, 0.1))
    loop = affine(matrix)
    found = cheap_radii(loop, loop.start, draws=400)
    assert found.radius == pytest.approx(0.9) and found.residual < 1e-12
    mean_square = np.mean(np.asarray(found.estimates[ONE].differences["draws"].value) ** 2)
    assert mean_square == pytest.approx(np.linalg.norm(matrix) ** 2 / 8, rel=0.1)
    assert float(found.estimates[LARGEST]) == pytest.approx(s) and float(found.estimates[NORM]) == pytest.approx(0.9)
    assert float(found.estimates[PRODUCT]) == pytest.approx(0.9)
    u = np.asarray(loop.start).ravel()
    steps = [np.linalg.norm(np.linalg.matrix_power(matrix, k) @ (matrix @ u - u)) for k in (0, 1)]
    assert float(found.estimates[RATIO]) == pytest.approx(steps[1] / steps[0], rel=1e-9)
    assert found.estimates[POWER].low <= 0.9 + 1e-9
    skew = affine([[0.5, 8.0], [0.0, 0.5]])
    told = cheap_radii(skew, skew.start)
    assert told.radius == pytest.approx(0.5, abs=1e-7) and told.wrong_side()[NORM] == 1.0
    assert told.wrong_side()[LARGEST] == 1.0 and RATIO in told.estimates


@pytest.mark.parametrize(("rate", "change"), [(1.1, 8), (0.9, 41)])
def test_a_change_is_foreseen(rate, change):
    """An affine loop with a linear head: u = ρ^j grows past 2 at j = 8 for ρ = 1.1; a shrinking one never does."""
    # Class 0 wins where the first entry exceeds 2: by a constant feature that the loop keeps.
    keeps = affine(np.diag([rate, 0.3, 1.0]), start=[1.0, 1.0, 2.0])
    head = Logits(jnp.asarray([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    loop = Loop(keeps.step, keeps.start, None, keeps.parts, head, ("the map",), 1)
    found = predict_change(loop, loop.start, horizon=40)
    assert found.loops == found.measured == change
    np.testing.assert_array_equal(found.answers, found.actual)
    assert np.min(np.abs(found.ritz - rate)) < 1e-9


def test_affine_loops_are_foreseen_exactly_for_as_many_passes_as_there_are_vectors():
    """Rotations of 40 entries, whose answers never rest: exact for `krylov` passes, for all with as many as entries."""
    later = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        matrix = 0.99 * np.linalg.qr(rng.standard_normal((40, 40)))[0]
        keeps = affine(matrix, shift=rng.standard_normal((40, 1)), start=rng.standard_normal(40))
        head = Logits(jnp.asarray(rng.standard_normal((5, 40))))
        loop = Loop(keeps.step, keeps.start, None, keeps.parts, head, ("the map",), 1)
        few, all_ = (predict_change(loop, loop.start, horizon=64, krylov=krylov) for krylov in (12, 40))
        np.testing.assert_array_equal(few.answers[:13], few.actual[:13])
        np.testing.assert_array_equal(all_.answers, all_.actual)
        later.append(np.mean(few.answers[13:] == few.actual[13:]))
    assert np.mean(later) < 0.9


def test_a_point_has_no_change_to_foresee():
    keeps = affine(np.diag([0.5, 0.5]), shift=1.0, start=[2.0, 2.0])
    loop = Loop(keeps.step, keeps.start, None, keeps.parts, Logits(jnp.eye(2)), ("the map",), 1)
    found = predict_change(loop, loop.start, horizon=6)
    assert found.loops == found.measured == 7 and found.ritz.size == 0


class Squares(eqx.Module):
    """u² on the first entry, the second as it is: J there is 2u."""

    def __call__(self, u):
        return u.at[0].set(u[0] ** 2)


@pytest.mark.parametrize("power", [20, 80, 160])
def test_what_is_foreseen_beyond_the_numbers_is_no_answer(power):
    """From u = 10^p the squares go on as 10^(p 2^j), and s (2u)^(j−1), s ≈ u², is foreseen: no answer beyond 1e308."""
    u = jnp.asarray([[10.0**power], [1.0]])
    loop = Loop(Squares(), u, None, (Squares(),), Logits(jnp.eye(2)), ("the map",), 1)
    found = predict_change(loop, u, horizon=20)
    log = math.log10(np.finfo(float).max)
    measured = next(j for j in range(21) if power * 2**j > log)
    foreseen = next(j for j in range(1, 21) if 2 * power + (j - 1) * (power + math.log10(2)) > log)
    assert (found.loops, found.measured) == (foreseen, measured)
    for answers, first in ((found.answers, foreseen), (found.actual, measured)):
        assert set(answers[:first]) == {0} and set(answers[first:]) == {-2}


def test_without_an_answer_nothing_is_kept():
    head = Logits(jnp.asarray([[jnp.inf, 0.0], [0.0, 1.0]]))
    keeps = affine(np.diag([0.5, 0.5]), start=[1.0, 1.0])
    found = predict_change(
        Loop(keeps.step, keeps.start, None, keeps.parts, head, ("the map",), 1), keeps.start, horizon=5
    )
    assert found.loops == found.measured == 0 and set(found.actual) == {-2}


WRONG = {
    "errors of one input": (lambda: exit_rules({}, np.ones((1, 3)), target=0.1), "at least 4 inputs"),
    "scores of another shape": (
        lambda: exit_rules({"a": np.ones((4, 2))}, np.ones((4, 3)), target=0.1),
        "scores\\['a'\\]",
    ),
    "no target": (lambda: exit_rules({}, np.ones((4, 3)), target=0.0), "target=0"),
    "no passes": (lambda: exit_scores(np.ones((1, 2))), "at least one pass"),
    "answers of no pass": (lambda: safe_range(np.ones((4, 1)), trained=0), "answers has shape"),
    "trained beyond": (lambda: safe_range(np.ones((4, 3)), trained=3), "trained=3"),
    "no head": (lambda: predict_change(affine(np.eye(2)), jnp.ones((2, 1))), "has no head"),
    "one draw": (lambda: cheap_radii(affine(np.eye(2)), jnp.ones((2, 1)), draws=1), "draws=1"),
    "no eigenvalue": (lambda: loop_eigenvalues(affine(np.eye(2)), jnp.ones((2, 1)), count=0), "count=0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refusals(name):
    run, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        run()
