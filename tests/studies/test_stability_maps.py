"""The stability maps against a slow loop in NumPy, and what counts as unstable and as overflow."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from pdejax.studies.numerics._stability_config import FAMILIES, StabilityConfig
from pdejax.studies.numerics._stability_maps import (
    AXES,
    DIFFUSIVITY,
    EXCESS,
    RANGE,
    SLICES,
    TOKENS,
    VALUE_NORM,
    Measured,
    Parameters,
    classify,
    family,
    points,
    run_chunk,
    start_fields,
)

STEPS = 60
# Two runs of every family, on either side of a limit: h, Δx, α, γ, w.
RUNS = {
    "diffusion": [(0.9, 0.3, 1, 0, 1), (1.2, 0.3, 1, 0, 1)],
    "leak": [(0.6, 0.5, 2, 0.5, 1), (0.9, 0.5, 2, 0.5, 1)],
    "mean attention": [(0.5, 0.5, 1, 0, -3), (0.8, 0.5, 1, 0, -3)],
    "linear reaction": [(0.15, 0.5, 1, 0, 10), (0.25, 0.5, 1, 0, 10)],
    "softmax attention": [(0.5, 0.5, 2, 0, 3), (1.2, 0.5, 2, 0, 3)],
    "pre-LN block": [(0.5, 0.4, 1, 0, 1), (3.0, 0.4, 1, 0, 1)],
    "rotation": [(0.5, 0.5, 1, 0.5, 1.2), (0.5, 0.5, 1, 0.5, 6)],
}


def as_points(runs):
    return {axis: np.array([float(run[i]) for run in runs]) for i, axis in enumerate(AXES)}


def twin(name, kind, run, u, v):
    """Euler in NumPy, token by token, and the perturbation by central differences of the step."""
    h, dx, alpha, gamma, w = run
    e = kind.equation
    wq, wk, wv = (np.asarray(x)[:, 0] for x in (e.interaction.wq, e.interaction.wk, e.interaction.wv))
    w1, w2 = np.asarray(e.reaction.w1), np.asarray(e.reaction.w2)
    decay = alpha + gamma if name in ("leak", "softmax attention", "rotation") else 0.0

    def norm(x):
        if name != "pre-LN block":
            return x
        return (x - x.mean()) / math.sqrt(x.var() + 1e-6)

    def attend(x):
        if name == "mean attention":
            return [w * np.mean(x, axis=0)] * TOKENS
        size = math.sqrt(abs(w)) if name == "softmax attention" else 1.0
        rows = []
        for i in range(TOKENS):
            logits = np.array([(size * norm(x[i]) @ wq) @ (size * norm(x[j]) @ wk) / 2 for j in range(TOKENS)])
            share = np.exp(logits - logits.max())
            share /= share.sum()
            rows.append(sum(share[j] * (norm(x[j]) @ wv) for j in range(TOKENS)))
        return rows

    def step(x):
        new = np.empty_like(x)
        mixed = attend(x) if name in ("mean attention", "softmax attention", "pre-LN block") else [0 * x[0]] * TOKENS
        for i in range(TOKENS):
            left, right = x[max(i - 1, 0)], x[min(i + 1, TOKENS - 1)]
            rate = DIFFUSIVITY / dx**2 * (left - 2 * x[i] + right) - decay * x[i] + alpha * mixed[i]
            if name == "linear reaction":
                rate = rate - w * x[i]
            if name == "rotation":
                rate = rate + w * np.array([-x[i][1], x[i][0], -x[i][3], x[i][2]])
            if name == "pre-LN block":
                z = norm(x[i]) @ w1
                rate = rate + (0.5 * z * (1 + erf(z / math.sqrt(2)))) @ w2
            new[i] = x[i] + h * rate
        return new

    def size(x):
        return max(np.linalg.norm(token) for token in x)

    grown, spread = 0.0, min(token.std() for token in u)
    for _ in range(STEPS):
        eps = 1e-6 * size(u)
        v, u = (step(u + eps * v) - step(u - eps * v)) / (2 * eps), step(u)
        grown += math.log(size(v))
        v = v / size(v)
        spread = min(spread, min(token.std() for token in u))
    return math.log(size(u)), grown, spread


@pytest.fixture(scope="module")
def fields():
    return start_fields(0)


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_a_slow_loop(name, fields):
    kind, where = family(name, 0), as_points(RUNS[name])
    parameters = Parameters(*(jnp.asarray(x) for x in kind.parameters(where)))
    fast = run_chunk(kind.equation, parameters, *fields, STEPS)
    slow = Measured(*np.array([twin(name, kind, run, *map(np.asarray, fields)) for run in RUNS[name]]).T)
    np.testing.assert_allclose(fast.state, slow.state, atol=1e-8)
    np.testing.assert_allclose(fast.spread, slow.spread, rtol=1e-8)
    # Differences of a state that has blown up straddle the bends of the softmax.
    calm = slow.state < 10 if name in ("softmax attention", "pre-LN block") else np.full(2, True)
    np.testing.assert_allclose(np.asarray(fast.perturbation)[calm], slow.perturbation[calm], atol=1e-3)
    status = classify(kind, where, fast, STEPS)["status"]
    np.testing.assert_array_equal(status, classify(kind, where, slow, STEPS)["status"])
    assert list(status) == [0, 1]


def test_weights_have_the_norms_that_the_bounds_use():
    for name in ("softmax attention", "pre-LN block"):
        a = family(name, 3).equation.interaction
        assert np.linalg.norm(a.wq[:, 0] @ a.wk[:, 0].T, 2) / 2 == pytest.approx(1)
        assert np.linalg.norm(a.wv[:, 0], 2) == pytest.approx(VALUE_NORM)
        np.testing.assert_array_equal(a.wo[0], np.eye(4))
    r = family("linear reaction", 3).equation.reaction
    u = jax.random.normal(jax.random.key(0), (5, 4))
    np.testing.assert_allclose(r.network(u), -u, atol=1e-14)


def classified(name, run, state=0.0, perturbation=0.0, steps=400):
    measured = Measured(*map(np.atleast_1d, (state, perturbation, 0.5)))
    return {k: v[0] for k, v in classify(family(name, 0), as_points([run]), measured, steps).items()}


def judge(name, run, state, perturbation, steps=400):
    return int(classified(name, run, state, perturbation, steps)["status"])


def test_growth_a_thousandfold_beyond_the_flow_is_unstable():
    """Of the state, of a perturbation, and beyond what the flow itself may grow: mean attention with W = 2 over a depth of 4."""
    for allowed, name, run in ((0.0, "diffusion", (0.1, 1, 1, 0, 1)), (8.0, "mean attention", (0.01, 1, 1, 0, 2))):
        for grown, status in ((999.0, 0), (1001.0, 1)):
            assert judge(name, run, allowed + math.log(grown), 0.0) == status
            assert judge(name, run, 0.0, allowed + math.log(grown)) == status
    # Where the flow may grow by 1e97 a thousandfold more is still in range, by 1e98 it is not.
    for decades, status in ((96.9, 0), (97.1, 2)):
        assert judge("mean attention", (0.01, 1, 1, 0, decades * math.log(10) / 4), 0.0, 0.0) == status


@pytest.mark.parametrize(
    ("name", "run", "left"),
    [
        # h(4D/Δx² + c + G)/2 with D = 0.05, and v1 (21) 2Dh/Δx² + αh‖W_O‖.
        ("diffusion", (2.0, 0.1, 3, 4, 5), (20.0, 20.0)),
        ("leak", (0.5, 0.5, 2, 3, 7), (0.2, 0.25 * (0.8 + 5))),
        ("linear reaction", (0.5, 0.5, 2, 3, 7), (0.2, 0.25 * (0.8 + 7))),
        ("rotation", (0.5, 0.5, 2, 3, 4), (0.2, 0.25 * (0.8 + 5 + 4))),
        ("rotation", (0.5, 0.5, 2, 3, 5.1), (0.2, np.inf)),
        ("softmax attention", (0.5, 0.5, 2, 3, 1), (1.2, 0.25 * (0.8 + 5 + 2 * 0.5 * 3))),
        ("softmax attention", (0.5, 0.5, 2, 3, 2.1), (1.2, np.inf)),
        ("mean attention", (0.5, 0.5, 2, 3, -4), (1.2, np.inf)),
        ("pre-LN block", (0.5, 0.5, 2, 3, 1), (1.2, np.inf)),
    ],
)
def test_left_sides_of_both_bounds(name, run, left):
    """By hand, diffusive part and all; inf where G > c, for which there is no certificate."""
    found = classified(name, run)
    assert (found["v1_left"], found["corrected_left"]) == pytest.approx(left, rel=1e-12)


def test_a_rotation_faster_than_its_leak_grows_at_a_step_that_the_formula_would_allow(fields):
    """c = 1, G = w = 20: 2/(4D/Δx² + c + G) = 0.094, and |1 + h(−1 + 20i)| > 1 from h = 2/401 on."""
    kind, where = family("rotation", 0), as_points([(0.08, 1, 1, 0, 20)])
    found = run_chunk(kind.equation, Parameters(*map(jnp.asarray, kind.parameters(where))), *fields, 60)
    # On the mean, which diffusion does not damp: no more than a few percent of the start.
    assert float(found.state[0]) > 60 * math.log(abs(1 + 0.08 * (-1 + 20j))) - 5
    assert classify(kind, where, found, 60)["status"][0] == 1


def test_overflow_counts_as_such():
    # The flow of mean attention with W = +5 grows by e^{5T}: 400 steps of 0.5 leave the range whatever the run did.
    assert judge("mean attention", (0.5, 1, 1, 0, 5.0), RANGE, RANGE) == 2
    assert judge("mean attention", (0.5, 1, 1, 0, 5.0), 0.0, 0.0) == 2
    # The same growth is the flow's own over a shorter depth, and the scheme's with the other sign.
    assert judge("mean attention", (0.05, 1, 1, 0, 5.0), 100.0, 100.0) == 0
    assert judge("mean attention", (0.05, 1, 1, 0, -5.0), 100.0, 100.0) == 1


def test_a_bounded_state_with_growing_perturbations_is_unstable():
    run = (0.1, 1, 1, 40, 1)
    assert judge("softmax attention", run, 0.0, EXCESS + 1) == 1
    assert judge("softmax attention", run, 0.0, EXCESS - 1) == 0
    # Where the flow may amplify them out of range as well, they are not judged.
    assert judge("softmax attention", (1.0, 1, 1, 0, 30), 0.0, 1e3) == 0


def test_points_are_a_slice_and_draws():
    config = StabilityConfig(resolution=5, draws=200)
    for name, other in SLICES.items():
        where = points(config, name)
        assert all(len(where[axis]) == 225 for axis in AXES)
        cut = {axis: where[axis][:25].reshape(5, 5) for axis in AXES}
        assert np.ptp(cut["step"], axis=1).max() == 0 and np.all(np.diff(cut["step"][:, 0]) > 0)
        assert np.ptp(cut[other], axis=0).max() == 0 and np.all(np.diff(cut[other][0]) > 0)
        assert np.all(where["damping"] >= 0) and 0.3 < np.mean(where["damping"][25:] == 0) < 0.7
    again = points(config, "leak")
    np.testing.assert_array_equal(again["step"], points(config, "leak")["step"])
